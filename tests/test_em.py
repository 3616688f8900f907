"""The loop: a run is the same when repeated, and when stopped and resumed anywhere."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from latent_cot import tasks
from latent_cot.config.schema import DIAGNOSTIC_SAMPLES, MethodName, RolloutConfig, RunConfig
from latent_cot.em import EM
from latent_cot.evaluation.diagnostics import Fall, clear_fall
from latent_cot.methods import likelihood
from latent_cot.methods.exploration import reward_temperature
from latent_cot.methods.seeding import draw_distinct, seed_of, slices
from latent_cot.methods.state import Budget, Phase, Seen, State, WeightedRationale
from latent_cot.model.lm import ADAPTERS, LanguageModel
from latent_cot.objectives.importance import NEGLIGIBLE
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import DataRequest, Example, Rationale, UsageError
from tests.loops import CONFIG, FIT, make, of_method, outcome, run_in_parts
from tests.worlds import PlainTask, ToyTask, language_model

X_ONLY = dataclasses.replace(CONFIG, q_sees="question")
AGAIN = dataclasses.replace(CONFIG.e_step, samples=12, updates=3, tempered_share=0.0, replay_share=0.0)
VARIANTS = {
    "q sees X and Y": CONFIG,
    "q sees X": X_ONLY,
    "subtb": dataclasses.replace(
        CONFIG, e_step=dataclasses.replace(CONFIG.e_step, objective="subtb", huber_delta=None)
    ),
    "prompt": dataclasses.replace(CONFIG, p_init="prompt", shots=2, rounds=1),
    "log Z is learned": dataclasses.replace(
        CONFIG, rounds=1, e_step=dataclasses.replace(CONFIG.e_step, objective="tb")
    ),
    "the sampler is the prior": dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, prior="sampler")),
    "drawn ones are weighted": dataclasses.replace(
        CONFIG, rounds=1, m_step=dataclasses.replace(FIT, samples=3, weighted=True)
    ),
    "learned again": dataclasses.replace(CONFIG, rounds=1, e_step=AGAIN),
    "learned again, q sees X": dataclasses.replace(X_ONLY, rounds=1, e_step=AGAIN),
    "replayed ones beside sampled ones": dataclasses.replace(
        CONFIG, rounds=1, e_step=dataclasses.replace(CONFIG.e_step, mix_replay=True)
    ),
}


@pytest.fixture(autouse=True)
def several_units_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one batch each: there are few test questions here, and a run has to be resumed between units."""
    monkeypatch.setattr("latent_cot.methods.evaluator.BATCHES_AT_ONCE", 1)


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def make_em(lm: LanguageModel, config: RunConfig, task: ToyTask | None = None, **arguments: Any) -> EM:
    em = make(lm, config, task, **arguments)
    assert isinstance(em, EM)
    return em


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_stopped_run_is_the_run_that_was_never_stopped(lm: LanguageModel, config: RunConfig, tmp_path: Path) -> None:
    em = make_em(lm, config)
    list(em.run())
    expected = outcome(em)
    assert bool(expected["buffer"]) == bool(config.e_step.replay_share)
    assert sum(map(len, expected["loop"]["posterior"]["1"].values())) == 4

    for k in (1, 3) if config is CONFIG else (1,):  # 1: stopped after each unit, in each phase
        assert outcome(run_in_parts(lm, config, tmp_path, k)) == expected, f"stopped after each {k} units"


def test_another_seed_gives_another_run(lm: LanguageModel) -> None:
    results = []
    for seed in (0, 1):
        em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, seed=seed))
        list(em.run())
        results.append(outcome(em))
    assert results[0]["p"] != results[1]["p"]
    assert results[0]["loop"]["drawn"] != results[1]["loop"]["drawn"]


