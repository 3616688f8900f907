"""A run's figures in TensorBoard, Weights & Biases, MLflow, or whatever else accelerate has a tracker class for.

`Tracking.on_unit` is given to `session.run_loop`, next to the display: the loop knows nothing of it. What is tracked,
and under which names, is in `docs/tracking.md`.

A unit of work has a step, its place in the whole run. `tracking.json` in the run folder holds the last `step` that the
trackers were given and, in `runs`, the id by which each goes on with its own run. It is written first: a process
that is killed in between loses that unit's figures, rather than giving them twice when the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latent_cot import disk
from latent_cot.config.settings import leaves
from latent_cot.run import schemas
from latent_cot.types import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from latent_cot.methods.method import Method
    from latent_cot.methods.state import Phase
    from latent_cot.run.run_folder import RunFolder

PROJECT = "latent-cot"
"""The project, or experiment, of all runs."""
EXTRAS = ("mlflow", "tensorboard", "wandb")
"""Trackers for which there is an extra `track-NAME`; the package of any other is named after it."""
FILE = "tracking.json"
_NOT_IN_NAMES = re.compile(r"[^\w\-./ ]")  # MLflow's rule; a split may be called `operands=5,digits=2`


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a tracker that there is not, is not installed, or is named twice."""
    if not names:  # accelerate takes seconds to load
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    missing = {str(kind) for kind in LoggerType} - {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UsageError(f"--track {name}: there is no such tracker.{did_you_mean(name, known)}")
        if list(names).count(name) > 1:
            raise UsageError(f"--track {name}: is given twice; give it once")
        if name in missing:
            package = f"'latent-cot[track-{name}]'" if name in EXTRAS else name.replace("_", "-")
            raise UsageError(f"--track {name}: its package is not installed: pip install {package}")


class Tracking:
    """Gives a run's figures to trackers. Use it as a context manager, while the run's folder is locked.

    Args:
        names: trackers, which `check` has found in order.
        settings: the run's configuration, as `settings.to_dict` gives it.
        warn: is told of a tracker that fails, which is then left out: a run of hours does not die of a server that is
            down.
    """

    def __init__(
        self, names: Iterable[str], folder: RunFolder, settings: Mapping[str, Any], *, warn: Callable[[str], None]
    ) -> None:
        self.names = tuple(names)
        self.folder = folder
        self.settings = settings
        self.warn = warn
        self._trackers: dict[str, GeneralTracker] = {}
        self._saved: dict[str, Any] = {"step": 0, "runs": {}}

    def __enter__(self) -> Tracking:
        if not self.names:
            return self
        if (self.folder.path / FILE).exists():
            place = str(self.folder.path / FILE)
            self._saved = vars(disk.decoded(schemas.Tracked, self.folder.read_json(FILE), place))
        try:
            for name in self.names:
                self._open(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def on_unit(self, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        """Track a unit of work, just finished, where that was not done before the run was stopped or killed."""
        # Its place in the whole run, from 1 on: the same when a run is resumed, unless with other numbers of steps.
        step = sum(loop.units(one) for one in loop.phases[: loop.state.phase]) + loop.state.unit
        place, last = [loop.state.phase, loop.state.unit], self._saved.get("place")
        known = step <= self._saved["step"] if last is None else place <= list(last)
        if not self._trackers or known:
            return
        step = max(step, self._saved["step"] + 1)
        self._saved |= {"step": step, "place": place}
        self.folder.write_json(FILE, self._saved)
        if figures := figures_of(loop, phase, info):
            self._each(lambda tracker: tracker.log(figures, step=step))

    def _open(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        runs = self._saved["runs"]
        path = self.folder.path
        project = PROJECT
        arguments = dict[str, Any]()
        match name:
            case "tensorboard":
                project, arguments = name, {"logging_dir": path}  # a folder of this name in the run's own
            case "wandb":
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                arguments = {"name": self.folder.name, "dir": str(path), "id": runs.get(name), "resume": "allow"}
            case "mlflow":  # its class reads its environment variables
                arguments = {"run_name": self.folder.name, "run_id": runs.get(name)}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                tracker = LOGGER_TYPE_TO_CLASS[name](project, **arguments)
                tracker.start()
                if name not in runs or name not in EXTRAS:  # any other begins a new run
                    tracker.store_init_configuration(flat(self.settings))
        except Exception as error:  # each client has its own
            remedy = "Put it right, or leave it out, and go on with --resume"
            raise UsageError(f"--track {name}: cannot be started: {first_line(error)}. {remedy}") from error
        self._trackers[name] = tracker
        identity = {"wandb": lambda: tracker.tracker.id, "mlflow": lambda: tracker.tracker.info.run_id}
        runs[name] = identity[name]() if name in identity else None
        self.folder.write_json(FILE, self._saved)

    def _each(self, act: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):  # standard output is the command's own (`--json`)
                    act(tracker)
            except (Exception, SystemExit) as error:  # each client has its own
                del self._trackers[name]
                self.warn(f"--track {name}: failed, and is left out from now on ({first_line(error)})")


# -- what is tracked -------------------------------------------------------------------------------------


def figures_of(loop: Method, phase: Phase, info: Mapping[str, Any]) -> dict[str, float]:
    """Name -> figure of a unit: its own, and those of the round once they are complete. Finite ones only."""
    found: dict[str, Any] = {}
    if "split" not in info:  # the figures of half a test split would look like those of the whole
        found = {f"round{phase.round}/{phase.name}/{name}": value for name, value in info.items()}
    if loop.state.unit == loop.units(phase):
        found |= _of_round(loop.state.results(), phase)
    return {
        _NOT_IN_NAMES.sub("_", name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _of_round(results: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
    """What a phase that is complete has found about its round: one point of a curve over rounds."""
    number = str(phase.round)
    if phase.name == "evaluate":
        return {
            f"{name}/{reasoner}/{split}": one["value"] if kind == "metrics" else one
            for kind in ("accuracy", "metrics")
            for reasoner, splits in results[kind].get(number, {}).items()
            for split, found in splits.items()
            for name, one in found.items()
            if kind == "metrics" or name == kind
        }
    if phase.name == "validate":
        return {
            f"{name}/{when}": value
            for name in ("log_y", "elbo")
            for when, value in results[name].get(number, {}).items()
        }
    when = {"diagnose_before": "before", "diagnose": "after"}.get(phase.name)
    figures = results["posterior"].get(number, {}).get(when, {})
    return {f"posterior/{when}/{name}": value for name, value in figures.items() if name != "n"}


def flat(settings: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """`{"e_step": {"steps": 40}}` as `{"e_step.steps": 40}`; what is no number or truth value is text."""
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value) for name, value in leaves(settings)
    }
