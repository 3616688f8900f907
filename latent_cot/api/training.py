"""Configure a run, train it, and follow or stop it from Python."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console

from latent_cot import disk
from latent_cot.api.carry_out import carry_out
from latent_cot.api.run import Run, load, task_name
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check, from_dict, load_config, refuse_task_code
from latent_cot.report.terminal import Progress
from latent_cot.run import reasoners, resuming, tracking
from latent_cot.run.paths import default_folder, refuse_moved, with_absolute_paths
from latent_cot.types import UsageError

if TYPE_CHECKING:
    from latent_cot.methods.method import Method
    from latent_cot.methods.state import Phase


@dataclass(frozen=True)
class Unit:
    """A unit of a run's work that has just been done: an optimiser step, a batch of questions."""

    round: int
    phase: str
    """"init", "start_q", "diagnose_before", "e_step", "diagnose", "draw", "m_step", "validate", "evaluate", or
    what else the method has."""
    number: int
    """Of this unit within its phase, from 1."""
    of: int
    """Units of the phase."""
    share: float
    """How much of the whole run is done, in units: 1 at the end."""
    figures: Mapping[str, Any]
    """What was measured, such as `loss`, `variance`, `log_reward`: `docs/reading-a-run.md` explains them."""
    samples: tuple[Mapping[str, Any], ...]
    """A few rationales that were sampled in it, as JSON."""


Callback = Callable[[Unit], bool | None]
"""Called after each unit. If it returns True, the run is saved and stopped; False and None let it go on."""


def configure(
    preset: str | None = None,
    *,
    file: str | Path | None = None,
    method: str | None = None,
    task: str | Path | None = None,
    **settings: Any,
) -> RunConfig:
    """A configuration: the defaults, then those of `preset`, of the task, of the method, of `file`, then `settings`.

    `lc.configure("paper", rounds=1, e_step={"steps": 100})`: the names are those of the YAML file and of the flags
    (`latent-cot em --help-all`); a section's settings are a mapping.

    Raises UsageError for an unknown name, a value of the wrong type or out of range.
    """
    config = _with(load_config(preset, file, method, task_name(task)), settings)
    check(config)
    return config


