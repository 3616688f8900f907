"""Right chains with one mistake put in: is it found, and named?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latent_cot import tools
from latent_cot.tasks import load
from latent_cot.tasks.arithmetic.examples import parse_question
from latent_cot.tasks.arithmetic.expression import Expression, Step
from latent_cot.tasks.arithmetic.mistakes import MISTAKES, classify
from latent_cot.types import Rationale, ToolCall, ToolError

TASK = load("arithmetic")
CALCULATOR = tools.load("calculator")


def written(text: str, *, cut: bool = False) -> Rationale:
    """The chain that a model writes as `text`, a character a token, with the calculator's results put in."""
    tokens, calls = "", []
    for character in text:
        tokens += character
        if character == CALCULATOR.trigger:
            request, position = CALCULATOR.request(tokens), len(tokens)
            try:
                result = CALCULATOR(request)
            except ToolError as error:
                calls.append(ToolCall("calculator", position, request, None, str(error)))
            else:
                calls.append(ToolCall("calculator", position, request, result, n_tokens=len(result)))
                tokens += result
    n = len(tokens)
    return Rationale(tuple(map(ord, tokens)), (True,) * n, (True,) * (n + 1), tokens, cut, tuple(calls))


def steps_text(steps: Sequence[Step]) -> str:
    return ",".join(f" {step.text} =" for step in steps)


def from_left(terms: Sequence[tuple[str, int]]) -> list[Step]:
    """The steps of a sum whose terms are (sign, number); the first one's sign is not used."""
    steps, running = [], terms[0][1]
    for sign, number in terms[1:]:
        steps.append(Step(running, sign, number))
        running = steps[-1].result
    return steps


def found(question: str, chain: str, *, cut: bool = False) -> str:
    return classify(parse_question(question), written(chain, cut=cut))


@st.composite
def sums(draw: st.DrawFn, least: int = 3) -> list[tuple[str, int]]:
    """Terms of a sum of different numbers, none of them zero: so that each mistake has one name."""
    numbers = draw(st.lists(st.integers(1, 999), min_size=least, max_size=9, unique=True))
    return [(draw(st.sampled_from("+-")), number) for number in numbers]


def question_of(terms: Sequence[tuple[str, int]]) -> Expression:
    return Expression(tuple(number for _, number in terms), tuple(sign for sign, _ in terms[1:]))


def unlike(step: Step, right: Step) -> bool:
    """Are its numbers others, signs aside? A running value may happen to equal an operand."""
    return sorted((abs(step.left), abs(step.right))) != sorted((abs(right.left), abs(right.right)))


@given(sums(), st.data())
def test_a_dropped_operand(terms: list[tuple[str, int]], data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, len(terms) - 2))
    chain = from_left(terms[:dropped] + terms[dropped + 1 :])
    place = max(0, dropped - 1)
    assume(unlike(chain[place], from_left(terms)[place]))
    assert classify(question_of(terms), written(steps_text(chain))) == "dropped operand"


@given(sums())
def test_without_the_last_operand_it_stopped_early(terms: list[tuple[str, int]]) -> None:
    assert classify(question_of(terms), written(steps_text(from_left(terms[:-1])))) == "stopped early"


@given(sums(), st.data())
def test_an_operand_taken_twice(terms: list[tuple[str, int]], data: st.DataObject) -> None:
    again = data.draw(st.integers(0, len(terms) - 2))
    place = data.draw(st.integers(max(again, 1), len(terms) - 2))
    term = terms[again] if again else ("+", terms[0][1])
    chain = from_left([*terms[: place + 1], term, *terms[place + 1 :]])
    assume(unlike(chain[place], from_left(terms)[place]))
    assert classify(question_of(terms), written(steps_text(chain))) == "operand taken twice"


@given(sums(), st.data())
def test_a_wrong_sign(terms: list[tuple[str, int]], data: st.DataObject) -> None:
    place = data.draw(st.integers(1, len(terms) - 1))
    flipped = [*terms]
    flipped[place] = ("+" if terms[place][0] == "-" else "-", terms[place][1])
    assert classify(question_of(terms), written(steps_text(from_left(flipped)))) == "wrong sign"


@given(sums(), st.data(), st.booleans())
def test_a_wrong_copy(terms: list[tuple[str, int]], data: st.DataObject, of_the_running_value: bool) -> None:
    steps = from_left(terms)
    place = data.draw(st.integers(0, len(steps) - 1))
    right, foreign = steps[place], data.draw(st.integers(1000, 9999))
    wrong = (
        Step(foreign, right.operator, right.right)
        if of_the_running_value
        else Step(right.left, right.operator, foreign)
    )
    assume(unlike(wrong, right))
    assume(wrong.right != right.left)  # then the step could be read from right to left
    chain = [*steps[:place], wrong, *from_left([("+", wrong.result), *terms[place + 2 :]])]
    assert classify(question_of(terms), written(steps_text(chain))) == "wrong copy"


