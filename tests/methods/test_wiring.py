"""What the loops hand to their parts: settings that would be ignored without a trace."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch

from latent_cot import em as em_module
from latent_cot.config.schema import MethodName
from latent_cot.em import EM
from latent_cot.evaluation.evaluate import NO_RATIONALE
from latent_cot.methods import e_step as e_step_module
from latent_cot.methods import evaluator as evaluator_module
from latent_cot.methods import fine_tuning as fine_tuning_module
from latent_cot.methods import forward_kl_steps, likelihood
from latent_cot.methods import method as method_module
from latent_cot.methods import policy_gradient as policy_gradient_module
from latent_cot.methods.forward_kl_steps import Samples, samples_of
from latent_cot.methods.likelihood import epoch_batch
from latent_cot.methods.method import Method
from latent_cot.methods.state import Phase, Seen, State
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales import rollout as rollout_module
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.experience import log_probs_by_sampler
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import Example, Rationale
from tests.engines import ReferenceEngine
from tests.loops import CONFIG, answer_questions, make
from tests.methods.test_methods import config_of, policy, weights
from tests.worlds import PlainTask, ToyTask, language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def spy(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, order: list[str] | None = None, called: str = ""
) -> list[tuple[Any, dict[str, Any]]]:
    """The arguments of all calls to come; log Z, which is learned, as it was. `order`: what was called, one by one."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    original = getattr(module, name)

    def recorded(*arguments: Any, **options: Any) -> Any:
        log_z = [z.item() for z in options.get("log_z") or ()]
        calls.append((arguments, {**options, "log_z": log_z}))
        if order is not None:
            order.append(called)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, recorded)
    return calls


@pytest.mark.parametrize(("objective", "complete_only", "log_z_rate"), [("tb", True, 0.1), ("prefix-tb", False, 0.3)])
def test_what_the_e_step_is_given(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, objective: Any, complete_only: bool, log_z_rate: float
) -> None:
    updates, collected = spy(monkeypatch, em_module, "balance_step"), spy(monkeypatch, em_module, "sample")
    diagnoses = spy(monkeypatch, method_module, "diagnose")
    e_step = dataclasses.replace(
        CONFIG.e_step,
        objective=objective,
        samples=6,
        replay_share=0.0,
        huber_delta=2.0,
        reward_floor=3.0,
        reward_temperatures=(1.0, 0.4),
        reward_temperature_steps=3,
        decay="constant",
        max_grad_norm=7.0,
    )
    em = make(lm, dataclasses.replace(CONFIG, rounds=1, e_step=e_step))
    list(em.run())
    assert [options["reward_temperature"] for _, options in updates] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert {(options["huber_delta"], options["reward_floor"]) for _, options in updates} == {(2.0, 3.0)}
    figures = ("reward_temperature", "reward_floor", "complete_only")
    assert {tuple(options[name] for name in figures) for _, options in diagnoses} == {(0.4, 3.0, complete_only)}
    (optimiser,) = {arguments[3] for arguments, _ in updates}
    assert (optimiser.schedule, optimiser.max_grad_norm) == (Schedule(1e-2, 4, 1, "constant"), 7.0)
    assert optimiser.adam.param_groups[1]["lr"] == log_z_rate
    starts = [options["log_z"] for _, options in updates]
    assert all(len(set(of_step)) == 1 and len(of_step) == e_step.questions for of_step in starts)  # one for all
    assert len({of_step[0] for of_step in starts}) == e_step.steps  # it is learned
    behaviours = [behaviour for arguments, _ in collected for behaviour in arguments[2]]
    assert {one.tempered_share for one in behaviours} == {e_step.tempered_share}
    low, high = e_step.temperatures
    assert all(low <= one.temperature <= high for one in behaviours)


@pytest.mark.parametrize(("max_tokens", "tolerance"), [(8, 0.0), (9, 0.25)])
def test_short_chains_have_no_near_ones(lm: LanguageModel, max_tokens: int, tolerance: float) -> None:
    loop = make(lm, dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, max_tokens=max_tokens)))
    assert cast(EM, loop).buffer.tolerance == tolerance


