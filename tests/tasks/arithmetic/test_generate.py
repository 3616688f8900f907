from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.tasks.arithmetic.expression import MAX_DIGITS, parse
from latent_cot.tasks.arithmetic.generate import Settings, questions, take
from latent_cot.tasks.common import Share, share_of
from latent_cot.types import UsageError


def test_options() -> None:
    assert Settings.parse({}) == Settings((3, 4), (1,), "+-")
    parsed = Settings.parse({"operands": "8,3..5,4", "digits": "1", "operators": "*, +"})
    assert parsed == Settings((3, 4, 5, 8), (1,), "+*")
    assert Settings.parse({"operators": "×-"}).operators == "-*"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operand": "3"}, "no option 'operand'. Did you mean 'operands'"),
        ({"operands": "1"}, "operands=1: '1' is no number from 2 to 64"),
        ({"operands": "65"}, "'65' is no number from 2 to 64"),
        ({"operands": "4..3"}, "'4..3' is no number"),
        ({"operands": "3,"}, "'' is no number"),
        ({"operands": "three"}, "write e.g. operands=3"),
        ({"operands": "9" * 5000}, "is no number"),
        ({"operands": "-3"}, "is no number"),
        ({"digits": "0"}, "'0' is no number from 1 to 12"),
        ({"digits": "13"}, "is no number from 1 to 12"),
        ({"operators": "+/"}, "option operators=+/: choose some of +-*"),
        ({"operators": ""}, "choose some of +-*"),
        ({"digits": "12"}, "use fewer operands or digits"),
        ({"operands": "5", "digits": "4", "operators": "+*"}, "of 16 digits, and the calculator takes 12"),
    ],
)
def test_bad_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Settings.parse(options)


@settings(max_examples=30)
@given(
    st.sampled_from(["2", "3", "3,5", "4..6"]),
    st.sampled_from(["1", "2", "1,2"]),
    st.sampled_from(["+", "+-", "+-*"]),
    st.sampled_from(["train", "validation", "test"]),
    st.integers(0, 5),
)
def test_questions_are_as_asked(operands: str, digits: str, operators: str, share: Share, seed: int) -> None:
    wanted = Settings.parse({"operands": operands, "digits": digits, "operators": operators})
    # 20 exist of every combination: the smallest has 62 training questions of 100, 25 and 12 of the others
    drawn = take(questions(wanted, share, seed), 8, "a test")
    assert len({question.text for question in drawn}) == 8
    shapes = list(itertools.product(wanted.operands, wanted.digits))
    for question, (n, n_digits) in zip(drawn, itertools.cycle(shapes), strict=False):
        assert share_of(question.text) == share
        assert parse(question.text) == question
        assert len(question.operands) == n
        assert {len(str(number)) for number in question.operands} == {n_digits}
        assert set(question.operators) <= set(operators)
        assert all(max(abs(s.left), abs(s.right)) < 10**MAX_DIGITS for s in question.steps())


def test_longer_draws_begin_with_shorter_ones() -> None:
    long, short = (take(questions(Settings(), "train", 7), count, "a test") for count in (300, 100))
    assert long[:100] == short
    assert take(questions(Settings(), "train", 8), 100, "a test") != short


def test_small_spaces_are_exhausted_exactly_and_end() -> None:
    every = [f"{a} {op} {b}" for a in range(10) for op in "+-" for b in range(10)]
    shares: tuple[Share, ...] = ("train", "validation", "test")
    for share in shares:
        drawn = [question.text for question in questions(Settings((2,), (1,), "+-"), share, 0)]
        assert sorted(drawn) == sorted(text for text in every if share_of(text) == share)


def test_three_operands_suffice_for_the_default_request() -> None:
    counts = Counter(
        share_of(q.text)
        for share in ("train", "validation", "test")
        for q in questions(Settings((3,), (1,), "+-"), share, 0)
    )
    assert counts.total() == 4000
    assert counts["train"] > 525
    assert counts["test"] >= 500


def test_exclusion() -> None:
    every = [q.text for q in questions(Settings((2,), (1,), "+-"), "train", 0)]
    rest = [q.text for q in questions(Settings((2,), (1,), "+-"), "train", 0, exclude=set(every[:50]))]
    assert rest == every[50:]


def test_asking_for_more_than_exists() -> None:
    few = Settings((2,), (1,), "+-")
    there = sum(1 for _ in questions(few, "train", 0))
    assert len(take(questions(few, "train", 0), there, "unlabelled")) == there
    with pytest.raises(UsageError, match=rf"1000 questions asked for \(unlabelled\), but only {there} exist"):
        take(questions(few, "train", 0), 1000, "unlabelled")
    with pytest.raises(UsageError, match="between 0 and 1,000,000"):
        take(questions(Settings((64,), (1,), "+-"), "train", 0), 10**12, "unlabelled")


def test_operands_and_operators_are_uniform() -> None:
    drawn = take(questions(Settings((3,), (2,), "+-*"), "train", 0), 6000, "a test")
    firsts = Counter(question.operands[0] // 10 for question in drawn)
    operators = Counter(operator for question in drawn for operator in question.operators)
    assert all(abs(firsts[tens] - 6000 / 9) < 130 for tens in range(1, 10))  # 5 standard deviations
    assert all(abs(operators[operator] - 4000) < 260 for operator in "+-*")
