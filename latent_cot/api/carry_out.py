"""A run from its configuration to its end, shown as it goes: what `em`, `fit`, `compare` and `train` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import to_dict
from latent_cot.report.terminal import Display, say
from latent_cot.run import tracking
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.preflight import Examples

if TYPE_CHECKING:
    from latent_cot.methods.method import Method
    from latent_cot.methods.state import Phase
    from latent_cot.run.session import Session

OnUnit = Callable[["Method", "Phase", Mapping[str, Any]], object]
"""Called after each unit of work."""


@dataclass(frozen=True)
class Carried:
    """What became of a run."""

    session: Session
    results: dict[str, Any] | None
    """The content of `results.json`; None if the run was stopped, and is saved."""
    signal: int | None
    """The signal by which it was stopped, if it was by one."""


def carry_out(
    config: RunConfig,
    path: Path,
    console: Console,
    *,
    resume: bool,
    examples: Examples | None = None,
    loaded: Session | None = None,
    track: Sequence[str] = (),
    followers: Sequence[OnUnit] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Carried:
    """Do a run, or go on with it, in its folder, until it is finished or stopped, by `should_stop` or by a signal.

    Args:
        examples: as loaded already, ...
        loaded: ... and a session whose model may be used again (`open_session`).
        track: trackers that get the figures.
    """
    with ExitStack() as stack:
        display = stack.enter_context(Display(console))
        on_load = display.loading(config.model)
        from latent_cot.run.generators import kept_generators  # here: it takes seconds
        from latent_cot.run.session import Stopped, claim_folder, open_session, run_loop

        stack.enter_context(kept_generators())
        session = open_session(config, examples=examples, loaded=loaded, on_load=on_load)
        processes = session.lm.processes
        # Only now: a mistyped model leaves no folder behind.
        folder = claim_folder(path, config, processes, resume=resume)
        stack.enter_context(folder.lock())
        stopped_by = stack.enter_context(stop_signals())
        for note in session.notes:
            say(console, note, style="dim")
        trackers = track if processes.main else ()
        tracker = tracking.Tracking(trackers, folder, to_dict(config), warn=partial(say, console))
        stack.enter_context(tracker)
        told: list[OnUnit] = [display.on_unit, tracker.on_unit, *followers]

        def on_unit(loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
            for follower in told:
                follower(loop, phase, info)

        results = None
        try:
            results = run_loop(
                session,
                folder,
                resume=resume,
                on_note=partial(say, console, style="dim"),
                on_start=display.on_start,
                on_unit=on_unit,
                should_stop=lambda: should_stop() or stopped_by() is not None,
            )
        except Stopped:
            pass
        finally:
            for note in session.failures:
                say(console, note, style="bold red")
        return Carried(session, results, stopped_by())
