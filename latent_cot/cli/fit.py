"""`latent-cot fit`: one run of any method, from its configuration to its results."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from latent_cot.cli import mixture
from latent_cot.cli.options import given, parse, print_json, progress_console, short_help, value_of
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
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check, load_config, refuse_code, to_dict, to_yaml
from latent_cot.report.terminal import Display
from latent_cot.run import tracking
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.paths import default_folder, with_absolute_paths
from latent_cot.types import UsageError

COMMON = (
    *("task", "model", "method", "seed", "rounds", "q_sees", "output_dir"),
    *("data.demonstrations", "data.unlabelled", "data.validation", "e_step.steps", "m_step.steps", "evaluation.size"),
)
"""The settings that `--help` shows."""


@dataclass(frozen=True)
class FitOptions(RunOptions):
    """Train a model to reason, and evaluate it after each round. `latent-cot methods` lists the methods.

    Settings come from the preset, then from the method (em-xy: --q-sees question-and-answer), then from the file of
    --config, then from the flags below; each overrides the one before. A method reads the sections that it needs.
    --print-config shows the outcome.
    """

    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def run(argv: Sequence[str], command: Literal["em", "fit"] = "fit") -> int:
    """The command, with one task or with several. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM."""
    names = mixture.tasks_named(argv)
    if len(names) > 1:
        return mixture.run([_parsed(mixture.with_task(argv, name), command) for name in names], argv)
    config, options = _parsed(argv, command)
    return fit(config, options, argv)


def _parsed(argv: Sequence[str], command: Literal["em", "fit"]) -> tuple[RunConfig, RunOptions]:
    base = load_config(*(value_of(f"--{name}", argv) for name in ("preset", "config", "method", "task")))
    if command == "em" and base.method != "em":
        raise UsageError(f"the method is {base.method}: latent-cot em is EM only; use latent-cot fit")
    default = FitOptions(settings=base)
    if not {"-h", "--help"}.isdisjoint(argv):
        shown = {path: base for path in COMMON if command == "fit" or path != "method"}
        own = ("preset", "config", "print_config", "resume", "json")
        print(short_help(command, [*shown.items(), *((name, default) for name in own)]))
        raise SystemExit(0)
    argv = ["--help" if arg == "--help-all" else arg for arg in argv]
    options = parse(FitOptions, argv, command, default)
    return options.settings, options


def fit(config: RunConfig, options: RunOptions, argv: Sequence[str]) -> int:
    """A run with this configuration, or what else the options ask for.

    Args:
        argv: what the user wrote, to tell settings that were given from defaults.
    """
    path = Path(config.output_dir or default_folder(config)).expanduser()
    if options.resume:
        config = resumed(config, path, given(argv))
        refuse_code(config, path / "config.yaml", trusted=options.trust_code)
    check(config)
    if options.print_config:
        refuse_json_of_yaml(options)
        print(to_yaml(config), end="")
        return 0
    if not options.resume:
        config = with_absolute_paths(replace(config, output_dir=str(path)))
        refuse_unwritable(path)
    return _train(config, path, options)


def _train(config: RunConfig, path: Path, options: RunOptions) -> int:
    from latent_cot.run.session import Stopped, claim_folder, open_session, run_loop

    tracking.check(options.track)
    console = progress_console(to_stderr=options.json)
    session = open_session(config, console=Console(stderr=True))
    main = session.lm.processes.main
    console.quiet = not main
    # Only now: a mistyped model, or demonstrations that do not fit, leave no folder behind.
    folder = claim_folder(path, config, session.lm.processes, resume=options.resume)
    for note in session.notes:
        say(console, note, style="dim")
    tracker = tracking.Tracking(options.track if main else (), folder, to_dict(config), warn=partial(say, console))
    with folder.lock(), Display(console) as display, tracker, stop_signals() as stopped_by:
        try:
            results = run_loop(
                session,
                folder,
                resume=options.resume,
                on_unit=tracking.both(display.on_unit, tracker.on_unit),
                should_stop=lambda: stopped_by() is not None,
            )
        except Stopped:
            number = stopped_by()
            say_stopped(console, command_for(config), path, options, trust(config))
            return 128 + (number or signal.SIGINT)
    say(console, f"Done in {results['resources']['seconds']:.0f} s; saved in {path}. See also:")
    for command in (f"eval {quoted(path)} --size {config.evaluation.size}", f"report {quoted(path)}"):
        say(console, f"  latent-cot {command}{trust(config)}")
    if options.json and main:
        print_json({"run": str(path), **results})
    return 0
