"""Exact arithmetic for a chain of thought: `12 + 7 =` writes ` 19`.

The chain is written by a model and may be anything, so it is never given to `eval` or to sympy's parsers.
A tokenizer and a grammar of this file's own read it, within the limits below, and sympy sees numbers only.

Left out: powers (`9**9**9` is short and has 370 million digits), functions, names, percentages, thousands
separators, and `x` for times (`0x10` and `2x` mean other things).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from operator import add, mul, sub, truediv
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_cot.types import ToolError

if TYPE_CHECKING:
    from sympy import Rational

MAX_REQUEST_CHARACTERS = 64
MAX_OPERAND_DIGITS = 12
"""Digits of one operand, those after its decimal point included."""
MAX_RESULT_CHARACTERS = 32
"""Room for the product of two operands of the most digits, with its sign and point."""

# Where an expression begins in a chain: after a comma, the last result's `=`, a line or a sentence.
# A full stop before a digit is a decimal point. The comma of `1,000` does not cut either: it stays in the
# request, which is then refused; cut there, `1,000 + 2` would be 2. Nor does that of `1,0000`, or the factorial of
# `3! - 2`. [0-9]: \d takes the digits of any script.
_BOUNDARY = re.compile(r"[;:=?\r\n]|(?<![0-9)])!|\.(?![0-9])|(?<![0-9]),|,(?![0-9]{3})")

_TOKEN = re.compile(
    r" *(?:(?P<fraction>(?<![0-9./])[0-9]+/[0-9]+(?![0-9./]))|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<symbol>[-+*/()]))"
)
_LONGEST = 4 * MAX_REQUEST_CHARACTERS
"""So much of a chain is looked at, from its end: a request beyond that is refused in any case. An expression of data
may be so long: each of its steps is a request."""
_COMPUTE: dict[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": truediv}
_TYPOGRAPHIC = str.maketrans({"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"})


class Step(NamedTuple):
    """One operation of two operands."""

    left: Fraction
    operator: str
    right: Fraction
    result: Fraction


class Calculator:
    """Adds, subtracts, multiplies and divides integers and decimals, exactly.

    `max_operands` is the number of operands one call may have: 2, as in the paper, so that the model has to
    break a longer sum into steps. A request with more is refused. The paper's code shortened it instead, and
    dropped its first operand rather than its last ones (`9 - 3 + 8` gave 8); an answer to a question that
    was not asked teaches the model nothing good.

    A lone number is refused too (`5 =`): nothing is computed, and a chain could pass a guess off as a result.

    A quotient without a finite decimal form is written as a fraction (` 1/3`), and so it is read back: a fraction in
    lowest terms without spaces is one operand (`1/3 * 6 =` writes ` 2`), so that a chain can go on from any result. By
    itself it is refused as a lone number is.
    """

    name = "calculator"
    description = "exact + - * / on integers and decimals, two operands a call: ` 12 + 7 =` writes ` 19`"
    trigger = "="

    def __init__(self, max_operands: int = 2) -> None:
        if max_operands < 2:
            raise ValueError(f"max_operands must be at least 2, not {max_operands}")
        self.max_operands = max_operands

    @property
    def portable(self) -> str:
        """See `_portable_calculator.py`."""
        source = Path(__file__).with_name("_portable_calculator.py").read_text(encoding="utf-8")
        return source.replace("most = 2 ", f"most = {self.max_operands} ")

    def request(self, text: str) -> str:
        """The last expression of a chain: `"2 - 8"` of `" 6 - 0 = 6, 6 - 4 = 2, 2 - 8 ="`."""
        *before, last = _BOUNDARY.split(text.removesuffix(self.trigger)[-_LONGEST:])
        return last.strip() if before or len(text) <= _LONGEST else last  # which is too long

    def __call__(self, request: str) -> str:
        """The value of an expression, with a leading space: `" 14"`, `" -6"`, `" 0.5"`, `" 1/3"`.

        Raises ToolError for anything else than an expression within the limits, and nothing but ToolError.
        """
        tokens = _tokenize(request)
        operands = _operands(tokens)
        if operands < 2:
            raise ToolError(f"nothing to compute in {request!r}: a request has an operator and two operands")
        if operands > self.max_operands:
            raise ToolError(f"{operands} operands in {request!r}, at most {self.max_operands} a call")
        result = written(_Parser(tokens).value())
        if result == request.strip():  # else a chain could write `1/3 = 1/3 = 1/3 =` for ever, at ten tokens a call
            raise ToolError(f"nothing to compute in {request!r}: a fraction in lowest terms")
        if len(result) > MAX_RESULT_CHARACTERS:
            raise ToolError(f"the result has {len(result)} characters, at most {MAX_RESULT_CHARACTERS}")
        return f" {result}"


def work_out(expression: str) -> list[Step]:
    """The operations that an expression of any number of operands asks for, in the order of its grammar: each operand
    is a number of the expression or an earlier result. A lone number asks for none. Raises ToolError."""
    parser = _Parser(_tokenize(expression, _LONGEST))
    parser.value()
    return [
        Step(Fraction(left), operator, Fraction(right), Fraction(result))
        for left, operator, right, result in parser.steps
    ]


def _operands(tokens: list[str]) -> int:
    return sum(token[0] in ".0123456789" for token in tokens)


def _tokenize(request: str, longest: int = MAX_REQUEST_CHARACTERS) -> list[str]:
    """Numbers, and the symbols `+ - * / ( )`, as ASCII strings; none is empty."""
    if len(request) > longest:
        raise ToolError(f"the request has {len(request)} characters, at most {longest}")
    request = request.translate(_TYPOGRAPHIC).rstrip(" ")
    tokens: list[str] = []
    position = 0
    while position < len(request):
        match = _TOKEN.match(request, position)
        if match is None:
            rest = request[position:].lstrip(" ")
            raise ToolError(f"not arithmetic: {rest[0]!r} in {request!r}")
        parts = re.split("(/)", match["fraction"]) if match["fraction"] else [match["number"] or match["symbol"]]
        if any(len(part.replace(".", "")) > MAX_OPERAND_DIGITS for part in parts):
            raise ToolError(f"an operand of more than {MAX_OPERAND_DIGITS} digits in {request!r}")
        if len(parts) == 3 and int(parts[2]) > 1 and math.gcd(int(parts[0]), int(parts[2])) == 1:
            parts = ["".join(parts)]
        tokens += parts
        position = match.end()
    # `6/3 =` asks for a division.
    return tokens if _operands(tokens) > 1 else [part for token in tokens for part in re.split("(/)", token) if part]


class _Parser:
    """Recursive descent, evaluating as it reads:

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/") factor }
    factor  = [ "-" ] ( number | "(" sum ")" )

    The length of a request bounds its depth.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.steps: list[tuple[Rational, str, Rational, Rational]] = []

    def value(self) -> Rational:
        """The value of all the tokens."""
        value = self._sum()
        if self.position < len(self.tokens):
            raise ToolError(f"expected an operator, found {self.tokens[self.position]!r}")
        return value

    def _next_if(self, symbols: str) -> str | None:
        """The next token if it is one of the symbols, and step over it."""
        if self.position < len(self.tokens) and self.tokens[self.position] in symbols:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def _sum(self) -> Rational:
        value = self._product()
        while operator := self._next_if("+-"):
            value = self._apply(value, operator, self._product())
        return value

    def _product(self) -> Rational:
        value = self._factor()
        while operator := self._next_if("*/"):
            value = self._apply(value, operator, self._factor())
        return value

    def _apply(self, left: Rational, operator: str, right: Rational) -> Rational:
        if operator == "/" and right == 0:
            raise ToolError("division by zero")  # sympy would give zoo, its complex infinity
        result = _COMPUTE[operator](left, right)
        self.steps.append((left, operator, right, result))
        return result

    def _factor(self) -> Rational:
        from sympy import Rational  # here, because the import takes most of a second

        sign = -1 if self._next_if("-") else 1
        if self._next_if("("):
            value = self._sum()
            if not self._next_if(")"):
                raise ToolError("a parenthesis is not closed")
            return self._apply(Rational(0), "-", value) if sign < 0 else value
        if self.position == len(self.tokens) or self.tokens[self.position] in "+-*/)":
            raise ToolError(f"expected a number, found {' '.join(self.tokens[self.position :]) or 'the end'}")
        number, _, below = self.tokens[self.position].partition("/")
        whole, _, decimals = number.partition(".")
        self.position += 1
        return Rational(sign * int(whole + decimals), int(below or 1) * 10 ** len(decimals))


def written(value: Rational | Fraction) -> str:
    """A number as the calculator writes it: `"14"`; `"0.5"` if the decimal form is finite; else `"1/3"`."""
    numerator, denominator = int(value.numerator), int(value.denominator)
    # Finite in decimals: the denominator, in lowest terms, divides a power of ten.
    places = next((n for n in range(denominator.bit_length()) if 10**n % denominator == 0), 0)
    if not places:
        return f"{numerator}/{denominator}" if denominator > 1 else str(numerator)
    whole, decimals = divmod(abs(numerator) * 10**places // denominator, 10**places)
    return f"{'-' if numerator < 0 else ''}{whole}.{decimals:0{places}d}"
