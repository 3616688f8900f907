"""What the commands share: options from dataclasses, and the two consoles."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

from latent_cot.cli import COMMANDS, fill, line_width
from latent_cot.cli.flags import explanation, refuse_unknown
from latent_cot.config.settings import load_config
from latent_cot.report.terminal import say, waiting
from latent_cot.run.printable import printable
from latent_cot.types import UsageError, finite

if TYPE_CHECKING:
    from latent_cot.api.run import Run
    from latent_cot.config.schema import RunConfig

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without value that is off by default."""


def parse(cls: type[Options], argv: Sequence[str], command: str, default: Any = tyro.MISSING_NONPROP) -> Options:
    """The options of `latent-cot COMMAND`, from a dataclass whose attributes' docstrings are their help.

    On `--help` and a value of the wrong type it prints to standard output, or standard error, and raises SystemExit.
    Raises UsageError for an unknown option, and for a word too many.
    """
    if {"-h", "--help"}.isdisjoint(argv):
        refuse_unknown(cls, argv, command)
    found = io.StringIO()  # no terminal, so that tyro leaves colours out: a line's length is what is seen of it
    try:
        with redirect_stdout(found):
            options: Options = tyro.cli(cls, prog=f"latent-cot {command}", args=list(argv), default=default)
    finally:  # tyro leaves the usage and each paragraph of the description in one line
        lines = found.getvalue().splitlines()
        if lines:
            print("\n".join(line if line.startswith(" ") else fill(line) for line in lines))
    return options


def preset_config(argv: Sequence[str]) -> RunConfig:
    """The settings that flags are put on top of, by the preset, the file, the method and the task that are named."""
    return load_config(*(value_of(f"--{name}", argv) for name in ("preset", "config", "method", "task")))


def parse_run(
    cls: Callable[..., Options],
    argv: Sequence[str],
    command: str,
    base: RunConfig,
    shown: Sequence[str],
    own: Sequence[str],
) -> Options:
    """`parse` of options that have a run's `settings`, by default `base`. `--help` shows some of these and some options
    of the command's `own`, `--help-all` all."""
    # A flag's options are put on top: tyro would take none but those of a mapping that has some.
    options = base.data.options
    base = replace(base, data=replace(base.data, options={}))
    default: Any = cls(settings=base)
    if not {"-h", "--help"}.isdisjoint(argv):
        print(short_help(command, [*((path, base) for path in shown), *((name, default) for name in own)]))
        raise SystemExit(0)
    arguments = ["--help" if arg == "--help-all" else arg for arg in _together("--data.options", argv)]
    found: Any = parse(type(default), arguments, command, default)
    data = found.settings.data
    data = replace(data, options={**options, **data.options})
    return cast("Options", replace(found, settings=replace(found.settings, data=data)))


def _together(option: str, argv: Sequence[str]) -> list[str]:
    """The arguments with `option`, which may be there several times, once, at the end, with all of its values."""
    kept: list[str] = []
    values: list[str] = []
    behind = False
    for arg in argv:
        behind = arg == option or (behind and not arg.startswith("--"))
        (values if behind else kept).append(arg)
    values = [value for value in values if value != option]
    if wrong := [name for name in values[::2] if "=" in name] or (values[-1:] if len(values) % 2 else []):
        raise UsageError(f"{option} takes names and values in turn, {option} NAME VALUE: look at {wrong[0]!r:.80}")
    return [*kept, option, *values] if values else kept


def short_help(command: str, options: Sequence[tuple[str, Any]]) -> str:
    """What `latent-cot COMMAND --help` says: these options, in lines of at most 120 characters.

    Args:
        options: of each its path, such as `e_step.steps`, and the dataclass instance that the path begins in.
    """
    width = line_width()
    column = 28 if width >= 72 else 6  # where the explanations begin; on a narrow terminal on lines of their own
    lines = [f"usage: latent-cot {command} [options]", "", fill(COMMANDS[command]), ""]
    for path, owner in options:
        *sections, name = path.split(".")
        for section in sections:
            owner = getattr(owner, section)
        value = getattr(owner, name)
        default = "" if value is None or value is False else f" (default: {value})"
        flag = f"  --{path.replace('_', '-')} "
        head = flag + _metavar(get_type_hints(type(owner))[name])
        head = head if len(head) <= width else flag + name.upper()  # its explanation says where the choices are
        indent = " " * column
        text = fill(explanation(type(owner), name) + default, indent, first=indent)
        lines += [head.ljust(column) + text[column:]] if len(head) < column else [head, text]
    return "\n".join([*lines, "", f"latent-cot {command} --help-all shows all settings."])


def _metavar(kind: Any) -> str:
    """What is typed behind an option of this type."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_args(kind):
        return _metavar(get_args(kind)[0])
    return "" if kind is bool else "TEXT" if kind is str else str(kind.__name__.upper())


def given(argv: Sequence[str]) -> list[str]:
    """The options that a user wrote, in order, as `--output-dir`: without values, with dashes."""
    return [arg.partition("=")[0].replace("_", "-") for arg in argv if arg.startswith("--")]


def settings_given(argv: Sequence[str]) -> list[str]:
    """`given`, each as what switches it on: `--no-safeguard` is `--safeguard`."""
    return [re.sub(r"^(--(.*\.)?)no-", r"\1", name) for name in given(argv)]


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The last value of `option` (`--preset cpu` or `--preset=cpu`), before the real parse; None if absent."""
    found = None
    for arg, following in zip(argv, [*argv, None][1:], strict=True):
        name, equals, value = arg.partition("=")
        if name == option:
            found = value if equals else following
    return found


def announce_loading(console: Console, run: Run) -> None:
    """Have it said when the run's model is being loaded, which takes seconds, and what has changed since training."""
    run.on_note = partial(say, console)
    run.while_loading = partial(waiting, console, f"Loading {printable(run.config.model)}")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: not the status 1 of rich, which `verify` has for something else."""
        try:
            super().on_broken_pipe()
        except SystemExit as stop:
            raise BrokenPipeError from stop


def progress_console(*, to_stderr: bool) -> Console:
    """Where progress and tables go: standard error if standard output is kept for JSON."""
    console = _Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a file has no edge: tables need not fold
    return console


_diverted = ExitStack()
"""Gives standard output back when it is closed."""


@contextmanager
def json_alone() -> Iterator[None]:
    """Keep standard output for `print_json`: what others print until then, tools and C++ libraries, goes to standard
    error."""
    with _diverted:
        if sys.stdout is not None and sys.stderr is not None:  # they are where the shell has closed them
            kept = os.dup(1)
            _diverted.callback(os.close, kept)
            _diverted.callback(os.dup2, kept, 1)
            _diverted.callback(sys.stdout.flush)
            os.dup2(2, 1)
        yield


def print_json(value: Any) -> None:
    """The one thing on standard output with `--json`. ASCII: no text of a model can steer the terminal."""
    _diverted.close()
    print(json.dumps(finite(value), indent=2, allow_nan=False))
