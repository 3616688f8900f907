"""Exact arithmetic for a chain of thought: `12 + 7 =` writes ` 19`.

The chain is written by a model and may be anything, so it is never evaluated. It is taken apart into numbers and
symbols, within the limits below. Python's parser sees the symbols, with a name for each number, and gives a tree, of
which only sums, differences, products and quotients are computed here.

Left out: powers (`9**9**9` is short and has 370 million digits), functions, names, percentages, thousands
separators, and `x` for times (`0x10` and `2x` mean other things).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from operator import add, mul, sub, truediv
from pathlib import Path
from string import digits

from latent_cot.types import ToolError

MAX_REQUEST_CHARACTERS = 64
MAX_OPERAND_DIGITS = 12
"""Digits of one operand, those after its decimal point included."""
MAX_RESULT_CHARACTERS = 32
"""Room for the product of two operands of the most digits, with its sign and point."""

# Where an expression begins in a chain: after a comma, the last result's `=`, a line or a sentence.
# A full stop before a digit is a decimal point. The comma of `1,000` does not cut either: it stays in the
# request, which is then refused; cut there, `1,000 + 2` would be 2. [0-9]: \d takes the digits of any script.
_BOUNDARY = re.compile(r"[;:=?!\r\n]|\.(?![0-9])|(?<![0-9]),|,(?![0-9]{3}(?![0-9]))")

# The last is what has no place in arithmetic, but for spaces.
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[^ ]")
_TYPOGRAPHIC = str.maketrans({"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"})
# A minus sign of a number that has one already. In `5 - -3` only the second is a number's.
_SIGNED_TWICE = re.compile(r"(^|[-+*/(] )- -")
_COMPUTE: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
}


class Calculator:
    """Adds, subtracts, multiplies and divides integers and decimals, exactly.

    `max_operands` is the number of operands one call may have: 2, as in the paper, so that the model has to
    break a longer sum into steps. A request with more is refused. The paper's code shortened it instead, and
    dropped its first operand rather than its last ones (`9 - 3 + 8` gave 8); an answer to a question that
    was not asked teaches the model nothing good.

    A lone number is refused too (`5 =`): nothing is computed, and a chain could pass a guess off as a result.

    A quotient without a finite decimal form is written as a fraction (` 1/3`). Read back, it is two operands.
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
        """See `_portable_calculator.py`; of the default two operands a call, and without parentheses."""
        return Path(__file__).with_name("_portable_calculator.py").read_text(encoding="utf-8")

    def request(self, text: str) -> str:
        """The last expression of a chain: `"2 - 8"` of `" 6 - 0 = 6, 6 - 4 = 2, 2 - 8 ="`."""
        return _BOUNDARY.split(text.removesuffix(self.trigger))[-1].strip()

    def __call__(self, request: str) -> str:
        """The value of an expression, with a leading space: `" 14"`, `" -6"`, `" 0.5"`, `" 1/3"`.

        Raises ToolError for anything else than an expression within the limits, and nothing but ToolError.
        """
        if len(request) > MAX_REQUEST_CHARACTERS:
            raise ToolError(f"the request has {len(request)} characters, at most {MAX_REQUEST_CHARACTERS}")
        tokens = _TOKEN.findall(request.translate(_TYPOGRAPHIC))
        numbers = [token for token in tokens if token[-1] in digits]
        if strange := [token for token in tokens if token[-1] not in f"{digits}+-*/()"]:
            raise ToolError(f"not arithmetic: {strange[0]!r} in {request!r}")
        if any(len(number.replace(".", "")) > MAX_OPERAND_DIGITS for number in numbers):
            raise ToolError(f"an operand of more than {MAX_OPERAND_DIGITS} digits in {request!r}")
        if len(numbers) < 2:
            raise ToolError(f"nothing to compute in {request!r}: a request has an operator and two operands")
        if len(numbers) > self.max_operands:
            raise ToolError(f"{len(numbers)} operands in {request!r}, at most {self.max_operands} a call")
        # With spaces, so that `*` `*` is no power.
        named = " ".join("n" if token in numbers else token for token in tokens)
        if _SIGNED_TWICE.search(named):
            raise ToolError(f"a number with two minus signs in {request!r}")
        try:
            result = _format(_value(ast.parse(named, mode="eval").body, map(Fraction, numbers)))
        except SyntaxError:
            raise ToolError(f"not arithmetic: {request!r}") from None
        except ZeroDivisionError:
            raise ToolError("division by zero") from None
        if len(result) > MAX_RESULT_CHARACTERS:
            raise ToolError(f"the result has {len(result)} characters, at most {MAX_RESULT_CHARACTERS}")
        return f" {result}"


def _value(tree: ast.expr, numbers: Iterator[Fraction]) -> Fraction:
    """The value of a tree, whose names stand for the numbers from the left."""
    match tree:
        case ast.Name():
            return next(numbers)
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand, numbers)
        case ast.BinOp(left, operator, right) if type(operator) in _COMPUTE:
            return _COMPUTE[type(operator)](_value(left, numbers), _value(right, numbers))
    raise ToolError("not arithmetic")  # `+5`, `2 (3)`


def _format(value: Fraction) -> str:
    """`"14"`; `"0.5"` if the decimal form is finite; else `"1/3"`."""
    # Finite in decimals: the denominator, in lowest terms, divides a power of ten.
    places = next((n for n in range(value.denominator.bit_length()) if 10**n % value.denominator == 0), 0)
    if not places:
        return str(value)
    whole, decimals = divmod(abs(value.numerator) * 10**places // value.denominator, 10**places)
    return f"{'-' * (value < 0)}{whole}.{decimals:0{places}d}"
