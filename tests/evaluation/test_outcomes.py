"""Reasoners beside each other on the same questions: the differences, their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from latent_cot.evaluation.intervals import of_matched_proportions, of_mean
from latent_cot.evaluation.outcomes import Question, differences, of_questions
from latent_cot.types import Example

Run = dict[Question, Mapping[str, float]]


def run_of(values: str, split: str = "a") -> Run:
    """`"110"`: the first two of three questions are right."""
    return {Question(split, str(k), 0): {"right": int(value)} for k, value in enumerate(values)}


def test_right_answers_side_by_side() -> None:
    (found,) = differences([run_of("1110000")], [run_of("1001000")])["a"].values()
    assert (found.n, found.higher, found.lower) == (7, 2, 1)
    assert (found.first, found.second) == (3 / 7, 2 / 7)
    assert found.value == pytest.approx(1 / 7)
    assert found.p_value == pytest.approx(1.0)
    (found,) = differences([run_of("1" * 8)], [run_of("0" * 8)])["a"].values()
    assert found.p_value == pytest.approx(2 * 0.5**8), "all eight on one side, or on the other"


def test_runs_of_a_side_are_averaged() -> None:
    (found,) = differences([run_of("110"), run_of("100")], [run_of("010")])["a"].values()
    assert [found.first, found.second] == pytest.approx([0.5, 1 / 3])
    assert (found.higher, found.lower) == (1, 1)


def test_only_what_all_have_counts() -> None:
    first = run_of("11", "a") | run_of("1", "b") | {Question("a", "9", 0): {"right": 1.0}}
    second = run_of("10", "a") | run_of("1", "c")
    assert differences([first], [second])["a"]["right"].n == 2
    assert list(differences([first], [second])) == ["a"]
    assert differences([run_of("1", "a")], [run_of("1", "b")]) == {}
    with_more = {question: {**figures, "length": 2.0} for question, figures in run_of("11").items()}
    with_more[Question("a", "1", 0)] = {"right": 1.0}
    found = differences([with_more], [with_more])["a"]
    assert (found["right"].n, found["length"].n) == (2, 1)
    assert found["length"].interval_95 is None


def test_other_figures_have_a_bootstrap() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 50))
    first, second = (
        {Question("a", str(k), 0): {"likelihood": float(value)} for k, value in enumerate(row)} for row in values
    )
    found = differences([first], [second])["a"]["likelihood"]
    assert found.interval_95 == of_mean(values[0] - values[1])
    assert found.value == pytest.approx((values[0] - values[1]).mean())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_the_difference_turns_round_with_the_sides(pairs: list[tuple[int, int]]) -> None:
    first, second = (run_of("".join(map(str, side))) for side in zip(*pairs, strict=True))
    one = differences([first], [second])["a"]["right"]
    other = differences([second], [first])["a"]["right"]
    assert one.value == pytest.approx(-other.value)
    assert one.interval_95 is not None and other.interval_95 is not None
    assert one.interval_95 == pytest.approx([-x for x in other.interval_95[::-1]])
    assert (one.higher, one.lower, one.p_value) == (other.lower, other.higher, other.p_value)
    assert one.interval_95[0] <= one.value <= one.interval_95[1] or abs(one.value) == pytest.approx(1)


@pytest.mark.parametrize(("n", "only_first", "only_second"), [(30, 0.2, 0.1), (100, 0.05, 0.01), (60, 0.3, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n: int, only_first: float, only_second: float) -> None:
    """Summed over all that can be seen: the numbers of questions that only one of the two gets right."""
    covered = 0.0
    for b, c in product(range(n + 1), repeat=2):
        if b + c > n:
            continue
        chance = binom.pmf(b, n, only_first) * binom.pmf(c, n - b, only_second / (1 - only_first))
        if chance > 1e-9:
            low, high = of_matched_proportions(np.array([1.0] * b + [-1.0] * c + [0.0] * (n - b - c)))
            covered += chance * (low <= only_first - only_second <= high)
    assert 0.93 < covered < 0.99


def test_no_difference_seen_is_not_none_there_is() -> None:
    low, high = of_matched_proportions(np.zeros(100))
    assert -0.03 < low < -0.01 and high == pytest.approx(-low)
    assert of_matched_proportions(np.ones(1))[1] == 1.0


def test_what_became_of_questions() -> None:
    examples = [Example(x=text, question=text) for text in ("a", "b", "a")]
    found = of_questions("test", examples, {"length": [1.0, math.nan, 3.0], "likelihood": [-2.0, -1.0, 0.0]})
    assert found == {
        Question("test", "a", 0): {"length": 1.0, "likelihood": -2.0},
        Question("test", "b", 0): {"likelihood": -1.0},
        Question("test", "a", 1): {"length": 3.0, "likelihood": 0.0},  # asked again, it is another
    }
