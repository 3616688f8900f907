"""`latent-cot em` and `fit`: a run of EM, or of any method, from its configuration to its results."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from latent_cot import disk
from latent_cot.api.carry_out import carry_out
from latent_cot.cli.options import (
    Switch,
    given,
    parse_run,
    preset_config,
    print_json,
    progress_console,
    settings_given,
)
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check, code_named, flag, is_read, refuse_code, refuse_task_code, to_yaml
from latent_cot.report.terminal import say
from latent_cot.run import resuming, tracking
from latent_cot.run.paths import default_folder, refuse_moved, with_absolute_paths
from latent_cot.run.preflight import load_examples
from latent_cot.run.run_folder import RunFolder, refuse_unless_free
from latent_cot.types import UsageError

COMMON = (
    *("task", "model", "method", "seed", "rounds", "q_sees", "output_dir"),
    *("data.demonstrations", "data.unlabelled", "data.validation", "e_step.steps", "m_step.steps", "evaluation.size"),
)
"""The settings that `--help` shows."""
_NO_SETTINGS = {"--resume", "--json", "--output-dir", "--trust-code", "--track", "--print-config"}
"""These only say which run, and how to report: with no others, --resume starts none."""


@dataclass(frozen=True)
class FitOptions:
    """Train a model to reason, and evaluate it after each round. `latent-cot methods` lists the methods.

    Settings come from the preset, then from the task's preset of that name, then from the method (em-x: --q-sees
    question), then from the file of --config, then from the flags below; each overrides the one before. A
    method reads the sections that it needs. --print-config shows the outcome.
    """

    preset: str | None = None
    """A set of defaults: `cpu` (used if none is given), `paper` or `smoke`."""
    config: Path | None = None
    """A YAML file with settings, in the form that --print-config prints."""
    print_config: Switch = False
    """Print the configuration as YAML and stop."""
    resume: Switch = False
    """Go on with the run in --output-dir, with its own settings, or start it if there is none and the command says
    which: the same command again goes on. What it says must be as in the run; --rounds may be more. A run that is
    finished stays as it is."""
    trust_code: Switch = False
    """Run the Python files that are named by the configuration of a run (a task, a tool, a model's), with --resume, or
    by a task's YAML file (a tool, a grader)."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Send the figures to a tracker, such as `tensorboard`, `wandb` or `mlflow`; see docs/tracking.md. Repeatable."""
    json: Switch = False
    """Print the results as JSON to standard output, and progress to standard error."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def run(argv: Sequence[str], command: str = "fit") -> int:
    """The command. Returns 0, or 128 and the number of the signal that stopped it (SIGINT, SIGTERM, SIGHUP)."""
    base = preset_config(argv)
    _check_command(command, base)
    options = _parsed(argv, command, base)
    config = options.settings
    path = disk.expanded(config.output_dir or default_folder(config))
    there = resuming.is_run(path) or set(given(argv)) <= _NO_SETTINGS
    resume = options.resume and there
    if resume:
        config = _resumed(options, argv, command, path)
    check(config)
    if options.print_config:
        if options.json:
            raise UsageError("--json: --print-config prints YAML, which --config reads; leave --json out")
        print(to_yaml(config), end="")
        return 0
    if not resume:
        refuse_task_code(config, trusted=options.trust_code)
        refuse_unless_free(path)
        refuse_unwritable(path)
        config = with_absolute_paths(replace(config, output_dir=str(path)))
    tracking.check(options.track)
    if resume and resuming.is_finished(path, config):
        return _show_done(config, path, options)
    flags = zip(given(argv), settings_given(argv), strict=True)
    unread = [name for name, setting in flags if not is_read(config, setting[2:].replace("-", "_"))]
    return _train(config, path, options, unread, resume=resume)


def _check_command(command: str, config: RunConfig) -> None:
    """Raises UsageError for `em` with another method."""
    if command == "em" and config.method != "em":
        raise UsageError(f"the method is {config.method}: latent-cot em is EM only; use latent-cot fit")


def _parsed(argv: Sequence[str], command: str, base: RunConfig) -> FitOptions:
    """The flags, on top of the settings of `base`."""
    shown = [path for path in COMMON if command == "fit" or path != "method"]
    own = ("preset", "config", "print_config", "resume", "json")
    return parse_run(FitOptions, argv, command, base, shown, own)


def _resumed(options: FitOptions, argv: Sequence[str], command: str, path: Path) -> RunConfig:
    """The configuration of the run in `path`, with as many rounds as are asked for, if nothing else that was asked
    contradicts it. Raises UsageError."""
    own, file = resuming.own_settings(path), path / "config.yaml"
    refuse_moved(own, file)
    _check_command(command, own)
    asked = with_absolute_paths(options.settings)
    names_all = not any(resuming.contradictions(own, asked))
    layers = {f"--{name}": value for name in ("preset", "config") if (value := getattr(options, name)) is not None}
    if not layers:  # what no flag says is as in the run
        asked = with_absolute_paths(_parsed(argv, command, own).settings)
    flags = settings_given(argv)
    for name, there, wanted in resuming.contradictions(own, asked):
        remedy = "leave it out, or start a new run in another --output-dir"
        if flag(name) not in flags:
            by = " ".join(f"{layer} {value}" for layer, value in layers.items())
            raise UsageError(f"{by}: {name} is {wanted} there, and {there} in the run in {path}; {remedy}")
        raise UsageError(f"{flag(name)} {wanted}: the run in {path} has {name} {there}; {remedy}")
    if names_all:  # the code too, which is then the user's, as when the run was started
        refuse_task_code(own, trusted=options.trust_code)
    else:
        refuse_code(own, file, trusted=options.trust_code)
    return resuming.with_more_rounds(own, asked)


def refuse_unwritable(path: Path) -> None:
    """Before the model is loaded; `RunFolder.create` has the last word."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--output-dir {path}: cannot write to {existing}; give another folder")


