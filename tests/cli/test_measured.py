"""The commands on a task that has figures instead of right answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import latent_cot as lc
from latent_cot.cli import main
from tests.cli.conftest import Cli
from tests.conftest import ROOT
from tests.measured import TASK

FILE = str(ROOT / "tests" / "measured.py")
SMALL = ["--preset", "smoke", "--precision", "fp32", "--evaluation.splits", "test", "--rollout.granularity", "token"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("measured") / "run"
    settings = ["--evaluation.temperature", "1.0", "--evaluation.samples", "3"]
    where = ["--task", FILE, "--model", str(tiny_model_dir), "--output-dir", str(folder)]
    assert main(["fit", "--method", "gflownet", *SMALL, *settings, *where]) == 0
    return folder


def test_results_have_metrics(fitted: Path) -> None:
    results = json.loads((fitted / "results.json").read_text())
    assert results["accuracy"] == {}
    found = results["metrics"]["1"]["q"]["test"]
    assert set(found) == set(TASK.metrics)
    assert found["length"]["n"] == 3
    low, high = found["length"]["interval_95"]
    assert low <= found["length"]["value"] <= high
    assert found["distinct"]["interval_95"] is None
    events = [json.loads(line) for line in (fitted / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "e_step"]
    assert steps
    assert not any("accuracy" in event for event in steps)


def test_eval(cli: Cli, fitted: Path) -> None:
    options = ["eval", fitted, "--trust-code", "--samples", 7]
    called = cli(*options, "--json")
    assert called.status == 0, called.err
    assert called.json["decoding"] == {"max_tokens": 40, "samples": 7, "temperature": 1.0}
    assert list(called.json["results"]["q"]["test"]) == list(TASK.metrics)
    assert cli(*options, "--json").out == called.out, "the seed decides"
    cold = cli(*options, "--json", "--temperature", 0).json
    assert any("are the same one: the temperature is 0" in note for note in cold["notes"])
    other = cold["results"]["q"]["test"]
    assert other["distinct"]["value"] <= 3
    shown = cli(*options)
    assert "samples 7" in shown.out
    assert "length" in shown.out and "likelihood" in shown.out


def test_figures_question_by_question(cli: Cli, fitted: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    found = cli("eval", fitted, "--trust-code", "--samples", 7, "--answers", file, "--json").json["results"]["q"][
        "test"
    ]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == found["length"]["n"]
    assert rows[0].keys() == {"reasoner", "split", "question", "gold", "figures", "rationales"}
    assert sum(row["figures"]["length"] for row in rows) / len(rows) == pytest.approx(found["length"]["value"])
    assert "distinct" not in rows[0]["figures"], "it is of all questions together"
    assert all(sum(one["count"] for one in row["rationales"]) == 7 for row in rows)


def test_differences_of_figures(fitted: Path) -> None:
    run = lc.load(fitted, trust_code=True)
    hot, cold = (run.evaluate(samples=7, temperature=t, progress=False) for t in (None, 0.0))
    found = hot.difference(cold)
    figures = hot.figures["q"]["test"]
    assert set(found["figure"]) == {name for name, figure in figures.items() if figure["interval_95"] is not None}
    assert found.set_index("figure")["first"]["length"] == pytest.approx(figures["length"]["value"])


def test_eval_of_a_model(cli: Cli, tiny_model_dir: Path) -> None:
    found = cli("eval", tiny_model_dir, "--task", FILE, "--max-tokens", 5, "--json").json
    assert found["decoding"]["samples"] == TASK.samples
    assert set(found["results"]) == {"p"}


@pytest.mark.parametrize("flag", ["--errors", "--votes 3", "--plot a.svg", "--samples 0"])
def test_what_needs_right_answers(cli: Cli, fitted: Path, flag: str) -> None:
    called = cli("eval", fitted, "--trust-code", *flag.split())
    assert called.status == 2
    assert flag.split()[0] in called.err


def test_samples_are_for_tasks_without_answers(cli: Cli, tiny_model_dir: Path) -> None:
    called = cli("eval", tiny_model_dir, "--samples", 3)
    assert called.status == 2
    assert "--votes" in called.err


def test_sample(cli: Cli, fitted: Path) -> None:
    options = ["sample", fitted, "--trust-code", "--question", "ab", "-n", 4]
    samples = cli(*options, "--json").json["samples"]
    assert sum(sample["count"] for sample in samples) == 4
    assert all(sample["correct"] is None for sample in samples)
    shown = cli(*options)
    assert shown.status == 0, shown.err
    assert "right" not in shown.out


def test_compare(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    settings = ["precision=fp32", "evaluation.splits=[test]", "rollout.granularity=token", "evaluation.samples=4"]
    settings += ["data.demonstrations=2", "data.unlabelled=2"]
    command = ["compare", "--preset", "smoke", "--task", FILE, "--model", tiny_model_dir, "--seeds", "0,1"]
    command += [word for setting in settings for word in ("--set", setting)]
    called = cli(*command, "--methods", "few-shot,gflownet", "--output-dir", tmp_path / "all")
    assert called.status == 0, called.err
    found = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert [row["variant"] for row in found["rows"]] == ["few-shot", "gflownet"]
    for row in found["rows"]:
        assert set(row["metrics"]["test"]) == set(TASK.metrics)
        assert row["cells"] == {}
        assert row["metrics"]["test"]["length"]["n"] == 6
    assert "likelihood" in called.out
    assert "| likelihood |" in (tmp_path / "all" / "comparison.md").read_text()
    assert not (tmp_path / "all" / "comparison.svg").exists()