def train(
    config: RunConfig | None = None,
    *,
    callbacks: Iterable[Callback] = (),
    resume: bool = False,
    progress: bool = True,
    trust_code: bool = False,
    track: str | Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train by any method, evaluate, and return the run, its model in memory.

    `lc.train(task="arithmetic", rounds=1)`. A run that was stopped, by a callback, by Ctrl-C or by a notebook's
    stop button, is saved and returned as it is: `run.status` is then "stopped", and `resume(run)` goes on.

    Args:
        config: from `configure`; None: what `configure` makes of the `settings`, `method` and `task` among them.
        callbacks: each is called after each unit of work, and stops the run by returning True.
        resume: go on with the run in `output_dir`, if there is one and its settings are these; `rounds` may be more. A
            run that is finished is returned at once, unless more rounds are asked for, or its config.yaml has been
            changed since. Without, a folder that holds a run is refused.
        progress: show how far it has got.
        trust_code: run the Python files that a task's YAML file names. (A task that is a Python file you have named
            yourself.)
        track: a tracker that gets the figures, such as "tensorboard", or several: `docs/tracking.md`.
        settings: on top of `config`. Without one, all that `configure` takes.

    Raises UsageError for whatever you can put right.
    """
    if not isinstance(config, RunConfig | None):
        raise UsageError(
            f"train({config!r:.40}): give a configuration, lc.configure({config!r:.40}), or settings by name"
        )
    for name in settings.keys() - {"preset", "file", *(one.name for one in fields(RunConfig))}:
        if close := difflib.get_close_matches(name, inspect.signature(train).parameters, n=1, cutoff=0.8):
            raise UsageError(f"settings: unknown {name!r}. Did you mean {close[0]!r}?")
    if config is None:
        config = configure(**settings)
    else:
        for name in {"preset", "file"} & settings.keys():
            raise UsageError(f"{name} {settings[name]!s:.60}: there is a configuration already; name it in configure()")
        for name in {"method", "task"} & settings.keys():
            if str(settings[name]) != getattr(config, name):
                raise UsageError(f"{name} {settings[name]!s:.60}: it has settings of its own; name it in configure()")
        config = _with(config, settings)
    path = disk.expanded(config.output_dir or default_folder(config))
    config = replace(config, output_dir=str(path))
    check(config)
    refuse_task_code(config, trusted=trust_code)
    config = with_absolute_paths(config)
    if resume and resuming.is_run(path):
        own = _as_asked(config, path)
        if resuming.is_finished(path, own):
            return load(path, trust_code=True)  # code that the caller has just named
        return _run(own, path, callbacks, progress, track, resume=True)
    return _run(config, path, callbacks, progress, track, resume=False)


def resume(
    run: Run | str | Path,
    *,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    trust_code: bool = False,
    track: str | Sequence[str] = (),
) -> Run:
    """Go on with a run, or the one in a folder, that was stopped, or killed, with its own settings; returns it. See
    `train` and, for `trust_code`, `load`."""
    run = run if isinstance(run, Run) else load(run, trust_code=trust_code)
    if run.path is None:
        raise UsageError(f"{run.config.model}: a base model is no run; start one by train()")
    run.forget()  # what it has in memory will be what it was
    return _run(run.config, run.path, callbacks, progress, track, resume=True)


def _run(
    config: RunConfig,
    path: Path,
    callbacks: Iterable[Callback],
    shown: bool,
    track: str | Sequence[str],
    *,
    resume: bool,
) -> Run:
    console = Console(stderr=True, quiet=not shown or os.environ.get("RANK", "0") != "0")
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise UsageError(f"callbacks is a list of them: [{getattr(callbacks, '__name__', '...')}]")
    called, stop = list(callbacks), False
    if wrong := [one for one in called if not callable(one)]:
        raise UsageError(f"callbacks: {wrong[0]!r:.60} cannot be called; give functions that take a unit")
    trackers = [track] if isinstance(track, str) else list(track)
    tracking.check(trackers)
    if resume:
        refuse_moved(config, path / "config.yaml")

    def on_unit(loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        nonlocal stop
        at = Progress.of(loop)
        figures = {key: value for key, value in info.items() if key != "samples"}
        samples = tuple(info.get("samples", ()))
        unit = Unit(phase.round, phase.name, at.unit, at.units, at.share, figures, samples)
        stop = True in [_stops(follower, unit) for follower in called]  # each is called

    told: dict[str, Any] = {"track": trackers, "followers": [on_unit]}
    session = carry_out(config, path, console, resume=resume, should_stop=lambda: stop, **told).session
    source = reasoners.find(str(path), None, trusted=True)
    return Run(source, reasoners.loop_of(session, source, reasoners.needed_data(source, session.task)))


def _stops(follower: Callback, unit: Unit) -> bool:
    """Call it. Raises UsageError for an answer that leaves open whether the run is to stop."""
    answer: object = follower(unit)
    if hasattr(answer, "item"):  # of numpy's, such as a comparison of means
        answer = answer.item()
    if not isinstance(answer, bool | None):
        name = getattr(follower, "__name__", "...")
        raise UsageError(f"callbacks: {name} returned {answer!r:.60}; return True to stop the run, else False or None")
    return answer is True


def _plain(value: Any) -> Any:
    """As JSON has it: numbers and arrays of numpy's, a path as text. Raises UsageError for what no file could hold."""
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    remedy = "give texts, numbers, lists, mappings; a task or tool of your own by its Python file, a model by a name"
    raise UsageError(f"settings: {value!r:.60} is no setting that a file could hold; {remedy}")


def _with(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    plain = json.loads(json.dumps(settings, default=_plain))  # as a file would give it
    return from_dict(plain, "settings", config)


def _as_asked(config: RunConfig, path: Path) -> RunConfig:
    """The settings of the run in `path`, with as many rounds as `config` has. Raises UsageError for other settings."""
    own = resuming.own_settings(path)
    for name, there, wanted in resuming.contradictions(own, config):
        remedy = "go on with it by resume(load(...)), or give another output_dir"
        raise UsageError(f"{path}: holds a run with {name} {there!r}, not {wanted!r}; {remedy}")
    return resuming.with_more_rounds(own, config)
