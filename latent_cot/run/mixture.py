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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import differences, flag
from latent_cot.methods.method import Method
from latent_cot.run.run_folder import Checkpoint, RunFolder
from latent_cot.run.session import MODEL_SETTINGS, SAVE_EVERY, Running, Stopped
from latent_cot.types import UsageError


def run_in_turns(
    parts: Sequence[Running],
    *,
    turn: int = 0,
    save_every: float = SAVE_EVERY,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Go through the loops of all parts, which have the same adapters, and write the results of each.

    Args:
        turn: how many turns were taken before, if the parts were resumed.
        save_every: seconds between two saves.
        should_stop: asked after each unit; if True, everything is saved and `Stopped` is raised.

    Returns the content of each part's `results.json`. Raises UsageError if their phases differ.
    """
    check_phases([part.loop for part in parts])
    going, saved = list(parts), time.monotonic()
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


def check_model(configs: Sequence[RunConfig]) -> None:
    """Raises UsageError, naming the settings, if the tasks ask for different models or adapters."""
    for config in configs[1:]:
        if any(getattr(config, name) != getattr(configs[0], name) for name in MODEL_SETTINGS):
            _refuse_difference("models or adapters", configs[0], config, MODEL_SETTINGS)


def check_phases(loops: Sequence[Method]) -> None:
    """Raises UsageError, naming the settings, if the phases of the tasks differ."""
    names = ("method", "q_sees", "rounds", "every_round", "fine_tune", "e_step.steps")
    for loop in loops[1:]:
        if loop.phases != loops[0].phases:
            _refuse_difference("phases", loops[0].config, loop.config, names)


def _refuse_difference(what: str, a: RunConfig, b: RunConfig, names: Sequence[str]) -> NoReturn:
    """`names`: of the settings, or of their sections, that can be the cause."""
    one, other = (Path(config.task).stem for config in (a, b))
    which = ", ".join(
        f"{flag(path)} is {left} for {one} and {right} for {other}"
        for path, left, right in differences(a, b)
        if not {path, path.split(".")[0], path.split(".")[-1]}.isdisjoint(names)
    )
    difference = f"{one} and {other} have different {what} in their own settings ({which})"
    raise UsageError(f"--task: {difference}; give one value for all")


def newest_in_common(folders: Sequence[RunFolder]) -> tuple[int, list[Checkpoint | None]]:
    """The turn at which all parts were last saved, and the checkpoint of each; 0 and none if nothing is lost by
    beginning anew: nobody was saved yet, or the process was killed in the first save.

    Raises UsageError if there is more, and no such turn, or if all checkpoints of a part are damaged.
    """
    checkpoints = [list(folder.intact()) for folder in folders]
    # Without those of a part that has gone on by itself: they have no turn.
    saved = [{turn: one for one in of_one if (turn := one.state.get("turn")) is not None} for of_one in checkpoints]
    turn = max(set.intersection(*map(set, saved)), default=None)
    if turn is not None:
        return turn, [of_one[turn] for of_one in saved]
    # A part's checkpoints are its first alone, of a turn that others have not saved.
    first_save = all(int(one.path.name) == 1 and one.state.get("turn") for of_one in checkpoints for one in of_one)
    finished = any((folder.path / "results.json").exists() for folder in folders)
    if first_save and not all(checkpoints) and not finished:
        return 0, [None for _ in folders]
    found = "; ".join(
        f"{folder.path.name}: {', '.join(f'turn {turn}' for turn in of_one) or 'none'}"
        for folder, of_one in zip(folders, saved, strict=True)
    )
    remedy = "Restore their checkpoints, or start again in another --output-dir"
    raise UsageError(f"{folders[0].path.parent}: its parts have no save in common to go on from ({found}). {remedy}")


def place(loop: Method) -> tuple[int, float]:
    """How far a loop has come: the phase that its next unit of work belongs to, and the share of it that is done."""
    phase, unit = loop.state.phase, loop.state.unit
    while phase < len(loop.phases) and unit >= (units := loop.units(loop.phases[phase])):
        phase, unit = phase + 1, 0
    return (phase, unit / units) if phase < len(loop.phases) else (phase, 0.0)
