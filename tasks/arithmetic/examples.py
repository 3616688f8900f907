"""Questions as examples: from an expression, from what a user types, from a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from latent_cot.tasks.arithmetic.expression import (
    MAX_DIGITS,
    OPERATORS,
    Expression,
    integer,
    parse,
    rationale,
    replay,
)
from latent_cot.tasks.files import Row, field, read_rows, shorten
from latent_cot.types import Example, UsageError

_OURS = ("question", "answer", "rationale")
_PUBLISHED = ("str_query", "num_sol", "str_rationale", "str_sol")


def build(question: Expression, z: str | None = None, meta: Mapping[str, Any] | None = None) -> Example:
    """The example of a question; its answer is computed."""
    answer = str(question.value)
    return Example(
        x=f"Question: {question.text} = ? Answer:",
        y=f". The answer is {answer}.",
        z=z,
        answer=answer,
        question=question.text,
        meta={
            "operands": len(question.operands),
            "digits": max(len(str(abs(operand))) for operand in question.operands),
            "operators": "".join(operator for operator in OPERATORS if operator in question.operators),
            **(meta or {}),
        },
    )


def demonstrate(question: Expression) -> Example:
    """The example with its rationale: products first, each step from the left."""
    return build(question, rationale(question.steps()))


def parse_question(text: str) -> Expression:
    """From `"6 - 0 - 4"`, `"6 - 0 - 4 = ?"` or `"Question: 6 - 0 - 4 = ? Answer:"`.

    Raises ValueError, with a message for the user.
    """
    bare = text.strip().removeprefix("Question:").removesuffix("Answer:")
    bare = bare.rstrip().removesuffix("?").rstrip().removesuffix("=")
    expression = parse(bare)
    if len(expression.operands) < 2:
        raise ValueError("a question has at least two operands")
    if any(max(abs(step.left), abs(step.right)) >= 10**MAX_DIGITS for step in expression.steps()):
        raise ValueError(f"it takes a step with a number of more than {MAX_DIGITS} digits, too many for the calculator")
    return expression


def typed(question: str, answer: str | None) -> Example:
    """What a user types, with the answer they expect if they give one. Raises UsageError."""
    try:
        expression = parse_question(question)
    except ValueError as error:
        raise UsageError(f"question {shorten(question)}: {error}; write it like '6 - 0 - 4'") from None
    if answer is not None and integer(answer) != expression.value:
        raise UsageError(f"question '{expression.text}': the answer is {expression.value}, not {shorten(answer)}")
    return build(expression)


def read(path: str) -> list[Example]:
    """Examples of a file: the published form (`str_query`, `num_sol`, ...) or our own
    (`question`, `answer`, and `rationale` if known). Raises UsageError naming file and line.
    """
    return [_from_row(row) for row in read_rows(path)]


def _from_row(row: Row) -> Example:
    where, fields = row
    published = "str_query" in fields
    known = _PUBLISHED if published else _OURS
    question_name, answer_name, rationale_name = known[:3]
    for name in fields:
        meant = difflib.get_close_matches(name, [k for k in known if k not in fields], n=1)
        if name not in known and meant:
            raise UsageError(f"{where}: unknown field {shorten(name)}; did you mean {meant[0]!r}?")

    text = field(row, question_name, str)
    try:
        question = parse_question(text)
    except ValueError as error:
        raise UsageError(f"{where}: {question_name} {shorten(text)}: {error}; write it like '6 - 0 - 4'") from None
    answer = field(row, answer_name, int)
    if answer != question.value:
        raise UsageError(f"{where}: {answer_name} is {answer}, but {question.text} = {question.value}; correct one")
    written = field(row, rationale_name, str, required=False)
    z = None
    if written is not None:
        try:
            z = rationale(replay(written, question))
        except ValueError as error:
            raise UsageError(
                f"{where}: {rationale_name} {shorten(written)}: {error}; correct it, e.g. "
                f"{rationale(question.steps()).strip()!r}, or leave it out"
            ) from None
    example = build(question, z, {"source": where})
    solution = field(row, "str_sol", str, required=False) if published else None
    if solution is not None and solution != example.y:
        raise UsageError(f"{where}: str_sol is {shorten(solution)}, expected {example.y!r}; correct it or leave it out")
    return example