@pytest.mark.parametrize(("config", "tested"), [(CONFIG, ["p"]), (X_ONLY, ["q", "p"])])
def test_the_phases_and_their_units(lm: LanguageModel, config: RunConfig, tested: list[str]) -> None:
    em = make_em(lm, config)
    assert [(phase.round, phase.name) for phase in em.phases] == [
        (0, "init"),
        (0, "evaluate"),
        (1, "start_q"),
        *(
            (number, name)
            for number in (1, 2)
            for name in ("diagnose_before", "e_step", "diagnose", "draw", "m_step", "validate", "evaluate")
        ),
    ]
    assert bool(em.units(Phase(1, "start_q"))) == (config == CONFIG), "only a q that reads Y is fine-tuned"
    counts = Counter((phase.round, phase.name) for phase, _ in em.run())
    assert counts == {(phase.round, phase.name): units for phase in em.phases if (units := em.units(phase))}
    # 3 test questions, 12 // 2 a batch: one unit for each reasoner; before the first round only p is tested
    assert em.units(em.phases[1]) == 1
    assert em.units(em.phases[-1]) == len(tested)
    assert set(em.state.results()["accuracy"]["0"]) == {"p"}
    assert set(em.state.results()["accuracy"]["2"]) == set(tested)
    assert all(figures["test"]["n"] == 3 for figures in em.state.results()["accuracy"]["2"].values())
    assert em.state.results()["posterior"]["2"]["after"]["n"] == 2


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
def test_each_phase_trains_what_it_should(lm: LanguageModel, q_sees: Any) -> None:
    """init and M-step: p only; E-step: q only, from q = p, or from what has learned to read Y; drawing and testing:
    neither."""

    def weights() -> dict[str, list[list[float]]]:
        return {a: [w.tolist() for w in lm.parameters(a).values()] for a in ADAPTERS}

    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, q_sees=q_sees))
    before = weights()
    changed: dict[str, set[str]] = {}
    for phase, _ in em.run():
        after = weights()
        changed.setdefault(phase.name, set()).update(a for a in ADAPTERS if after[a] != before[a])
        before = after
        if phase.name == "diagnose_before":
            assert (after["p"] == after["q"]) == (q_sees == "question")
    begins: dict[str, set[str]] = {"diagnose_before": {"q"}}
    if q_sees == "question-and-answer":
        begins = {"start_q": {"q"}, "diagnose_before": set()}
    assert changed == {
        "init": {"p"},
        "evaluate": set(),
        **begins,
        "e_step": {"q"},
        "diagnose": set(),
        "draw": set(),
        "m_step": {"p"},
        "validate": set(),
    }


def test_q_goes_on_in_each_round_from_where_it_is(lm: LanguageModel) -> None:
    em = make_em(lm, dataclasses.replace(CONFIG, safeguard=False))
    found = {}
    for phase, _ in em.run():
        found[phase] = {a: [w.tolist() for w in lm.parameters(a).values()] for a in ADAPTERS}
        if phase == Phase(2, "diagnose_before"):
            break
    assert found[phase] == found[Phase(1, "evaluate")] and found[phase]["q"] != found[phase]["p"]


@pytest.mark.parametrize(
    ("config", "p_is_nearer"),
    [(X_ONLY, True), (X_ONLY, False), (dataclasses.replace(X_ONLY, e_step=AGAIN), True)],
)
def test_q_begins_a_later_round_as_p_where_p_is_clearly_nearer(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: RunConfig, p_is_nearer: bool
) -> None:
    """By the ELBO of the same validation questions; then its figures before the E-step, and what it is put back to, are
    those of p. Wherever the run is stopped and resumed."""
    compared: list[tuple[Sequence[float], Sequence[float]]] = []

    def watched(before: Sequence[float], after: Sequence[float]) -> Fall | None:
        frame = inspect.currentframe()
        if frame is None or frame.f_back is None or frame.f_back.f_code.co_name != "_begin_as_p_if_nearer":
            return None  # nothing is taken back
        compared.append((before, after))
        return Fall(3, 1) if p_is_nearer else None

    monkeypatch.setattr("latent_cot.methods.method.clear_fall", watched)
    em = make_em(lm, config)
    weights = {}
    for phase, info in em.run():
        weights[phase] = {a: [w.tolist() for w in lm.parameters(a).values()] for a in (*ADAPTERS, "kept")}
        last = em.state.unit == em.units(phase)
        assert ("note" in info) == (p_is_nearer and last and phase == Phase(2, "diagnose_before"))
        if phase == Phase(2, "diagnose_before") and last:
            elbo = [of["elbo"] for of in em.state.posterior["2"]["before"]]
            assert set(em.state.posterior["2"]) == {"before"}
            again = em._diagnose(em.state.unit - 1, "q")
            assert again == em.state.posterior["2"]["before"][-len(again) :]
    ((of_p, of_q),) = compared
    assert of_p != of_q and elbo == (of_p if p_is_nearer else of_q)
    start = weights[Phase(2, "diagnose_before")]
    assert start["q"] == start["kept"] == weights[Phase(1, "evaluate")]["p" if p_is_nearer else "q"]
    assert em.state.results()["begun_as_p"] == ([2] if p_is_nearer else [])
    expected = outcome(em)
    assert outcome(run_in_parts(lm, config, tmp_path, 1)) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"q_sees": "question-and-answer"},  # p has never read what q reads
        {"m_step": dataclasses.replace(FIT, target="answer")},  # p does not write rationales
        {"e_step": dataclasses.replace(CONFIG.e_step, reward_temperatures=(1.0, 0.5))},  # the ELBO is not q's aim
        {"safeguard": False},
        {"method": "forward-kl"},  # nor that
    ],
)
def test_q_goes_on_where_p_is_no_start_for_it(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: None)
    loop = make(lm, dataclasses.replace(X_ONLY, **other))
    for _ in loop.run():
        assert "of_p" not in loop.state.posterior.get("2", {})