def test_a_shared_log_z_starts_from_the_first_batch(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the mean of log R − log q of its complete rationales, tempered; of questions that have any."""
    updates = spy(monkeypatch, em_module, "balance_step")
    e_step = dataclasses.replace(
        CONFIG.e_step, objective="tb", reward_temperatures=(0.5, 1.0), reward_temperature_steps=9
    )
    em = make(lm, dataclasses.replace(CONFIG, rounds=1, e_step=e_step))
    assert isinstance(em, em_module.EM)
    expected = math.nan
    original = e_step_module.mean_log_z

    def recorded(lm: LanguageModel, batches: Any, rules: Any, **options: Any) -> float:
        nonlocal expected
        batches[0].log_reward.fill_(-math.inf)  # a question without a possible rationale says nothing
        means = []
        for batch in batches[1:]:
            scores = score(lm, lm.merged("q"), [Group(batch.query.policy_prompt, batch.rationales)], rules.codec)
            ends = torch.tensor([[len(z)] for z in batch.rationales])
            log_q = scores.log_pf.sum(1) + scores.log_pterm.gather(1, ends)[:, 0]
            a = batch.log_reward.gather(1, ends)[:, 0] / 0.5 - log_q
            weight = torch.tensor(batch.counts, dtype=torch.float32)
            means.append(float((weight * a).sum() / weight.sum()))
        expected = sum(means) / len(means)
        return original(lm, batches, rules, **options)

    monkeypatch.setattr(em_module, "mean_log_z", recorded)
    list(em.run())
    assert updates[0][1]["log_z"][0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("method", "q_sees", "writer", "n"),
    [("em", "question", "q", 2), ("em", "question-and-answer", "q", 2), ("rejection", "question", "p", 1)],
)
def test_who_draws_for_the_m_step(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str, q_sees: str, writer: str, n: int
) -> None:
    asked = spy(monkeypatch, method_module, "rollout")
    m_step = dataclasses.replace(CONFIG.m_step, samples=2, temperature=0.7)
    loop = make(lm, config_of(method, q_sees=q_sees, p_init="prompt", shots=1, m_step=m_step))
    for phase, _ in loop.run():
        if phase.name in ("draw", "sample"):
            break
        asked.clear()
    (((_, adapter, prompts, _), how),) = asked
    of_p = epoch_batch(len(loop.questions), loop.config.rollout.batch_size, 0, f"{loop.config.seed}/{loop.state.phase}")
    queries = [loop.query(loop.questions[i]) for i in (loop._draw_units[0] if writer == "q" else of_p)]
    assert prompts == [query.policy_prompt if writer == "q" else query.model_prompt for query in queries]
    assert (adapter, how["n"], how["temperature"]) == (writer, n, 0.7)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Phase, dict[str, Any]]]:
    """The phase of each fine-tuning to come, and the adapters before its first step."""
    found: list[tuple[Phase, dict[str, Any]]] = []
    original = Method.fine_tune

    def fit(self: Method, *arguments: Any) -> Iterator[Any]:
        found.append((self.phases[self.state.phase], weights(self)))
        yield from original(self, *arguments)

    monkeypatch.setattr(Method, "fine_tune", fit)
    return found


def test_rejection_fine_tunes_the_start_each_round(
    lm: LanguageModel, begun: list[tuple[Phase, dict[str, Any]]]
) -> None:
    loop = make(lm, config_of("rejection"))
    list(loop.run())
    starts = [before["p"] for phase, before in begun if phase.name == "m_step"]
    assert len(starts) == 2
    assert starts[0] == starts[1] == weights(loop)["q"]


def test_a_q_that_sees_y_starts_from_p(lm: LanguageModel, begun: list[tuple[Phase, dict[str, Any]]]) -> None:
    loop = make(lm, config_of("em", q_sees="question-and-answer"))
    next(phase for phase, _ in loop.run() if phase.name == "start_q")
    phase, before = begun[-1]
    assert phase == Phase(1, "start_q") and before["q"] == before["p"] == weights(loop)["p"]


def test_q_is_tested_without_ps_demonstrations(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spy(monkeypatch, evaluator_module, "read_answers")
    m_step = dataclasses.replace(CONFIG.m_step, steps=0)
    config = dataclasses.replace(CONFIG, q_sees="question", p_init="prompt", shots=2, rounds=1, m_step=m_step)
    loop = make(lm, config)
    list(loop.run())
    bare = {
        (judge, prompts == [loop.rules.codec.encode_prompt(example.x) for example in examples])
        for (_, judge, _, examples, prompts, *_), _ in asked
    }
    assert bare == {("p", False), ("base", True)}


def test_nobody_reads_the_answer_who_has_to_pick_it(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spy(monkeypatch, evaluator_module, "read_answers")
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    loop = make(lm, dataclasses.replace(CONFIG, q_sees="question-and-answer", rollout=rollout), PlainTask())
    example = loop.questions[0]
    loop.decide("q", [example], [[NO_RATIONALE]])
    (((_, _, _, _, prompts, *_), _),) = asked
    assert prompts == [loop.rules.codec.encode_prompt(example.x)] != [loop.test_prompt("q", example)]


def test_p_decides_after_the_rationales_that_q_is_tested_with(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator_module, "BATCHES_AT_ONCE", 1)
    asked = spy(monkeypatch, evaluator_module, "read_answers")
    rollout = dataclasses.replace(CONFIG.rollout, batch_size=2)
    m_step = dataclasses.replace(CONFIG.m_step, target="answer")
    list(make(lm, dataclasses.replace(CONFIG, q_sees="question", rounds=1, rollout=rollout, m_step=m_step)).run())
    judges = [judge for (_, judge, *_), _ in asked]
    assert judges == ["p", "p", "base", "base", "p", "p"]
    rationales = [given for (_, _, _, _, _, given, _), _ in asked]
    assert rationales[2:4] == rationales[4:]


@pytest.mark.parametrize("method", ["ppo", "forward-kl"])
@pytest.mark.parametrize("weight", [0.0, 1e9])
def test_demonstrations_are_asked_as_often_as_they_weigh(lm: LanguageModel, method: MethodName, weight: float) -> None:
    """In methods other than EM too."""
    config = config_of(method)
    loop = make(lm, dataclasses.replace(config, e_step=dataclasses.replace(config.e_step, demonstration_weight=weight)))
    chosen = set(loop.question_weights)
    assert chosen == {weight, 1.0}
    asked = {i for step in range(6) for i in loop._rollouts(step, lambda prompts, *_, **__: [[] for _ in prompts])[0]}
    shown = set(range(len(loop.data.demonstrations)))
    assert asked and (asked <= shown if weight else not asked & shown)


def test_many_samples_of_a_question_are_not_drawn_at_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 of a uniform number would have logits of 20 GB."""
    loop = make(lm, dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, batch_size=4)))
    example = next(iter(loop.tests.values()))[0]
    drawn = spy(monkeypatch, rollout_module, "_sample")
    (counts,) = loop.draw_tests("q", [example], n=50, temperature=1.0, seed=0)
    assert sum(counts.values()) == 50 and len(counts) > 1
    assert max(len(arguments[1]) for arguments, _ in drawn) == loop.test_batch_size == 8
    assert loop.draw_tests("q", [example], n=50, temperature=1.0, seed=0) == [counts]


