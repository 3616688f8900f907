"""Of which questions, behind which prompt, with which settings and which random numbers: what one part of a method
hands to another."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from latent_cot.config.schema import EvaluationConfig, MStepConfig, RolloutConfig
from latent_cot.em import EM
from latent_cot.evaluation.diagnostics import Fall
from latent_cot.methods import evaluator as evaluator_module
from latent_cot.methods import forward_kl_steps, likelihood
from latent_cot.methods import method as method_module
from latent_cot.methods.rejection import PER_QUESTION, Rejection
from latent_cot.methods.scored import score_rationales
from latent_cot.methods.state import Phase, Seen
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import Schedule
from latent_cot.types import Example, Rationale
from tests.loops import CONFIG, make, run_in_parts
from tests.loops import outcome as everything
from tests.measured import LengthTask
from tests.methods.test_methods import config_of
from tests.methods.test_wiring import spy
from tests.oracles import scoring
from tests.test_em import LenientTask
from tests.worlds import ToyTask, language_model

BY_TOKEN = dataclasses.replace(CONFIG.rollout, granularity="token")
KEPT = dataclasses.replace(CONFIG.e_step, samples=12, updates=3, tempered_share=0.0, replay_share=0.0)
"""An E-step that keeps what it samples."""


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def by_the_oracle(loop: Any, adapter: Any, prompt: Sequence[int], rationale: Rationale, answer: str) -> float:
    """log p(Z Y | prompt), or log q(Z | prompt) for an empty answer, a pass a prefix."""
    codec = loop.rules.codec
    arguments = (loop.lm.merged(adapter), prompt, rationale, codec.encode(answer), codec.actions.tolist())
    return float(scoring.log_reward(*arguments, codec.stop_id)[-1])


# -- what is kept in an E-step -----------------------------------------------------------------------------


def check_kept(loop: EM, kept: Sequence[Seen]) -> None:
    """The reward of each under p behind X, its log q under q as it is behind X and Y."""
    assert kept
    for one in kept:
        example = loop.questions[one.question]
        plain = loop.rules.codec.encode_prompt(example.x)
        with_y = loop.rules.codec.encode_prompt(loop.task.posterior_prompt(example))
        assert one.log_reward == pytest.approx(
            by_the_oracle(loop, "p", plain, one.rationale, example.y or ""), abs=1e-3
        )
        assert one.log_q == pytest.approx(by_the_oracle(loop, "q", with_y, one.rationale, ""), abs=1e-3)
        assert one.right == loop.is_correct(example, one.rationale)


def test_what_an_e_step_keeps_is_as_it_was_sampled(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps, with a tool, by a q that reads Y."""
    loop = cast("EM", make(lm, dataclasses.replace(CONFIG, rounds=1, e_step=KEPT), LenientTask()))
    remember, kept = loop.remember, list[list[Seen]]()

    def watched(*arguments: Any) -> Any:
        before = len(loop.state.seen)
        info = remember(*arguments)
        kept.append(loop.state.seen[before:])
        check_kept(loop, kept[-1])  # q has not been changed by this step yet
        return info

    monkeypatch.setattr(loop, "remember", watched)
    for phase, _ in loop.run():
        if phase.name == "diagnose":
            break
    assert len(kept) == KEPT.steps
    assert any(one.rationale.calls for of_step in kept for one in of_step)