def test_q_goes_on_where_no_m_step_has_changed_p(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: Fall(1, 0))
    em = make_em(lm, X_ONLY)
    for _ in em.run():
        assert "of_p" not in em.state.posterior.get("2", {})
    assert (1, "m_step") in em.state.taken_back


def test_questions_that_were_asked_of_q_only_are_not_compared(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may change a setting, by which p may be q's start, where a run is stopped in the middle of asking q."""
    starts: list[Phase] = []
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: None)

    def watched(self: EM, at: Phase, of_round: object) -> dict[str, Any]:
        starts.append(at)
        return {}

    monkeypatch.setattr(EM, "_begin_as_p_if_nearer", watched)
    cold = dataclasses.replace(CONFIG.e_step, reward_temperatures=(1.0, 0.5))
    em = make_em(lm, dataclasses.replace(X_ONLY, e_step=cold))
    for phase, _ in em.run():
        if phase == Phase(2, "diagnose_before"):
            break
    em.config = X_ONLY
    for _ in em.run():
        pass
    assert not starts and len(em.state.posterior["2"]["before"]) == 2
    assert set(em.state.posterior["2"]) == {"before", "after"}


def test_a_run_without_validation_questions_has_results(lm: LanguageModel) -> None:
    em = make_em(lm, dataclasses.replace(CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, diagnostics=0)))
    for _ in em.run():
        pass
    assert em.state.results()["posterior"] == {}


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
def test_what_makes_validation_questions_less_likely_is_taken_back(
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    q_sees: Literal["question", "question-and-answer"],
) -> None:
    """q is what it was before its E-step, p what it was before its M-step; wherever the run is stopped and resumed."""
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: Fall(1, 0))
    config = dataclasses.replace(CONFIG, q_sees=q_sees, p_init="prompt", shots=1)
    em = make_em(lm, config)
    found: dict[str, list[list[list[float]]]] = {}
    for phase, info in em.run():
        p, q = ([w.tolist() for w in lm.parameters(a).values()] for a in ADAPTERS)
        if em.state.unit == em.units(phase):
            found.setdefault(phase.name, []).append(p if phase.name in ("draw", "m_step", "validate") else q)
            assert info.get("taken_back", False) == (phase.name in ("diagnose", "validate"))
    assert found["diagnose_before"] == found["diagnose"] != found["e_step"]
    assert found["draw"] == found["validate"] != found["m_step"]
    assert em.state.taken_back == [(number, name) for number in (1, 2) for name in ("e_step", "m_step")]
    assert em.model_prefix, "p is still the base model, and reads demonstrations"
    expected = outcome(em)
    assert outcome(run_in_parts(lm, config, tmp_path, 1)) == expected


def test_what_is_likelier_stays(lm: LanguageModel) -> None:
    """And what a validation question's log p(Y | X) is compared with is the p before, behind what that one read."""
    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, p_init="prompt", shots=1))
    for phase, _ in em.run():
        if phase.name == "draw":
            p = {name: weight.clone() for name, weight in lm.parameters("p").items()}
    assert not em.state.taken_back and not em.model_prefix
    log_y, elbo = em.state.log_y["1"], em.state.elbo["1"]
    examples = em.data.validation[:1]

    seed = em.phases.index(Phase(1, "validate"))
    generator = torch.Generator().manual_seed(seed_of(em.config.seed, seed, 0))
    prompts = [em.query(example).policy_prompt for example in examples]
    sampled = rollout(lm, "q", prompts, em.rules, n=DIAGNOSTIC_SAMPLES, generator=generator)
    counts = list(map(Counter, sampled))
    weights = likelihood.evidence_weights(lm, prompts, counts, em.rules, target="joint", max_tokens=3072)
    assert em._log_evidence(examples, counts, weights) == [(log_y["after"][0], elbo["after"][0])]
    lm.swap_adapters("p", "kept")
    assert all(torch.equal(weight, p[name]) for name, weight in lm.parameters("p").items())
    em.state.m_steps = 0
    assert em._log_evidence(examples, counts, weights) == [(log_y["before"][0], elbo["before"][0])]


