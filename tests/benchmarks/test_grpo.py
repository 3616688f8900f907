"""GRPO's steps on the tiny model: what is timed is the work that is said to be."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from benchmarks.grpo import grpo_step_seconds

trl: Any = pytest.importorskip("trl", reason="trl is not installed (pip install -e '.[bench]')")

PROMPTS = ["Question: 1 + 2 = ? Answer:", "Question: 3 - 1 = ? Answer:", "Question: 4 + 4 + 1 = ? Answer:"]


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every trainer that is made."""
    made: list[Any] = []

    class Recorded(trl.GRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(trl, "GRPOTrainer", Recorded)
    return made


def measure(folder: Path, **options: Any) -> dict[str, Any]:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    settings: dict[str, Any] = {
        "completion_tokens": 5,
        "dtype": torch.float32,
        "samples": 2,
        "questions": 2,
        "steps": 2,
    }
    return grpo_step_seconds(folder, PROMPTS, lora, **{**settings, **options})


def test_steps_are_timed_alone(tiny_model_dir: Path, trainers: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Not the warm-up, and not what the other contestant does in between."""
    turns: list[int] = []

    def between(step: int) -> None:
        turns.append(step)
        time.sleep(1.0)

    figures = measure(tiny_model_dir, between=between)
    assert turns == [0, 1]
    assert len(figures["seconds"]) == len(figures["generation_seconds"]) == 2
    for whole, sampling in zip(figures["seconds"], figures["generation_seconds"], strict=True):
        assert 0 < sampling < whole < 1.0
    assert figures["trajectories_per_second"] == pytest.approx(4 / figures["seconds_per_step"])
    assert json.loads(json.dumps(figures)) == figures
    assert capfd.readouterr().out == ""


def test_the_work_is_that_of_an_e_step(tiny_model_dir: Path, trainers: list[Any]) -> None:
    figures = measure(tiny_model_dir)
    (trainer,) = trainers
    assert figures["completion_tokens"] == [5, 5]
    assert trainer.state.global_step == 3
    assert trainer.ref_model is None
    assert trainer.args.gradient_checkpointing is False
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in weights)
    assert all(float(weight.abs().max()) > 0 for name, weight in weights.items() if "lora_B" in name)