def _train(config: RunConfig, path: Path, options: FitOptions, unread: Sequence[str], *, resume: bool) -> int:
    """`unread`: flags that were given for nothing."""
    console = progress_console(to_stderr=options.json)
    console.quiet = os.environ.get("RANK", "0") != "0"
    if unread:
        say(console, f"--method {config.method} does not read {', '.join(unread)}.", style="bold")
    examples = load_examples(config)  # before torch is imported: whoever has bad rows is told at once
    done = carry_out(config, path, console, resume=resume, examples=examples, track=options.track)
    if done.results is None:
        command = "em" if config.method == "em" else "fit"
        tracked = "".join(f" --track {name}" for name in options.track)
        say(console, f"Stopped; saved in {path}. Go on with:")
        again = f"--output-dir {_quoted(path)} --resume{tracked}{_trust(config)}"
        say(console, f"  latent-cot {command} {again}", whole=True)
        return 128 + (done.signal or signal.SIGINT)
    _show_end(console, f"Done in {done.results['resources']['seconds']:.0f} s", config, path)
    if options.json and done.session.lm.processes.main:
        print_json({"run": str(path), **done.results})
    return 0


def _show_done(config: RunConfig, path: Path, options: FitOptions) -> int:
    """Of a run that is finished already: no model is loaded."""
    if os.environ.get("RANK", "0") == "0":
        _show_end(progress_console(to_stderr=options.json), "Finished already", config, path)
        if options.json:
            print_json({"run": str(path), **RunFolder.open(path).results})
    return 0


def _show_end(console: Console, what: str, config: RunConfig, path: Path) -> None:
    say(console, f"{what}; saved in {_quoted(path)}. See also:")
    say(console, f"  latent-cot eval {_quoted(path)} --size {config.evaluation.size}{_trust(config)}", whole=True)
    say(console, f"  latent-cot report {_quoted(path)}{_trust(config)}", whole=True)


def _trust(config: RunConfig) -> str:
    """What a command on the run needs besides, as text: a user's own code is run on his word only."""
    return " --trust-code" if code_named(config) else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
