"""What a wrong chain did wrong first: its calls are compared with the numbers of the question, and with the steps of
its solution where one is known."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from latent_cot.tasks.common import last_result
from latent_cot.tasks.word_problems.working import numbers_in, steps_of
from latent_cot.tools.calculator import Step, work_out
from latent_cot.types import Example, Rationale, ToolError

MISTAKES: Mapping[str, str] = {
    "wrong operation": "the two numbers of a step of the solution, with another operator or in the wrong order",
    "wrong operand": "a step that the solution does not have, of numbers that there are",
    "missing step": "every step is one of the solution, and some are missing",
    "misread number": "a number that is neither in the question, nor a result, nor a common constant",
}
"""Category -> what it means. Other wrong chains are in the categories of all tasks: token limit, failed call, no
answer, wrong answer."""
CONSTANTS = frozenset(
    Fraction(n, 100) for n in (1, 10, 25, 50, *(100 * n for n in (1, 2, 4, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)))
)
"""What a question need not say: the days of a week, the cents of a dollar."""


def classify(example: Example, rationale: Rationale) -> str | None:
    """The category of a chain that does not arrive at the right answer; None: the rule for all tasks decides.

    The solution's steps may be taken in any order. Where no solution is known only *misread number* can be told.
    """
    solution = steps_of(example.z) if example.z else []
    known = {abs(value) for step in solution for value in (step.left, step.right)}
    known |= numbers_in(example.question) | CONSTANTS
    steps = set(map(_canonical, solution))
    left = set(steps)
    for call in rationale.calls:
        try:
            (step,) = work_out(call.request if call.result else "")
        except (ToolError, ValueError):
            return None  # it failed, or is one of another tool
        if not {abs(step.left), abs(step.right)} <= known:
            return "misread number"
        known.add(abs(step.result))
        if _canonical(step) in steps:
            left.discard(_canonical(step))
        elif solution:
            alike = any({step.left, step.right} == {one, other} for _, one, other in left)
            return "wrong operation" if alike else "wrong operand"
    ended = not rationale.truncated and last_result(rationale) is not None
    return "missing step" if left and ended else None


def _canonical(step: Step) -> tuple[str, Fraction, Fraction]:
    """The same for `7 + 12` and `12 + 7`."""
    swapped = step.operator in "+*" and step.right < step.left
    return (step.operator, step.right, step.left) if swapped else (step.operator, step.left, step.right)
