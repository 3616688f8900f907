"""Questions as examples: from an expression, from what a user types, from a row of a file."""

from __future__ import annotations

import difflib

from latent_cot.tasks.arithmetic.expression import MAX_DIGITS, OPERATORS, Expression, parse, rationale, replay
from latent_cot.tasks.files import BadValue, Row, field, shorten
from latent_cot.types import Example, UsageError

_OURS = ("question", "answer", "rationale")
_PUBLISHED = ("str_query", "num_sol", "str_rationale", "str_sol")


def build(question: Expression, z: str | None = None) -> Example:
    """The example of a question; its answer is computed."""
    answer = str(question.value)
    operators = "".join(operator for operator in OPERATORS if operator in question.operators)
    return Example(
        x=f"Question: {question.text} = ? Answer:",
        y=f". The answer is {answer}.",
        z=z,
        answer=answer,
        question=question.text,
        meta={
            "operands": len(question.operands),
            "digits": max(len(str(abs(operand))) for operand in question.operands),
            "operators": operators,
            **products_in(operators),
        },
    )


def products_in(operators: str) -> dict[str, int]:
    """What questions with these operators have beside their operands and digits, to tell them from sums."""
    return {"products": 1} if "*" in operators else {}


def demonstrate(question: Expression) -> Example:
    """The example with its rationale: products first, each step from the left."""
    return build(question, rationale(question.steps()))


def parse_question(text: str, name: str = "question") -> Expression:
    """From `"6 - 0 - 4"`, `"6 - 0 - 4 = ?"` or `"Question: 6 - 0 - 4 = ? Answer:"`.

    Raises UsageError, which calls the text by its `name`.
    """
    bare = text.strip().removeprefix("Question:").removesuffix("Answer:")
    bare = bare.rstrip().removesuffix("?").rstrip().removesuffix("=")
    try:
        expression = parse(bare)
        if len(expression.operands) < 2:
            raise ValueError("a question has at least two operands")
        if any(max(abs(step.left), abs(step.right)) >= 10**MAX_DIGITS for step in expression.steps()):
            raise ValueError(f"a step has a number of more than {MAX_DIGITS} digits, too many for the calculator")
    except ValueError as error:
        message = f"{name} {shorten(text)}: {error}; write it like '6 - 0 - 4'"
        raise BadValue(message, "no sum", "; they are read as arithmetic: is another --task meant?") from None
    return expression


def from_row(row: Row) -> Example:
    """The example of a row of the published form (`str_query`, `num_sol`, ...) or of our own (`question`, `answer`, and
    `rationale` if known). Raises UsageError."""
    fields = row[1]
    known = _PUBLISHED if "str_query" in fields else _OURS
    for name in fields:
        meant = difflib.get_close_matches(name, [k for k in known if k not in fields], n=1, cutoff=0.8)
        if name not in known and meant:
            raise UsageError(f"unknown field {shorten(name)}; did you mean {meant[0]!r}?")
    question = parse_question(field(row, known[0], str), known[0])
    answer = field(row, known[1], int)
    if answer != question.value:
        raise UsageError(f"{known[1]} is {answer}, but {question.text} = {question.value}; correct one")
    written = field(row, known[2], str, required=False)
    try:
        z = None if written is None else rationale(replay(written, question))
    except ValueError as error:
        raise UsageError(
            f"{known[2]} {shorten(written)}: {error}; correct it, e.g. {rationale(question.steps()).strip()!r}, "
            "or leave it out"
        ) from None
    return build(question, z)
