"""The command line: `latent-cot COMMAND`. One file a command, imported when it is asked for.

`latent-cot --help` must not wait for torch, so nothing here imports it.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from latent_cot import __version__
from latent_cot.disk import open_closed_streams, refuse_surrogates
from latent_cot.run.interrupts import aborting, was_aborted
from latent_cot.types import UsageError, did_you_mean, first_line

COMMANDS = {
    "em": "train: alternate E-step and M-step, evaluate after each round",
    "fit": "train by any method: EM or one of the baselines",
    "plan": "predict memory, time and money of a round of EM, for a model and GPUs that need not be there",
    "compare": "train and evaluate several methods within the same budget, over seeds, as one table",
    "eval": "accuracy of a run, or of an untrained model, on test splits or a file",
    "sample": "rationales for a question, or for a file of them, with their log-probability and log-reward",
    "report": "one HTML file about runs: settings, curves, accuracies, and their rationales, token by token",
    "export": "a run's reasoner as an adapter or a model for plain transformers, with a model card",
    "methods": "list the methods of fit and compare",
    "tasks": "list the tasks, and how to add one",
    "tools": "list the tools a chain can call, and how to add one",
    "verify": "show that the E-step learns the true posterior, in worlds small enough to list every rationale",
}
"""Command -> what it does. Each is a module of this package with a function `run(argv) -> status`."""
_MODULES = {"em": "fit", "methods": "lists", "tasks": "lists", "tools": "lists"}
"""Command -> the module that it shares with another, whose `run` is given the command too."""

SHARED = ("em", "fit")
"""Commands whose work several processes can share (`torchrun`)."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where `verify` finds a failure, 2 for what the user can put
    right, 128 and the number of the signal that stopped it (130 after Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets its escape
            stream.reconfigure(errors="backslashreplace")
    try:
        with aborting():
            status = _run(argv)
        if sys.stdout is not None:  # it is where the shell has closed it
            sys.stdout.flush()  # here, before the interpreter does it, whose complaints name no remedy
        return status
    except BrokenPipeError:  # e.g. `latent-cot tasks | true`
        sys.stdout = None  # so that the interpreter does not try to flush it
        return 128 + 13
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.stdout = None  # the full disk may be its own
            _print_error(f"the disk is full ({error}); make room, or write elsewhere")
        elif error.errno in (errno.EACCES, errno.EPERM) and error.filename:
            _print_error(f"{error.filename}: {error.strerror}; have its permissions changed, or give another path")
        else:
            raise
        return EXIT_USAGE


def _run(argv: Sequence[str]) -> int:
    try:
        for arg in argv:
            refuse_surrogates(arg, "the command line")
        if not argv or argv[0] in ("-h", "--help"):
            print(_help())
            return 0 if argv else EXIT_USAGE
        if argv[0] in ("-V", "--version"):
            print(f"latent-cot {__version__}")
            return 0
        if argv[0] not in COMMANDS:
            kind = "option" if argv[0].startswith("-") else "command"
            raise UsageError(f"unknown {kind} {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)} See latent-cot --help")
        if argv[0] not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError(f"{argv[0]} uses one process: start it without torchrun or accelerate launch")
        return call(*argv)
    except (Exception, KeyboardInterrupt) as error:
        if was_aborted() or isinstance(error, KeyboardInterrupt):
            _print_error("interrupted")
            return EXIT_INTERRUPTED
        if not isinstance(error, UsageError) and not _is_out_of_memory(error):
            raise
        _print_error(str(error) if isinstance(error, UsageError) else f"out of memory ({first_line(error)}); {_MEMORY}")
        return EXIT_USAGE
    except SystemExit as stop:  # raised by tyro after --help and on unreadable flags
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE if stop.code else 0


_MEMORY = (
    "lower max_batch_tokens, which bounds a pass, or rollout.batch_size, the chains that are sampled at once. With "
    "--resume that is done in the run's config.yaml"
)


def _is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a device, or of torch on a CPU, which has no error of its own for it."""
    named = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or named


def call(command: str, *argv: str) -> int:
    """Run a command that there is; returns its status, and raises what it raises."""
    shared = (command,) if command in _MODULES else ()
    module = importlib.import_module(f"latent_cot.cli.{_MODULES.get(command, command)}")
    with importlib.import_module("latent_cot.cli.options").json_alone() if "--json" in argv else nullcontext():
        status: int = module.run(argv, *shared)
    return status


def line_width() -> int:
    """Characters of a line of help: those of the terminal, but no more than are easily read."""
    return min(120, shutil.get_terminal_size().columns)


def fill(text: str, indent: str = "", *, first: str = "") -> str:
    """A paragraph in lines that end between words; all but the first, which begins with `first`, are indented."""
    return textwrap.fill(
        text,
        line_width(),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _help() -> str:
    width = max(map(len, COMMANDS)) + 4
    commands = [fill(text, " " * width, first=f"  {name}".ljust(width)) for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: latent-cot COMMAND [options]\n",
            fill("Teach a language model to reason by treating its chain of thought as a latent variable.\n"),
            "",
            *commands,
            "",
            fill("latent-cot COMMAND --help shows a command's options, latent-cot --version the version."),
        ]
    )


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from latent_cot.report.terminal import filled
    from latent_cot.run.printable import printable

    # The message may quote a file or a model: made harmless, and never read as markup.
    console = Console(stderr=True)
    lines = f"error: {printable(message, keep_newlines=True)}".split("\n")
    text = Text("\n".join(filled(line, console) for line in lines))
    text.stylize("bold red", 0, len("error:"))
    with suppress(OSError, SystemExit):  # nobody reads it: the status says so too
        console.print(text, soft_wrap=True)
