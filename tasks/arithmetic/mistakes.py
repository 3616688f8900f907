"""What a wrong chain did wrong first: its calls are compared with the steps that the question asks for.

The calls were written by a model. They are parsed with the bounds of `expression.parse`, never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latent_cot.tasks.arithmetic.expression import Expression, Step, integer, parse
from latent_cot.types import Rationale, ToolCall

MISTAKES: Mapping[str, str] = {
    "dropped operand": "the step takes a later operand of the question and skips one",
    "operand taken twice": "the step takes an operand that an earlier step has taken",
    "wrong sign": "the right numbers with a wrong operator, a wrong sign or in the wrong order",
    "wrong copy": "the running value, or the operand, is not the question's",
    "stopped early": "every step is right, and some are missing",
    "went on too long": "every step is right, and something follows the last one",
    "failed call": "the calculator refused the step",
    "token limit": "every step is right, and the chain was cut within the next one",
    "no answer": "every step is right, and the chain stopped within the next one",
    "other": "none of these",
}
"""Category -> what it means."""


def classify(question: Expression, rationale: Rationale) -> str:
    """The category of a chain that does not arrive at the question's value.

    The right chain multiplies first, then adds and subtracts, from the left (`Expression.steps`). The chain's
    calls are walked along with it, and the first that deviates decides, by the first rule that applies:

    1. the right chain is complete: *went on too long*;
    2. it has no result: *failed call*;
    3. it is not of two integers, or its result is wrong: *other*;
    4. its numbers are the right ones but for their signs and order: *wrong sign*;
    5. its left number is right, or it is the first call and begins with a later operand, and the rest is that of a
       later operand: *dropped operand*;
    6. its left number is right, the rest is that of one that has been taken: *operand taken twice*;
    7. operator and one number are right: *wrong copy*;
    8. else *other*.

    A step may be written in another way that means the same (`7 + 12` for `12 + 7`). If no call deviates, what
    follows the last one decides: *went on too long* if the right chain is complete; *token limit* or *no answer*
    if a further step has begun; else *stopped early*.
    """
    numbers, operators = list(question.operands), list(question.operators)
    taken = [("+", question.operands[0])]
    steps = question.steps()
    for number, call in enumerate(rationale.calls):
        if number == len(steps):
            return "went on too long"
        place = operators.index("*") if "*" in operators else 0
        later = [_addend(*pair) for pair in zip(operators[place + 1 :], numbers[place + 2 :], strict=True)]
        first = question.operands[1:] if number == 0 else ()
        fault = _fault(call, steps[number], later=later, taken=taken, first=first)
        if fault is not None:
            return fault
        step = steps[number]
        numbers[place : place + 2] = [step.result]
        operators.pop(place)
        taken.append(_addend(step.operator, step.right))
    end = rationale.calls[-1].position + rationale.calls[-1].n_tokens if rationale.calls else 0
    goes_on = len(rationale.tokens) > end
    if len(rationale.calls) == len(steps):
        return "went on too long" if goes_on else "other"
    if rationale.truncated:  # be it right behind a step
        return "token limit"
    return "no answer" if goes_on else "stopped early"


def _fault(
    call: ToolCall,
    right: Step,
    *,
    later: Sequence[tuple[str, int]],
    taken: Sequence[tuple[str, int]],
    first: Sequence[int],
) -> str | None:
    """How a call deviates from the right step; None if it does not.

    Args:
        later: operator and number of the operands that come after the right one.
        taken: likewise of those that have been taken.
        first: what a first call wrongly begins with if it drops the question's first operand.
    """
    if call.result is None:
        return "failed call"
    try:
        expression = parse(call.request)
    except ValueError:
        return "other"
    if len(expression.operands) != 2:
        return "other"
    left, number = expression.operands
    step = Step(left, expression.operators[0], number)
    if step.operator in "+*" and left != right.left and number == right.left:
        step = Step(number, step.operator, left)  # `7 + 12` as `12 + 7`, if the 12 is what the right step begins with
    if integer(call.result) != step.result:
        return "other"
    addend = _addend(step.operator, step.right)
    if step.left == right.left and addend == _addend(right.operator, right.right):
        return None
    if sorted((abs(step.left), abs(step.right))) == sorted((abs(right.left), abs(right.right))):
        return "wrong sign"
    if step.left in (right.left, *first) and addend in later:
        return "dropped operand"
    if step.left == right.left and addend in taken:
        return "operand taken twice"
    if step.operator == right.operator and (step.left == right.left) != (step.right == right.right):
        return "wrong copy"
    return "other"


def _addend(operator: str, number: int) -> tuple[str, int]:
    """What a step adds to its left number: `- 5` and `+ -5` are the same."""
    return ("+", -number) if operator == "-" else (operator, number)
