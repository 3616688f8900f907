"""Where the answer is one of a few candidates: how they are scored, rewarded, learned and picked."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.config.schema import DataConfig, MStepConfig, RolloutConfig, RunConfig
from latent_cot.config.settings import check
from latent_cot.em import EM
from latent_cot.evaluation.evaluate import NO_RATIONALE, Judge
from latent_cot.methods import exploration, likelihood
from latent_cot.methods.exploration import SEED_SAMPLES
from latent_cot.methods.few_shot import FewShot
from latent_cot.methods.method import Method
from latent_cot.methods.scored import score_rationales
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.rationales.reward import Comparison, Reward, other_answers
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import DataRequest, Example, Rationale, Reasoner, TaskData, UsageError
from tests.loops import CONFIG, answer_questions, make, outcome, run_in_parts
from tests.oracles import scoring as oracle
from tests.rationales.test_scoring import NATS, codec_of, random_groups
from tests.worlds import PlainTask, ToyTask, language_model


class ThreeTask(PlainTask):
    """Which letter is the most frequent? One question has two candidates only."""

    def example(self, question: str, answer: str | None = None) -> Example:
        gold = max("abc", key=question.count)
        return Example(f"{question}?", f", so {gold * 2}", None, gold, question)

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        return {letter: f", so {letter * 2}" for letter in ("ab" if example.question == "ab" else "abc")}

    def seed_prompt(self, example: Example) -> str:
        return f"{example.x} {example.answer} because"


TASK = ThreeTask()
EXAMPLES = [TASK.example(question) for question in ("aab", "ab", "ccb")]
DIRECT = dataclasses.replace(
    CONFIG,
    q_sees="question",
    p_init="base",
    rollout=RolloutConfig(granularity="token", max_tokens=4, batch_size=6),
    data=DataConfig(demonstrations=0, unlabelled=3, validation=0),
    e_step=dataclasses.replace(CONFIG.e_step, answer_reward="normalised", wrong_candidate_penalty=2.0),
    m_step=MStepConfig(steps=3, batch_size=2, samples=2, target="candidates", learning_rate=1e-2, warmup=1),
    shots=2,
)


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def fresh(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


@torch.no_grad()
def log_candidates(model: torch.nn.Module, prefix: list[int], example: Example, codec: TextCodec) -> dict[str, float]:
    """log p(Y | X Z) of each candidate, by the oracle."""
    candidates = TASK.candidates(example) or {}
    return {name: float(oracle.log_text(model, prefix, codec.encode(text))) for name, text in candidates.items()}


@pytest.mark.parametrize("answers_at", ["states", "end"])
def test_other_answers_are_scored_beside_y(lm: LanguageModel, answers_at: str) -> None:
    rng, codec = random.Random(3), codec_of(lm)
    model = lm.merged("p")
    groups = [
        # The others begin as Y does, or not; one is empty of what the rest has.
        dataclasses.replace(group, others=[[*group.answer[:-1], 5], [7, 8, 9], [6]][: rng.randint(0, 3)])
        for group in random_groups(codec, rng, size=4)
    ]
    assert len({len(group.others) for group in groups}) > 1
    scores = score(lm, model, groups, codec, answers_at=answers_at)
    alone = score(lm, model, [dataclasses.replace(g, others=()) for g in groups], codec, answers_at=answers_at)
    torch.testing.assert_close(scores.log_y, alone.log_y, atol=NATS, rtol=1e-6)
    assert alone.log_others.shape[-1] == 0
    b = 0
    for group in groups:
        for rationale in group.rationales:
            for c in range(scores.log_others.shape[-1]):
                for i in range(len(rationale) + 1):
                    found = float(scores.log_others[b, i, c])
                    if c >= len(group.others):
                        assert found == -torch.inf
                    elif i == len(rationale) or (answers_at == "states" and rationale.states[i]):
                        prefix = [*group.prompt, *rationale.tokens[:i]]
                        with torch.no_grad():
                            assert found == pytest.approx(
                                float(oracle.log_text(model, prefix, group.others[c])), abs=NATS
                            )
                    else:
                        assert found == 0
            b += 1


@pytest.mark.parametrize("stop", [None, ","])  # every candidate of `ThreeTask` begins with the comma
def test_the_reward_compares_y_with_the_other_candidates(lm: LanguageModel, stop: str | None) -> None:
    codec = TextCodec(lm.tokenizer, allowed_characters="abcd ", stop=stop)
    model, rng = lm.merged("p"), random.Random(0)
    chains = [codec.encode("".join(rng.choice("abcd ") for _ in range(3))) for _ in range(4)]
    rules = ChainRules(codec, max_tokens=5)
    rationales = [_rationale(rules, chain) for chain in chains]
    groups = [Group(codec.encode_prompt(e.x), rationales, codec.encode(e.y or "")) for e in EXAMPLES]
    policies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # by the oracle: once, for all settings
    answers: dict[tuple[int, int, int], dict[str, float]] = {}
    for g, (example, group) in enumerate(zip(EXAMPLES, groups, strict=True)):
        for row, rationale in enumerate(rationales):
            with torch.no_grad():
                policies[g, row] = oracle.log_policy(
                    model, group.prompt, rationale, codec.actions.tolist(), codec.stop_id
                )
            for i in range(len(rationale) + 1):
                prefix = [*group.prompt, *rationale.tokens[:i]]
                answers[g, row, i] = log_candidates(model, prefix, example, codec)
    for normalised, penalty, weight in [(True, 0.0, 1.0), (False, 3.0, 1.0), (True, 3.0, 1.0), (True, 3.0, 2.0)]:
        reward = Reward(lm, codec, comparison=Comparison(TASK, normalised, penalty, weight))
        penalised = 0
        ends = reward.of_prefixes(EXAMPLES, groups, ends_only=True)
        tables = reward.of_prefixes(EXAMPLES, groups)
        for (g, row, i), log_y in answers.items():
            log_pf, log_pterm = policies[g, row]
            expected = log_y[EXAMPLES[g].answer or ""]
            if normalised:
                expected -= float(torch.tensor(list(log_y.values())).logsumexp(0))
            expected *= weight
            if max(log_y, key=lambda name: log_y[name]) != EXAMPLES[g].answer:
                expected -= penalty
                penalised += 1
            expected += float(log_pf[:i].sum())
            if normalised or stop is None:  # else Y has said it
                expected += float(log_pterm[i])
            assert float(tables[g][row, i]) == pytest.approx(expected, abs=NATS), (normalised, penalty, weight)
            if i == len(rationales[row]):
                assert float(ends[g][row, i]) == pytest.approx(expected, abs=NATS), (normalised, penalty, weight)
        assert 0 < penalised < tables[0].numel() * len(tables)


@pytest.mark.parametrize("target", ["answer", "candidates"])
def test_p_may_learn_the_answer_only(lm: LanguageModel, target: likelihood.Target) -> None:
    """The gradient is that of Y after Z, per token or among the candidates; Z itself is not learned."""
    codec = TextCodec(lm.tokenizer, allowed_characters="abcd ")
    rules = ChainRules(codec, max_tokens=5)
    rationales = [_rationale(rules, codec.encode(text)) for text in ("ab", "dcb a")]
    groups = [
        Group(codec.encode_prompt(e.x), rationales, codec.encode(f", so {e.answer}{e.answer}"), others)
        for e, others in ((e, other_answers(TASK, e, codec)) for e in EXAMPLES)
    ]
    optimiser = _NoStep(lm.parameters("p"), Schedule(0.1, 1, 0, "constant"), 1.0)
    info = likelihood.likelihood_step(lm, "p", groups, rules, optimiser, 0, max_tokens=60, target=target)
    total, n = torch.zeros((), dtype=torch.float64), 0
    with lm.trainable("p") as model:
        for group in groups:
            for rationale in rationales:
                prefix = [*group.prompt, *rationale.tokens]
                log_y = oracle.log_text(model, prefix, group.answer)
                if target == "candidates":
                    others = [oracle.log_text(model, prefix, other) for other in group.others]
                    log_y = log_y - torch.stack([log_y, *others]).logsumexp(0)
                total = total - log_y
                n += len(group.answer) if target == "answer" else 1
        expected = torch.autograd.grad(total / n, optimiser.weights)
    assert info.loss == pytest.approx(float(total.detach()) / n, abs=NATS)
    flat = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(optimiser.gradient, flat, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("judge", ["p", "base"])
def test_the_judge_picks_after_the_samplers_rationales(lm: LanguageModel, judge: Judge) -> None:
    codec = TextCodec(lm.tokenizer, allowed_characters="abcd ")
    rules = ChainRules(codec, max_tokens=4)

    def answered(judge: Judge) -> list[tuple[object, ...]]:
        outcomes = answer_questions(lm, "q", TASK, EXAMPLES, rules, judge=judge, votes=6, temperature=1.0, batch_size=6)
        return [(o.example, tuple(o.rationales), tuple(o.answers)) for o in outcomes]

    found = answered(judge)
    assert [one[:2] for one in found] == [one[:2] for one in answered("p")], "the rationales are q's in any case"
    with lm.without_adapters() as base:
        model = base if judge == "base" else lm.merged(judge)
        for example, rationales, answers in found:
            assert isinstance(example, Example) and isinstance(rationales, tuple) and isinstance(answers, tuple)
            for rationale, answer in zip(rationales, answers, strict=True):
                prefix = [*codec.encode_prompt(example.x), *rationale.tokens]
                log_y = log_candidates(model, prefix, example, codec)
                assert answer == max(log_y, key=lambda name: log_y[name])


def test_the_answer_may_be_given_at_once(lm: LanguageModel) -> None:
    codec = TextCodec(lm.tokenizer, allowed_characters="abcd ")
    rules = ChainRules(codec, max_tokens=4)
    for one in answer_questions(lm, None, TASK, EXAMPLES, rules, judge="p", prefix="ab?, so aa\n", votes=3):
        assert one.rationales == [NO_RATIONALE]
        prompt = codec.encode_prompt("ab?, so aa\n" + one.example.x)
        log_y = log_candidates(lm.merged("p"), prompt, one.example, codec)
        assert one.answer == max(log_y, key=lambda name: log_y[name])


def test_q_writes_for_a_p_that_learned_to_decide(fresh: LanguageModel, tmp_path: Path) -> None:
    em = make(fresh, DIRECT, TASK)
    assert isinstance(em, EM)
    assert (em.sampler_of("p"), em.sampler_of("q")) == ("p", "q"), "before an M-step p answers by itself"
    list(em.run())
    assert (em.sampler_of("p"), em.sampler_of("q")) == ("q", "q")
    assert (em.judge_of("p"), em.judge_of("q")) == ("p", "base")
    assert set(em.state.right["2"]) == {"p", "q"}
    joint = dataclasses.replace(DIRECT, m_step=dataclasses.replace(DIRECT.m_step, target="joint"))
    assert make(fresh, joint, TASK, state=em.state).sampler_of("p") == "p"
    has_read_y = dataclasses.replace(DIRECT, q_sees="question-and-answer")
    assert make(fresh, has_read_y, TASK, state=em.state).sampler_of("p") == "p", "nobody gives q the answer in tests"
    expected = outcome(make_and_run(fresh, DIRECT))
    assert outcome(run_in_parts(fresh, DIRECT, tmp_path, 3, TASK)) == expected


@pytest.mark.parametrize("proposal", ["q", None])
def test_what_is_shown_of_chains_is_decided_as_in_tests(fresh: LanguageModel, proposal: Reasoner | None) -> None:
    """For q by the base model and for p by itself, at temperature 1 and at any other; and in passes of any size."""
    em = make_and_run(fresh, DIRECT)
    generator = torch.Generator().manual_seed(0)
    prompt = em.test_prompt("q", EXAMPLES[0])
    (sampled,) = rollout(fresh, "q", [prompt], em.test_rules, n=12, temperature=2.0, generator=generator)
    rationales = list(dict.fromkeys(sampled))
    for example in EXAMPLES:
        for reasoner, model in (("q", None), ("p", fresh.merged("p"))):
            arguments: dict[str, Any] = {"with_q": True, "proposal": proposal, "reasoner": reasoner}
            counts = dict.fromkeys(rationales, 2)
            found = score_rationales(em, example, counts, **arguments)
            with fresh.without_adapters() if model is None else nullcontext(model) as judge:
                for one in found.rationales:
                    prefix = [*em.test_rules.codec.encode_prompt(example.x), *one.rationale.tokens]
                    log_y = log_candidates(judge, prefix, example, em.test_rules.codec)
                    assert one.answer == max(log_y, key=lambda name: log_y[name])
    em.config = dataclasses.replace(em.config, max_batch_tokens=64)
    again = score_rationales(em, example, counts, **arguments)
    for one, other in zip(found.rationales, again.rationales, strict=True):
        assert other.log_q == pytest.approx(one.log_q, abs=NATS)
        assert other.log_reward == pytest.approx(one.log_reward, abs=NATS)
        assert other.weight == (None if proposal is None else pytest.approx(one.weight, abs=1e-4))


def test_no_pass_is_larger_than_asked_for(fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rationales of one question, each of whose prefixes has all candidates behind it."""
    config = dataclasses.replace(DIRECT, max_batch_tokens=150)
    em = make(fresh, config, TASK)
    (counts,) = em.draw_tests("q", EXAMPLES[:1], n=60, temperature=1.0, seed=0)
    sizes, run = list[int](), LanguageModel.hidden

    def hidden(self: LanguageModel, model: Any, trees: Any) -> torch.Tensor:
        sizes.extend(map(len, trees))
        return run(self, model, trees)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    score_rationales(em, EXAMPLES[0], counts, with_q=True, proposal="q", reasoner="p")
    assert len(sizes) > 9 and max(sizes) <= 150


