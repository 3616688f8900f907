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

from latent_cot import disk
from latent_cot.api.carry_out import carry_out
from latent_cot.cli.options import Switch, given, parse_run, preset_config, print_json, progress_console
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import check, code_named, from_dict, refuse_code, refuse_task_code, to_yaml
from latent_cot.report.terminal import say
from latent_cot.run import tracking
from latent_cot.run.paths import default_folder, refuse_moved, with_absolute_paths
from latent_cot.run.preflight import load_examples
from latent_cot.run.run_folder import RunFolder, refuse_unless_free
from latent_cot.types import UsageError

COMMON = (
    *("task", "model", "method", "seed", "rounds", "q_sees", "output_dir"),
    *("data.demonstrations", "data.unlabelled", "data.validation", "e_step.steps", "m_step.steps", "evaluation.size"),
)
"""The settings that `--help` shows."""
# With --resume the settings are the run's own; these only say which run, and how to report.
_WITH_RESUME = {
    *("--resume", "--json", "--output-dir", "--task", "--model", "--seed", "--preset", "--trust-code", "--method"),
    "--track",
}


@dataclass(frozen=True)
class FitOptions:
    """Train a model to reason, and evaluate it after each round. `latent-cot methods` lists the methods.

    Settings come from the preset, then from the task's preset of that name, then from the method (em-xy: --q-sees
    question-and-answer), then from the file of --config, then from the flags below; each overrides the one before. A
    method reads the sections that it needs. --print-config shows the outcome.
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
    """Run the Python files that are named by the configuration of a run (a task, a tool, a model's), with --resume, or
    by a task's YAML file (a tool, a grader)."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Send the figures to a tracker, such as `tensorboard`, `wandb` or `mlflow`; see docs/tracking.md. Repeatable."""
    json: Switch = False
    """Print the results as JSON to standard output, and progress to standard error."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def run(argv: Sequence[str], command: str = "fit") -> int:
    """The command. Returns 0, or 128 and the number of the signal that stopped it (SIGINT, SIGTERM, SIGHUP)."""
    options = _parsed(argv, command)
    config = options.settings
    path = disk.expanded(config.output_dir or default_folder(config))
    if options.resume:
        config = _resumed(config, path, given(argv))
        refuse_code(config, path / "config.yaml", trusted=options.trust_code)
    check(config)
    if options.print_config:
        if options.json:
            raise UsageError("--json: --print-config prints YAML, which --config reads; leave --json out")
        print(to_yaml(config), end="")
        return 0
    if not options.resume:
        refuse_task_code(config, trusted=options.trust_code)
        refuse_unless_free(path)
        refuse_unwritable(path)
        config = with_absolute_paths(replace(config, output_dir=str(path)))
    return _train(config, path, options)


def _parsed(argv: Sequence[str], command: str) -> FitOptions:
    base = preset_config(argv)
    if command == "em" and base.method != "em":
        raise UsageError(f"the method is {base.method}: latent-cot em is EM only; use latent-cot fit")
    shown = [path for path in COMMON if command == "fit" or path != "method"]
    own = ("preset", "config", "print_config", "resume", "json")
    return parse_run(FitOptions, argv, command, base, shown, own)


def _resumed(asked: RunConfig, path: Path, flags: Sequence[str]) -> RunConfig:
    """The configuration of the run in `path`, if nothing that was asked contradicts it."""
    remedy = "leave it out, or start a new run in another --output-dir"
    file = path / "config.yaml"
    for name in flags:
        if name not in _WITH_RESUME:
            raise UsageError(f"{name}: with --resume a run goes on with its own settings ({file}); {remedy}")
    own = from_dict(RunFolder.open(path).config, str(file))
    wanted = with_absolute_paths(asked)
    refuse_moved(own, file)
    for name in ("method", "task", "model", "seed"):
        if f"--{name}" in flags and getattr(own, name) != getattr(wanted, name):
            there, here = getattr(own, name), getattr(wanted, name)
            raise UsageError(f"--{name} {here}: the run in {path} has {name} {there}; {remedy}")
    return replace(own, output_dir=str(path))


def refuse_unwritable(path: Path) -> None:
    """Before the model is loaded; `RunFolder.create` has the last word."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--output-dir {path}: cannot write to {existing}; give another folder")


def _train(config: RunConfig, path: Path, options: FitOptions) -> int:
    tracking.check(options.track)
    console = progress_console(to_stderr=options.json)
    console.quiet = os.environ.get("RANK", "0") != "0"
    examples = load_examples(config)  # before torch is imported: whoever has bad rows is told at once
    done = carry_out(config, path, console, resume=options.resume, examples=examples, track=options.track)
    if done.results is None:
        command = "em" if config.method == "em" else "fit"
        tracked = "".join(f" --track {name}" for name in options.track)
        say(console, f"Stopped; saved in {path}. Go on with:")
        again = f"--output-dir {_quoted(path)} --resume{tracked}{_trust(config)}"
        say(console, f"  latent-cot {command} {again}", whole=True)
        return 128 + (done.signal or signal.SIGINT)
    say(console, f"Done in {done.results['resources']['seconds']:.0f} s; saved in {_quoted(path)}. See also:")
    say(console, f"  latent-cot eval {_quoted(path)} --size {config.evaluation.size}{_trust(config)}", whole=True)
    say(console, f"  latent-cot report {_quoted(path)}{_trust(config)}", whole=True)
    if options.json and done.session.lm.processes.main:
        print_json({"run": str(path), **done.results})
    return 0


def _trust(config: RunConfig) -> str:
    """What a command on the run needs besides, as text: a user's own code is run on his word only."""
    return " --trust-code" if code_named(config) else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
