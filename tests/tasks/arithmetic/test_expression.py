from __future__ import annotations

import ast
import contextlib
import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.tasks.arithmetic.expression import (
    MAX_DIGITS,
    MAX_OPERANDS,
    Expression,
    integer,
    parse,
    rationale,
    replay,
)

PYTHON: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def value_by_python(text: str) -> int:
    """The oracle: Python's own grammar decides what binds to what."""

    def walk(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return PYTHON[type(op)](walk(left), walk(right))
        raise AssertionError(ast.dump(node))

    return walk(ast.parse(text, mode="eval").body)


@st.composite
def expressions(draw: st.DrawFn, min_operands: int = 1, max_operands: int = 12) -> Expression:
    operands = draw(st.lists(st.integers(-9999, 9999), min_size=min_operands, max_size=max_operands))
    n = len(operands) - 1
    return Expression(tuple(operands), tuple(draw(st.lists(st.sampled_from("+-*"), min_size=n, max_size=n))))


@given(expressions())
def test_value_is_pythons(expression: Expression) -> None:
    assert expression.value == value_by_python(expression.text)


@given(expressions(), st.sampled_from(["", " ", "  "]))
def test_text_round_trips(expression: Expression, space: str) -> None:
    assert parse(expression.text) == expression
    assert parse(expression.text.replace(" ", space)) == expression


@given(st.text(alphabet="0123456789+-* ", max_size=20))
def test_parse_agrees_with_python_or_refuses(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError:
        return
    # Python knows no 007, but it knows what we make of it.
    assert expression.value == value_by_python(expression.text)
    assert expression.text.replace(" ", "").count("0") <= text.count("0")


@given(st.text(max_size=60))
def test_parse_raises_nothing_but_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


def test_typographic_signs_and_leading_zeros() -> None:
    assert parse("007 × 2 − 3").text == "7 * 2 - 3"
    assert parse("-0 + 3 - -5").text == "0 + 3 - -5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no expression"),
        ("6 -", "expected an integer at the end"),
        ("6 - x", "expected an integer at 'x'"),
        ("6 5", r"expected \+, - or \* at '5'"),
        ("6 / 2", r"expected \+, - or \* at '/ 2'"),
        ("2 ** 3", r"expected an integer at '\* 3'"),
        ("--3 + 1", "expected an integer"),
        ("1_0 + 1", "at '_0"),
        ("1.5 + 1", r"at '\.5"),
        ("(1 + 2)", "expected an integer"),
        ("٣ + 1", "expected an integer"),  # digits of another script
        ("1 +\n2", "expected an integer"),
        ("9" * (MAX_DIGITS + 1) + " + 1", "13 digits; at most 12"),
        (" + ".join("1" * (MAX_OPERANDS + 1)), "65 operands; at most 64"),
        ("1 + " * 10**5 + "1", "too long"),
        ("9" * 10**6, "too long"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_bounds_themselves_are_allowed() -> None:
    longest = Expression((10**MAX_DIGITS - 1,) * MAX_OPERANDS, ("+",) * (MAX_OPERANDS - 1))
    assert parse(longest.text) == longest


@pytest.mark.parametrize(
    ("question", "chain"),
    [
        ("6 - 0 - 4", " 6 - 0 =, 6 - 4 ="),
        ("9 - 2 * 3", " 2 * 3 =, 9 - 6 ="),
        ("1 * 2 + 3 * 4 * 5", " 1 * 2 =, 3 * 4 =, 12 * 5 =, 2 + 60 ="),
        ("3 - 8 - 2", " 3 - 8 =, -5 - 2 ="),
    ],
)
def test_rationale(question: str, chain: str) -> None:
    assert rationale(parse(question).steps()) == chain


@given(expressions(min_operands=2, max_operands=6), st.booleans())
def test_own_rationale_replays(question: Expression, written: bool) -> None:
    steps = question.steps()
    if any(max(abs(s.left), abs(s.right)) >= 10**MAX_DIGITS for s in steps):
        return  # refused as a question
    text = ",".join(f" {s.text} = {s.result}" for s in steps) if written else rationale(steps)
    assert replay(text, question) == steps


@pytest.mark.parametrize("text", ["6-0=,6-4=", " 6 - 0 = 6, 6 - 4 = 2.", "6 - 4 =, 2 - 0 =", " 0 + 4 =, 6 - 4 ="])
def test_replay_accepts_other_orders_and_spacing(text: str) -> None:
    assert replay(text, parse("6 - 0 - 4"))[-1].result == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "step 1 has no '='"),
        (" 6 - 0 =, 6 - 4", "step 2 has no '='"),
        (" 6 - 0 =,", "step 2 has no '='"),
        (" 6 - 0 - 4 =", "step 1 has 3 operands"),
        (" 6 =", "step 1 has 1 operands"),
        (" 6 / 1 =", "step 1: expected"),
        (" =", "step 1: there is no expression"),
        (" 6 - 0 = 5, 5 - 4 =", "step 1: 6 - 0 = 6, not 5"),
        (" 6 - 0 = six, 6 - 4 =", "not six"),
        (" 6 - 0 = 6 = 6, 6 - 4 =", "not 6 = 6"),
        (" 6 - 0 =", "it stops early: 4, 6 are left"),
        (" 6 + 0 =, 6 + 4 =", "it reaches 10, not the answer 2"),
        (" 6 - 0 =, 9 - 7 =", "step 2 uses 9"),
        (" 6 - 6 =", "step 1 uses 6"),  # there is one 6
        (" 6 - 0 =, 6 - 4 =, 2 - 0 =", "step 3 uses 0"),
        ("6" * 10**5, "too long"),
    ],
)
def test_replay_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(text, parse("6 - 0 - 4"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("14", 14), (" -6 ", -6), ("+3", 3), ("-0", 0), ("007", 7)),
        *((text, None) for text in ("", "-", "1.0", "1_0", "٣", "1 2", "1/3", "--1", "9" * 5000)),
    ],
)
def test_integer(text: str, value: int | None) -> None:
    assert integer(text) == value
