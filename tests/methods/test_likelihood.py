"""The M-step's likelihood against the oracle, and the order in which records are gone through."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.methods import likelihood
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Group, Query
from latent_cot.types import Example, Rationale
from tests.oracles import scoring
from tests.worlds import ALPHABET, FakeTool, language_model, prefix_log_rewards, random_chain


class NoStep(AdapterOptimiser):
    """Keeps the gradient, changes nothing."""

    def step(self, number: int) -> float:
        self.gradient = torch.cat([w.grad.flatten() for w in self.weights if w.grad is not None])
        return float(self.gradient.norm())


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_the_likelihood_is_the_oracles(tiny_model: Callable[[str], Path], max_tokens: int) -> None:
    """Mean over the chosen tokens and Y's, and the stop where Y does not begin with it; a tool's tokens are attended to
    and not learned."""
    lm: LanguageModel = language_model(tiny_model("llama"))
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    rules = ChainRules(codec, [FakeTool()], max_tokens=6)
    rng = random.Random(1)
    groups = [
        Group([rng.randrange(90) for _ in range(rng.randint(1, 6))], [random_chain(rules, rng, 6)], [4, 5, 6])
        for _ in range(4)
    ]
    cut = random_chain(rules, rng, 6)
    ended = random_chain(rules, rng, 2)
    assert cut.truncated and not ended.truncated
    groups += [Group([7, 8], [cut, ended]), Group([7, 8], [ended], [codec.stop_id, 5])]
    assert any(not all(r.policy_mask) for group in groups for r in group.rationales)
    optimiser = NoStep(lm.parameters("p"), Schedule(0.1, 1, 0, "constant"), 1.0)
    info = likelihood.likelihood_step(lm, "p", groups, rules, optimiser, 0, max_tokens=max_tokens)

    total, tokens = torch.zeros((), dtype=torch.float64), 0
    with lm.trainable("p") as model:
        for group in groups:
            for rationale in group.rationales:
                log_pf, log_pterm = scoring.log_policy(
                    model, group.prompt, rationale, codec.actions.tolist(), codec.stop_id
                )
                total = total - log_pf.sum() - scoring.log_text(model, [*group.prompt, *rationale.tokens], group.answer)
                tokens += sum(rationale.policy_mask) + len(group.answer)
                if not rationale.truncated and group.answer[:1] != [codec.stop_id]:
                    total = total - log_pterm[-1]
                    tokens += 1
        expected = torch.autograd.grad(total / tokens, optimiser.weights)
    assert info.loss == pytest.approx(float(total.detach()) / tokens, abs=1e-4)
    flat = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(optimiser.gradient, flat, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["joint", "answer", "candidates"])
def test_the_evidence_is_a_mean_over_what_was_sampled(
    tiny_model: Callable[[str], Path], target: likelihood.Target
) -> None:
    """log of the mean of p(Z Y | X) / q(Z), or of p(Y | X Z), each sample scored by itself; some came several times."""
    lm = language_model(tiny_model("llama"))
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    rules, rng = ChainRules(codec, [FakeTool()], max_tokens=6), random.Random(1)
    queries = [Query(Example(str(k)), [3, k + 4], [7, 8, k], [4, 5]) for k in range(3)]
    sampled = [[random_chain(rules, rng, rng.choice([0, 2, 6])) for _ in range(4)] * 2 for _ in queries]
    others: list[list[list[int]]] = [[[6], [5, 5]]] * 3
    settings: dict[str, Any] = {"max_tokens": 40, "target": target}
    counts = list(map(Counter, sampled))
    weights = likelihood.evidence_weights(lm, [query.policy_prompt for query in queries], counts, rules, **settings)
    groups = [
        Group(query.model_prompt, list(count), query.answer, own)
        for query, count, own in zip(queries, counts, others, strict=True)
    ]
    found = likelihood.log_evidence(lm, groups, counts, weights, rules, **settings)

    def log_chain(who: Literal["p", "q"], prompt: Sequence[int], z: Rationale) -> float:
        log_pf, stops = scoring.log_policy(lm.merged(who), prompt, z, codec.actions.tolist(), codec.stop_id)
        return float(log_pf.sum()) + (0.0 if z.truncated else float(stops[-1]))

    for query, of_query, evidence in zip(queries, sampled, found, strict=True):
        terms = []
        for z in of_query:
            log_p, log_q = log_chain("p", query.model_prompt, z), log_chain("q", query.policy_prompt, z)
            texts = [
                float(scoring.log_text(lm.merged("p"), [*query.model_prompt, *z.tokens], y))
                for y in (query.answer, *others[0])
            ]
            choice = texts[0] - math.log(sum(map(math.exp, texts)))
            terms.append({"joint": log_p + texts[0] - log_q, "answer": texts[0], "candidates": choice}[target])
        assert evidence.log_y == pytest.approx(math.log(sum(map(math.exp, terms)) / len(terms)), abs=1e-3)
        assert evidence.elbo == pytest.approx(sum(terms) / len(terms), abs=1e-3)


def test_what_is_learned_is_what_is_rewarded(tiny_model: Callable[[str], Path]) -> None:
    """Both steps have one log p(Z T Y | X): of chains that stop or are cut, where Y begins with the stop or not."""
    lm = language_model(tiny_model("llama"))
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    rules, rng = ChainRules(codec, [FakeTool()], max_tokens=6), random.Random(1)
    chains = [random_chain(rules, rng, n) for n in (0, 2, 6)]
    assert [chain.truncated for chain in chains] == [False, False, True]
    rewards = []
    for answer in ([4, 5], [codec.stop_id, 5]):
        group = Group([7, 8], chains, answer)
        (table,) = prefix_log_rewards(lm, [group], codec)
        rewards.append([float(row[len(chain)]) for chain, row in zip(chains, table, strict=True)])
        for chain, reward in zip(chains, rewards[-1], strict=True):
            alone = Group(group.prompt, [chain], answer)
            learned = sum(chain.policy_mask) + len(answer) + (answer == [4, 5] and not chain.truncated)
            loss = likelihood.held_out_loss(lm, "p", [alone], rules, max_tokens=500)
            assert -loss * learned == pytest.approx(reward, abs=1e-4)


@pytest.mark.parametrize("begins_with_stop", [True, False])
def test_p_learns_to_stop(tiny_model: Callable[[str], Path], begins_with_stop: bool) -> None:
    lm = language_model(tiny_model("llama"), perturb=False)
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    rules = ChainRules(codec, max_tokens=6)
    chain = random_chain(rules, random.Random(2), 3)
    group = Group([5, 6], [chain], [codec.stop_id, 8] if begins_with_stop else [7, 8])
    optimiser = AdapterOptimiser(lm.parameters("p"), Schedule(0.02, 30, 0, "constant"), 1.0)
    for step in range(30):
        likelihood.likelihood_step(lm, "p", [group], rules, optimiser, step, max_tokens=500)
    _, log_pterm = scoring.log_policy(lm.merged("p"), group.prompt, chain, codec.actions.tolist(), codec.stop_id)
    assert float(log_pterm[-1]) > -0.7


def test_training_raises_the_likelihood(tiny_model: Callable[[str], Path]) -> None:
    lm = language_model(tiny_model("llama"), perturb=False)
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    rules = ChainRules(codec, max_tokens=6)
    groups = [Group([5, 6], [random_chain(rules, random.Random(2), 6)], [7, 8])]
    optimiser = AdapterOptimiser(lm.parameters("p"), Schedule(0.02, 20, 0, "constant"), 1.0)
    losses = [likelihood.likelihood_step(lm, "p", groups, rules, optimiser, k, max_tokens=500).loss for k in range(20)]
    assert losses[-1] < losses[0] - 1
    assert all(not weight.any() for name, weight in lm.parameters("q").items() if "lora_B" in name)


@given(n=st.integers(1, 30), size=st.integers(1, 40), seed=st.text(max_size=5))
def test_every_record_comes_once_an_epoch(n: int, size: int, seed: str) -> None:
    steps = 3 * n  # size whole epochs and more
    sequence = [k for step in range(steps) for k in likelihood.epoch_batch(n, size, step, seed)]
    assert len(sequence) == steps * size
    for start in range(0, len(sequence), n):
        assert Counter(sequence[start : start + n]) == Counter(range(n))


def test_a_batch_depends_on_its_arguments_only() -> None:
    batches = [likelihood.epoch_batch(10, 4, step, "s") for step in range(10)]
    assert [likelihood.epoch_batch(10, 4, step, "s") for step in reversed(range(10))] == batches[::-1]
    assert [likelihood.epoch_batch(10, 4, step, "t") for step in range(10)] != batches
    epochs = [[k for b in range(5) for k in likelihood.epoch_batch(10, 2, 5 * e + b, "s")] for e in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has an order of its own"
