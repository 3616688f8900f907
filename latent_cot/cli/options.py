"""What the commands share: options from dataclasses, and the two consoles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.text import Text

from latent_cot.run.printable import printable
from latent_cot.types import finite

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without value that is off by default."""


def parse(cls: type[Options], argv: Sequence[str], command: str, **how: Any) -> Options:
    """The options of `latent-cot COMMAND`, from a dataclass whose attributes' docstrings are their help; `how` to read
    and to show them, as `tyro.cli` takes it.

    On `--help`, an unknown option or a value of the wrong type it prints to standard output, or standard
    error, and raises SystemExit.
    """
    options: Options = tyro.cli(cls, prog=f"latent-cot {command}", args=list(argv), **how)
    return options


def given(argv: Sequence[str]) -> list[str]:
    """The options that a user wrote, in order, as `--output-dir`: without values, with dashes."""
    return [arg.partition("=")[0].replace("_", "-") for arg in argv if arg.startswith("--")]


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The last value of `option` (`--preset cpu` or `--preset=cpu`), before the real parse; None if absent."""
    found = None
    for arg, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = arg.partition("=")
        if name == option:
            found = value if equals else following
    return found


def progress_console(*, to_stderr: bool) -> Console:
    """Where progress and tables go: standard error if standard output is kept for JSON."""
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a file has no edge: tables need not fold
    return console


def say(console: Console, text: str, style: str = "") -> None:
    """As `Display.on_unit`: a run outlives its display, where nobody reads or the disk of its output is full."""
    try:
        console.print(Text(printable(text), style=style), soft_wrap=True)
    except (OSError, SystemExit):
        console.quiet = True


def print_json(value: Any) -> None:
    """The one thing on standard output with `--json`. ASCII: no text of a model can steer the terminal."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))