@given(sums(), st.data())
def test_a_chain_cut_short(terms: list[tuple[str, int]], data: st.DataObject) -> None:
    steps = from_left(terms)
    done = steps[: data.draw(st.integers(0, len(steps) - 1))]
    question, text = question_of(terms), steps_text(done)
    assert classify(question, written(text)) == "stopped early"
    assert classify(question, written(text, cut=True)) == "token limit", "be it at the very end of a step"
    begun = text + ("," if text else "") + f" {steps[len(done)].left}"
    assert classify(question, written(begun)) == "no answer"
    assert classify(question, written(begun, cut=True)) == "token limit"


@given(sums(), st.sampled_from([",", ", 5", ", 5 + 5 =", ", 5 =", " = 3"]), st.booleans())
def test_a_chain_that_goes_on(terms: list[tuple[str, int]], more: str, cut: bool) -> None:
    assert classify(question_of(terms), written(steps_text(from_left(terms)) + more, cut=cut)) == "went on too long"


@given(sums(), st.data())
def test_a_failed_call(terms: list[tuple[str, int]], data: st.DataObject) -> None:
    steps = from_left(terms)
    place = data.draw(st.integers(0, len(steps) - 1))
    refused = data.draw(st.sampled_from([" 5 =", " =", " 1 + 2 + 3 =", " - =", " 1234567890123 + 1 ="]))
    text = ",".join([f" {step.text} =" for step in steps[:place]] + [refused])
    assert classify(question_of(terms), written(text)) == "failed call"


@pytest.mark.parametrize(
    ("question", "chain", "category"),
    [
        ("6 - 0 - 4", "", "stopped early"),
        ("6 - 0 - 4", " 6 - 4 =", "dropped operand"),
        ("6 - 0 - 4", " 0 - 4 =", "dropped operand"),
        ("6 - 0 - 4", " 0 - 6 =", "wrong sign"),
        ("6 - 0 - 4", " 6 - 0 =, 6 + 6 =", "operand taken twice"),
        ("6 - 9 - 4", " 6 - 9 =, 3 - 4 =", "wrong sign"),  # 3 for -3
        ("6 - 9 - 4", " 6 - 9 =, -3 - -4 =", "wrong sign"),
        ("6 - 9 - 4", " 6 - 9 =, 12 - 4 =", "wrong copy"),
        ("6 - 9 - 4", " 6 - 9 =, -3 - 7 =", "wrong copy"),
        ("6 - 9 - 4", " 6 - 9 =, 8 - 7 =", "other"),
        ("6 - 9 - 4", " 6 - 9 =, -3 / 4 =", "other"),
        ("6 - 9 - 4", " 6 - 9.5 =", "other"),
        ("6 - 9 - 4", "-256, -256 =", "failed call"),
        # Written otherwise, and right as far as it goes.
        ("6 + 9 - 4", " 9 + 6 =", "stopped early"),
        ("6 - 9 + 4", " 6 - 9 =, 4 + -3 =, 1 + 1 =", "went on too long"),
        ("6 - -9 - 4", " 6 + 9 =", "stopped early"),
        # Products come first.
        ("9 - 2 * 3", " 9 - 2 =, 7 * 3 =", "other"),
        ("9 - 2 * 3", " 3 * 2 =, 9 + 6 =", "wrong sign"),
        ("9 - 2 + 3", " 9 * 2 =", "wrong sign"),
        ("9 - 2 * 3 * 4", " 2 * 4 =", "dropped operand"),
        ("9 - 2 * 3 - 4", " 2 * 3 =, 9 - 4 =", "dropped operand"),
        # The first deviation decides, whatever comes after it.
        ("6 - 9 - 4", " 6 + 9 =, 15 - 4 =, 1 =", "wrong sign"),
        # Where two rules apply, the first does.
        ("5 - 3 + 3", " 5 + 3 =", "wrong sign"),
        ("5 + 3 - 2 + 3", " 5 + 3 =, 8 + 3 =", "dropped operand"),
    ],
)
def test_by_hand(question: str, chain: str, category: str) -> None:
    assert found(question, chain) == category


@given(sums(), st.text(alphabet=" ,.0123456789=+-*", max_size=60), st.booleans())
def test_every_chain_has_one_category(terms: list[tuple[str, int]], text: str, cut: bool) -> None:
    assert classify(question_of(terms), written(text, cut=cut)) in MISTAKES


@given(st.lists(st.tuples(st.text(max_size=20), st.none() | st.text(max_size=20)), max_size=5))
def test_hostile_calls(calls: list[tuple[str, str | None]]) -> None:
    chain = Rationale(
        (0,), (True,), (True,) * 2, "", calls=tuple(ToolCall("c", 0, request, result) for request, result in calls)
    )
    assert classify(parse_question("6 - 9 - 4"), chain) in MISTAKES


@pytest.mark.parametrize("request_text", ["9" * 10**6, "1+" * 10**6, "(" * 10**6, "9**9**9**9 + 1", "__import__('os')"])
def test_hostile_calls_take_no_time(request_text: str) -> None:
    chain = Rationale((0,), (True,), (True,) * 2, "", calls=(ToolCall("c", 0, request_text, "9" * 10**6),))
    assert classify(parse_question("6 - 9 - 4"), chain) == "other"


def test_the_task_diagnoses() -> None:
    assert TASK.mistake(TASK.example("6 - 9 - 4"), written(" 6 - 4 =")) == "dropped operand"
    assert TASK.mistakes == MISTAKES
