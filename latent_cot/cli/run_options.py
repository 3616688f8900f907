"""What the commands that train share: their options, the run that --resume goes on with, what they say."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from latent_cot.cli.options import Switch
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import code_named, from_dict
from latent_cot.run.paths import with_absolute_paths
from latent_cot.run.printable import printable
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError

# With --resume the settings are the run's own; these only say which run, and how to report.
_WITH_RESUME = {
    *("--resume", "--json", "--output-dir", "--task", "--model", "--seed", "--preset", "--trust-code", "--method"),
    "--track",
}


@dataclass(frozen=True)
class RunOptions:
    """What to do with a configuration."""

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


def resumed(asked: RunConfig, path: Path, flags: Sequence[str]) -> RunConfig:
    """The configuration of the run in `path`, if nothing that was asked contradicts it."""
    for name in flags:
        if name not in _WITH_RESUME:
            raise UsageError(
                f"{name}: with --resume a run goes on with its own settings ({path / 'config.yaml'}); leave it "
                "out, or start a new run in another --output-dir"
            )
    folder = RunFolder.open(path)
    own = from_dict(folder.config, str(path / "config.yaml"))
    wanted = with_absolute_paths(asked)
    for name in ("method", "task", "model", "seed"):
        if f"--{name}" in flags and getattr(own, name) != getattr(wanted, name):
            raise UsageError(
                f"--{name} {getattr(wanted, name)}: the run in {path} has {name} {getattr(own, name)}; leave "
                "it out, or start a new run in another --output-dir"
            )
    return replace(own, output_dir=str(path))


def refuse_json_of_yaml(options: RunOptions) -> None:
    if options.json:
        raise UsageError("--json: --print-config prints YAML, which --config reads; leave --json out")


def refuse_unwritable(path: Path) -> None:
    """Before the model is loaded; `RunFolder.create` has the last word."""
    if (path / "config.yaml").exists():
        raise UsageError(f"--output-dir {path}: holds a run; go on with it by --resume, or give another one")
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--output-dir {path}: cannot write to {existing}; give another folder")


def command_for(config: RunConfig) -> str:
    return "em" if config.method == "em" else "fit"


def trust(config: RunConfig) -> str:
    """What a command on the run needs besides, as text: a user's own code is run on his word only."""
    return " --trust-code" if code_named(config) else ""


def say_stopped(console: Console, command: str, path: Path, options: RunOptions, trusted: str) -> None:
    """How to go on with the run in `path`; `command`: `em`, with what it needs besides."""
    tracked = "".join(f" --track {name}" for name in options.track)
    say(console, f"Stopped; saved in {path}. Go on with:")
    say(console, f"  latent-cot {command} --output-dir {quoted(path)} --resume{tracked}{trusted}")


def say(console: Console, text: str, style: str = "") -> None:
    """As `Display.on_unit`: a run outlives its display, where nobody reads or the disk of its output is full."""
    try:
        console.print(Text(printable(text), style=style), soft_wrap=True)
    except (OSError, SystemExit):
        console.quiet = True


def quoted(path: Path) -> str:
    return shlex.quote(str(path))
