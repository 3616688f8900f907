from __future__ import annotations

import math
import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.tasks.common import check_options, distinct, distinct_n, drop_seen, repeats, share_of, shuffled, words
from latent_cot.types import Example, UsageError


def test_shares_are_pinned() -> None:
    """A change here moves questions between training and tests, and makes results incomparable."""
    assert [share_of(f"{i} + 1 + 1") for i in range(8)] == [
        "validation",
        "train",
        "test",
        "train",
        "test",
        "test",
        "train",
        "train",
    ]


def test_shares_have_their_sizes() -> None:
    counts = Counter(share_of(str(i)) for i in range(8000))
    expected = {"test": 2000, "validation": 1000, "train": 5000}
    assert all(abs(count - expected[share]) < 180 for share, count in counts.items())  # 4 standard deviations


@given(st.integers(0, 200), st.integers())
def test_shuffled_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(shuffled(n, random.Random(seed))) == list(range(n))


def test_shuffled_is_uniform() -> None:
    counts = Counter(tuple(shuffled(3, random.Random(seed))) for seed in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations


def test_shuffled_needs_no_memory_for_what_is_not_drawn() -> None:
    drawn = list(islice(shuffled(10**300, random.Random(0)), 100))
    assert len(set(drawn)) == 100
    assert max(drawn) > 10**298


def example(question: str) -> Example:
    return Example(x=f"Q: {question}", question=question)


def test_drop_seen_keeps_repeated_rows() -> None:
    test = [example(q) for q in ("a", "b", "b", "c", "a")]
    kept, dropped = drop_seen(test, [example("a"), example("z")])
    assert [e.question for e in kept] == ["b", "b", "c"]
    assert dropped == 2
    assert repeats(test) == 2
    assert repeats(kept) == 1


def test_drop_seen_falls_back_to_x() -> None:
    assert drop_seen([Example(x="a"), Example(x="b")], [Example(x="b")]) == ([Example(x="a")], 1)


def test_a_question_written_otherwise_is_the_same() -> None:
    trained = example("What is the capital of land 4?")
    asked = [example("what is  the capital of Land 4 ?"), example("What is the capital of land 5?")]
    assert drop_seen(asked, [trained]) == (asked[1:], 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 of them didn't go", "5 of them did n't go"),
        ("5 of them didn't go", "5 of them did n’t go"),
        ("It made 3,884 cars, 2,871,000 last year.", "It made 3884 cars, 2871000 last year."),
        ("Of 4,000, how many?", "Of 4000, how many?"),
        ("Is it 3?", "\ufeffIs\u200b it 3?\xad"),
        ("5 - 3, or 5 - 4", "5 \N{MINUS SIGN} 3, or 5 \N{EN DASH} 4"),
    ],
)
def test_how_a_question_is_set_does_not_tell_it_apart(one: str, other: str) -> None:
    assert words(one) == words(other)
    assert repeats([example(one), example(other)]) == 1


@pytest.mark.parametrize(
    "numbers", [("1,23", "123"), ("0,500", "500"), ("1,2345", "12345"), ("7,1,234", "71234"), ("f1,000", "f1000")]
)
def test_not_all_commas_are_those_of_thousands(numbers: tuple[str, str]) -> None:
    assert len(set(map(words, numbers))) == 2


@pytest.mark.parametrize(
    "questions",
    [
        ("(2 + 3) * 4", "2 + (3 * 4)"),
        ("5!", "5"),
        ("(()", "())"),
        ("1 - 2", "1 + 2"),
        ("?", "?!"),
        ("Is 3 != 4?", "Is 3 = 4?"),
    ],
)
def test_signs_tell_questions_apart(questions: tuple[str, str]) -> None:
    assert len(set(map(words, questions))) == 2


def test_unknown_option() -> None:
    check_options("t", {"digits": "1"}, ["digits"])
    with pytest.raises(UsageError, match=r"task 't' has no option 'digit'\. Did you mean 'digits'"):
        check_options("t", {"digit": "1"}, ["digits"])
    with pytest.raises(UsageError, match=r"--data\.options labels: .* It has none: leave it out\."):
        check_options("t", {"labels": "x"}, [])


def test_the_first_of_each_key_stays() -> None:
    rows = [Example("b", z="1"), Example("a"), Example("b", z="2")]
    assert distinct(rows, lambda example: example.x) == rows[:2]
    assert distinct(rows, lambda example: (example.x, example.z)) == rows


def test_distinct_n_weighs_by_how_often_a_text_was_sampled() -> None:
    texts = [(["a", "b"], 2), (["a", "c"], 1)]
    assert distinct_n(texts, 1) == 3 / 6
    assert distinct_n(texts, 2) == 2 / 3
    assert math.isnan(distinct_n([(["a"], 1)], 2))