def test_without_a_safeguard_all_is_taken(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: Fall(1, 0))
    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, safeguard=False))
    told = [info for phase, info in em.run() if "elbo_fell" in info]
    assert [info["taken_back"] for info in told] == [False]
    assert not em.state.taken_back and not em.state.log_y and em.state.m_steps == 1


@pytest.mark.parametrize(
    ("method", "temperature", "expected"),
    [
        ("em", 1.0, [True]),
        ("gflownet", 1.0, [True]),
        ("em", 0.5, []),
        ("forward-kl", 1.0, [False]),  # which raises it on the way
        ("forward-kl", 0.5, [False]),  # and has no reward temperature
        ("ppo", 1.0, []),
        ("grpo", 1.0, []),
    ],
)
def test_an_e_step_with_another_aim_than_the_elbo_is_not_taken_back(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: MethodName, temperature: float, expected: list[bool]
) -> None:
    """Nor is a fall told where nothing should have raised it."""
    monkeypatch.setattr("latent_cot.methods.method.clear_fall", lambda before, after: Fall(1, 0))
    e_step = dataclasses.replace(CONFIG.e_step, reward_temperatures=(1.0, temperature))
    loop = make(lm, dataclasses.replace(of_method(method), rounds=1, e_step=e_step))
    told = [info["taken_back"] for _, info in loop.run() if "elbo_fell" in info]
    assert told == expected
    assert ((1, "e_step") in loop.state.taken_back) == (expected == [True])


@pytest.mark.parametrize(("before", "after", "both"), [(2, 1, 1), (1, 2, 1), (0, 2, 0)])
def test_as_many_questions_are_compared_as_were_asked_both_times(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, before: int, after: int, both: int
) -> None:
    """`evaluation.diagnostics` may be changed while an E-step is stopped."""
    compared: list[tuple[Any, Any]] = []

    def watched(*figures: Any) -> Fall | None:
        compared.append(figures)
        return clear_fall(*figures)

    monkeypatch.setattr("latent_cot.methods.method.clear_fall", watched)
    counts = {n: dataclasses.replace(CONFIG.evaluation, diagnostics=n) for n in (before, after)}
    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, evaluation=counts[before]))
    for phase, _ in em.run():
        if phase.name == "e_step":
            em.config = dataclasses.replace(em.config, evaluation=counts[after])
        if phase.name == "draw":
            break
    of_round = em.state.posterior["1"]
    elbo = {when: [of["elbo"] for of in figures] for when, figures in of_round.items()}
    assert {when: len(figures) for when, figures in elbo.items() if figures} == (
        {"before": before, "after": after} if before else {"after": after}
    )
    assert compared == [(elbo.get("before", [])[:both], elbo["after"][:both])]


def test_a_log_z_of_a_tempered_reward_says_so(lm: LanguageModel) -> None:
    """Also where the schedule of the temperature is longer than the E-step."""
    e_step = dataclasses.replace(CONFIG.e_step, reward_temperatures=(2.0, 1.0), reward_temperature_steps=10)
    for schedule, expected in ((e_step, 1.6), (CONFIG.e_step, None)):
        loop = make_em(lm, dataclasses.replace(CONFIG, rounds=1, e_step=dataclasses.replace(schedule, steps=4)))
        found = [info for phase, info in loop.run() if phase.name.startswith("diagnose")]
        assert found and all(info.get("reward_temperature") == expected for info in found)


