"""Tasks whose tests give the answer, as between a story's beginning and its ending: who reads it and learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from latent_cot.config.methods import METHODS
from latent_cot.config.schema import RunConfig, SFTConfig
from latent_cot.config.settings import check, with_method
from latent_cot.methods import likelihood
from latent_cot.methods.method import method_class
from latent_cot.model.lm import LanguageModel
from latent_cot.rationales.scoring import Group
from latent_cot.run.session import open_session
from latent_cot.types import DataRequest, Example, Task, TaskData, UsageError
from tests.loops import CONFIG, make, outcome, run_in_parts
from tests.measured import LengthTask
from tests.worlds import language_model

WORLD = dataclasses.replace(
    CONFIG,
    q_sees="question-and-answer",
    rollout=dataclasses.replace(CONFIG.rollout, granularity="token"),
    evaluation=dataclasses.replace(CONFIG.evaluation, votes=1, samples=3),
    e_step=dataclasses.replace(CONFIG.e_step, replay_share=0.0),
    shots=2,
    sft=SFTConfig(check_every=2),
)


def task() -> LengthTask:
    return LengthTask(stop=".", allowed_characters=" abc.", answer_given=True)


def config_of(method: str) -> RunConfig:
    config = dataclasses.replace(with_method(WORLD, method), q_sees="question-and-answer")
    check(config)
    return config


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Group]]:
    """(adapter, group) of everything that is learned by likelihood."""
    seen: list[tuple[str, Group]] = []
    really = likelihood.likelihood_step

    def update(lm: LanguageModel, adapter: Any, groups: Sequence[Group], *arguments: Any, **more: Any) -> Any:
        seen.extend((adapter, group) for group in groups)
        return really(lm, adapter, groups, *arguments, **more)

    monkeypatch.setattr(likelihood, "likelihood_step", update)
    return seen


@pytest.mark.parametrize(("method", "adapter"), [("sft", "p"), ("gflownet", "q"), ("em", "q")])
def test_what_reads_the_answer_learns_to_stop_behind_the_rationale(
    lm: LanguageModel, lessons: list[tuple[str, Group]], method: str, adapter: str
) -> None:
    loop = make(lm, config_of(method), task())
    codec = loop.rules.codec
    plain = [(codec.encode_prompt(e.x), codec.encode(e.y or "")) for e in loop.data.demonstrations]
    # The stop is an action of q's, and no token of an answer.
    posterior = [(codec.encode_prompt(loop.task.posterior_prompt(e)), list[int]()) for e in loop.data.demonstrations]
    learned: dict[str, list[tuple[str, Any]]] = {}
    for phase, _ in loop.run():
        of_phase = [(name, (list(group.prompt), list(group.answer))) for name, group in lessons]
        learned.setdefault(phase.name, []).extend(of_phase)
        lessons.clear()
    assert learned["init"] and all(name == "p" and lesson in plain for name, lesson in learned["init"])
    starts = learned["fit" if method == "sft" else "start_q"]
    assert starts and all(name == adapter and lesson in posterior for name, lesson in starts)


@pytest.mark.parametrize("method", ["few-shot", "sft", "gflownet", "em"])
def test_whoever_is_tested_reads_the_answer(lm: LanguageModel, method: str) -> None:
    loop = make(lm, config_of(method), task())
    list(loop.run())
    last = loop.state.metrics[max(loop.state.metrics)]
    assert list(last) == list(loop.reasoners) == (["q"] if method in ("gflownet", "em") else ["p"])
    (example, *_) = loop.tests["test"]
    for reasoner in loop.reasoners:
        assert loop.test_text(reasoner, example).endswith(loop.task.posterior_prompt(example))


def test_shown_demonstrations_have_the_form_of_the_question(lm: LanguageModel) -> None:
    loop = make(lm, config_of("few-shot"), task())
    assert loop.test_text("p", loop.tests["test"][0]) == "a?. a.\nab?. ab.\ncc?."


def test_the_sampler_starts_from_the_demonstrations_and_is_resumed(lm: LanguageModel, tmp_path: Path) -> None:
    config = config_of("gflownet")
    loop = make(lm, config, task())
    assert [phase.name for phase in loop.phases if phase.round] == [
        *("start_q", "diagnose_before", "e_step", "diagnose", "evaluate")
    ]
    list(loop.run())
    assert outcome(run_in_parts(lm, config, tmp_path, 2, task())) == outcome(loop)


class PlainPrompt(LengthTask):
    def posterior_prompt(self, example: Example) -> str:
        return Task.posterior_prompt(self, example)


def test_an_answer_that_q_would_read_is_missed_before_training() -> None:
    asked = PlainPrompt(stop=".", allowed_characters=" abc.", answer_given=True)
    data, method = asked.load(DataRequest()), method_class("em")
    known = [dataclasses.replace(example, answer=example.question) for example in data.unlabelled]
    data = TaskData((), tuple(known), ())
    method.check(config_of("em"), asked, data)
    data = dataclasses.replace(data, validation=(dataclasses.replace(known[0], answer=None),))
    with pytest.raises(UsageError, match=r"question '\w+': its answer is needed .*give it, or --q-sees question"):
        method.check(config_of("em"), asked, data)
    without = PlainPrompt(stop=".", allowed_characters=" abc.")
    method.check(dataclasses.replace(config_of("em"), q_sees="question"), without, data)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("em", "--q-sees question-and-answer"),
        ("em-x", "--method sft, gflownet or em"),
        ("rejection", "--method sft, gflownet or em"),
        ("ppo", "--method sft, gflownet or em"),
    ],
)
def test_a_p_that_would_not_know_what_it_reads_in_tests_is_refused(method: str, remedy: str) -> None:
    config = dataclasses.replace(with_method(WORLD, method), q_sees="question")
    config = dataclasses.replace(config, policy_gradient=dataclasses.replace(config.policy_gradient, fine_tune=True))
    data, of = task().load(DataRequest()), method_class(method)
    with pytest.raises(UsageError, match=f"--method {method}: .* its p does not learn to read; give {remedy}$"):
        of.check(config, task(), data)
    of.check(config, dataclasses.replace(task(), answer_given=False), data)
    if method in ("em", "em-x"):  # of no round there is only p as it begins
        of.check(dataclasses.replace(config, rounds=0), task(), data)
    if method == "ppo":  # q(Z | X) is tested alone
        of.check(dataclasses.replace(config, policy_gradient=WORLD.policy_gradient), task(), data)


def test_a_sampler_that_needs_an_answer_nobody_gives(tiny_model_dir: Path) -> None:
    config = dataclasses.replace(
        with_method(RunConfig(), "gflownet"), q_sees="question-and-answer", model=str(tiny_model_dir)
    )
    assert METHODS["gflownet"].reasoners(config, False) == ()
    with pytest.raises(
        UsageError, match="--q-sees question-and-answer: the tests of arithmetic do not give the answer"
    ):
        open_session(config)
