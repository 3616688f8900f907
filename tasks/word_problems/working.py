"""From an equation, an annotated solution or a written rationale to one that a chain can follow: each call has two
operands, and the calculator has been asked what it writes. What a file holds is read by the calculator's own grammar,
never evaluated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from latent_cot.tools.calculator import Calculator, Step, work_out, written
from latent_cot.types import ToolError

TOLERANCE = Fraction(1, 10**6)
"""Relative, unless both are whole: data have recurring decimals cut after some digits."""
ROUNDED_FROM = 3
"""Decimals from which on a stated number is taken for a rounded one: 0.667 for 2/3."""
CALCULATOR = Calculator()

_AMOUNT = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"([+-]?)(?:\$ ?)?([+-]?)({_AMOUNT})(?:/([0-9]+))?")
RESULT = re.compile(rf" *[-\u2212]?\$? ?(?:{_AMOUNT})(?:/[0-9]+)?")
"""A result that a text has written out, behind a call."""
_EQUATION = re.compile(r"\s*(?:[A-Za-z]+\s*=)?([^=A-Za-z]+)")
_ANNOTATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_FORMULA = " \n\t0123456789-.,$%()+*/×÷=:"
"""What a text has written of an annotated call, before its annotation."""
_LAST_NUMBER = re.compile(rf"( *-?\$? ?(?:{_AMOUNT})(?:/[0-9]+)?%?)[,:.]\s")
"""A number at the end of the words before a formula, which is no part of it."""
_NAMES = """zero|one once|two half halves twice double pair couple both|three third thirds thrice triple|
    four quarter quarters fourth fourths|five fifth fifths|six sixth sixths|seven seventh|eight eighth|nine ninth|
    ten tenth tenths|eleven|twelve dozen|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty"""
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_NAMED = {name: Fraction(n) for n, names in enumerate(_NAMES.split("|")) for name in names.split()}
_NAMED |= {name: Fraction(10 * n) for n, name in enumerate(_TENS.split(), start=3)}


_LINE_END = re.compile(r"(?<![\s.,;:!?])\s*\n\s*")


class Unusable(ValueError):
    """Why a rationale cannot be made of what a row has, in words that a note counts."""


class Piece(NamedTuple):
    """A part of a solution that computes something."""

    words: str
    """What stands before it."""
    expression: str
    """Of any number of operands."""
    stated: str = ""
    """Its value as the solution has it; empty if it does not say."""


def number(text: str) -> Fraction | None:
    """The number that a text writes, `72`, `-3.50`, `$1,000`, `-$5` or `3/4`; None if it writes none, or one that may
    be read in two ways: `18%`, or `0,5` with a decimal comma."""
    match = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-")) if len(text) <= 64 else None
    if match is None or (match[1] and match[2]) or not (below := int(match[4] or 1)):
        return None
    return Fraction(match[1] + match[2] + match[3].replace(",", "")) / below


def numbers_in(text: str) -> set[Fraction]:
    """Those of a question, without signs, in digits and in words, `twenty-five`; 50 % may be 0.5 too, `a third` 3 or
    1/3, and `two thirds` 2/3."""
    digits = [*(match[0] for match in _NUMBER.finditer(text)), *re.findall(_AMOUNT, text)]
    found = {abs(value) for one in digits if (value := number(one)) is not None}
    text = text.lower()
    words = [word for word in re.findall("[a-z]+", text) if word in _NAMED]
    named = {_NAMED[word] for word in words}
    for first, second in re.findall(r"([a-z]+)[ -](?=([a-z]+))", text):
        one, other = _NAMED.get(first, Fraction(0)), _NAMED.get(second, Fraction(0))
        if one in range(20, 100, 10) and 0 < other < 10:
            named.add(one + other)
        elif one and other and second.endswith("s"):
            named.add(one / other)
    percent = re.search("%|per ?cent", text)
    shares = {value / 100 for value in found | named if percent} | {1 / value for value in named if value}
    return found | named | shares


def written_numbers(text: str) -> list[str]:
    """The different numbers in digits of a question, as the calculator writes them, in their order."""
    found = (number(amount) for amount in re.findall(_AMOUNT, text))
    return list(dict.fromkeys(written(value) for value in found if value is not None))


def equations(numbers: Sequence[str]) -> list[str]:
    """All chains of one and of two steps over these numbers and, in the second step, the first one's result."""
    chains = []
    for first, result in _steps(numbers):
        chains.append(f" {first} =")
        chains += [f" {first} =, {second} =" for second, _ in _steps([*numbers, result])]
    return list(dict.fromkeys(chains))


