"""Reasoners beside each other on the same questions: the differences, their intervals, the files they come from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from latent_cot.evaluation import outcomes
from latent_cot.evaluation.intervals import of_matched_proportions, of_mean
from latent_cot.evaluation.outcomes import Question, differences
from latent_cot.types import Example, Measured, Rationale, Sample, UsageError

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


# -- files -------------------------------------------------------------------------------------------------


def line(question: object = "1 + 1", **others: object) -> str:
    return json.dumps({"reasoner": "p", "split": "a", "question": question, "figures": {"right": 1}} | others) + "\n"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "o.jsonl"
    questions = [
        Measured(Example(x=text, question=text, y=None), [Sample(Rationale((), (), (True,), "z"), count=2)])
        for text in "ab"
    ]
    found: dict[str, float | Sequence[float]]
    found = {"length": [1.0, math.nan], "all": 3.0, "likelihood": [-math.inf, -2.0]}
    outcomes.write(file, outcomes.of_measured("q", "test", questions, found))
    assert outcomes.read(file) == {
        "q": {Question("test", "a", 0): {"length": 1.0}, Question("test", "b", 0): {"likelihood": -2.0}}
    }
    first = json.loads(file.read_text().splitlines()[0])
    assert first["rationales"] == [{"text": "z", "count": 2}]


def test_a_question_that_is_asked_again_is_another(tmp_path: Path) -> None:
    file = tmp_path / "o.jsonl"
    file.write_text(line() + line(figures={"right": 0}))
    reasoner, found = outcomes.of_reasoner(file, None)
    assert reasoner and found == {
        Question("a", "1 + 1", 0): {"right": 1.0},
        Question("a", "1 + 1", 1): {"right": 0.0},
    }


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        "3",
        "[" * 100_000,
        line(figures=[1]),
        line(figures={"right": "1"}),
        line(figures={"right": [1]}),
        line(figures={"right": 1e999}),
        line(split=None),
        line(question=3),
        "{}",
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "o.jsonl"
    file.write_text(line() + bad)
    with pytest.raises(UsageError, match=re.escape(f"{file}, line 2") + ".*--outcomes"):
        outcomes.read(file)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    empty, both, there = tmp_path / "empty", tmp_path / "both", tmp_path / "no" / "o.jsonl"
    empty.write_text("")
    both.write_text(line() + line(reasoner="q"))
    with pytest.raises(UsageError, match="no outcomes"):
        outcomes.read(empty)
    with pytest.raises(UsageError, match="cannot be read"):
        outcomes.read(there)
    with pytest.raises(UsageError, match="cannot be written"):
        outcomes.write(there, [])
    with pytest.raises(UsageError, match="--reasoner"):
        outcomes.of_reasoner(both, None)
    reasoner, found = outcomes.of_reasoner(both, "q")
    assert reasoner == "q" and list(found) == [Question("a", "1 + 1", 0)]
    both.write_text(line(reasoner="x") + line(reasoner="q"))
    with pytest.raises(UsageError, match="none of p"):
        outcomes.of_reasoner(both, "p")
