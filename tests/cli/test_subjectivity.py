"""The commands on a task whose answer is picked among candidates after a rationale: subjectivity, its smoke preset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from latent_cot.cli import main
from tests.cli.conftest import Cli

SMOKE = ["--task", "subjectivity", "--preset", "smoke", "--precision", "fp32"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("subjectivity") / "run"
    assert main(["em", *SMOKE, "--model", str(tiny_model_dir), "--output-dir", str(folder)]) == 0
    return folder


def test_em(fitted: Path) -> None:
    results = json.loads((fitted / "results.json").read_text())
    assert set(results["accuracy"]["1"]) == {"q", "p"}
    assert results["accuracy"]["1"]["p"]["test"]["n"] == 4
    # 6 questions: 20 seeds each, 2 steps of 4 x 4 or fewer, 2 rationales each for the M-step.
    assert 120 + 12 <= results["budget"]["trajectories"] <= 120 + 32 + 12


def test_eval(cli: Cli, fitted: Path) -> None:
    called = cli("eval", fitted, "--votes", 3, "--temperature", 1, "--errors", "--json")
    assert called.status == 0, called.err
    found = called.json["results"]
    assert {name: found[name]["test"]["n"] for name in found} == {"q": 8, "p": 8}


def test_sample(cli: Cli, fitted: Path) -> None:
    called = cli("sample", fitted, "--question", "a film that nobody needs .", "-n", 3)
    assert called.status == 0, called.err
    assert "3 from q" in called.out


def test_compare_with_prompting_and_fine_tuning_on_labels(cli: Cli, tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = ["--set", "precision=fp32", "--set", "few-shot:shots=0"]
    called = cli(
        *("compare", "--task", "subjectivity", "--preset", "smoke", "--model", tiny_model_dir),
        *("--methods", "few-shot,sft,gflownet", *settings, "--output-dir", tmp_path / "compared", "--json"),
    )
    assert called.status == 0, called.err
    rows = {f"{row['variant']}, {row['reasoner']}": row for row in called.json["rows"]}
    assert set(rows) == {"few-shot, p", "sft, p", "gflownet, q"}
    assert rows["few-shot, p"]["trajectories"] == rows["sft, p"]["trajectories"] == 0
    assert all(row["cells"]["test"]["n"] == 4 for row in rows.values())