def _steps(numbers: Sequence[str]) -> Iterator[tuple[str, str]]:
    for left, operator, right in itertools.product(numbers, "+-*/", numbers):
        try:
            yield (request := f"{left} {operator} {right}"), CALCULATOR(request).strip()
        except ToolError:
            continue


def is_rounded(piece: Piece) -> bool:
    """Whether it has a number of so many decimals that it may stand for another, such as 0.6667 for 2/3."""
    return re.search(rf"\.[0-9]{{{ROUNDED_FROM + 1}}}", piece.expression) is not None


def near(value: Fraction, stated: Fraction | None) -> bool:
    """Equal, but for `TOLERANCE`, or what was stated has three decimals or more and is `value` rounded to them. Numbers
    of as many decimals are equal only if they are the same."""
    if stated is None or value == stated:
        return stated is not None
    _, _, decimals = written(stated).partition(".")
    if (value * 10 ** len(decimals)).denominator == (stated * 10 ** len(decimals)).denominator == 1:
        return False
    last = Fraction(1, 10 ** len(decimals))  # halves are rounded up or to even
    rounded = len(decimals) >= ROUNDED_FROM and abs(value - stated) <= last / 2
    return rounded or abs(value - stated) <= TOLERANCE * abs(stated)


def of_equation(text: str) -> list[Piece]:
    """`x=((7.0*2.0)+3)`, or the expression alone. Raises Unusable."""
    match = _EQUATION.fullmatch(text)
    if match is None:
        raise Unusable("an equation with its unknown not alone on the left")
    return [Piece("", match[1].strip().replace("/", " / "))]


def of_annotated(text: str) -> list[Piece]:
    """`Natalia sold 48/2 = <<48/2=24>>24 clips in May.` and so on, a sentence a line."""
    pieces, position = [], 0
    for match in _ANNOTATION.finditer(text):
        before = text[position : match.start()]
        words = before.rstrip(_FORMULA).removesuffix(" x").rstrip(_FORMULA)
        if last := _LAST_NUMBER.match(before, len(words)):  # `times last year's price by 3: $100 * 3 =`
            words += last[1]
        # A quotient without spaces would be a fraction, one operand: here it is a step.
        expression = match[1].replace("/", " / ").lstrip(" +")
        pieces.append(Piece(_LINE_END.sub(". ", words), expression, match[2]))
        result = RESULT.match(text, match.end())
        position = result.end() if result else match.end()
    return pieces


def of_written(text: str) -> list[Piece]:
    """A rationale as a chain writes it, with or without the results behind each `=`. Raises Unusable."""
    pieces: list[Piece] = []
    first, *parts = text.split("=")
    for part in parts:
        request = CALCULATOR.request(f"{first}=")
        result = RESULT.match(part)
        pieces.append(Piece(first.rstrip().removesuffix(request), request, result[0] if result else ""))
        first = part[result.end() :] if result else part
    if first.strip(" .") or not pieces:
        raise Unusable("it does not end with a result")
    return pieces


def steps_of(text: str) -> list[Step]:
    """The calls of a rationale that `linearise` has made."""
    return [step for piece in of_written(text) for step in work_out(piece.expression)]


def linearise(pieces: Iterable[Piece], answer: Fraction | None, words: bool) -> tuple[str, str]:
    """A rationale without its results, and the value that it arrives at. Raises Unusable.

    Args:
        answer: what that value has to be; None: whatever it is.
        words: whether it has the words of the solution too, each call behind a colon.
    """
    z, value, said = "", None, ""
    for words_before, expression, stated in pieces:
        try:
            steps = work_out(expression)
            requests = [f"{written(step.left)} {step.operator} {written(step.right)}" for step in steps]
            results = list(map(CALCULATOR, requests))
        except ToolError:
            raise Unusable("a step that the calculator refuses") from None
        if not steps:  # `a total of <<55=55>>55 shells`
            said += f"{words_before} {expression}"
            continue
        value = results[-1].strip()
        if stated and not near(Fraction(value), number(stated)):
            raise Unusable("a stated result that the calculator does not give")
        text = " ".join(f"{said}{words_before}".split()).rstrip(" :,") if words else ""
        said = ""
        if "=" in text:
            raise Unusable("a = without a call")
        text = text if z else text.lstrip(" .,;:!?)")
        if text.strip(",.; "):
            z += f"{'' if text[0] in '.,;!?%)' else ' '}{text}:"
        elif z:
            z += ","
        z += ",".join(f" {request} =" for request in requests)
    if value is None:
        raise Unusable("nothing to compute")
    if answer is not None and not near(Fraction(value), answer):
        raise Unusable("its value is not the answer")
    return z, value