@pytest.mark.parametrize(
    ("q_sees", "target", "writer"),
    [("question", "answer", "q"), ("question-and-answer", "joint", "q"), ("question-and-answer", "answer", "p")],
)
def test_who_has_read_the_answer_does_not_judge_a_p_that_only_decides(
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    q_sees: Literal["question", "question-and-answer"],
    target: Literal["joint", "answer"],
    writer: str,
) -> None:
    config = dataclasses.replace(
        CONFIG, rounds=1, q_sees=q_sees, m_step=dataclasses.replace(CONFIG.m_step, target=target)
    )
    asked: list[tuple[str, Any]] = []

    def watched(lm: LanguageModel, adapter: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
        asked.append((adapter, prompts))
        return rollout(lm, adapter, prompts, *rest, **options)

    em = make_em(lm, config)
    monkeypatch.setattr("latent_cot.methods.method.rollout", watched)
    for phase, _ in em.run():
        if phase.name == "validate":
            break
        asked.clear()
    (found,) = asked
    queries = [em.query(em.data.validation[i]) for i in em._diagnostic_units[0]]
    assert found == (writer, [query.policy_prompt if writer == "q" else query.model_prompt for query in queries])


def test_a_q_that_sees_the_answer_learns_the_stop_among_its_actions(lm: LanguageModel) -> None:
    """As its log-probability has it."""
    em = make_em(lm, dataclasses.replace(CONFIG, q_sees="question-and-answer"))
    example, rationale = em.data.demonstrations[0], em.demonstrations[0]
    lesson = em.lesson(example, rationale, sees_answer=True)
    assert lesson.prompt == em.query(example).policy_prompt
    loss = likelihood.held_out_loss(lm, "q", [lesson], em.rules, max_tokens=3072)
    log_q = float(score(lm, lm.merged("q"), [lesson], em.rules.codec).log_complete)
    assert loss == pytest.approx(-log_q / (sum(rationale.policy_mask) + 1))


@pytest.mark.parametrize("weight", [0.0, 1e9])
def test_demonstrations_are_asked_as_often_as_they_weigh(lm: LanguageModel, weight: float) -> None:
    e_step = dataclasses.replace(CONFIG.e_step, steps=6, demonstration_weight=weight)
    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, e_step=e_step))
    demonstrations = {example.question for example in em.data.demonstrations}
    asked = {sample["question"] for phase, info in em.run() if phase.name == "e_step" for sample in info["samples"]}
    assert asked and (asked == demonstrations if weight else not asked & demonstrations)


def test_the_m_step_ends_with_an_interpolation(lm: LanguageModel) -> None:
    found = {}
    for share in (1.0, 0.5):
        loop = make(lm, dataclasses.replace(CONFIG, rounds=1, m_step=dataclasses.replace(FIT, interpolation=share)))
        *_, (phase, _) = (unit for unit in loop.run() if unit[0].name == "m_step")
        assert phase.round == 1
        found[share] = {name: weight.clone() for name, weight in lm.parameters("p").items()}
    for name, weight in found[1.0].items():
        torch.testing.assert_close(found[0.5][name], weight * (0.5 if "lora_B" in name else 1.0))


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
@pytest.mark.parametrize(("keep", "prior"), [("all", "model"), ("correct", "model"), ("all", "sampler")])
def test_drawn_rationales_are_weighted_towards_the_posterior(
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    q_sees: Literal["question", "question-and-answer"],
    keep: Literal["all", "correct"],
    prior: Literal["model", "sampler"],
    questions: int,
) -> None:
    """The weights of a question beside n w / Σ w over its samples, w = p(Z Y | X) / q(Z) of each scored by itself,
    whatever q is trained towards."""
    m_step = dataclasses.replace(FIT, samples=6, keep=keep, weighted=True)
    e_step = dataclasses.replace(CONFIG.e_step, prior=prior)
    at_once = dataclasses.replace(CONFIG.rollout, batch_size=6 * questions)
    config = dataclasses.replace(CONFIG, q_sees=q_sees, rounds=1, m_step=m_step, e_step=e_step, rollout=at_once)
    em = make_em(lm, config, LenientTask())
    reward = Reward(lm, em.rules.codec)
    sampled: dict[int, list[Rationale]] = {}
    sample = em.sample_questions

    def spied(adapter: Any, members: Any, seed: int, **arguments: Any) -> list[list[Rationale]]:
        found = sample(adapter, members, seed, **arguments)
        sampled.update(zip(members, found, strict=True))
        return found

    monkeypatch.setattr(em, "sample_questions", spied)
    for phase, info in em.run():
        if phase.name == "draw":
            assert info["drawn"] == 6 * questions
            if em.state.unit == em.units(phase):
                break
    found = {(one.question, one.rationale.tokens): one.weight for one in em.state.drawn}
    assert len(found) == len(em.state.drawn), "not distinct"
    expected: dict[tuple[int, tuple[int, ...]], float] = {}
    negligible: set[tuple[int, tuple[int, ...]]] = set()
    for question, rationales in sampled.items():
        query = em.query(em.questions[question])
        kept = [z for z in rationales if keep == "all" or em.is_correct(query.example, z)]
        ratios = []
        for z in kept:
            (rewards,) = reward.of_prefixes([query.example], [Group(query.model_prompt, [z], query.answer)])
            with torch.no_grad():
                scores = score(lm, lm.merged("q"), [Group(query.policy_prompt, [z])], em.rules.codec)
            log_q = float(scores.log_pf.sum()) + (0.0 if z.truncated else float(scores.log_pterm[0, len(z)]))
            ratios.append(math.exp(float(rewards[0, len(z)]) - log_q + 60))  # 60: about what Y costs in this world
        for z, ratio in zip(kept, ratios, strict=True):
            key = question, z.tokens
            expected[key] = expected.get(key, 0.0) + 6 * ratio / sum(ratios)
            negligible -= {key}
            negligible |= {key} if expected[key] / 6 * len(kept) <= NEGLIGIBLE else set()
    assert found == pytest.approx({key: weight for key, weight in expected.items() if key not in negligible}, rel=2e-3)
    assert len({round(weight, 3) for weight in found.values()}) > 2
    assert keep == "all" or len(expected) < len({(i, z.tokens) for i, of_i in sampled.items() for z in of_i})


