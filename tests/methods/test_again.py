"""The weights of samples that are learned again, against the posterior that they stand for."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.methods.again import pooled
from latent_cot.methods.state import Seen
from latent_cot.types import Rationale


def rationale(token: int) -> Rationale:
    return Rationale((token,), (True,), (True, True), str(token))


RECORDS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 8), st.floats(-80, 0), st.floats(-20, 0))


@given(st.lists(RECORDS, min_size=1, max_size=12), st.floats(0.5, 2))
def test_weights_are_the_sums_of_the_ratios(rows: list[tuple[int, int, int, float, float]], temperature: float) -> None:
    found = pooled([Seen(i, rationale(z), n, log_reward, log_q) for i, z, n, log_reward, log_q in rows], temperature)
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


def test_many_small_batches_stand_for_the_posterior() -> None:
    """A q that hardly ever writes one of two rationales that are as good: most batches of 8 do not have it. Weighted
    by itself, each batch would say that the other is all there is: a mean weight of about 0.07."""
    rng, q, posterior = random.Random(0), (0.99, 0.01), 0.5
    rows = []
    for _ in range(1000):
        batch = Counter(int(rng.random() < q[1]) for _ in range(8))
        rows += [Seen(0, rationale(z), n, math.log(posterior), math.log(q[z])) for z, n in batch.items()]
    assert pooled(rows)[0][rationale(1)] == pytest.approx(posterior, abs=0.1)
