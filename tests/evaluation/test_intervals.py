"""Intervals, beside scipy's own and a formula as it is published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from latent_cot.evaluation import intervals


@given(st.lists(st.integers(-500, 500), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_over_seeds_it_is_that_of_a_t_test(values: list[int]) -> None:
    shares = [value / 500 for value in values]
    expected = ttest_1samp(shares, 0.0).confidence_interval()
    assert intervals.over_seeds(shares) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_seeds_that_agree_leave_a_point() -> None:
    assert intervals.over_seeds([0.2, 0.2, 0.2]) == pytest.approx((0.2, 0.2))
    assert intervals.over_seeds([0.2]) is None


@pytest.mark.parametrize(("first", "second", "both"), [(12, 3, 25), (30, 1, 9), (0, 5, 5)])
def test_matched_proportions_are_those_of_agresti_and_min(first: int, second: int, both: int) -> None:
    """Of their four cells, each with half a question more."""
    n = first + second + both
    b, c, total = first + 0.5, second + 0.5, n + 2
    centre, half = (b - c) / total, 1.959964 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    found = intervals.of_matched_proportions(np.array([1.0] * first + [-1.0] * second + [0.0] * both))
    assert found == pytest.approx((max(-1, centre - half), min(1, centre + half)), abs=1e-6)
