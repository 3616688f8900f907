"""The sampling tree: quantiles, weights far apart, and no memory of how the weights came."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.rationales.sampling_tree import SamplingTree

log_weights = st.one_of(st.floats(-1000, 0), st.just(-math.inf), st.floats(-2, 0))


def build(weights: list[float]) -> SamplingTree:
    tree = SamplingTree()
    for leaf, weight in enumerate(weights):
        tree[leaf] = weight
    return tree


@given(st.lists(log_weights, min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_quantile(weights: list[float], u: float) -> None:
    """Summed one by one, exactly; where u is nearer to a boundary than rounding, either side of it will do."""
    best = max(weights)
    if best == -math.inf:
        return
    exact = [Fraction(math.exp(weight - best)) for weight in weights]
    total = sum(exact)
    leaf = build(weights).draw(u)
    below = sum(exact[:leaf]) / total
    assert weights[leaf] > -math.inf
    assert below - Fraction(1, 10**12) <= Fraction(u) <= below + exact[leaf] / total + Fraction(1, 10**12)


@given(
    st.lists(st.tuples(st.integers(0, 20), log_weights), max_size=60),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=5),
)
def test_the_draws_depend_on_the_weights_only(history: list[tuple[int, float]], quantiles: list[float]) -> None:
    """Not on the weights that were there before: also the guarantee that rounding does not add up."""
    used, final = SamplingTree(), [-math.inf] * 21
    for leaf, weight in history:
        used[leaf] = weight
        final[leaf] = weight
    if max(final) > -math.inf:
        fresh = build(final)
        assert [used.draw(u) for u in quantiles] == [fresh.draw(u) for u in quantiles]


def test_the_largest_weight_leaves() -> None:
    """What it had pushed below the smallest number is there again, in its old proportions."""
    tree = build([0.0, -900.0, -900.0 + math.log(3)])
    assert {tree.draw(k / 100) for k in range(100)} == {0}
    tree[0] = -math.inf
    assert [tree.draw(u) for u in (0.0, 0.2499, 0.2501, 0.9999)] == [1, 1, 2, 2]


def test_after_many_changes_the_sum_is_as_good_as_new() -> None:
    rng = random.Random(0)
    tree, weights = SamplingTree(), [-math.inf] * 257
    for _ in range(20_000):
        leaf = rng.randrange(257)
        weights[leaf] = tree[leaf] = rng.uniform(-700, 0) if rng.random() < 0.9 else -math.inf
    best = max(weights)
    total = best + math.log(math.fsum(math.exp(weight - best) for weight in weights))
    assert tree._log_sum[1] == pytest.approx(total, rel=0, abs=1e-13)


@pytest.mark.parametrize("u", [0.0, math.nextafter(1, 0)])
def test_nothing_without_weight_is_drawn_at_the_ends(u: float) -> None:
    for size in range(1, 18):
        for only in range(size):
            tree = build([-math.inf] * size)
            tree[only] = -1e12
            assert tree.draw(u) == only
