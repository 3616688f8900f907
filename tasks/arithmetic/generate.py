"""Settings of the generator, and the stream of questions that they stand for."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from latent_cot.tasks.arithmetic.expression import MAX_DIGITS, MAX_OPERANDS, OPERATORS, Expression
from latent_cot.tasks.common import Share, check_options, share_of, shuffled
from latent_cot.types import UsageError

MAX_QUESTIONS = 1_000_000
"""Of one draw: a bound on time and memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Which questions are drawn. Every pair of an operand count and a digit count is drawn equally often."""

    operands: tuple[int, ...] = (3, 4)
    """Numbers of operands of a question."""
    digits: tuple[int, ...] = (1,)
    """Numbers of digits; all operands of a question have the same: 1 means 0 to 9, 2 means 10 to 99."""
    operators: str = "+-"
    """Drawn from uniformly, out of `+-*`."""

    @classmethod
    def parse(cls, options: Mapping[str, str], defaults: Settings | None = None) -> Settings:
        """From `{"operands": "3..6,8", "digits": "1", "operators": "+-*"}`; what is not named is as in
        `defaults`. Raises UsageError for an unknown name or a value that cannot be, and where a chain can need a
        number that is too long for the calculator.
        """
        check_options("arithmetic", options, cls.__dataclass_fields__)
        limits = {"operands": (2, MAX_OPERANDS), "digits": (1, MAX_DIGITS)}
        parsed: dict[str, Any] = {n: _counts(n, options[n], *limits[n]) for n in limits if n in options}
        if "operators" in options:
            parsed["operators"] = _operators(options["operators"])
        made = replace(defaults or cls(), **parsed)
        n, largest = made.operands[-1], 10 ** made.digits[-1] - 1
        # The longest number that goes into a step comes of all the operands but one.
        bound = largest ** (n - 1) if "*" in made.operators else largest * (n - 1)
        if bound >= 10**MAX_DIGITS:
            raise UsageError(
                f"{made}: a step could take a number of {len(str(bound))} digits, and the calculator takes "
                f"{MAX_DIGITS}; use fewer operands or digits{', or no *' if '*' in made.operators else ''}"
            )
        return made

    def __str__(self) -> str:
        counts = (",".join(map(str, values)) for values in (self.operands, self.digits))
        return "operands={} digits={} operators={}".format(*counts, self.operators)


def questions(settings: Settings, share: Share, seed: int | str, exclude: Collection[str] = ()) -> Iterator[Expression]:
    """Distinct questions of one share in random order, by turns from each pair of counts.

    Ends when one pair has no more, so that what has been drawn is even over the pairs.
    A longer draw of the same seed begins with the shorter one.
    """
    streams = [
        _stream(n, digits, settings.operators, share, seed, exclude)
        for n, digits in itertools.product(settings.operands, settings.digits)
    ]
    for stream in itertools.cycle(streams):
        question = next(stream, None)
        if question is None:
            return
        yield question


def take(stream: Iterator[Expression], count: int, what: str) -> list[Expression]:
    """The next `count` questions. Raises UsageError, naming `what` they are for, if there are not so many."""
    if not 0 <= count <= MAX_QUESTIONS:
        raise UsageError(f"{count} questions asked for ({what}); between 0 and {MAX_QUESTIONS:,} can be drawn")
    taken = list(itertools.islice(stream, count))
    if len(taken) < count:
        raise UsageError(
            f"{count} questions asked for ({what}), but only {len(taken)} exist; ask for fewer, "
            "or allow more operands or digits"
        )
    return taken


def _stream(
    n: int, digits: int, operators: str, share: Share, seed: int | str, exclude: Collection[str]
) -> Iterator[Expression]:
    low = 0 if digits == 1 else 10 ** (digits - 1)
    width = 10**digits - low  # number of values of one operand
    rng = random.Random(f"{seed}/{share}/{n}/{digits}/{operators}")
    for index in shuffled(width**n * len(operators) ** (n - 1), rng):
        numbers, signs = [], []
        for _ in range(n):
            index, number = divmod(index, width)
            numbers.append(low + number)
        for _ in range(n - 1):
            index, sign = divmod(index, len(operators))
            signs.append(operators[sign])
        question = Expression(tuple(numbers), tuple(signs))
        if share_of(question.text) == share and question.text not in exclude:
            yield question


def _counts(name: str, text: str, low: int, high: int) -> tuple[int, ...]:
    """`"3,4"` or `"3..6,8"` as a sorted tuple without repetition."""
    values: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not low <= first <= last <= high:
            raise UsageError(
                f"{name}={text}: {part.strip()!r} is no number from {low} to {high} and no range, the lower one first; "
                f"write e.g. {name}={low + 1} or {name}={low}..{low + 2} or {name}={low},{low + 2}"
            )
        values.update(range(first, last + 1))
    return tuple(sorted(values))


def _operators(text: str) -> str:
    wanted = set(text.replace("\N{MULTIPLICATION SIGN}", "*").replace(",", "").replace(" ", ""))
    if not wanted or not wanted <= set(OPERATORS):
        raise UsageError(f"option operators={text}: choose some of {OPERATORS}, e.g. operators=+-*")
    return "".join(operator for operator in OPERATORS if operator in wanted)