class LenientTask(ToyTask):
    """A chain is right if its tokens add up to an even number."""

    def grade(self, example: Example, answer: str | None) -> bool:
        return answer is not None

    def answer(self, rationale: Rationale) -> str | None:
        return "" if sum(rationale.tokens) % 2 == 0 else None


def test_em_without_an_e_step(lm: LanguageModel, tmp_path: Path) -> None:
    """q is p, and only the M-step is left; there is nothing to look at after a training of q."""
    config = dataclasses.replace(X_ONLY, e_step=dataclasses.replace(CONFIG.e_step, steps=0))
    em = make_em(lm, config)
    of_round = ("start_q", "diagnose_before", "draw", "m_step", "validate", "evaluate")
    assert [(phase.round, phase.name) for phase in em.phases if phase.round] == [
        (r, n) for r in (1, 2) for n in of_round
    ]
    for phase, _ in em.run():
        if phase.name == "draw":
            p, q = ([w.tolist() for w in lm.parameters(a).values()] for a in ("p", "q"))
            assert p == q
    expected = outcome(em)
    results = em.state.results()
    assert set(results["posterior"]["2"]) == {"before"}
    assert set(results["accuracy"]["2"]) == {"p", "q"}
    assert outcome(run_in_parts(lm, config, tmp_path, 1)) == expected


def test_without_an_e_step_a_q_that_sees_the_answer_stays_as_the_demonstrations_made_it(lm: LanguageModel) -> None:
    em = make_em(lm, dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, steps=0)))
    found = {}
    for phase, _ in em.run():
        found[phase] = {a: [w.tolist() for w in lm.parameters(a).values()] for a in ADAPTERS}
    start = found[Phase(1, "start_q")]
    assert start["q"] != start["p"] != found[phase]["p"] and found[phase]["q"] == start["q"]


def test_the_reward_is_the_configured_one(lm: LanguageModel) -> None:
    """Y counts by more than its log-probability only if so configured; what is compared is more work."""
    assert make(lm, CONFIG).reward.comparison is None
    weighed = make(lm, dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, answer_weight=2.0)))
    comparison = weighed.reward.comparison
    assert comparison is not None
    assert (comparison.normalised, comparison.penalty, comparison.weight) == (False, 0.0, 2.0)
    named: dict[str, Any] = {
        "answer_reward": "normalised",
        "wrong_candidate_penalty": 3.0,
        "copy_penalty": 4.0,
        "score_tool_tokens": True,
    }
    e_step = dataclasses.replace(CONFIG.e_step, answer_weight=2.0, **named)
    reward = make(lm, dataclasses.replace(CONFIG, e_step=e_step, max_batch_tokens=77)).reward
    assert reward.comparison is not None
    assert (reward.comparison.normalised, reward.comparison.penalty, reward.comparison.weight) == (True, 3.0, 2.0)
    assert (reward.tool_tokens, reward.copy_penalty, reward.max_tokens) == (True, 4.0, 77)


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
def test_the_prior_is_the_sampler_before_its_first_e_step(
    lm: LanguageModel, q_sees: Literal["question", "question-and-answer"]
) -> None:
    """And stays it in later rounds; it reads what q reads."""
    e_step = dataclasses.replace(CONFIG.e_step, prior="sampler")
    em = make_em(lm, dataclasses.replace(CONFIG, q_sees=q_sees, rounds=2, e_step=e_step))
    priors = []
    for phase, _ in em.run():
        if phase.round:
            q, prior = ([w.tolist() for w in lm.parameters(name).values()] for name in ("q", "prior"))
            if (phase.round, phase.name) == (1, "diagnose_before"):
                assert q == prior
            if phase.name == "e_step":
                assert q != prior
                priors.append(prior)
    assert all(prior == priors[0] for prior in priors)
    assert em.reward.prior is not None
    example = em.task.example("ab")
    assert em.reward.prior(example) == em.query(example).policy_prompt


