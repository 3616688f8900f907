"""A plan beside what is measured, on the tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plan
from latent_cot.planning.hardware import GPUS
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.scoring import Query
from latent_cot.types import Example, Rationale


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a machine that is known."""

    def alone(run: Callable[..., Any], *arguments: Any) -> Any:
        return run(*arguments)

    monkeypatch.setattr(plan, "alone", alone)
    monkeypatch.setattr(plan, "this_machine", lambda clock: GPUS["l4"])


def test_the_command(in_this_process: None, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(tiny_model_dir), "--steps", "1"]
    assert plan.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["workloads"]
    assert list(found) == ["sure", "untrained", "lessons"]
    for figures in found.values():
        for of in (figures["seconds"], figures["memory"], *figures["parts"].values()):
            assert of["planned"] > 0 and of["measured"] > 0
            assert of["error"] == pytest.approx(of["planned"] / of["measured"] - 1)
            assert of["within"] == (abs(of["error"]) <= 0.25)
    assert set(found["sure"]["parts"]) == {"rollout", "reward", "update", "merge"}
    assert set(found["lessons"]["parts"]) == {"update"}
    assert found["sure"]["texts"]["distinct"] == pytest.approx(1 / 8), "8 chains of a question are one"
    assert found["untrained"]["texts"]["distinct"] > 0.9
    assert plan.main([*arguments, "--workload", "lessons"]) == 0
    assert "peak memory" in capsys.readouterr().out


def test_the_texts_of_a_step_count_what_is_shared_once() -> None:
    """Three chains, two of them alike; a b is shared, a state behind b and at each end."""

    def chain(*tokens: int) -> Rationale:
        states = tuple(i in (2, len(tokens)) for i in range(len(tokens) + 1))
        return Rationale(tokens, (True,) * len(tokens), states, text="", truncated=True)

    example = Example(x="", y="")
    batch = Trajectories(
        Query(example, [0] * 5, [0] * 5, [1, 2]), [chain(1, 2, 3), chain(1, 2, 4, 5)], [2, 1], torch.empty(0), []
    )
    texts = plan.texts_of([batch])
    assert (texts.prompt, texts.answer, texts.longest) == (5, 2, 4)
    assert texts.chain == pytest.approx(10 / 3)
    assert texts.distinct == pytest.approx(5 / 10), "1, 12, 123, 124, 1245"
    scored = 3 * texts.distinct * texts.states
    assert scored == pytest.approx(3), "12, 123, 1245"


def test_what_is_published_is_finite_and_says_how_it_was_made() -> None:
    record = json.loads((Path(plan.__file__).parent.parent / "docs/results/plan.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("python -m benchmarks.plan")
    for figures in record["workloads"].values():
        assert all(math.isfinite(of["error"]) for of in (figures["seconds"], figures["memory"]))
