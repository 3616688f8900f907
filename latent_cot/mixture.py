"""One q, and one p, for several tasks: `--task arithmetic,random_numbers`.

Tasks differ in their tools, in what ends a rationale, in its alphabet, in their reward. So each keeps a loop of its
own, with its own rules and settings, and the loops take turns with the same adapters: a unit of work of one, a unit of
work of another. A phase begins when all are done with the one before, and a task with more units than another has more
turns. Each loop has an optimiser of its own; its averages of the gradients and of their squares are those of its task.

A task's part is a run folder of its own, as that of a single-task run, so that whatever reads one reads it too. All
parts are saved one after the other, each with the number of turns that all have taken: what belongs together has the
same number, and where a process was killed between two saves, the ones before are there of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from latent_cot.errors import UsageError
from latent_cot.loop import Loop
from latent_cot.run import Checkpoint, RunFolder
from latent_cot.session import Running, Stopped


def run_in_turns(
    parts: Sequence[Running],
    *,
    turn: int = 0,
    save_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Go through the loops of all parts, which have the same adapters, and write the results of each.

    Args:
        turn: how many turns were taken before, if the parts were resumed.
        save_every: seconds between two saves.
        should_stop: asked after each unit; if True, everything is saved and `Stopped` is raised.

    Returns the content of each part's `results.json`. Raises UsageError if their phases differ.
    """
    if len({tuple(part.loop.phases) for part in parts}) > 1:
        raise UsageError(
            "--task: these tasks have not the same phases with their own settings; give --rounds, and --condition or "
            "--evaluation.every-round, for all of them"
        )
    going = list(parts)
    saved = time.monotonic()
    begun = max(part.loop.begun for part in parts)
    for part in parts:
        part.loop.begun = begun
    while going:
        part = min(going, key=lambda one: place(one.loop))
        # Phases without a unit of anybody's are passed by, and have begun all the same.
        for phase in range(part.loop.begun + 1, min(place(part.loop)[0] + 1, len(part.loop.phases))):
            for one in parts:
                one.loop.begin(phase)
        if not part.advance():
            going.remove(part)
            continue
        turn += 1
        if should_stop():
            for one in parts:
                one.stop(turn=turn)
            raise Stopped
        if time.monotonic() - saved >= save_every:
            for one in parts:
                one.save(turn=turn)
            saved = time.monotonic()
    return [part.finish(turn=turn) for part in parts]


def newest_in_common(folders: Sequence[RunFolder]) -> tuple[int, list[Checkpoint | None]]:
    """The turn at which all parts were last saved, and the checkpoint of each; 0 and none if there is no such turn.

    Raises UsageError if all checkpoints of a part are damaged.
    """
    saved = [dict(_by_turn(folder)) for folder in folders]
    turn = max(set.intersection(*map(set, saved)), default=0)
    return turn, [of_one.get(turn) for of_one in saved]


def _by_turn(folder: RunFolder) -> Iterator[tuple[int, Checkpoint]]:
    """Older checkpoints last; without those of a part that has gone on by itself."""
    for checkpoint in folder.intact():
        if (turn := checkpoint.state.get("turn")) is not None:
            yield turn, checkpoint


def place(loop: Loop) -> tuple[int, float]:
    """How far a loop has come: the phase that its next unit of work belongs to, and the share of it that is done."""
    phase, unit = loop.state.phase, loop.state.unit
    while phase < len(loop.phases) and unit >= (units := loop.units(loop.phases[phase])):
        phase, unit = phase + 1, 0
    return (phase, unit / units) if phase < len(loop.phases) else (phase, 0.0)