def test_what_q_and_p_read(lm: LanguageModel) -> None:
    """With q_sees question-and-answer the answer is in q's prompt, never in p's."""
    task = ToyTask()
    example = task.example("ab")
    prompts: dict[Literal["question", "question-and-answer"], str] = {
        "question": "ab?",
        "question-and-answer": "ab?. It is 3.",
    }
    for q_sees, seen in prompts.items():
        em = make_em(lm, dataclasses.replace(CONFIG, q_sees=q_sees))
        query = em.query(example)
        codec = em.rules.codec
        assert codec.decode(query.policy_prompt) == seen
        assert codec.decode(query.model_prompt) == "ab?"
        assert codec.decode(query.answer) == ". It is 3."
        assert em.reasoners == (("q", "p") if q_sees == "question" else ("p",))


def test_demonstrations_in_the_prompt_until_p_is_trained(lm: LanguageModel) -> None:
    """With the tools' results in them."""
    em = make_em(lm, dataclasses.replace(X_ONLY, p_init="prompt", shots=2))
    shown = "a? a= 2. It is 2.\nab? ab= 3. It is 3.\n"
    assert em.model_prefix == shown
    codec = em.rules.codec
    query = em.query(ToyTask().example("c"))
    assert codec.decode(query.model_prompt) == shown + "c?"
    assert codec.decode(query.policy_prompt) == "c?"
    for _ in em.run():
        begun = em.phases[: em.state.phase + (em.state.unit > 0)]
        assert em.model_prefix == ("" if any(phase.name == "m_step" for phase in begun) else shown)


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
def test_a_task_without_tools_and_demonstrations(lm: LanguageModel, q_sees: Any) -> None:
    """Its answers are candidates, its chains may stop anywhere, and p starts from the base model."""
    config = dataclasses.replace(
        CONFIG,
        q_sees=q_sees,
        rounds=1,
        p_init="base",
        rollout=RolloutConfig(granularity="token", max_tokens=4, batch_size=6),
    )
    em = make_em(lm, config, PlainTask())
    infos = [(phase.name, info) for phase, info in em.run()]
    assert [name for name, _ in infos].count("m_step") == 3
    assert "init" not in dict(infos)
    assert "diagnose_before" not in dict(infos), "there are no validation questions to look at"
    assert all(torch.isfinite(torch.tensor(info["loss"])) for name, info in infos if "loss" in info)
    assert em.state.results()["accuracy"]["1"]["p"]["test"]["n"] == 3
    assert not any(rationale.calls for _, rationale, _ in em.state.drawn)


def test_only_right_rationales_are_kept(lm: LanguageModel) -> None:
    class Some(ToyTask):
        def grade(self, example: Example, answer: str | None) -> bool:
            return "a" in example.question

    keep = dataclasses.replace(FIT, keep="correct")
    em = make_em(lm, dataclasses.replace(CONFIG, rounds=1, m_step=keep), Some())
    kept = drawn = 0
    for phase, info in em.run():
        if phase.name == "draw":
            kept, drawn = kept + info["kept"], drawn + info["drawn"]
    assert drawn == 12
    assert 0 < kept == len(em.state.drawn) < drawn
    assert all("a" in em.questions[question].question for question, _, _ in em.state.drawn)


def test_a_round_without_a_right_rationale_leaves_p_alone(lm: LanguageModel) -> None:
    class Impossible(ToyTask):
        def grade(self, example: Example, answer: str | None) -> bool:
            return False

    config = dataclasses.replace(CONFIG, rounds=1, m_step=dataclasses.replace(FIT, keep="correct"))
    em = make_em(lm, config, Impossible())
    notes, units, before = [], 0, None
    for phase, info in em.run():
        if phase.name == "m_step":
            notes.append(info)
            assert before == [w.tolist() for w in lm.parameters("p").values()]
            # Stopped here and resumed, there is nothing left to do in this phase.
            rest = make_em(lm, config, Impossible(), state=State.from_json(em.state.to_json()))
            units = sum(phase.name == "m_step" for phase, _ in rest.run())
        before = [w.tolist() for w in lm.parameters("p").values()]
    assert em.state.drawn == []
    assert [set(info) for info in notes] == [{"note"}]
    assert units == 0, "the note came again"


def test_the_buffer_is_that_of_the_present_p(lm: LanguageModel) -> None:
    """Emptied when p has changed."""
    em = make_em(lm, CONFIG)
    seen: list[dict[tuple[str, str], float]] = []
    for phase, _ in em.run():
        if phase.name == "e_step" and em.state.unit == 1:
            keys = [question.key for question in em.questions]
            seen.append({(key, one.rationale.text): one.priority for key in keys for one in em.buffer.stored(key)})
    assert len(seen) == 2 and all(seen)
    assert all(seen[0][text] != seen[1][text] for text in seen[0].keys() & seen[1].keys())


