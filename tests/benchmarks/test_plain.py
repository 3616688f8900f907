"""The plain E-step computes what latent-cot's computes: a comparison of their speed compares the same work."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain import PlainResult, e_step, modified_subtb
from latent_cot.methods.e_step import balance_step
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, Query, score
from latent_cot.types import Example
from tests.oracles import subtb as oracle
from tests.worlds import ALPHABET, NO_SHRINKING, FakeTool, language_model, prefix_log_rewards, random_chain

NATS = 1e-4
SHARED = [7, 3, 11, 20, 5]
"""Demonstrations before every question of p."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model(request.param))


@pytest.fixture
def rules(lm: LanguageModel) -> ChainRules:
    """Few characters, so that the tool is called in most chains."""
    return ChainRules(TextCodec(lm.tokenizer, allowed_characters="23="), [FakeTool()], max_tokens=6)


def random_queries(rng: random.Random, n: int = 2) -> list[Query]:
    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(90) for _ in range(rng.randint(low, high))]

    return [Query(Example("x"), ids(1, 7), [*SHARED, *ids(1, 7)], ids(1, 4)) for _ in range(n)]


def random_rules(lm: LanguageModel, rng: random.Random) -> ChainRules:
    return ChainRules(
        TextCodec(lm.tokenizer, allowed_characters=rng.choice([ALPHABET, None])),
        [FakeTool()] if rng.random() < 0.8 else [],
        granularity=rng.choice(["token", "step"]),
        step_delimiter=".",
        min_tokens=rng.choice([0, 0, 2]),
        max_tokens=7,
    )


def gradient_of(lm: LanguageModel) -> torch.Tensor:
    """q's gradient, which is then cleared."""
    weights = [weight for _, weight in sorted(lm.parameters("q").items())]
    flat = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
    for weight in weights:
        weight.grad = None
    return flat


class Recorder:
    """In the place of an optimiser: keeps the gradient and changes nothing."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def step(self, number: int) -> float:
        self.gradient = gradient_of(self.lm)
        return 0.0


def assert_same_as_latent_cot(
    lm: LanguageModel,
    queries: Sequence[Query],
    rules: ChainRules,
    result: PlainResult,
    gradient: torch.Tensor,
    *,
    tool_tokens: bool = False,
    reward_temperature: float = 1.0,
) -> None:
    """Everything a plain E-step gives, against latent-cot's own on the same rationales."""
    codec, batches = rules.codec, []
    for query, got in zip(queries, result.trajectories, strict=True):
        group = Group(query.model_prompt, got.rationales, query.answer)
        (rewards,) = prefix_log_rewards(lm, [group], codec, tool_tokens=tool_tokens)
        torch.testing.assert_close(got.log_reward, rewards, atol=NATS, rtol=1e-5)
        with torch.no_grad():
            scores = score(lm, lm.merged("q"), [Group(query.policy_prompt, got.rationales)], codec)
        torch.testing.assert_close(got.log_pf, scores.log_pf, atol=NATS, rtol=1e-5)
        torch.testing.assert_close(got.log_pterm, scores.log_pterm, atol=NATS, rtol=1e-5)
        once = [1] * len(got.rationales)
        batches.append(Trajectories(query, got.rationales, once, rewards, once))
    recorder = Recorder(lm)
    info = balance_step(
        lm,
        batches,
        rules,
        recorder,  # type: ignore[arg-type]
        0,
        objective="subtb",
        reward_temperature=reward_temperature,
        reward_floor=None,
        huber_delta=None,
        max_tokens=500,
    )
    assert result.loss == pytest.approx(info.loss, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(gradient, recorder.gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()) + 1e-9)


