"""Folders that were swapped or planted, text that is none, numbers without bound: each is one line and status 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latent_cot.model import lm
from latent_cot.model.weights import SOURCE_FILE
from latent_cot.run.resuming import refuse_others
from latent_cot.run.run_folder import Checkpoint
from latent_cot.types import UsageError
from tests.cli.conftest import Cli, environment
from tests.cli.test_bad_input import assert_refused
from tests.tiny import build_tiny_model


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def configure(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda config: config["lora"].update(alpha=9), "saved with lora.alpha 8, and config.yaml has 9"),
        (lambda config: config.update(q_sees="question-and-answer"), "with q_sees 'question', and config.yaml has"),
        (lambda config: config.update(precision="bf16"), "another model, or in another precision"),
    ],
)
def test_a_checkpoint_made_of_something_else(
    cli: Cli, run: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    logged = (run / "events.jsonl").read_text()
    configure(run, change)
    called = cli("em", "--output-dir", run, "--resume")
    assert called.status == 2 and part in called.err, called.err
    assert (run / "events.jsonl").read_text().startswith(logged)  # nothing that was saved is lost


@pytest.mark.parametrize("name", ["training", "settings", "model"])
def test_a_checkpoint_that_does_not_say_what_it_is_of(tmp_path: Path, name: str) -> None:
    own = {"training": "a", "settings": {"seed": 0}, "model": "b"}
    refuse_others(Checkpoint(tmp_path, own, {}), own, "mine.jsonl")
    with pytest.raises(UsageError, match="start again"):
        refuse_others(Checkpoint(tmp_path, {**own, name: None}, {}), own, "mine.jsonl")
    with pytest.raises(UsageError, match="start again"):
        refuse_others(Checkpoint(tmp_path, {key: own[key] for key in own if key != name}, {}), own, "mine.jsonl")


def test_a_checkpoint_of_another_model_of_the_same_shape(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    configure(run, lambda config: config.update(model=str(other)))
    called = cli("em", "--output-dir", run, "--resume")
    assert called.status == 2 and "another model, or in another precision" in called.err


def test_an_adapter_of_another_alpha(cli: Cli, run: Path) -> None:
    configure(run, lambda config: config["lora"].update(alpha=9))
    called = cli("eval", run, "--split", "3-operands", "--size", 1)
    assert called.status == 2 and "trained with --lora.alpha 8, not 9" in called.err


def test_an_adapter_that_is_no_numbers_is_not_exported(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = run / "q" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0] = torch.nan
    save_file(weights, file)
    assert_refused(cli("export", run, tmp_path / "out", "--reasoner", "q"), "weights that are no numbers")
    assert not (tmp_path / "out").exists()


def test_the_card_quotes_what_comes_from_others(cli: Cli, run: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    evil = "x/y\n\n# Injected\n\n```sh\nrm -rf ~\n```\n<script>"
    (model / SOURCE_FILE).write_text(
        json.dumps({"hub_id": evil, "revision": evil, "gguf_sha256": evil, "source": evil})
    )
    configure(run, lambda config: config.update(model=str(model)))
    about = json.loads((run / "run.json").read_text())
    about["versions"]["torch"] = evil
    (run / "run.json").write_text(json.dumps(about))
    called = cli("export", run, tmp_path / "out", "--reasoner", "p")
    assert called.status == 0, called.err
    card = (tmp_path / "out" / "README.md").read_text()
    lines = card.split("---\n", 2)[2].splitlines()
    assert not [line for line in lines if line.startswith(("# Injected", "rm -rf", "<script>", "```sh"))]
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == evil  # as data


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["eval", "caf\udce9"], ["the command line: 'caf\\udce9' is no UTF-8 text"]),
        (["em", "--output-dir", "caf\udce9"], ["the command line", "no UTF-8 text"]),
        (["em", "--output-dir", "~nobody-of-this-name/x"], ["~nobody-of-this-name/x", "write the path in full"]),
        (["em", "--output-dir", "x" * 300], ["a name of more than 255 bytes"]),
        (["em", "--config", "x" * 300], ["a name of more than 255 bytes"]),
        (["report", "x" * 300], ["a name of more than 255 bytes"]),
        (["em", "--config", "/dev/zero"], ["/dev/zero: cannot be read", "no regular file"]),
        (["eval", ".", "--votes", 10**9], ["--votes is 1000000000...; it must be at most 1,000,000"]),
        (["eval", ".", "--seed", "9" * 40], ["--seed is 999999999999; it must be from 0 to"]),
        (["sample", ".", "--question", "1 + 1", "-n", 10**9], ["--n is 1000000000"]),
        (["sample", ".", "--question", "1 + 1", "--seed", "-1"], ["--seed is -1"]),
        (["report", ".", "--samples", 10**9], ["--samples is 1000000000"]),
        (["compare", "--seeds", "9" * 5000], ["--seeds 999", "write them as 0,1,2"]),
        (["em", "--seed", "9" * 40], ["--seed is"]),
        (["em", "--evaluation.votes", 10**9], ["--evaluation.votes is 1000000000"]),
    ],
)
def test_arguments(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[object], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*argv), *parts)
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_no_text(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run began, trained to its end, and could not be read again."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"question": "1 + 1", "answer": 2}\n')
    monkeypatch.chdir(folder)
    assert_refused(cli("em", "--model", "absent", "--data.train-file", "train.jsonl"), "no UTF-8 text")


@pytest.mark.parametrize("name", ["run.json", "results.json", "events.jsonl"])
def test_a_pipe_in_a_runs_folder_is_not_waited_for(cli: Cli, run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    assert_refused(cli("report", run, "--no-model"), name, "no regular file")


@pytest.mark.parametrize(
    "content", ["[]", "7", '{"status": 7}', "[" * 10**5, '{"status": "running", "status": ""}', "9" * 400]
)
def test_a_record_that_is_none(cli: Cli, run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    assert_refused(cli("report", run, "--no-model"), "run.json: ")


def test_a_report_is_not_written_through_a_link(cli: Cli, run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / "report.html").symlink_to(precious)
    (run / f".report.html.{os.getpid()}.tmp").symlink_to(precious)
    assert cli("report", run, "--no-model").status == 0
    assert precious.read_text() == "mine"
    assert "<html" in (run / "report.html").read_text()


def test_ctrl_c_twice_while_resuming_is_no_damage(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in Rust makes an error of its own of an interrupt."""

    def load(data: bytes) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SafetensorError("could not determine the shape") from None

    monkeypatch.setattr(lm, "load", load)
    called = cli("em", "--output-dir", run, "--resume", "--rounds", 2)
    assert called.status == 130
    assert "interrupted" in called.err and "damaged" not in called.err


LAUNCHED = """
import os, time
from types import SimpleNamespace
from latent_cot.model.processes import Processes
os.environ["TORCHELASTIC_RUN_ID"] = "0"
Processes(SimpleNamespace(num_processes=2, process_index=1))
print("up")
time.sleep(60)
"""
LAUNCHER = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-uc", {LAUNCHED!r}], stdout=subprocess.PIPE)
assert worker.stdout.readline() == b"up\\n"
print(worker.pid, flush=True)
worker.wait()
"""


def lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_ends_soon_after_its_launcher_is_killed() -> None:
    command = [sys.executable, "-c", LAUNCHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as launcher:
        assert launcher.stdout is not None
        worker = int(launcher.stdout.readline())
        launcher.kill()
    start = time.monotonic()
    while lives(worker):
        assert time.monotonic() - start < 60
        time.sleep(0.1)