def test_where_nothing_is_replayed_nothing_is_kept(lm: LanguageModel) -> None:
    """A run saves its buffer at each checkpoint."""
    em = make_em(lm, dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, replay_share=0.0)))
    next(phase for phase, _ in em.run() if phase.name == "e_step")
    assert em.state_dict()["buffer"] == {}


def test_the_reward_temperature(lm: LanguageModel) -> None:
    c = dataclasses.replace(CONFIG.e_step, reward_temperatures=(1.0, 0.5), reward_temperature_steps=10)
    assert [reward_temperature(c, step) for step in (0, 5, 10, 50)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert make_em(lm, dataclasses.replace(CONFIG, e_step=c)).final_reward_temperature == pytest.approx(0.8)
    assert reward_temperature(dataclasses.replace(c, reward_temperature_steps=0), 0) == 0.5


def test_a_state_survives_json() -> None:
    rationale = Rationale((1, 2), (True, False), (True, False, True), "ab", truncated=True)
    state = State(
        phase=3,
        unit=2,
        drawn=[WeightedRationale(4, rationale, 0.5)],
        seen=[Seen(3, rationale, 2, -9.0, -2.5, False)],
        budget=Budget(3, 20, 2),
        checks=[1, 2],
        right={"0": {"p": {"test": "10"}}},
        posterior={"1": {"before": [{"ess": 0.5}]}},
    )
    record = json.loads(json.dumps(state.to_json()))
    assert State.from_json(record) == state
    del record["drawn"]
    with pytest.raises(ValueError, match="other parts"):
        State.from_json(record)


def test_questions_are_drawn_without_repetition_and_by_weight() -> None:
    rng = random.Random(0)
    weights = [1.0, 3.0, 0.0, 1.0]
    first: Counter[int] = Counter()
    for _ in range(4000):
        drawn = draw_distinct(weights, 2, rng)
        assert len(set(drawn)) == 2
        assert 2 not in drawn
        first[drawn[0]] += 1
    for i, weight in enumerate(weights):
        assert first[i] / 4000 == pytest.approx(weight / 5, abs=0.03)
    assert sorted(draw_distinct(weights, 10, rng)) == [0, 1, 3]
    for weight in (1e-12, 1e17):
        first = Counter(draw_distinct([weight] * 4, 1, rng)[0] for _ in range(2000))
        assert all(400 < first[i] < 600 for i in range(4)), "how large equal weights are makes no difference"


def test_slices_cover_everything_once() -> None:
    for n in range(8):
        for size in range(1, 5):
            assert [i for part in slices(n, size) for i in part] == list(range(n))
            assert all(0 < len(part) <= size for part in slices(n, size))


def test_questions_with_products_are_not_joined() -> None:
    joined = dataclasses.replace(CONFIG, augmentation=dataclasses.replace(CONFIG.augmentation, concat_questions=2))
    task = tasks.load("arithmetic")
    sums, products = (task.load(DataRequest(1, 3, 0, options={"operators": one})) for one in ("+-", "*"))
    EM.check(joined, task, sums)
    EM.check(CONFIG, task, products)
    with pytest.raises(UsageError, match=r"--augmentation\.concat-questions: .* give 0"):
        EM.check(joined, task, products)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m_step": dataclasses.replace(FIT, target="candidates")}, r"--m-step\.target candidates"),
        ({"m_step": dataclasses.replace(FIT, weighted=True, temperature=0.5)}, r"--m-step\.weighted .* \(here 0\.5\)"),
        ({"m_step": dataclasses.replace(FIT, weighted=True, samples=1)}, r"--m-step\.weighted .* \(here 1\)"),
    ],
)
def test_what_would_learn_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    data = ToyTask().load(DataRequest())
    EM.check(CONFIG, ToyTask(), data)
    with pytest.raises(UsageError, match=message):
        EM.check(dataclasses.replace(CONFIG, **changes), ToyTask(), data)
    without = dataclasses.replace(data.unlabelled[0], y=None)
    answers = dataclasses.replace(CONFIG, m_step=dataclasses.replace(FIT, target="answer"))
    EM.check(answers, ToyTask(), data)
    with pytest.raises(UsageError, match=r"--m-step\.target answer"):
        EM.check(answers, ToyTask(), dataclasses.replace(data, unlabelled=(without,)))
