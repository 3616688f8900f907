"""The weights of samples that are learned again, against the posterior that they stand for."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check
from latent_cot.methods.forward_kl_steps import Samples, samples_of, systematic
from latent_cot.methods.state import Seen
from latent_cot.objectives.importance import forward_kl
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.scoring import Query
from latent_cot.types import Example, Rationale, UsageError


def rationale(token: int) -> Rationale:
    return Rationale((token,), (True,), (True, True), str(token))


RECORDS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 8), st.floats(-80, 0), st.floats(-20, 0))


@given(st.lists(RECORDS, min_size=1, max_size=12), st.floats(0.5, 2))
def test_weights_are_the_sums_of_the_ratios(rows: list[tuple[int, int, int, float, float]], temperature: float) -> None:
    rewards = {(i, z): log_reward for i, z, _, log_reward, _ in rows}  # a rationale has one
    found = samples_of(
        [Seen(i, rationale(z), n, rewards[i, z], log_q, True) for i, z, n, _, log_q in rows], temperature
    )
    assert found.keys() == {question for question, *_ in rows}
    for question, samples in found.items():
        seen, counts = dict[int, float](), Counter[int]()
        for of, z, count, _, log_q in rows:
            if of == question:
                seen[z] = seen.get(z, 0.0) + count / math.exp(log_q)
                counts[z] += count
        n, ratios = counts.total(), {z: seen[z] * math.exp(rewards[question, z]) ** (1 / temperature) for z in seen}
        assert samples.rationales == [rationale(z) for z in seen]
        assert samples.weight.tolist() == pytest.approx([of / sum(ratios.values()) for of in ratios.values()], abs=1e-4)
        assert samples.share.tolist() == pytest.approx([counts[z] / n for z in seen])
        assert samples.log_seen.tolist() == pytest.approx([math.log(of / n) for of in seen.values()], abs=1e-4)


AMOUNT = st.floats(1e-3, 1)


@given(st.lists(AMOUNT, min_size=1, max_size=20), st.integers(1, 8))
def test_systematic_draws_have_their_chances(amounts: list[float], n: int) -> None:
    chances, tries = [amount / math.fsum(amounts) for amount in amounts], 200
    found = [systematic(chances, n, Fixed((k + 0.5) / tries)) for k in range(tries)]
    assert {sum(times) for times in found} == {n}
    for k, chance in enumerate(chances):
        assert all(abs(times[k] - n * chance) < 1 + 1e-9 for times in found)
        assert sum(times[k] for times in found) / tries == pytest.approx(n * chance, abs=1 / tries)


@given(
    st.lists(st.tuples(AMOUNT, AMOUNT), min_size=1, max_size=20), st.integers(1, 8), st.sampled_from([0.0, 0.4, 1.0])
)
def test_many_rationales_are_thinned_out_and_stand_for_all(
    amounts: list[tuple[float, float]], most: int, b: float
) -> None:
    weight, share = (torch.tensor(of) / sum(of) for of in zip(*amounts, strict=True))
    all_of = Samples([rationale(k) for k in range(len(amounts))], weight, share, share.log(), b)
    weights, seen, tries = torch.zeros_like(weight), torch.zeros_like(share), 200
    for k in range(tries):
        found = all_of.thinned(most, Fixed((k + 0.5) / tries))
        assert len(found.rationales) <= most or len(amounts) <= most
        for z, w, log_seen in zip(found.rationales, found.weight, found.log_seen, strict=True):
            weights[z.tokens[0]] += w / tries
            seen[z.tokens[0]] += log_seen.exp() / tries
    torch.testing.assert_close(weights, weight, atol=0.02, rtol=0)
    if b:
        torch.testing.assert_close(seen, share, atol=0.02, rtol=0)


@given(st.lists(st.tuples(AMOUNT, AMOUNT), min_size=1, max_size=20), st.integers(1, 8))
def test_parts_are_the_whole(amounts: list[tuple[float, float]], size: int) -> None:
    weight, share = (torch.tensor(of) / sum(of) for of in zip(*amounts, strict=True))
    samples = Samples([rationale(k) for k in range(len(amounts))], weight, share, share.log(), 0.5)
    parts = samples.parts(size)
    assert all(0 < len(part.rationales) <= size for part in parts) and {part.b for part in parts} == {0.5}
    back = {z: row for part in parts for z, *row in zip(part.rationales, part.weight, part.log_seen, strict=True)}
    assert back == {z: row for z, *row in zip(samples.rationales, weight, share.log(), strict=True)}


class Fixed(random.Random):
    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def test_what_is_learned_again_is_as_it_was_sampled() -> None:
    """Not as an equal one beside it, which was sampled hotter: of that an engine has told no log q."""
    own = replace(rationale(1), log_probs=(-0.5, -0.5))
    rewards = torch.tensor([[-3.0, -4.0], [-5.0, -6.0]])
    both = Trajectories(Query(Example("x"), [1], [1], []), [rationale(0), rationale(1)], [2, 3], rewards, [2, 3])
    found = both.only({own: 2})
    assert found.rationales[0] is own
    assert (found.counts, found.sampled, found.log_reward.tolist()) == ([2], [2], [[-5.0, -6.0]])


def test_what_is_worth_nothing_is_unlearned() -> None:
    """Half of what q writes is worth nothing, the other half is all alike. The step towards the posterior takes q's
    share of the latter from a half to one: it does so, in the mean, though what q gives the samples is subtracted."""
    rng, rewards, pull = random.Random(0), [0.0] * 20 + [-math.inf] * 20, []
    logits = torch.zeros(40, requires_grad=True)
    log_q = logits.log_softmax(0)
    for _ in range(50):
        drawn = Counter(rng.randrange(40) for _ in range(32))
        rows = [Seen(0, rationale(z), n, rewards[z], float(log_q[z].detach()), True) for z, n in drawn.items()]
        samples = samples_of(rows, baseline=True)[0]
        asked = torch.tensor([z.tokens[0] for z in samples.rationales])
        loss = forward_kl(log_q[asked], samples.weight, samples.log_seen, samples.b)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert samples.b > 0.75
        pull.append(-float(gradient[:20].sum()))
    assert sum(pull) / len(pull) == pytest.approx(0.5, abs=0.05)


def test_nothing_to_learn_again_is_told() -> None:
    def checked(**settings: Any) -> None:
        check(replace(RunConfig(), e_step=replace(RunConfig().e_step, **settings)))

    for settings, flag in (
        ({"tempered_share": 0.95}, "--e-step.tempered-share 0.95"),
        ({"replay_share": 1.0}, "--e-step.replay-share 1"),
    ):
        with pytest.raises(UsageError, match=rf"--e-step.updates 4 learns again .* {flag}: .*--e-step.updates 1"):
            checked(**settings)
        checked(**settings, updates=1)
    checked(tempered_share=0.5, replay_share=0.9)


def test_many_small_batches_stand_for_the_posterior() -> None:
    """A q that hardly ever writes one of two rationales that are as good: most batches of 8 do not have it. Weighted
    by itself, each batch would say that the other is all there is: a mean weight of about 0.07."""
    rng, q, posterior = random.Random(0), (0.99, 0.01), 0.5
    rows = []
    for _ in range(1000):
        batch = Counter(int(rng.random() < q[1]) for _ in range(8))
        rows += [Seen(0, rationale(z), n, math.log(posterior), math.log(q[z]), True) for z, n in batch.items()]
    samples = samples_of(rows)[0]
    assert samples.weight[samples.rationales.index(rationale(1))] == pytest.approx(posterior, abs=0.1)
