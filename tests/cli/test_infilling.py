"""Story infilling from the command line, with the task's own stories on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from latent_cot.cli import main
from latent_cot.tasks.infilling import TASK
from tests.cli.conftest import Cli

SMOKE = ["--task", "infilling", "--preset", "smoke", "--precision", "fp32"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("infilling") / "run"
    where = ["--model", str(tiny_model_dir), "--output-dir", str(folder)]
    assert main(["fit", "--method", "gflownet", *SMOKE, *where]) == 0
    return folder


def test_fit(fitted: Path) -> None:
    results = json.loads((fitted / "results.json").read_text())
    assert results["q_sees"] == "question-and-answer"
    found = results["metrics"]["1"]["q"]["test"]
    assert set(found) == set(TASK.metrics)
    assert found["ending"]["n"] == found["similarity"]["n"] == 3
    assert found["ending"]["value"] < 0


def test_em(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    called = cli("em", *SMOKE, "--model", tiny_model_dir, "--output-dir", tmp_path / "em", "--json")
    assert called.status == 0, called.err
    assert list(called.json["metrics"]["1"]) == ["q"], "q reads the ending, and p has learned not to"


def test_eval(cli: Cli, fitted: Path, tmp_path: Path) -> None:
    found = cli("eval", fitted, "--samples", 3, "--json").json
    assert list(found["results"]["q"]["test"]) == list(TASK.metrics)
    own = tmp_path / "own.jsonl"
    row = {f"sentence{i}": f"This is number {i}." for i in range(1, 6)}
    own.write_text(json.dumps(row) + "\n")
    found = cli("eval", fitted, "--data", own, "--json").json
    assert found["results"]["q"][str(own)]["ending"]["n"] == 1


def test_sample(cli: Cli, fitted: Path) -> None:
    command = ["sample", fitted, "--question", "It rained. Ana had no umbrella. She waited.", "-n", 3]
    found = cli(*command, "--answer", "She got home dry.", "--json").json
    assert sum(sample["count"] for sample in found["samples"]) == 3
    assert all(sample["log_reward"] < 0 for sample in found["samples"])
    refused = cli(*command)
    assert refused.status == 2
    assert "its ending is needed" in refused.err


def test_compare(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    methods = ["--methods", "few-shot,sft,gflownet", "--budget", "none", "--set", "precision=fp32"]
    where = ["--model", tiny_model_dir, "--output-dir", tmp_path / "all"]
    called = cli("compare", "--task", "infilling", "--preset", "smoke", *methods, *where)
    assert called.status == 0, called.err
    rows = json.loads((tmp_path / "all" / "comparison.json").read_text())["rows"]
    assert [(row["variant"], row["reasoner"]) for row in rows] == [("few-shot", "p"), ("sft", "p"), ("gflownet", "q")]
    assert all(set(row["metrics"]["test"]) == set(TASK.metrics) for row in rows)
