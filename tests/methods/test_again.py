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
from latent_cot.methods.again import posterior_weights, resampled
from latent_cot.methods.state import Seen
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.scoring import Query
from latent_cot.types import Example, Rationale, UsageError


def rationale(token: int) -> Rationale:
    return Rationale((token,), (True,), (True, True), str(token))


RECORDS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 8), st.floats(-80, 0), st.floats(-20, 0))


@given(st.lists(RECORDS, min_size=1, max_size=12), st.floats(0.5, 2))
def test_weights_are_the_sums_of_the_ratios(rows: list[tuple[int, int, int, float, float]], temperature: float) -> None:
    found = posterior_weights(
        [Seen(i, rationale(z), n, log_reward, log_q, True) for i, z, n, log_reward, log_q in rows], temperature
    )
    assert found.keys() == {question for question, *_ in rows}
    for question, weights in found.items():
        sums: dict[int, float] = {}
        for of, z, count, log_reward, log_q in rows:
            if of == question:
                sums[z] = sums.get(z, 0.0) + count * math.exp(log_reward) ** (1 / temperature) / math.exp(log_q)
        total = sum(sums.values())
        assert math.fsum(weights.values()) == pytest.approx(1.0)
        for z, value in sums.items():
            assert weights.get(rationale(z), 0.0) == pytest.approx(value / total, abs=2e-3)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=20), st.integers(1, 8))
def test_many_rationales_are_thinned_out_by_their_weights(amounts: list[float], most: int) -> None:
    total = math.fsum(amounts)
    weights = {rationale(k): amount / total for k, amount in enumerate(amounts)}
    sums, n = dict.fromkeys(weights, 0.0), 200
    for k in range(n):
        found = resampled(weights, most, Fixed((k + 0.5) / n))
        assert len(found) <= max(most, 1) or len(weights) <= most
        assert math.fsum(found.values()) == pytest.approx(1)
        for z, weight in found.items():
            sums[z] += weight / n
            assert len(weights) <= most or abs(weight - weights[z]) < 1 / most + 1e-9
    assert sums == pytest.approx(weights, abs=1 / n)


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
    assert posterior_weights(rows)[0][rationale(1)] == pytest.approx(posterior, abs=0.1)
