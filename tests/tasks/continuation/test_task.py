"""The continuation task: prompts, the alphabet of a sentence, the figures, and a run from the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from latent_cot.cli import main
from latent_cot.config.settings import load_config
from latent_cot.model.text import TextCodec
from latent_cot.tasks import embeddings
from latent_cot.tasks.common import share_of
from latent_cot.tasks.continuation import TASK, metrics
from latent_cot.tasks.continuation import task as continuation
from latent_cot.types import DataRequest, Measured, Rationale, Sample, UsageError
from tests.conftest import ROOT
from tests.tiny import build_tokenizer

pytest.importorskip(embeddings.PACKAGE)


# -- prompts -------------------------------------------------------------------------------------------------


def test_its_own_prompts_are_enough_for_the_presets() -> None:
    found = TASK.read(TASK.own)
    assert len(found) >= 60
    for preset in ("cpu", "smoke"):
        data = load_config(preset, task="continuation").data
        loaded = TASK.load(DataRequest(data.demonstrations, data.unlabelled, data.validation))
        assert len(loaded.unlabelled) == data.unlabelled
    assert len(TASK.split("test")) > 10


def test_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("".join(f"This is prompt number {i}. \n" for i in range(100)) + "This is prompt number 3.\n")
    loaded = TASK.load(DataRequest(0, 30, 5, train_file=str(file)))
    assert {share_of(e.question) for e in loaded.unlabelled} == {"train"}
    assert {share_of(e.question) for e in loaded.validation} == {"validation"}
    tests = TASK.split(str(file))
    assert {share_of(e.question) for e in tests} == {"test"}
    assert TASK.split(str(file), 3) == tests[:3]
    assert len(TASK.read(str(file))) == 101
    assert "; 1 left out" in loaded.notes[0]
    smaller = TASK.load(DataRequest(0, 10, 5, train_file=str(file)))
    assert smaller.unlabelled == loaded.unlabelled[:10]
    with pytest.raises(UsageError, match=r"--data.unlabelled: .*mine.txt has \d+ different examples for this, not 90"):
        TASK.load(DataRequest(0, 90, 5, train_file=str(file)))
    with pytest.raises(UsageError, match="no option 'temperature'"):
        TASK.load(DataRequest(0, 3, 1, options={"temperature": "1"}))
    file.write_text("Good.\n" + "x" * 3000 + "\n")
    with pytest.raises(UsageError, match=r"mine.txt:2: .*more than 2,000"):
        TASK.read(str(file))
    file.write_text("This is prompt number 3.\n")
    if share_of("This is prompt number 3.") != "test":
        with pytest.raises(UsageError, match="no example of it"):
            TASK.split(str(file))


def test_documents_of_the_hub_are_cut_to_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [
        "The ferry left an hour late. Nobody knew why it did. It rained. Then a long story follows.",
        "short. No plain beginning",
        '"Quotes," he said, "are no beginning."',
        "Only one plain sentence here.\nAnd then, “more”.",
    ]
    rows = [(f"row {i}", {"text": text}) for i, text in enumerate(documents)]
    monkeypatch.setattr(continuation, "read_rows", lambda source: rows)
    assert [e.x for e in TASK.read("hub:a/b")] == [
        "The ferry left an hour late. Nobody knew why it did.",
        "Only one plain sentence here.",
    ]


def test_published_prompts(shared_data: Path) -> None:
    file = str(shared_data / "openwebtext-prompts" / "prompts.txt")
    assert len(TASK.load(DataRequest(0, 950, 50, train_file=file)).unlabelled) == 950
    assert len(TASK.split(file, 50)) == 50


# -- the alphabet --------------------------------------------------------------------------------------------


def test_what_a_sentence_is_made_of() -> None:
    merges = [("M", "r"), (" ", "U"), (" ", "I"), (" ", "a"), (".", "\n")]
    codec = TextCodec(
        build_tokenizer(merges=merges), stop=TASK.stop, allowed_characters=TASK.allowed_characters, allows=TASK.allows
    )
    pieces = {codec.pieces[i] for i in codec.actions.tolist()}
    assert {" I", " a", "A", "I", "b", "7", ",", "'", ".", " "} <= pieces
    assert not pieces & {"Mr", " U", "U", ".\n", "\n", '"', "!", "?", "/", ":", "("}
    assert codec.pieces[codec.stop_id] == "."


# -- figures -------------------------------------------------------------------------------------------------


def measured(*samples: tuple[str, float, int]) -> Measured:
    return Measured(
        TASK.example("The ferry left."),
        [
            Sample(Rationale((7,) * 3, (True,) * 3, (True,) * 4, text, truncated="..." in text), log_z, -0.5, n)
            for text, log_z, n in samples
        ],
    )


def test_figures() -> None:
    """What was cut counts in the share that finished only, however likely it is."""
    one = measured((" It came back", -4.0, 3), (" It came late", -7.0, 1), (" It went on and...", -1.0, 4))
    two = measured((" no", -2.0, 1))
    three = measured((" and so on...", -1.0, 2))
    found = metrics.measure([one, two, three])
    for name in metrics.METRICS:
        assert math.isnan(found[name][2]) == (name != "finished")
    found = {name: values[:2] for name, values in found.items()}
    assert list(found) == list(metrics.METRICS)
    assert found["max-likelihood"] == [-4.5, -2.5]
    assert found["mean-likelihood"] == [(3 * -4.5 - 7.5) / 4, -2.5]
    (cosine,) = embeddings.cosines([("It came back.", "It came late.")])
    # Of 6 pairs 3 are of the same text.
    assert found["diversity"][0] == pytest.approx(1 - (3 + 3 * cosine) / 6, abs=1e-5)
    assert math.isnan(found["diversity"][1])
    assert found["distinct"] == [2 / 4, 1.0]
    assert found["distinct-2"][0] == 3 / 8
    assert math.isnan(found["distinct-2"][1])
    assert found["words"] == [3.0, 1.0]
    assert found["token-likelihood"] == [(3 * -4.5 - 7.5) / 4 / 4, -2.5 / 4]
    assert found["finished"] == [0.5, 1.0]


# -- from the command line -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(tiny_model_dir: Path) -> list[str]:
    AcceleratorState._reset_state(reset_partial_state=True)
    return ["--model", str(tiny_model_dir)]


def test_the_smoke_preset_runs_end_to_end(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[..., Any] = lambda *argv: main([*map(str, argv)])  # noqa: E731
    folder = tmp_path / "run"
    smoke = ["--task", "continuation", "--preset", "smoke"]
    assert run("fit", "--method", "gflownet", *smoke, *tiny, "--precision", "fp32", "--output-dir", folder) == 0
    results = json.loads((folder / "results.json").read_text())
    recorded = results["metrics"]["1"]["q"]["test"]
    assert set(recorded) == set(TASK.metrics)
    assert recorded["max-likelihood"]["value"] >= recorded["mean-likelihood"]["value"]

    capsys.readouterr()
    assert run("eval", folder, "--size", 3, "--samples", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["q"]["test"]["finished"]["n"] == 3
    assert run("sample", folder, "--question", "It was late.", "-n", 4, "--json") == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert sum(sample["count"] for sample in samples) == 4
    # The full stop is part of the reward.
    assert all(sample["log_reward"] is not None for sample in samples)

    shipped = yaml.safe_load((ROOT / "latent_cot" / "config" / "presets" / "variants" / "decoding.yaml").read_text())
    names = ("gflownet-0.8", "sample", "nucleus", "beam-5x", "diverse-beam")
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({name: shipped[name] for name in names}))
    settings = ["precision=fp32", "evaluation.size=2", "evaluation.samples=3", "evaluation.diagnostics=1"]
    compare = ["compare", *smoke, *tiny, "--variants", tmp_path / "some.yaml", "--budget", "none"]
    compare += ["--output-dir", tmp_path / "all"]
    assert run(*compare, *(word for setting in settings for word in ("--set", setting))) == 0
    rows = json.loads((tmp_path / "all" / "comparison.json").read_text())["rows"]
    by_name = {row["variant"]: row["metrics"]["test"] for row in rows}
    assert set(by_name) == set(names)
    assert by_name["beam-5x"]["max-likelihood"]["mean"] >= by_name["sample"]["max-likelihood"]["mean"]
