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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import differences, flag
from latent_cot.methods.loop import Loop
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


def check_model(configs: Sequence[RunConfig]) -> None:
    """Raises UsageError, naming the settings, if the tasks ask for different models or adapters."""
    for config in configs[1:]:
        found = [one for one in differences(configs[0], config) if one[0].split(".")[0] in MODEL_SETTINGS]
        if found:
            _refuse_difference("models or adapters", configs[0], config, found)


def check_phases(loops: Sequence[Loop]) -> None:
    """Raises UsageError, naming the settings, if the phases of the tasks differ."""
    first = loops[0]
    for loop in loops[1:]:
        if loop.phases != first.phases:
            settings = ("method", "q_sees", "rounds", "evaluation.every_round", "policy_gradient.fine_tune")
            found = [
                (path, left, right)
                for path, left, right in differences(first.config, loop.config)
                if path in settings or (path == "e_step.steps" and 0 in (left, right))
            ]
            _refuse_difference("phases", first.config, loop.config, found)


def _refuse_difference(what: str, a: RunConfig, b: RunConfig, found: Sequence[tuple[str, Any, Any]]) -> NoReturn:
    names = [Path(config.task).stem for config in (a, b)]
    which = ", ".join(
        f"{flag(path)} is {left} for {names[0]} and {right} for {names[1]}" for path, left, right in found
    )
    words = [_choice(path) if isinstance(left, bool) else flag(path) for path, left, _ in found]
    raise UsageError(
        f"--task: {' and '.join(names)} have different {what} in their own settings ({which}); for all of them give "
        f"{' and '.join(words)}"
    )


def _choice(path: str) -> str:
    section, dot, name = flag(path).rpartition(".")
    return f"{flag(path)} or {section}{dot}no-{name}" if dot else f"{flag(path)} or --no-{name.removeprefix('--')}"


def newest_in_common(folders: Sequence[RunFolder]) -> tuple[int, list[Checkpoint | None]]:
    """The turn at which all parts were last saved, and the checkpoint of each; 0 and none if nothing is lost by
    beginning anew: nobody was saved yet, or the process was killed in the first save.

    Raises UsageError if there is more, and no such turn, or if all checkpoints of a part are damaged.
    """
    checkpoints = [list(folder.intact()) for folder in folders]
    saved = [dict(_by_turn(of_one)) for of_one in checkpoints]
    turn = max(set.intersection(*map(set, saved)), default=None)
    if turn is not None:
        return turn, [of_one[turn] for of_one in saved]
    finished = [(folder.path / "results.json").exists() for folder in folders]
    first_save = not all(checkpoints) and all(
        int(one.path.name) == 1 and one.state.get("turn") is not None for of_one in checkpoints for one in of_one
    )
    if first_save and not any(finished):
        return 0, [None for _ in folders]
    parts = [
        f"{folder.path.name}: {_described(of_one, len(there), done)}"
        for folder, of_one, there, done in zip(folders, saved, checkpoints, finished, strict=True)
    ]
    raise UsageError(
        f"{folders[0].path.parent}: its parts have no save in common to go on from ({'; '.join(parts)}). Restore "
        "their checkpoints, or start again in another --output-dir"
    )


def _described(saved: Mapping[int, Checkpoint], n: int, finished: bool) -> str:
    turns = f"saved at turn {', '.join(map(str, sorted(saved)))}" if saved else ""
    alone = "gone on with by itself" if n > len(saved) else ""
    words = [word for word in ("finished" if finished else "", turns, alone) if word]
    return ", ".join(words if n else [*words, "no checkpoint"])


def _by_turn(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[int, Checkpoint]]:
    """Without those of a part that has gone on by itself."""
    for checkpoint in checkpoints:
        if (turn := checkpoint.state.get("turn")) is not None:
            yield turn, checkpoint


def place(loop: Loop) -> tuple[int, float]:
    """How far a loop has come: the phase that its next unit of work belongs to, and the share of it that is done."""
    phase, unit = loop.state.phase, loop.state.unit
    while phase < len(loop.phases) and unit >= (units := loop.units(loop.phases[phase])):
        phase, unit = phase + 1, 0
    return (phase, unit / units) if phase < len(loop.phases) else (phase, 0.0)
