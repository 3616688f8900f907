"""Sampling ahead: each step has its own rollouts once, by its own seeds, from an adapter that is not too old."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latent_cot.config.schema import MethodName, RunConfig
from latent_cot.config.settings import check
from latent_cot.methods import async_rollout
from latent_cot.methods.async_rollout import ahead
from latent_cot.methods.state import Phase
from latent_cot.model.engine import Completion, Request
from latent_cot.model.lm import LanguageModel
from latent_cot.types import UsageError
from tests.engines import ReferenceEngine
from tests.loops import CONFIG, make, of_method
from tests.worlds import language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


class Slow:
    """An engine whose answer tells which version of the adapter it has. It answers when it is let."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.version = -1
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked: list[int] = []

    def put(self, adapter: str, save: Callable[[Path], None]) -> None:
        self.version += 1

    def complete(self, adapter: str, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append(self.version)
        assert self.may_answer.wait(10)
        return [Completion([self.version], [0.0]) for _ in requests]

    def close(self) -> None:
        pass


def told(lm: LanguageModel, first: int, last: int, staleness: int) -> Any:
    """Rollouts that are the step and the version that answered for it."""

    def sample(step: int, draw: Any) -> tuple[int, int]:
        (completion,) = draw.args[0]([step])
        return step, completion.tokens[0]

    return closing(ahead(lm, sample, first, last, staleness))


@pytest.mark.parametrize("staleness", [1, 3, 20])
@pytest.mark.parametrize("first", [0, 4])
def test_each_step_once_and_in_order_from_an_adapter_not_older_than_that(
    lm: LanguageModel, staleness: int, first: int
) -> None:
    engine = Slow()
    with lm.sampling_by(engine), told(lm, first, 10, staleness) as sampling:
        for step in range(first, 10):
            (of_step, version), figures = next(sampling)
            assert of_step == step
            assert step - first - staleness <= version <= step - first
            assert 0 <= figures["staleness"] <= min(staleness, step - first)
            assert figures["staleness"] >= step - first - version  # told older, at most, than it is
    assert len(engine.asked) == 10 - first  # nothing was sampled twice, or for a step that there is not


def test_the_samplers_go_on_while_the_trainer_trains(lm: LanguageModel) -> None:
    engine = Slow()
    with lm.sampling_by(engine), told(lm, 0, 4, 2) as sampling:
        next(sampling)
        engine.may_answer.clear()
        for _ in range(1000):
            if len(engine.asked) == 3:
                break
            time.sleep(0.05)
        assert len(engine.asked) == 3  # steps 1 and 2 have been begun, and 3 has not
        engine.may_answer.set()


@pytest.mark.parametrize(
    ("began", "ended", "sampler_waited"), [(3.0, 9.0, 1.0), (11.0, 13.5, 0.0)], ids=["the sampler", "the trainer"]
)
def test_who_waits(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, began: float, ended: float, sampler_waited: float
) -> None:
    """For rollouts that the trainer asks for at 10 and has at 14."""
    clock = iter([10.0, began, ended, 14.0])
    monkeypatch.setattr(async_rollout, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with lm.sampling_by(Slow()), told(lm, 0, 1, 1) as sampling:
        _, figures = next(sampling)
    expected = {"sampling_seconds": ended - began, "trainer_waited": 4.0, "sampler_waited": sampler_waited}
    assert figures == {"staleness": 0, **expected}


def test_what_a_sampler_raises_reaches_the_trainer(lm: LanguageModel) -> None:
    def fails(step: int, draw: Any) -> None:
        raise UsageError("no server is left")

    with (
        lm.sampling_by(Slow()),
        closing(ahead(lm, fails, 0, 3, 2)) as sampling,
        pytest.raises(UsageError, match="no server"),
    ):
        next(sampling)


def test_a_trainer_that_stops_waits_for_no_chain_to_end(lm: LanguageModel) -> None:
    engine = Slow()

    def endless(step: int, draw: Any) -> None:
        while step:
            draw.args[0]([step])
            time.sleep(0.01)

    begun = time.monotonic()
    with lm.sampling_by(engine), closing(ahead(lm, endless, 0, 9, 4)) as sampling:
        next(sampling)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("method", ["em", "forward-kl", "ppo"])
def test_a_phase_with_staleness_has_the_questions_and_the_budget_of_one_without(
    lm: LanguageModel, tiny_model: Callable[[str], Path], method: MethodName
) -> None:
    found = {}
    for staleness in (0, 2):
        e_step = dataclasses.replace(CONFIG.e_step, max_staleness=staleness, learning_rate=1e-9, replay_share=0.0)
        loop = make(lm, dataclasses.replace(of_method(method), rounds=1, e_step=e_step))
        with lm.sampling_by(ReferenceEngine(tiny_model("llama"))):
            figures = []
            for phase, info in loop.run():
                if phase.name in ("e_step", "policy"):
                    figures.append((phase, info))
                elif figures:
                    break
        found[staleness] = figures, loop.state.budget
    (turns, budget), (ahead_of, budget_ahead) = found[0], found[2]
    assert budget == budget_ahead
    assert [phase for phase, _ in turns] == [phase for phase, _ in ahead_of]
    for (_, one), (_, other) in zip(turns, ahead_of, strict=True):  # q hardly moves: the same chains
        assert one["log_reward"] == pytest.approx(other["log_reward"], rel=1e-3)
        assert "staleness" not in one
        assert other["staleness"] <= 2
        assert {"sampling_seconds", "trainer_waited", "sampler_waited"} <= other.keys()


def test_it_needs_servers() -> None:
    e_step = dataclasses.replace(RunConfig().e_step, max_staleness=4)
    with pytest.raises(UsageError, match=r"--e-step\.max-staleness: --rollout.engine transformers samples where q"):
        check(dataclasses.replace(RunConfig(), e_step=e_step))


def test_a_run_that_goes_on_samples_again_what_it_had_ahead(
    lm: LanguageModel, tiny_model: Callable[[str], Path]
) -> None:
    """Stopped in the middle of a phase: the steps that are left have the questions they would have had."""
    e_step = dataclasses.replace(CONFIG.e_step, max_staleness=2, steps=4, replay_share=0.0)
    config = dataclasses.replace(CONFIG, rounds=1, e_step=e_step)
    engine = ReferenceEngine(tiny_model("llama"))
    with lm.sampling_by(engine):
        whole, stopped = make(lm, config), make(lm, config)
        names = [phase.name for phase, _ in whole.run()]
        units = stopped.run()
        for phase, _ in units:
            if phase == Phase(1, "e_step") and stopped.state.unit == 2:
                break
        units.close()
        assert stopped.state.budget.trajectories < whole.state.budget.trajectories
        rest = [phase.name for phase, _ in stopped.run()]
    assert names.count("e_step") == 4
    assert rest.count("e_step") == 2
    of_stopped, of_whole = stopped.state.budget, whole.state.budget
    assert (of_stopped.trajectories, of_stopped.gradient_steps) == (of_whole.trajectories, of_whole.gradient_steps)
