"""One q, and one p, for several tasks: `--task arithmetic,random_numbers`.

Tasks differ in their tools, in what ends a rationale, in its alphabet, in their reward. So each keeps a loop of its
own, with its own rules and settings, and the loops take turns with the same adapters: a unit of work of one, a unit of
work of another. A phase begins when all are done with the one before, and a task with more units than another has more
turns. Each loop has an optimiser of its own; its averages of the gradients and of their squares are those of its task.

A task's part is a run folder of its own, as that of a single-task run, so that whatever reads one reads it too. What is
left out: resuming. The parts would have to be saved at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from latent_cot.errors import UsageError
from latent_cot.loop import Loop
from latent_cot.session import Running, Stopped


def run_in_turns(parts: Sequence[Running], *, should_stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    """Go through the loops of all parts, which have the same adapters, and write the results of each.

    Args:
        should_stop: asked after each unit; if True, everything is saved and `Stopped` is raised.

    Returns the content of each part's `results.json`. Raises UsageError if their phases differ.
    """
    if len({tuple(part.loop.phases) for part in parts}) > 1:
        raise UsageError(
            "--task: these tasks have not the same phases with their own settings; give --rounds, and --condition or "
            "--evaluation.every-round, for all of them"
        )
    going = list(parts)
    while going:
        part = min(going, key=lambda one: place(one.loop))
        if not part.advance():
            going.remove(part)
        elif should_stop():
            for one in parts:
                one.stop()
            raise Stopped
    return [part.finish() for part in parts]


def place(loop: Loop) -> tuple[int, float]:
    """How far a loop has come: the phase that its next unit of work belongs to, and the share of it that is done."""
    phase, unit = loop.state.phase, loop.state.unit
    while phase < len(loop.phases) and unit >= (units := loop.units(loop.phases[phase])):
        phase, unit = phase + 1, 0
    return (phase, unit / units) if phase < len(loop.phases) else (phase, 0.0)
