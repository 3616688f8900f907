"""From equations and solutions to rationales: what the chain computes is the value of the expression."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.tasks.word_problems.working import (
    CALCULATOR,
    Unusable,
    linearise,
    near,
    number,
    numbers_in,
    of_annotated,
    of_equation,
    of_written,
    steps_of,
)
from latent_cot.tools.calculator import written
from latent_cot.types import ToolError

GSM = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.\n"


def follow(z: str) -> list[tuple[str, str]]:
    """Each call of a chain that goes as `z` does: what the calculator reads of the text so far, what it writes."""
    text, calls = "", []
    for part in z.split("=")[:-1]:
        text += f"{part}="
        request = CALCULATOR.request(text)
        calls.append((request, CALCULATOR(request).strip()))
        text += f" {calls[-1][1]}"
    assert not z.split("=")[-1]
    return calls


def _join(left: tuple[str, Fraction], operator: str, right: tuple[str, Fraction]) -> tuple[str, Fraction]:
    (a, x), (b, y) = left, right
    if operator == "/" and not y:
        operator = "+"
    return f"({a}{operator}{b})", {"+": x + y, "-": x - y, "*": x * y, "/": x / (y or 1)}[operator]


leaves = st.decimals(0, 99, places=1).map(lambda value: (str(value), Fraction(str(value))))
expressions = st.recursive(leaves, lambda inner: st.builds(_join, inner, st.sampled_from("+-*/"), inner), max_leaves=5)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(expressions, st.booleans())
def test_a_chain_arrives_at_the_value_of_its_expression(drawn: tuple[str, Fraction], words: bool) -> None:
    text, value = drawn
    try:
        z, arrived = linearise(of_equation(f"x={text}"), value, words)
    except Unusable:
        return
    calls = follow(z)
    assert Fraction(arrived) == Fraction(calls[-1][1]) == value
    # Each operand is a number of the text or an earlier result, two at a time.
    known = numbers_in(text)
    for step, (request, result) in zip(steps_of(z), calls, strict=True):
        assert f"{written(step.left)} {step.operator} {written(step.right)}" == request
        assert {abs(step.left), abs(step.right)} <= known | {Fraction(0)}
        known.add(abs(Fraction(result)))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(expressions, st.sampled_from(["1", "0.5", "-3"]))
def test_another_value_is_refused(drawn: tuple[str, Fraction], more: str) -> None:
    with pytest.raises(Unusable):
        linearise(of_equation(drawn[0]), drawn[1] + Fraction(more), words=False)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(alphabet="x=+-*/().0123456789 ,<>\n$", max_size=40))
def test_whatever_is_read_is_read_or_refused(text: str) -> None:
    number(text), numbers_in(text)
    for read in (of_equation, of_annotated, of_written):
        try:
            z, _ = linearise(read(text), Fraction(1), words=True)
        except Unusable:
            continue
        assert steps_of(z)


@pytest.mark.parametrize(
    ("equation", "answer", "z"),
    [
        ("x=((7.0*2.0)+3)", "17", " 7 * 2 =, 14 + 3 ="),
        ("( 8.0 - 3.0 )", "5", " 8 - 3 ="),
        ("X=7.0/12.0*6.0", "3.5", " 7 / 12 =, 7/12 * 6 ="),
        ("x=6/(1/3)", "18", " 1 / 3 =, 6 / 1/3 ="),
        ("x=3-(5+4)", "-6", " 5 + 4 =, 3 - 9 ="),
        ("number=1.477/-7.0", "-0.211", " 1.477 / -7 ="),
        ("x=-(2+3)*2", "-10", " 2 + 3 =, 0 - 5 =, -5 * 2 ="),
        ("x=(79.0-15.0)/(4.0-1.0)", "21.333333333333332", " 79 - 15 =, 4 - 1 =, 64 / 3 ="),
    ],
)
def test_equations(equation: str, answer: str, z: str) -> None:
    assert linearise(of_equation(equation), number(answer), words=False)[0] == z
    follow(z)


@pytest.mark.parametrize(
    ("equation", "answer", "why"),
    [
        ("(6.0+x)*(x-6.0)=189.0", "-15", "unknown"),
        ("X-6=52", "58", "unknown"),
        ("7=3+x", "4", "unknown"),
        ("x=5", "5", "nothing to compute"),
        ("x=0.32=0.21", "0.53", "unknown"),
        ("x=3-1.1666666666666667", "1.8333333333333333", "refuses"),
        ("x=3/(2-2)", "1", "refuses"),
        ("x=9**9", "1", "refuses"),
        ("x=__import__('os')", "1", "unknown"),
        ("x=5+2", "8", "not the answer"),
        ("x=2/3", "0.66", "not the answer"),
        ("x=" + "(" * 70 + "1", "1", "refuses"),
    ],
)
def test_equations_of_no_use(equation: str, answer: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        linearise(of_equation(equation), number(answer), words=False)


def test_an_annotated_solution() -> None:
    pieces = of_annotated(GSM)
    assert linearise(pieces, Fraction(72), words=False) == (" 48 / 2 =, 48 + 24 =", "72")
    z, _ = linearise(pieces, Fraction(72), words=True)
    assert z == " Natalia sold: 48 / 2 = clips in May. Natalia sold: 48 + 24 ="
    assert follow(z) == [("48 / 2", "24"), ("48 + 24", "72")]
    several = "She needs 100-50-30 = $<<100-50-30=20>>20\nThat is 0.5 x 20 = $<<.5*20=10>>10."
    assert linearise(of_annotated(several), Fraction(10), words=True)[0] == (
        " She needs: 100 - 50 =, 50 - 30 =. That is: 0.5 * 20 ="
    )


@pytest.mark.parametrize(
    ("solution", "z"),
    [
        (
            "He sold 4 of 14 = <<14-4=10>>10 shells, half of them, a total of 1/2*10 = <<5=5>>5 red ones. Left: 10-5 = "
            "<<10-5=5>>5",
            " He sold 4 of: 14 - 4 = shells, half of them, a total of 5 red ones. Left: 10 - 5 =",
        ),
        ("<<5=5>>5 are red. He has <<5+5=10>>10, <<10/2=5>>5", " 5 are red. He has: 5 + 5 =, 10 / 2 ="),
        (
            "... The price times 3: $2 * 3 = <<2*3=6>>6, or 1/2: 6-1 = <<6-1=5>>5",
            " The price times 3: 2 * 3 =, or 1/2: 6 - 1 =",
        ),
        ("A rise by 50%: 10 x 0.5 = <<10*.5=5>>5", " A rise by 50%: 10 * 0.5 ="),
        ("In week 2. 2 + 3 = <<+2+3=5>>5", " In week 2: 2 + 3 ="),
        ("She has 2 + 3 = 5, 5 * 1 = <<5*1=5>>5", " She has: 5 * 1 ="),
    ],
)
def test_what_needs_no_call_stays_in_the_words(solution: str, z: str) -> None:
    assert linearise(of_annotated(solution), Fraction(5), words=True)[0] == z
    follow(z)


@pytest.mark.parametrize(
    ("solution", "why"),
    [
        ("Let y = 3 and <<3=3>>3. Then <<3*2=6>>6.\n", "without a call"),
        ("All are <<100/3=33>>33.\n", "does not give"),
        ("Let y = 3. Then <<3*2=6>>6.\n", "without a call"),
        ("Sixty, as one sees.\n", "nothing to compute"),
        ("<<60=60>>60", "nothing to compute"),
        ("<<20%*50=10>>10", "refuses"),
    ],
)
def test_solutions_of_no_use(solution: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        linearise(of_annotated(solution), Fraction(6), words=True)


def test_a_written_rationale() -> None:
    for text in ("48 / 2 =, 48 + 24 =", "48 / 2 = 24, 48 + 24 = 72", " 48 / 2 = 24, 48 + 24 = 72."):
        assert linearise(of_written(text), Fraction(72), words=False)[0] == " 48 / 2 =, 48 + 24 ="
    text = " In May: 48 / 2 = 24 clips. In all: 48 + 24 = 72"
    z = " In May: 48 / 2 = clips. In all: 48 + 24 ="
    assert linearise(of_written(text), Fraction(72), words=True)[0] == z
    assert linearise(of_written(z), Fraction(72), words=True)[0] == z
    for wrong in ("48 / 2 = 25, 48 + 24 = 72", "48 + 24 = 72 clips", "seventy-two", "She had 48 + 24 = 72"):
        with pytest.raises(Unusable):
            linearise(of_written(wrong), Fraction(72), words=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1,000", 1000), ("0.50", Fraction(1, 2)), ("$18", 18), ("$ 1,234.5", Fraction(2469, 2))],
        *[
            ("7.0", 7),
            (" -3 ", -3),
            (".5", Fraction(1, 2)),
            ("1,000,000", 1_000_000),
            ("+2", 2),
            ("3/4", Fraction(3, 4)),
            ("-$1,000", -1000),
            ("$-5", -5),
        ],
    ],
)
def test_numbers(text: str, value: Fraction | int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18%",
        "0,5",
        "0,500",
        "1,00",
        "10,00",
        "1,0000",
        "seven",
        "3/0",
        "1 2",
        "1e5",
        "--2",
        "-$-2",
        "7.",
        "nan",
        "9" * 70,
        "٣",
    ],
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


def test_numbers_in_a_question() -> None:
    found = numbers_in("Half of two dozen boys, $1,200.50, 3/4 cup, 20% off and -5 degrees")
    assert {Fraction(v) for v in ("2", "12", "0.5", "1200.5", "0.75", "3", "4", "20", "0.2", "5")} <= found
    found = numbers_in("Twenty-five boxes, thirty two pens, three quarters of them and 20 percent")
    assert {Fraction(v) for v in ("25", "32", "0.75", "20", "0.2")} <= found
    assert not numbers_in("How many are there in all?")


def test_near() -> None:
    assert near(Fraction(2, 3), Fraction("0.667")) and near(Fraction(1_000_001), Fraction(1_000_001))
    assert not near(Fraction(1_000_001), Fraction(1_000_002)), "whole numbers are not cut"
    assert not near(Fraction(1), None)


def test_a_fraction_is_one_operand_of_the_next_step() -> None:
    assert CALCULATOR("7/12 * 6") == " 3.5"
    with pytest.raises(ToolError):
        CALCULATOR("4/2 * 6")


@pytest.mark.parametrize(
    ("value", "stated", "same"),
    [
        (Fraction(2, 3), "0.667", True),
        (Fraction(2, 3), "0.6667", True),
        (Fraction(2, 3), "0.666", False),
        (Fraction(2, 3), "0.67", False),
        (Fraction(1, 2), "0.503", False),
        (Fraction(40, 3), "13.333333333333334", True),
        (Fraction(1, 16), "0.063", True),
        (Fraction(5, 16), "0.313", True),
        (Fraction(3, 16), "0.188", True),
        (Fraction(3, 16), "0.189", False),
        (Fraction(72), "72", True),
        (Fraction(72), "73", False),
        (Fraction("12500.25"), "12500.26", False),
        (Fraction("2000000.5"), "2000001.5", False),
        (Fraction(1234568), "1234567.5", False),
        (Fraction(339500, 23), "14760.87", True),
    ],
)
def test_a_stated_number_may_be_rounded(value: Fraction, stated: str, same: bool) -> None:
    assert near(value, number(stated)) is same