@settings(max_examples=8, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**32), tool_tokens=st.booleans(), cached=st.booleans())
def test_the_same_rationales_have_the_same_scores_loss_and_gradient(
    lm: LanguageModel, seed: int, tool_tokens: bool, cached: bool
) -> None:
    rng = random.Random(seed)
    rules, queries = random_rules(lm, rng), random_queries(rng)
    forced = [[random_chain(rules, rng, rng.randint(rules.min_tokens, 7)) for _ in range(3)] for _ in queries]
    result = e_step(
        lm,
        queries,
        rules,
        samples=3,
        reward_temperature=0.7,
        tool_tokens=tool_tokens,
        demonstrations=len(SHARED) if cached else 0,
        forced=forced,
    )
    assert [list(got.rationales) for got in result.trajectories] == forced
    assert_same_as_latent_cot(
        lm, queries, rules, result, gradient_of(lm), tool_tokens=tool_tokens, reward_temperature=0.7
    )


def test_what_it_samples_has_the_right_scores(lm: LanguageModel, rules: ChainRules) -> None:
    """The cache, dropped and rebuilt behind padding of all lengths, gives what one teacher-forced pass gives."""
    queries = random_queries(random.Random(0))
    generator = torch.Generator().manual_seed(0)
    result = e_step(lm, queries, rules, samples=24, temperature=3.0, demonstrations=len(SHARED), generator=generator)
    rationales = [rationale for got in result.trajectories for rationale in got.rationales]
    assert len({len(rationale) for rationale in rationales}) > 4
    assert sum(not all(rationale.policy_mask) for rationale in rationales) > 4
    assert any(rationale.truncated for rationale in rationales) and not all(
        rationale.truncated for rationale in rationales
    )
    assert_same_as_latent_cot(lm, queries, rules, result, gradient_of(lm))


def test_its_greedy_chains_are_those_of_the_rollout(lm: LanguageModel, rules: ChainRules) -> None:
    queries = random_queries(random.Random(1), 4)
    result = e_step(lm, queries, rules, samples=1, temperature=1e-6)
    gradient_of(lm)
    expected = rollout(lm, "q", [query.policy_prompt for query in queries], rules, temperature=0.0)
    assert [list(got.rationales) for got in result.trajectories] == expected


def test_the_cost_is_a_pass_for_each_prefix(lm: LanguageModel, rules: ChainRules) -> None:
    """`max_tokens` + 1 passes a question where one trajectory is as long as may be."""
    queries = random_queries(random.Random(2), 1)
    rng = random.Random(0)
    forced = [[random_chain(rules, rng, length) for length in (0, 2, rules.max_tokens)]]
    result = e_step(lm, queries, rules, samples=3, forced=forced)
    gradient_of(lm)
    assert result.scoring_passes == rules.max_tokens + 1
    assert min(result.seconds.sampling, result.seconds.reward, result.seconds.backward) > 0


def test_what_does_not_fit_is_refused(lm: LanguageModel, rules: ChainRules) -> None:
    queries = random_queries(random.Random(3), 2)
    with pytest.raises(ValueError, match="first tokens in common"):
        e_step(lm, queries, rules, samples=1, demonstrations=len(SHARED) + 1)
    chain = random_chain(rules, random.Random(0), 3)
    with pytest.raises(ValueError, match="1 forced rationales, but 2 samples"):
        e_step(lm, queries, rules, samples=2, forced=[[chain]] * 2)
    other = dataclasses.replace(chain, states=(not chain.states[0], *chain.states[1:]))
    with pytest.raises(ValueError, match="cannot have written"):
        e_step(lm, queries, rules, samples=1, forced=[[other]] * 2)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_subtb_is_eq_3(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    size, longest = rng.randint(1, 4), rng.randint(1, 7)
    log_pf = -torch.rand(size, longest, generator=generator, dtype=torch.float64) * 4
    log_pterm = -torch.rand(size, longest + 1, generator=generator, dtype=torch.float64) * 4
    log_reward = -torch.rand(size, longest + 1, generator=generator, dtype=torch.float64) * 30
    states = torch.rand(size, longest + 1, generator=generator) < 0.7
    terms = [
        oracle.mean_subtb(reward, pf, pterm, flags.tolist())
        for reward, pf, pterm, flags in zip(log_reward, log_pf, log_pterm, states, strict=True)
        if oracle.sub_trajectories(flags.tolist())
    ]
    expected = torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)
    found = modified_subtb(log_pf, log_pterm, log_reward.masked_fill(~states, -torch.inf))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