def test_many_equal_samples_all_count(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    n, rationale = 2000, Rationale((), (), (True,), "")
    monkeypatch.setattr(method_module, "weigh", lambda *_, **__: (torch.full((n,), 1 / n), None))
    sampled = SimpleNamespace(group=torch.zeros(n).long(), count=torch.ones(n), rationales=[rationale] * n)
    kept = make(lm, CONFIG)._weigh([0], cast("Any", sampled))
    assert len(kept) == n


def test_weights_of_what_was_drawn_reach_the_update(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided by their mean."""
    updates = spy(monkeypatch, likelihood, "likelihood_step")
    m_step = dataclasses.replace(CONFIG.m_step, samples=4, weighted=True, batch_size=24)
    em = make(lm, dataclasses.replace(CONFIG, rounds=1, m_step=m_step))
    for phase, _ in em.run():
        if phase.name == "draw":
            updates.clear()
    drawn = [one.weight for one in em.state.drawn]
    mean = sum(drawn) / len(drawn)
    given = {weight for _, options in updates for (weight,) in options["weights"]}
    assert given <= {weight / mean for weight in drawn}
    assert len(given) > 1


def test_a_q_that_has_read_y_learns_to_write_z_of_its_own_question(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever p learns: answers only, or questions that are joined to others, whose answer is another."""
    updates, varied = spy(monkeypatch, likelihood, "likelihood_step"), spy(monkeypatch, fine_tuning_module, "vary")
    m_step = dataclasses.replace(CONFIG.m_step, target="answer")
    lessons = dataclasses.replace(CONFIG.augmentation, concat_questions=2)
    loop = make(
        lm, dataclasses.replace(CONFIG, q_sees="question-and-answer", rounds=1, augmentation=lessons, m_step=m_step)
    )
    list(loop.run())
    assert {(arguments[1], options.get("target", "joint")) for arguments, options in updates} == {
        ("p", "joint"),
        ("q", "joint"),
        ("p", "answer"),
    }
    with_y = [loop.rules.codec.encode_prompt(loop.task.posterior_prompt(question)) for question in loop.questions]
    joined = {(arguments[0].prompt in with_y, options["concat_questions"]) for arguments, options in varied}
    assert joined == {(True, 0), (False, 2)}


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_what_a_policy_gradient_is_given(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    floors, updates = (
        spy(monkeypatch, policy_gradient_module, "floored"),
        spy(monkeypatch, policy_gradient_module, "policy_gradient_step"),
    )
    e_step = dataclasses.replace(CONFIG.e_step, steps=2, updates=2, reward_floor=7.0)
    list(make(lm, config_of(method, e_step=e_step, **policy(method, kl=0.4))).run())
    assert [arguments[1] for arguments, _ in floors] == [7.0, 7.0]
    given = [{name: options[name] for name in ("epochs", "kl")} for _, options in updates]
    assert given == [{"epochs": 2, "kl": 0.4 if method == "grpo" else 0.0}] * 2


@pytest.mark.parametrize("by_engine", [False, True])
def test_ppo_asks_an_engine_how_likely_it_found_what_it_has_sampled(
    lm: LanguageModel, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, by_engine: bool
) -> None:
    updates = spy(monkeypatch, policy_gradient_module, "policy_gradient_step")
    evaluation = dataclasses.replace(CONFIG.evaluation, every_round=False, diagnostics=0)
    loop = make(lm, config_of("ppo", p_init="base", evaluation=evaluation))
    with lm.sampling_by(ReferenceEngine(tiny_model("llama")) if by_engine else None):
        next(loop.run())
    (((_, experience, *_), options),) = updates
    if by_engine:
        assert torch.equal(options["sampler"], log_probs_by_sampler(experience)) and options["sampler"].any()
    else:
        assert options["sampler"] is None


def learned_weights(call: tuple[Any, dict[str, Any]], loop: Method) -> dict[int, dict[Rationale, float]]:
    """Question -> rationale -> weight, of an update that learns again: in groups no larger than an E-step's own."""
    prompts = [loop.query(question).policy_prompt for question in loop.questions]
    found: dict[int, dict[Rationale, float]] = {}
    for group, own in zip(call[0][1], call[0][2], strict=True):
        assert 0 < len(group.rationales) <= loop.config.e_step.samples and list(group.rationales) == own.rationales
        weights = zip(group.rationales, own.weight.tolist(), strict=True)
        found.setdefault(prompts.index(group.prompt), {}).update(weights)
    assert call[1]["divisor"] == len(found)
    return found


def weights_of(samples: Mapping[int, Samples], questions: Iterable[int]) -> dict[int, dict[Rationale, float]]:
    """The same of what is to be learned."""
    found = {}
    for i in questions:
        found[i] = dict(zip(samples[i].rationales, samples[i].weight.tolist(), strict=True))
    return found


@pytest.fixture
def all_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rationales of a question there are, a step learns them all."""
    monkeypatch.setattr(Samples, "thinned", lambda self, most, rng: self)


@pytest.mark.usefixtures("all_learned")
def test_em_learns_again_by_forward_kl(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step its own batch by the objective, with the weights of the q before that; then what was sampled so far."""
    order: list[str] = []
    again = spy(monkeypatch, forward_kl_steps, "forward_kl_step", order, "again")
    balance = spy(monkeypatch, em_module, "balance_step", order, "balance")
    spy(monkeypatch, forward_kl_steps, "log_probs_when_sampled", order, "weigh")
    e_step = dataclasses.replace(
        CONFIG.e_step,
        steps=6,
        questions=1,
        samples=12,
        updates=3,
        tempered_share=0.0,
        replay_share=0.0,
        max_grad_norm=100.0,
        objective="vargrad",
    )
    loop = make(lm, config_of("em", rounds=1, seed=1, e_step=e_step))
    done, learned = 0, 0
    for phase, _ in loop.run():
        if phase.name == "e_step":
            now = samples_of(cast(EM, loop).instructive())
            assert order == ["weigh", "balance", *["again"] * (2 if now else 0)]
            for call in again[done:]:
                found = learned_weights(call, loop)
                assert len(found) == min(2, len(now)) and found == weights_of(now, found)
                learned += 1
        elif phase.name == "diagnose":
            break
        done = len(again)
        order.clear()
    assert learned and len(balance) == 6 and all(options["objective"] == "vargrad" for _, options in balance)
    assert loop.state.budget.gradient_steps == 2 * CONFIG.init_step.steps + 6 + learned  # p and q learn to read


def test_only_what_q_has_written_at_temperature_1_is_learned_again(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what was sampled hotter or replayed beside it; and by the weights of the tempered reward."""
    e_step = dataclasses.replace(
        CONFIG.e_step,
        steps=8,
        samples=12,
        updates=2,
        max_grad_norm=100.0,
        tempered_share=0.5,
        replay_share=0.5,
        mix_replay=True,
        reward_temperatures=(3.0, 1.0),
    )
    loop = cast(EM, make(lm, config_of("em", rounds=1, e_step=e_step)))
    weighed = spy(monkeypatch, forward_kl_steps, "samples_of")
    own: Counter[tuple[int, Rationale]] = Counter()
    sample_step = loop._sample_step

    def sampled_step(step: int, draw: Any) -> Any:
        heat: list[Sequence[float]] = []

        def drawn(prompts: Any, *arguments: Any, temperature: Any, **options: Any) -> Any:
            heat.extend(temperature)
            return draw(prompts, *arguments, temperature=temperature, **options)

        chosen, sampled, *rest = sample_step(step, drawn)
        order = sorted(range(len(chosen)), key=lambda k: -len(sampled[k]))  # as they were drawn: by their number
        for k, temperatures in zip(order, sorted(heat, key=lambda one: -len(one)), strict=True):
            own.update((chosen[k], z) for z, t in zip(sampled[k], temperatures, strict=True) if t == 1.0)
        return chosen, sampled, *rest

    monkeypatch.setattr(loop, "_sample_step", sampled_step)
    replayed = 0.0
    for phase, info in loop.run():
        if phase.name == "e_step":
            kept: Counter[tuple[int, Rationale]] = Counter()
            for one in loop.state.seen:
                kept[one.question, one.rationale] += one.times
            assert kept == own
            assert all(arguments[1] == info["reward_temperature"] for arguments, _ in weighed)
            replayed += info.get("replayed", 0.0)
            weighed.clear()
        elif phase.name == "diagnose":
            break
    assert own and kept and replayed


class Short(ToyTask):
    """Worth the more the shorter it is: many rationales are good."""

    def log_reward(self, example: Example, text: str) -> float:
        return -float(len(text))


@pytest.mark.parametrize(("task", "subtracts"), [(None, False), (PlainTask(), True), (Short(), True)])
def test_what_q_gives_is_subtracted_where_nobody_tells_right_from_wrong(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, task: ToyTask | None, subtracts: bool
) -> None:
    updates = spy(monkeypatch, forward_kl_steps, "forward_kl_step")
    e_step = dataclasses.replace(CONFIG.e_step, steps=6, samples=12, updates=2, tempered_share=0.0, replay_share=0.0)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    for phase, _ in make(lm, config_of("em", rounds=1, e_step=e_step, rollout=rollout), task).run():
        if phase.name == "diagnose":
            break
    baselines = [samples.b for arguments, _ in updates for samples in arguments[2]]
    assert updates and any(baselines) is subtracts


class Odd(ToyTask):
    """Rationales of an even number of letters are worth nothing."""

    def log_reward(self, example: Example, text: str) -> float:
        return 0.0 if len(text) % 2 else -math.inf


def test_what_is_worth_nothing_is_kept_beside_what_is_not(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only together they show what q gives to what."""
    updates = spy(monkeypatch, forward_kl_steps, "forward_kl_step")
    e_step = dataclasses.replace(CONFIG.e_step, steps=8, samples=12, updates=2, tempered_share=0.0, replay_share=0.0)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    loop = make(lm, config_of("em", rounds=1, e_step=e_step, rollout=rollout), Odd())
    for phase, _ in loop.run():
        if phase.name == "e_step" and loop.state.seen:
            kept = list(loop.state.seen)
            assert State.from_json(json.loads(json.dumps(loop.state.to_json()))).seen == kept
        elif phase.name == "diagnose":
            break
    assert {one.log_reward for one in kept} == {0.0, -math.inf}
    of_questions = [of for arguments, _ in updates for of in arguments[2]]
    assert all(bool(of.weight.isfinite().all()) and float(of.weight.sum()) > 0 for of in of_questions)
    assert any(0.0 in of.weight for of in of_questions)


def test_several_are_learned_together_however_few_a_batch_has(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one alone, all that q gives the samples would be subtracted."""
    updates = spy(monkeypatch, forward_kl_steps, "forward_kl_step")
    e_step = dataclasses.replace(CONFIG.e_step, steps=20, samples=1, updates=2)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    for phase, _ in make(lm, config_of("forward-kl", rounds=1, e_step=e_step, rollout=rollout), Short()).run():
        if phase.name == "diagnose":
            break
    together = [len(of.rationales) for arguments, _ in updates for of in arguments[2]]
    assert max(together) > 2


def test_em_with_one_update_keeps_nothing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = spy(monkeypatch, forward_kl_steps, "log_probs_when_sampled")
    loop = make(lm, config_of("em", rounds=1, e_step=dataclasses.replace(CONFIG.e_step, updates=1)))
    for phase, info in loop.run():
        if phase.name == "e_step":
            assert not loop.state.seen and "forward_kl_loss" not in info
        elif phase.name == "diagnose":
            break
    assert not weigh


@pytest.mark.usefixtures("all_learned")
def test_forward_kl_learns_again_what_it_has_seen(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step first its own question, if a right rationale of it has been seen; then some of all so far. All that was
    sampled for a question counts, each time."""
    updates = spy(monkeypatch, forward_kl_steps, "forward_kl_step")
    e_step = dataclasses.replace(CONFIG.e_step, steps=12, questions=1, samples=12, updates=3, replay_share=0.0)
    loop = make(lm, config_of("forward-kl", e_step=e_step))
    sample, chosen, sampled = loop._rollouts, list[Sequence[int]](), Counter[tuple[int, Rationale]]()

    def rollouts(step: int, draw: Any) -> Any:
        of_step, drawn = sample(step, draw)
        chosen.append(of_step)
        sampled.update((i, z) for i, of_one in zip(of_step, drawn, strict=True) for z in of_one)
        return of_step, drawn

    monkeypatch.setattr(loop, "_rollouts", rollouts)
    known: list[Seen] = []
    done = again = visited_again = 0
    for phase, info in loop.run():
        if phase.name == "e_step":
            own = loop.state.seen
            assert all(one.right == loop.is_correct(loop.questions[one.question], one.rationale) for one in own)
            kept: Counter[tuple[int, Rationale]] = Counter()
            for one in own:
                kept[one.question, one.rationale] += one.times
            assert kept == sampled
            right = {one.question for one in own if one.right}
            now = samples_of([one for one in own if one.question in right])
            fresh = {*chosen[-1]} & right
            calls = updates[done:]
            asked = [learned_weights(call, loop) for call in calls]
            assert len(calls) == (0 if not now else 3 if fresh else 2)
            if fresh:
                assert set(asked[0]) == fresh
                visited_again += bool(fresh & {one.question for one in known})
            assert all(found == weights_of(now, found) for found in asked)
            for found in asked[bool(fresh) :]:
                assert len(found) == min(2, len(now))
                again += bool(set(found) - fresh)
            assert {arguments[5] for arguments, _ in calls} <= {loop.state.unit - 1}
            assert ("loss" in info, "forward_kl_loss" in info) == (bool(fresh), bool(now))
            known = list(own)
        else:  # the second E-step begins with what was drawn for the M-step
            sampled = Counter((one.question, one.rationale) for one in loop.state.drawn)
        done = len(updates)
    assert again and visited_again


def test_more_votes_than_chains_at_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn some at a time: their logits would not fit."""
    drawn = spy(monkeypatch, evaluator_module, "rollout")
    task = PlainTask()
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters=" abc"), max_tokens=3)
    examples = [task.example("aab"), task.example("ccb")]
    outcomes = list(answer_questions(lm, "q", task, examples, rules, votes=10, temperature=1.0, batch_size=4))
    assert [len(outcome.rationales) for outcome in outcomes] == [10, 10]
    assert [how["n"] for _, how in drawn] == [4, 4, 2]
