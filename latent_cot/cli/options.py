"""What the commands share: options from dataclasses, and the two consoles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without value that is off by default."""


def parse(cls: type[Options], argv: Sequence[str], command: str, default: Options | None = None) -> Options:
    """The options of `latent-cot COMMAND`, from a dataclass whose attributes' docstrings are their help.

    On `--help`, an unknown option or a value of the wrong type it prints to standard output, or standard
    error, and raises SystemExit.
    """
    prog = f"latent-cot {command}"
    if default is None:
        return tyro.cli(cls, prog=prog, args=list(argv))
    return tyro.cli(cls, prog=prog, args=list(argv), default=default)


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


def print_json(value: Any) -> None:
    """The one thing on standard output with `--json`. ASCII: no text of a model can steer the terminal."""
    from latent_cot.types import finite

    print(json.dumps(finite(value), indent=2, allow_nan=False))
