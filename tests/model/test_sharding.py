"""Processes that share one base model's weights find what a single process finds that has them all."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from transformers import PreTrainedModel

from latent_cot.model.processes import Processes
from latent_cot.model.sharding import is_sharded, shard
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError
from tests import sharded_work
from tests.model.test_processes import ROOT, forked, launch
from tests.sharded_work import half, held, models, rules_for
from tests.shared_work import gradients
from tests.worlds import language_model

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` tells the processes."""
COUNTS = (2, 4)


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds, and has saved of a half of a training."""
    lm = language_model(tiny_model_dir)
    saved = tmp_path_factory.mktemp("half")
    found = {"held": held(lm), "digest": lm.base_digest(), "models": models(lm)}
    found["gradients"] = gradients(lm, rules_for(lm))
    half(lm, save=saved)
    return {**found, "saved": saved, "resumed": half(lm, resume=saved)}


@pytest.fixture(scope="module")
def folders(alone: dict[str, Any], tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of processes -> where each of them has written what it has found; two of them with gradient
    checkpointing."""
    pytest.importorskip("peft", minversion="0.21")
    found = {}
    for count in COUNTS:
        found[count] = tmp_path_factory.mktemp("found")
        given = (str(tiny_model_dir), str(found[count]), str(alone["saved"]), str(int(count == 2)))
        forked(partial(sharded_work.main, *given), processes=count, **FSDP)
    return found


@pytest.fixture(scope="module")
def found(folders: dict[int, Path]) -> dict[int, list[dict[str, Any]]]:
    return {count: [json.loads((of / f"{k}.json").read_text()) for k in range(count)] for count, of in folders.items()}


def assert_alike(ours: Any, theirs: Any, name: str = "") -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_they_find_what_one_finds(found: dict[int, list[dict[str, Any]]], alone: dict[str, Any], count: int) -> None:
    """Rewards, greedy chains, the figures of updates of all kinds, and the weights after them: though their shares of
    five questions take different numbers of passes."""
    ours, theirs = found[count][0]["gradients"], alone["gradients"]
    assert ours["greedy"] == [[list(chain) for chain in of_one] for of_one in theirs["greedy"]]
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert_alike(ours[name], expected, name)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_they_have_the_same_models(found: dict[int, list[dict[str, Any]]], alone: dict[str, Any], count: int) -> None:
    ours, theirs = found[count][0]["models"], alone["models"]
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert_alike(ours[name], expected, name)
    assert ours["q"] != ours["p"] == ours["prior"] != ours["base"]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_they_stay_alike(found: dict[int, list[dict[str, Any]]], count: int) -> None:
    """Exactly, to the end of runs of several methods."""
    first, *others = found[count]
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_each_holds_a_part(found: dict[int, list[dict[str, Any]]], alone: dict[str, Any], count: int) -> None:
    """Of each layer; all else; and one layer of two, while it runs."""
    whole = alone["held"]
    assert whole["layers here"] == whole["layers"]
    for one in found[count]:
        assert one["sharded"]
        layers, resting = one["held"]["layers"], one["held"]["layers here"]
        assert (layers, one["held"]["others here"]) == (whole["layers"], whole["others here"])
        assert resting == layers / count
        assert one["held"]["most"] == whole["others here"] + layers / 2 + resting / 2


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_another_number_goes_on(
    found: dict[int, list[dict[str, Any]]],
    folders: dict[int, Path],
    alone: dict[str, Any],
    tiny_model_dir: Path,
    count: int,
) -> None:
    """From what one process has saved, and one from what several have: to the same weights. It is the same model."""
    assert found[count][0]["digest"] == alone["digest"]
    assert_alike(found[count][0]["resumed"], alone["resumed"])
    assert_alike(half(language_model(tiny_model_dir), resume=folders[count] / "half"), alone["resumed"])


@pytest.mark.slow
def test_a_run_by_accelerate_launch(tiny_model_dir: Path, tmp_path: Path) -> None:
    """By the configuration of the examples, in bf16 where there is; one process goes on with it."""
    pytest.importorskip("peft", minversion="0.21")
    program = ("-m", "latent_cot.cli", "em", "--output-dir", str(tmp_path / "run"))
    settings = ("--model", str(tiny_model_dir), "--preset", "smoke")
    config = ("--config_file", str(ROOT / "examples/fsdp.yaml"), "--num_processes", "2", "--main_process_port", "0")
    launch("-m", "accelerate.commands.launch", *config, *program, *settings, processes=1)
    folder = RunFolder.open(tmp_path / "run")
    notes = [event.get("text", "") for event in folder.events()]
    assert any("its weights divided among 2 processes" in note for note in notes)
    finished = folder.path / "p" / "adapter_model.safetensors"
    was = finished.read_bytes()
    for name in ("results.json", "p", "q"):
        (folder.path / name).rename(tmp_path / name)
    launch(*program, "--resume", processes=1)
    assert finished.read_bytes() == was


def test_the_example_is_one_of_accelerates() -> None:
    config = load_config_from_file(str(ROOT / "examples/fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config == {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}


def two() -> Accelerator:
    """One of two processes, as far as may be asked without the other."""
    return cast("Accelerator", SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu")))


def test_what_cannot_be_sharded(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    base = cast("PreTrainedModel", language_model(tiny_model_dir).peft.get_base_model())
    assert not is_sharded(two())
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    assert is_sharded(two())
    assert not is_sharded(Accelerator(cpu=True))  # a single one
    monkeypatch.setattr(base, "_no_split_modules", None)
    with pytest.raises(UsageError, match=r"decoder layers of a LlamaForCausalLM.*fsdp_transformer_layer_cls_to_wrap"):
        shard(base, two())
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(UsageError, match="fsdp_cpu_ram_efficient_loading is true; give false"):
        shard(base, two())
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match="fsdp_version is 1; give 2"):
        shard(base, two())


def test_one_that_is_done_makes_the_passes_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, elsewhere = Processes(two()), iter([1, 2, 2, 0])
    made: list[bool] = []
    monkeypatch.setattr(processes, "_largest", lambda own: max(own, next(elsewhere)))
    monkeypatch.setattr("latent_cot.model.processes.gather_object", lambda own: own * 2)
    processes.empty_pass = made.append
    assert processes.sum([1.0]) == [2.0]
    assert made == [False, True, True]


def test_passes_of_two_kinds_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other forever."""
    processes = Processes(two())
    monkeypatch.setattr(processes, "_largest", lambda own: max(own, 2))
    processes.announce_pass(backward=True)
    with pytest.raises(RuntimeError, match="different passes"):
        processes.announce_pass(backward=False)
