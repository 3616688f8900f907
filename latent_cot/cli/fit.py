"""`latent-cot em` and `fit`: a run of EM, or of any method, from its configuration to its results.

`--task arithmetic,random_numbers` trains one q for several tasks, each with the settings of its own preset and in a run
folder of its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from latent_cot.cli.options import Switch, given, parse, print_json, progress_console, say, value_of
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check, code_named, from_dict, load_config, refuse_code, to_dict, to_yaml
from latent_cot.report.terminal import Display
from latent_cot.run import tracking
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.paths import default_folder, with_absolute_paths
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError

if TYPE_CHECKING:
    from latent_cot.run.session import Session

# With --resume the settings are the run's own; these only say which run, and how to report.
_WITH_RESUME = {
    *("--resume", "--json", "--output-dir", "--task", "--model", "--seed", "--preset", "--trust-code", "--method"),
    "--track",
}


@dataclass(frozen=True)
class FitOptions:
    """Train a model to reason, and evaluate it after each round. `latent-cot methods` lists the methods.

    Settings come from the preset, then from the method (em-xy: --q-sees question-and-answer), then from the file of
    --config, then from the flags below; each overrides the one before. A method reads the sections that it needs.
    --print-config shows the outcome, --help-verbose explains each setting.
    """

    preset: str | None = None
    """A set of defaults: `cpu` (used if none is given), `paper` or `smoke`."""
    config: Path | None = None
    """A YAML file with settings, in the form that --print-config prints."""
    print_config: Switch = False
    """Print the configuration as YAML and stop."""
    resume: Switch = False
    """Go on with the run in --output-dir, with its own settings."""
    trust_code: Switch = False
    """With --resume: run the Python files that the run's configuration names (a task, a tool, a model's)."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Send the figures to a tracker, such as `tensorboard`, `wandb` or `mlflow`; see docs/tracking.md. Repeatable."""
    json: Switch = False
    """Print the results as JSON to standard output, and progress to standard error."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def run(argv: Sequence[str], command: str = "fit") -> int:
    """The command, with one task or with several. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM."""
    text = value_of("--task", argv) or ""
    named = [] if Path(text).is_file() else [name.strip() for name in text.split(",")]
    several = len(named) > 1
    parsed = [_parsed([*argv, "--task", name], command) for name in named] if several else [_parsed(argv, command)]
    options, configs = parsed[0], [one.settings for one in parsed]
    names = [Path(config.task).stem for config in configs]
    if several and (len(set(names)) < len(names) or not all(names)):
        raise UsageError(f"--task {','.join(names)}: name each task once, e.g. --task arithmetic,random_numbers")
    usual = default_folder(replace(configs[0], task="+".join(names)) if several else configs[0])
    path = Path(configs[0].output_dir or usual).expanduser()
    folders = [path / name for name in names] if several else [path]
    if options.resume:
        configs = [_resumed(one, folder, given(argv)) for one, folder in zip(configs, folders, strict=True)]
        for config, folder in zip(configs, folders, strict=True):
            refuse_code(config, folder / "config.yaml", trusted=options.trust_code)
    for config in configs:
        check(config)
    if options.print_config:
        if options.json:
            raise UsageError("--json: --print-config prints YAML, which --config reads; leave --json out")
        print("---\n".join(map(to_yaml, configs)), end="")
        return 0
    if not options.resume:
        for folder in (path, *folders):
            refuse_unwritable(folder)
        placed = [replace(one, output_dir=str(folder)) for one, folder in zip(configs, folders, strict=True)]
        configs = list(map(with_absolute_paths, placed))
    return _train(configs, folders, path, options)


def _parsed(argv: Sequence[str], command: str) -> FitOptions:
    base = load_config(*(value_of(f"--{name}", argv) for name in ("preset", "config", "method", "task")))
    if command == "em" and base.method != "em":
        raise UsageError(f"the method is {base.method}: latent-cot em is EM only; use latent-cot fit")
    return parse(FitOptions, argv, command, default=FitOptions(settings=base), compact_help=True)


def _resumed(asked: RunConfig, path: Path, flags: Sequence[str]) -> RunConfig:
    """The configuration of the run in `path`, if nothing that was asked contradicts it."""
    remedy = "leave it out, or start a new run in another --output-dir"
    for name in flags:
        if name not in _WITH_RESUME:
            file = path / "config.yaml"
            raise UsageError(f"{name}: with --resume a run goes on with its own settings ({file}); {remedy}")
    own, wanted = from_dict(RunFolder.open(path).config, str(path / "config.yaml")), with_absolute_paths(asked)
    for name in ("method", "task", "model", "seed"):
        if f"--{name}" in flags and getattr(own, name) != getattr(wanted, name):
            there, here = getattr(own, name), getattr(wanted, name)
            raise UsageError(f"--{name} {here}: the run in {path} has {name} {there}; {remedy}")
    return replace(own, output_dir=str(path))


def refuse_unwritable(path: Path) -> None:
    """Before the model is loaded; `RunFolder.create` has the last word."""
    if (path / "config.yaml").exists():
        raise UsageError(f"--output-dir {path}: holds a run; go on with it by --resume, or give another one")
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--output-dir {path}: cannot write to {existing}; give another folder")


def _train(configs: Sequence[RunConfig], paths: Sequence[Path], path: Path, options: FitOptions) -> int:
    from latent_cot.run.mixture import check_model, check_phases, newest_in_common, run_in_turns
    from latent_cot.run.session import Running, Stopped, open_session, run_loop

    tracking.check(options.track)
    console = progress_console(to_stderr=options.json)
    check_model(configs)
    first, several = open_session(configs[0], console=Console(stderr=True)), len(configs) > 1
    sessions = [first, *(open_session(config, loaded=first) for config in configs[1:])]
    tasks, main = ",".join(config.task for config in configs), first.lm.processes.main
    if several and first.lm.processes.count > 1:
        raise UsageError(
            f"--task {tasks}: several tasks use one process; start it without torchrun or accelerate launch"
        )
    check_phases([session.loop() for session in sessions] if several else [])
    console.quiet = not main
    resume = options.resume
    folders = _claim(sessions, paths, resume=resume)
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder.lock())
        display, stopped_by = stack.enter_context(Display(console)), stack.enter_context(stop_signals())
        tracks = options.track if main else ()
        observers = [observer(stack, *one, display, console, tracks) for one in zip(sessions, folders, strict=True)]

        def should_stop() -> bool:
            return stopped_by() is not None

        try:
            if several:
                for folder in folders:
                    stack.enter_context(folder.marking_failure())
                turn, checkpoints = newest_in_common(folders)
                parts = [
                    Running(session, folder, resume=resume, checkpoint=checkpoint, on_unit=on_unit)
                    for session, folder, checkpoint, on_unit in zip(
                        sessions, folders, checkpoints, observers, strict=True
                    )
                ]
                results = run_in_turns(parts, turn=turn, should_stop=should_stop)
            else:
                results = [run_loop(first, folders[0], resume=resume, on_unit=observers[0], should_stop=should_stop)]
        except Stopped:
            command = "em" if configs[0].method == "em" else "fit"
            again = f"{command} --task {tasks}" if several else command
            tracked = "".join(f" --track {name}" for name in options.track)
            say(console, f"Stopped; saved in {path}. Go on with:")
            say(console, f"  latent-cot {again} --output-dir {_quoted([path])} --resume{tracked}{_trust(configs)}")
            return 128 + (stopped_by() or signal.SIGINT)
    done = "" if several else f" in {results[0]['resources']['seconds']:.0f} s"
    say(console, f"Done{done}; saved in {_quoted(paths)}. See also:")
    for place, config in zip(paths, configs, strict=True):
        say(console, f"  latent-cot eval {_quoted([place])} --size {config.evaluation.size}{_trust([config])}")
    say(console, f"  latent-cot report {_quoted(paths)}{_trust(configs)}")
    if options.json and main:
        by_task = {"tasks": dict(zip((folder.name for folder in paths), results, strict=True))}
        print_json({"run": str(path), **(by_task if several else results[0])})
    return 0


def _claim(sessions: Sequence[Session], paths: Sequence[Path], *, resume: bool) -> list[RunFolder]:
    """A folder for each; if one cannot be made, none is left. A mistyped model, or demonstrations that do not fit, have
    been told before."""
    from latent_cot.run.session import claim_folder

    made: list[RunFolder] = []
    try:
        for session, path in zip(sessions, paths, strict=True):
            made.append(claim_folder(path, session.config, session.lm.processes, resume=resume))
    except BaseException:
        for folder in [] if resume else made:
            shutil.rmtree(folder.path, ignore_errors=True)
        if len(paths) > 1:
            with suppress(OSError):  # it is not empty
                paths[0].parent.rmdir()
        raise
    return made


def observer(
    stack: ExitStack, session: Session, folder: RunFolder, display: Display, console: Console, track: Sequence[str]
) -> tracking.OnUnit:
    """What is told of a run's units of work: the display and, opened in `stack`, its trackers. The user is told the
    session's notes."""
    for note in session.notes:
        say(console, note, style="dim")
    tracker = tracking.Tracking(track, folder, to_dict(session.config), warn=partial(say, console))
    return tracking.both(display.on_unit, stack.enter_context(tracker).on_unit)


def _trust(configs: Iterable[RunConfig]) -> str:
    """What a command on the runs needs besides, as text: a user's own code is run on his word only."""
    return " --trust-code" if any(map(code_named, configs)) else ""


def _quoted(paths: Iterable[Path]) -> str:
    return shlex.join(map(str, paths))