@pytest.mark.parametrize("method", ["em", "forward-kl"])
def test_an_e_step_begins_with_what_was_drawn_for_the_m_step_before(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str, tmp_path: Path
) -> None:
    m_step = dataclasses.replace(CONFIG.m_step, samples=3, keep="correct")
    config = config_of(method, e_step=KEPT, m_step=m_step, q_sees="question-and-answer", safeguard=False)
    loop = cast("EM", make(lm, config, LenientTask()))
    begun: list[list[Seen]] = []
    recall, drawn = loop.recall_drawn, Counter[tuple[int, tuple[int, ...]]]()

    def watched(number: int) -> None:
        recall(number)
        begun.append(list(loop.state.seen))
        if number > 1:
            check_kept(loop, begun[-1])
            times = Counter[tuple[int, tuple[int, ...]]]()
            for one in begun[-1]:
                times[one.question, one.rationale.tokens] += one.times
            assert times == drawn and len({question for question, _ in drawn}) > 2

    monkeypatch.setattr(loop, "recall_drawn", watched)
    for phase, _ in loop.run():
        if phase == Phase(1, "draw"):
            drawn = Counter((one.question, one.rationale.tokens) for one in loop.state.drawn)
    assert [bool(kept) for kept in begun] == [False, True]
    assert everything(run_in_parts(lm, config, tmp_path, 1, LenientTask())) == everything(loop)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_single_rationale_that_would_cancel_is_not_recalled(lm: LanguageModel, samples: int) -> None:
    """With a reward of the task's own, what q gives the rationales of a question is subtracted: of one, all of it."""

    class Valued(LenientTask):
        def log_reward(self, example: Example, text: str) -> float:
            return -0.1 * len(text)

    m_step = dataclasses.replace(CONFIG.m_step, samples=samples, keep="all")
    config = config_of("em", e_step=KEPT, m_step=m_step, q_sees="question-and-answer", safeguard=False)
    loop = cast("EM", make(lm, config, Valued()))
    assert loop.task.has_own_reward
    drawn: dict[int, set[Rationale]] = {}
    for phase, _ in loop.run():
        if phase == Phase(1, "draw"):
            for one in loop.state.drawn:
                drawn.setdefault(one.question, set()).add(one.rationale)
        if phase == Phase(1, "evaluate"):
            break
    loop.recall_drawn(2)
    several = {question for question, own in drawn.items() if len(own) > 1}
    assert {one.question for one in loop.state.seen} == several and bool(several) == (samples > 1)
    assert len(drawn) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"e_step": dataclasses.replace(KEPT, updates=1)},  # nothing is learned by forward KL
        {"m_step": dataclasses.replace(CONFIG.m_step, temperature=0.5)},  # no samples of q
        {"m_step": dataclasses.replace(CONFIG.m_step, weighted=True)},
        {"q_sees": "question"},  # here q begins the second round as p
    ],
)
def test_what_is_no_sample_of_q_is_not_recalled(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        method_module, "clear_fall", lambda before, after: Fall(2, 0) if before != after and len(before) == 2 else None
    )
    monkeypatch.setattr(EM, "_put_back_if_fallen", lambda *_: {})
    monkeypatch.setattr(EM, "validate", lambda *_: iter(()))
    loop = make(lm, config_of("em", **({"e_step": KEPT, "q_sees": "question-and-answer"} | changes)), LenientTask())
    spied = spy(monkeypatch, forward_kl_steps, "action_log_probs")
    for phase, _ in loop.run():
        if phase == Phase(2, "e_step"):
            break
    assert loop.state.drawn and not spied
    assert (2 in loop.state.begun_as_p) == (changes.get("q_sees") == "question")


# -- the safeguard and the diagnostics ---------------------------------------------------------------------


