"""Sums and products of integers: parse, evaluate, and work out step by step. Pure integers, bounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import add, mul, sub

OPERATORS = "+-*"
MAX_OPERANDS = 64
MAX_DIGITS = 12
"""Of one operand of a question or of a step: the calculator takes no more."""
MAX_RESULT_DIGITS = 2 * MAX_DIGITS
"""Of a result: a product of two such operands has no more."""
MAX_CHARACTERS = MAX_OPERANDS * (MAX_DIGITS + 5)
"""Of an expression: room for signs and a few more spaces than are needed."""

_COMPUTE: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul}
_TYPED = str.maketrans({"\N{MULTIPLICATION SIGN}": "*", "\N{MINUS SIGN}": "-"})
_OPERAND = re.compile(r" *(-?[0-9]+)")
_OPERATOR = re.compile(r" *([-+*])")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the calculator."""

    left: int
    operator: str
    right: int

    @property
    def result(self) -> int:
        return _COMPUTE[self.operator](self.left, self.right)

    @property
    def text(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


@dataclass(frozen=True, slots=True)
class Expression:
    """n operands with n - 1 operators between them."""

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def text(self) -> str:
        """The canonical text: single spaces, no leading zeros. Identifies the expression."""
        rest = (f" {op} {number}" for op, number in zip(self.operators, self.operands[1:], strict=True))
        return str(self.operands[0]) + "".join(rest)

    def steps(self) -> list[Step]:
        """The n - 1 steps to the value: products first, then sums, each from the left."""
        numbers = list(self.operands)
        operators = list(self.operators)
        steps = []
        while operators:
            i = operators.index("*") if "*" in operators else 0
            step = Step(numbers[i], operators.pop(i), numbers[i + 1])
            numbers[i : i + 2] = [step.result]
            steps.append(step)
        return steps

    @property
    def value(self) -> int:
        return self.steps()[-1].result if self.operators else self.operands[0]


def parse(text: str) -> Expression:
    """The expression that `text` writes: integers, `+`, `-`, `*` (or the signs × and −), spaces.

    An operand may carry a minus sign that touches it (`-3 + 5`, `3 - -5`).
    Raises ValueError, with a message for the user, for anything else and beyond the bounds.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"too long ({len(text):,} characters)")
    text = text.translate(_TYPED).strip()
    if not text:
        raise ValueError("there is no expression")
    parts: list[str] = []
    position = 0
    for what, pattern in cycle((("an integer", _OPERAND), ("+, - or *", _OPERATOR))):
        part = pattern.match(text, position)
        if part is None:
            raise ValueError(f"expected {what} at {_at(text, position)}")
        parts.append(part[1])
        position = part.end()
        if pattern is _OPERAND and position == len(text):
            break
    operands, operators = parts[::2], parts[1::2]
    longest = max(len(operand.removeprefix("-")) for operand in operands)
    if longest > MAX_DIGITS:
        raise ValueError(f"an integer of {longest} digits; at most {MAX_DIGITS} are allowed")
    if len(operands) > MAX_OPERANDS:
        raise ValueError(f"{len(operands)} operands; at most {MAX_OPERANDS} are allowed")
    return Expression(tuple(map(int, operands)), tuple(operators))


def rationale(steps: Sequence[Step]) -> str:
    """The steps as the model writes them, up to each `=`: `" 6 - 0 =, 6 - 4 ="`. No results."""
    return ",".join(f" {step.text} =" for step in steps)


def replay(text: str, question: Expression) -> list[Step]:
    """The steps of a written rationale, with or without its results, checked against the question.

    Valid is a chain of two-operand steps that uses every operand of the question and every earlier
    result exactly once, in any order, and ends at the question's value; a written result must be right.
    Raises ValueError, with a message for the user, at the first fault.
    """
    if len(text) > 4 * MAX_CHARACTERS:
        raise ValueError(f"too long ({len(text):,} characters)")
    available = list(question.operands)
    steps: list[Step] = []
    for number, part in enumerate(text.strip().removesuffix(".").split(","), start=1):
        written, equals, result = part.partition("=")
        if not equals:
            raise ValueError(f"step {number} has no '='; write it like '6 - 0 ='")
        try:
            expression = parse(written)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
        if len(expression.operands) != 2:
            raise ValueError(f"step {number} has {len(expression.operands)} operands; the calculator takes 2")
        step = Step(expression.operands[0], expression.operators[0], expression.operands[1])
        if result.strip() and integer(result) != step.result:
            raise ValueError(f"step {number}: {step.text} = {step.result}, not {result.strip()[:40]}")
        for operand in (step.left, step.right):
            if operand not in available:
                raise ValueError(
                    f"step {number} uses {operand}, which is not an unused operand of the question or an "
                    "unused earlier result"
                )
            available.remove(operand)
        available.append(step.result)
        steps.append(step)
    if len(available) > 1:
        raise ValueError(f"it stops early: {', '.join(map(str, available))} are left")
    if available[0] != question.value:
        raise ValueError(f"it reaches {available[0]}, not the answer {question.value}")
    return steps


def integer(text: str) -> int | None:
    """The integer that a text writes (`"14"`, `" +3"`, `"-0"`); None if it writes none."""
    match = re.fullmatch(r"[+-]?[0-9]+", text.strip())
    return int(match.group()) if match and len(match.group()) <= MAX_RESULT_DIGITS + 1 else None


def _at(text: str, position: int) -> str:
    rest = text[position:].strip()
    return f"{rest[:20]!r}" if rest else "the end"
