"""Intervals over seeds, beside scipy's own."""

from __future__ import annotations

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