def test_validation_questions_judge(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """q is compared on them, all in order, before and after its training; and p by log p(Y | X) behind X, first as it
    was, then as it is."""
    diagnosed = spy(monkeypatch, method_module, "diagnose")
    judged: list[tuple[Any, Any]] = []

    def watched(before: Any, after: Any) -> None:
        judged.append((list(before), list(after)))

    monkeypatch.setattr(method_module, "clear_fall", watched)
    loop = make(lm, dataclasses.replace(CONFIG, rounds=1))
    weighed: list[Any] = []
    evidence = likelihood.evidence_weights

    def kept(lm: LanguageModel, prompts: Any, counts: Any, *rest: Any, **options: Any) -> Any:
        found = evidence(lm, prompts, counts, *rest, **options)
        weighed.extend(zip(counts, found, strict=True))
        return found

    monkeypatch.setattr(likelihood, "evidence_weights", kept)
    list(loop.run())
    asked = [query.example for arguments, _ in diagnosed for query in arguments[1]]
    assert asked == [*loop.data.validation] * 2
    log_y = loop.state.log_y["1"]
    assert judged[-1] == (log_y["before"], log_y["after"]) and log_y["before"] != log_y["after"]
    for which, adapter in (("before", "kept"), ("after", "p")):
        for example, (counts, weights), found in zip(loop.data.validation, weighed, log_y[which], strict=True):
            prompt = loop.rules.codec.encode_prompt(example.x)
            joint = torch.tensor([by_the_oracle(loop, adapter, prompt, z, example.y or "") for z in counts])
            assert found == pytest.approx(float((joint + weights).logsumexp(0)), abs=1e-3)


# -- settings ----------------------------------------------------------------------------------------------


def test_fine_tuning_has_its_own_rate_and_schedule(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = spy(monkeypatch, likelihood, "likelihood_step")
    init = dataclasses.replace(CONFIG.init_step, learning_rate=3e-3)
    m_step = dataclasses.replace(CONFIG.m_step, learning_rate=5e-3, warmup=1, steps=4)
    loop = make(lm, dataclasses.replace(CONFIG, rounds=1, init_step=init, m_step=m_step))
    found: dict[str, set[Any]] = {}
    for phase, _ in loop.run():
        for arguments, _options in learned:
            found.setdefault(phase.name, set()).add((arguments[1], arguments[4].schedule, arguments[4].max_grad_norm))
        learned.clear()
    schedule = Schedule(3e-3, init.steps, MStepConfig().warmup)
    assert found == {
        "init": {("p", schedule, 1.0)},
        "start_q": {("q", schedule, 1.0)},
        "m_step": {("p", Schedule(5e-3, 4, 1), 1.0)},
    }


def test_tests_are_sampled_as_configured(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = EvaluationConfig(max_tokens=5, votes=3, temperature=0.7, diagnostics=0)
    loop = make(lm, dataclasses.replace(CONFIG, rounds=0, evaluation=evaluation))
    drawn = spy(monkeypatch, evaluator_module, "rollout")
    list(loop.run())
    assert {(arguments[3].max_tokens, how["n"], how["temperature"]) for arguments, how in drawn} == {(5, 3, 0.7)}

    samples = dataclasses.replace(evaluation, votes=1, temperature=0.4, samples=4)
    measured = make(lm, config_of("gflownet", evaluation=samples, rollout=BY_TOKEN), LengthTask())
    drawn.clear()
    for phase, _ in measured.run():
        if phase.name != "evaluate":
            drawn.clear()
    assert {(arguments[3].max_tokens, how["n"], how["temperature"]) for arguments, how in drawn} == {(5, 4, 0.4)}


def test_listed_texts_are_those_of_the_reasoner(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    class Listed(LengthTask):
        def texts(self, example: Example) -> list[str]:
            return [" a", " b", " ca"]

        def measure(self, questions: Any) -> Any:
            found[:] = questions
            return super().measure(questions)

    loop = make(lm, config_of("gflownet", rollout=BY_TOKEN), Listed())
    list(loop.run())
    (one, *_) = found
    prompt = loop.rules.codec.encode_prompt(one.example.x)
    by: dict[str, list[float]] = {}
    for adapter in ("q", "p"):
        chains = [chain_of(loop, text) for text in (" a", " b", " ca")]
        by[adapter] = [by_the_oracle(loop, adapter, prompt, chain, "") for chain in chains]
    assert one.listed == pytest.approx(by["q"], abs=1e-3) and by["q"] != pytest.approx(by["p"], abs=1e-2)


def chain_of(loop: Any, text: str) -> Rationale:
    """A chain of plain tokens, each of which may be the last."""
    tokens = tuple(loop.rules.codec.encode(text))
    return Rationale(tokens, (True,) * len(tokens), (True,) * (len(tokens) + 1), text)


# -- random numbers, prompts, weights ----------------------------------------------------------------------


def test_each_batch_has_its_own_random_numbers(lm: LanguageModel) -> None:
    em = cast("EM", make(lm, dataclasses.replace(CONFIG, e_step=KEPT)))
    seeds: list[int] = []

    def draw(prompts: Sequence[Any], rules: Any, *, generator: torch.Generator, **_: Any) -> list[list[Rationale]]:
        seeds.append(generator.initial_seed())
        return [[] for _ in prompts]

    for _ in range(2):
        for step in range(3):
            em._sample_step(step, cast("Any", draw))
    assert len(set(seeds)) == 3 and seeds[:3] == seeds[3:]


def test_a_q_that_reads_y_is_asked_with_it(lm: LanguageModel) -> None:
    loop = make(lm, config_of("forward-kl", q_sees="question-and-answer"))
    asked: list[Any] = []

    def draw(prompts: Sequence[Any], rules: Any, **_: Any) -> list[list[Rationale]]:
        asked.extend(prompts)
        return [[] for _ in prompts]

    chosen, _ = loop._rollouts(0, cast("Any", draw))
    posterior = [loop.task.posterior_prompt(loop.questions[i]) for i in chosen]
    assert asked == [loop.rules.codec.encode_prompt(text) for text in posterior]


def test_a_rationale_counts_as_often_as_it_was_sampled(lm: LanguageModel) -> None:
    loop = make(lm, CONFIG)
    example = loop.questions[0]
    first, second = list(dict.fromkeys(loop.sample_questions("q", [0], 0, n=30)[0]))[:2]
    weighed = score_rationales(loop, example, Counter({first: 3, second: 1}), with_q=True, proposal="q", reasoner="p")
    one, other = weighed.rationales
    ratios = [math.exp(cast("float", item.log_reward) - cast("float", item.log_q)) for item in (one, other)]
    expected = 3 * ratios[0] / (3 * ratios[0] + ratios[1])
    assert (one.count, other.count) == (3, 1) and one.weight == pytest.approx(expected, rel=1e-3)
    assert abs(expected - ratios[0] / sum(ratios)) > 0.01


def test_rejection_keeps_a_few_chains_a_question_beside_the_demonstrations(lm: LanguageModel) -> None:
    class Right(ToyTask):
        def grade(self, example: Example, answer: str | None) -> bool:
            return True

        def answer(self, rationale: Rationale) -> str | None:
            return ""

    e_step = dataclasses.replace(CONFIG.e_step, steps=20, questions=4, samples=4)
    rollouts = RolloutConfig(granularity="step", max_tokens=6, batch_size=24)
    loop = make(lm, config_of("rejection", e_step=e_step, rollout=rollouts), Right())
    assert isinstance(loop, Rejection) and loop.rounds == 2
    kept: dict[int, Counter[int]] = {}
    told = Counter[int]()
    for phase, info in loop.run():
        if phase.name == "sample":
            told[phase.round] += info["kept"]
        if phase.name == "m_step":
            n = len(loop.demonstrated)
            assert told[phase.round] == len(loop.state.drawn) - n
            assert loop.state.drawn[:n] == loop.demonstrated
            kept[phase.round] = Counter(one.question for one in loop.state.drawn[n:])
    assert len(kept) == 2 and all(max(of_round.values()) == PER_QUESTION for of_round in kept.values())