@pytest.mark.parametrize("method", ["sft", "few-shot"])
def test_who_answers_at_once_is_shown_without_a_rationale(fresh: LanguageModel, method: Any) -> None:
    config = dataclasses.replace(DIRECT, method=method)
    loop = make(fresh, config, TASK)
    assert loop.sampler_of("p") is None
    writer, (counts,) = loop.rationales_of("p", EXAMPLES[:1], n=5, temperature=1.0, seed=0)
    assert writer is None and counts == {NO_RATIONALE: 5}
    (shown,) = score_rationales(loop, EXAMPLES[0], counts, with_q=False, proposal=writer, reasoner="p").rationales
    (tested,) = loop.answer_tests("p", EXAMPLES[:1], seed=0, votes=1, temperature=0.0)
    assert (shown.answer, shown.correct, shown.weight) == (tested.answer, tested.correct, None)


def test_the_buffer_begins_with_what_p_writes_after_the_tasks_prompts(
    fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the question itself, with the rewards that they have there."""
    config = dataclasses.replace(DIRECT, e_step=dataclasses.replace(DIRECT.e_step, replay_share=1.0))
    sizes = []

    def sampled(*arguments: Any, batch_size: int, **other: Any) -> list[list[Rationale]]:
        sizes.append(batch_size)
        return rollout(*arguments, batch_size=batch_size, **other)

    monkeypatch.setattr(exploration, "rollout", sampled)
    em = make(fresh, config, TASK)
    assert isinstance(em, EM)
    runs = em.run()
    next(one for one in runs if one[0].name == "e_step")
    assert em.state.budget.trajectories == SEED_SAMPLES * len(em.questions), "nothing but the seeds"
    assert sizes == [config.rollout.batch_size]
    for example in em.questions:
        stored = em.buffer.stored(example.key)
        assert stored
        group = Group(em.query(example).model_prompt, [one.rationale for one in stored], em.query(example).answer)
        (table,) = em.reward.of_prefixes([example], [group])
        for one, row in zip(stored, table.tolist(), strict=True):
            assert list(one.log_reward) == pytest.approx(row[: len(one.log_reward)], abs=NATS)


def test_fine_tuning_without_rationales(fresh: LanguageModel) -> None:
    """p learns to tell the answer from the others right after the question; without validation, all steps are taken."""
    config = dataclasses.replace(DIRECT, method="sft", m_step=dataclasses.replace(DIRECT.m_step, steps=40))
    check(config)
    sft = make(fresh, config, TASK)
    codec = sft.rules.codec
    before = [_share(fresh, codec, example) for example in sft.questions]
    infos = [info for phase, info in sft.run() if phase.name == "fit"]
    assert len(infos) == 3
    assert sft.sampler_of("p") is None
    assert all(
        _share(fresh, codec, example) > max(0.9, old) for example, old in zip(sft.questions, before, strict=True)
    )
    with pytest.raises(UsageError, match=r"--data\.demonstrations"):
        type(sft).check(config, NoDemonstrations(), NoDemonstrations().load(DataRequest()))


def test_few_shot_shows_questions_with_their_answers(fresh: LanguageModel) -> None:
    few = make(fresh, dataclasses.replace(DIRECT, method="few-shot"), TASK)
    assert isinstance(few, FewShot)
    assert few.model_prefix == "aab?, so aa\nabb?, so bb\n"
    assert few.sampler_of("p") is None
    list(few.run())
    assert few.state.budget.trajectories == 0
    with pytest.raises(UsageError, match=r"more than the 3 --data\.unlabelled"):
        check(dataclasses.replace(DIRECT, method="few-shot", shots=4))


class NoDemonstrations(ToyTask):
    """Its answers are read off rationales, and it shows none."""

    def load(self, request: DataRequest) -> TaskData:
        return dataclasses.replace(super().load(request), demonstrations=())


class _NoStep(AdapterOptimiser):
    """Keeps the gradient, changes nothing."""

    def step(self, number: int) -> float:
        self.gradient = torch.cat([w.grad.flatten() for w in self.weights if w.grad is not None])
        for weight in self.weights:
            weight.grad = None
        return 0.0


def _rationale(rules: ChainRules, tokens: list[int]) -> Rationale:
    chain = Chain(rules)
    for token in tokens:
        chain.push(token)
    return chain.finish()


def _share(lm: LanguageModel, codec: TextCodec, example: Example) -> float:
    """p's probability of the right answer among the candidates."""
    log_y = log_candidates(lm.merged("p"), codec.encode_prompt(example.x), example, codec)
    values = torch.tensor(list(log_y.values()))
    return float((log_y[example.answer or ""] - values.logsumexp(0)).exp())


def make_and_run(lm: LanguageModel, config: RunConfig) -> Method:
    loop = make(lm, config, TASK)
    list(loop.run())
    return loop
