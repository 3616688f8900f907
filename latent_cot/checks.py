"""What is looked at before a run begins: a tool that nothing calls, demonstrations that arrive nowhere."""

from __future__ import annotations

from collections.abc import Sequence

from latent_cot.chain import ChainRules, encode_rationale
from latent_cot.errors import UsageError
from latent_cot.types import Example, MeasuredTask, Rationale, RewardingTask, Task, Tool


def check_tools(task: Task, names: Sequence[str], chain_tools: Sequence[Tool]) -> None:
    """Raises UsageError for a tool that no chain of the task could call."""
    triggers: dict[str, str] = {}
    for name, tool in zip(names, chain_tools, strict=True):
        if other := triggers.get(tool.trigger):
            raise UsageError(
                f"--rollout.tools {name}: its trigger {tool.trigger!r} is that of {other} too; leave one out"
            )
        triggers[tool.trigger] = name
        strange = [c for c in tool.trigger if task.allowed_characters is not None and c not in task.allowed_characters]
        if strange:
            raise UsageError(
                f"--rollout.tools {name}: its trigger {tool.trigger!r} has {strange[0]!r}, which is not among the "
                f"characters of a rationale of {task.name}; give the tool another trigger, or leave it out"
            )


def check_demonstrations(task: Task, examples: Sequence[Example], rules: ChainRules) -> list[str]:
    """A sentence on those that do not arrive at their own answer; none, if all do.

    Raises UsageError for one that q could not write, and if none arrives.
    """
    rationales = [_encoded(example, rules) for example in examples]
    if isinstance(task, MeasuredTask | RewardingTask) or any(map(task.candidates, examples)):
        return []  # there is no answer to be read off a rationale
    answers = [task.answer(rationale) for rationale in rationales]
    wrong = [k for k, example in enumerate(examples) if not task.grade(example, answers[k])]
    if not wrong:
        return []
    example, answer = examples[wrong[0]], answers[wrong[0]]
    first = f"{example.question or example.x!r} at {answer!r}, not at {example.answer!r}"
    if len(wrong) == len(examples):
        raise UsageError(
            f"no demonstration of {task.name} arrives at its own answer: {first}; look at the task's `answer` and "
            "`grade`, and at the examples' `z` and `answer`"
        )
    return [f"{len(wrong)} of {len(examples)} demonstrations do not arrive at their own answer: {first}."]


def _encoded(example: Example, rules: ChainRules) -> Rationale:
    """Raises UsageError, naming where it comes from, if q could not write this rationale."""
    try:
        return encode_rationale(example.z or "", rules)
    except UsageError as error:
        source = example.meta.get("source")
        raise UsageError(f"{source}: {error}" if source else str(error)) from error
