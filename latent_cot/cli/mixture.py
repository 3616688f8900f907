"""`--task arithmetic,random_numbers`: one q for several tasks, each with the settings of its own preset."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from latent_cot.cli.options import given, print_json, progress_console, value_of
from latent_cot.cli.run_options import (
    RunOptions,
    command_for,
    quoted,
    refuse_json_of_yaml,
    refuse_unwritable,
    resumed,
    say,
    say_stopped,
    trust,
)
from latent_cot.config.settings import check, refuse_code, to_dict, to_yaml
from latent_cot.report.terminal import Display
from latent_cot.run import tracking
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.paths import default_folder, with_absolute_paths
from latent_cot.run.run_folder import RunFolder, refuse_unless_free
from latent_cot.types import UsageError

if TYPE_CHECKING:
    from latent_cot.config.schema import RunConfig
    from latent_cot.run.session import Session


def tasks_named(argv: Sequence[str]) -> list[str]:
    """The tasks of a command line's `--task`: none if it is left out, several if they are separated by commas."""
    text = value_of("--task", argv)
    if text is None:
        return []
    return [text] if Path(text).is_file() else [name.strip() for name in text.split(",")]


def with_task(argv: Sequence[str], task: str) -> list[str]:
    """The command line for one of them."""
    return [*argv, "--task", task]


def run(parts: Sequence[tuple[RunConfig, RunOptions]], argv: Sequence[str]) -> int:
    """Train one q for the tasks of all parts. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM.

    Args:
        parts: of each task its configuration, and what to do with it, which is the same for all.
        argv: what the user wrote.
    """
    options = parts[0][1]
    names = [Path(config.task).stem for config, _ in parts]
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"--task {','.join(names)}: name each task once, e.g. --task arithmetic,random_numbers")
    first = parts[0][0]
    path = Path(first.output_dir or default_folder(replace(first, task="+".join(names)))).expanduser()
    configs = []
    for name, (config, _) in zip(names, parts, strict=True):
        if options.resume:
            config = resumed(config, path / name, given(argv))
            refuse_code(config, path / name / "config.yaml", trusted=options.trust_code)
        elif (path / name / "config.yaml").exists():
            raise UsageError(
                f"--output-dir {path}: holds a run in {name}; go on with it by --resume, or give another one"
            )
        check(config)
        configs.append(with_absolute_paths(replace(config, output_dir=str(path / name))))
    if options.print_config:
        refuse_json_of_yaml(options)
        print("---\n".join(map(to_yaml, configs)), end="")
        return 0
    if not options.resume:
        refuse_unwritable(path)
        for name in names:
            refuse_unless_free(path / name)
    return _train(configs, names, path, options)


def _train(configs: Sequence[RunConfig], names: Sequence[str], path: Path, options: RunOptions) -> int:
    from latent_cot.run.mixture import check_phases, newest_in_common, run_in_turns
    from latent_cot.run.session import Running, Stopped

    tracking.check(options.track)
    console = progress_console(to_stderr=options.json)
    sessions = _open_sessions(configs)
    if sessions[0].lm.processes.count > 1:
        raise UsageError(
            f"--task {','.join(names)}: several tasks use one process; start it without torchrun or accelerate launch"
        )
    check_phases([session.loop() for session in sessions])
    # Only now, as that of a single run, and all or none.
    folders = [RunFolder.open(path / name) for name in names] if options.resume else _create(path, names, configs)
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder.lock())
            stack.enter_context(folder.marking_failure())
        turn, checkpoints = newest_in_common(folders)
        display, stopped_by = stack.enter_context(Display(console)), stack.enter_context(stop_signals())
        parts = []
        for session, folder, checkpoint in zip(sessions, folders, checkpoints, strict=True):
            for note in session.notes:
                say(console, note, style="dim")
            tracker = tracking.Tracking(options.track, folder, to_dict(session.config), warn=partial(say, console))
            on_unit = tracking.both(display.on_unit, stack.enter_context(tracker).on_unit)
            parts.append(Running(session, folder, resume=options.resume, checkpoint=checkpoint, on_unit=on_unit))
        try:
            results = run_in_turns(parts, turn=turn, should_stop=lambda: stopped_by() is not None)
        except Stopped:
            trusted = next(filter(None, map(trust, configs)), "")
            say_stopped(console, f"{command_for(configs[0])} --task {','.join(names)}", path, options, trusted)
            return 128 + (stopped_by() or signal.SIGINT)
    say(console, f"Done; a run folder for each task is in {path}. See also:")
    for name, config in zip(names, configs, strict=True):
        say(console, f"  latent-cot eval {quoted(path / name)} --size {config.evaluation.size}{trust(config)}")
    if options.json:
        print_json({"run": str(path), "tasks": dict(zip(names, results, strict=True))})
    return 0


def _create(path: Path, names: Sequence[str], configs: Sequence[RunConfig]) -> list[RunFolder]:
    """A folder for each task; if one cannot be made, none is left."""
    made: list[RunFolder] = []
    there = path.exists()
    try:
        for name, config in zip(names, configs, strict=True):
            made.append(RunFolder.create(path / name, to_dict(config)))
    except BaseException:
        for folder in made:
            shutil.rmtree(folder.path, ignore_errors=True)
        if not there:
            with suppress(OSError):
                path.rmdir()
        raise
    return made


def _open_sessions(configs: Sequence[RunConfig]) -> list[Session]:
    """One for each task, all with the same model."""
    from latent_cot.run.mixture import check_model
    from latent_cot.run.session import open_session

    check_model(configs)
    first = open_session(configs[0], console=Console(stderr=True))
    return [first, *(open_session(config, loaded=first) for config in configs[1:])]
