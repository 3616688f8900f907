"""The two errors that a user or a model can cause. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Something the user can put right: a flag, a file, a folder, a model's name.

    The message names the file, the line or the flag, says what is wrong and what to do about it.
    The command line prints it without a traceback and exits with status 2.
    """


class ToolError(Exception):
    """A tool cannot, or may not, answer the chain's request. The chain goes on without a result."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` if a known name is close, else `" Known: a, b."`; empty if none is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def first_line(error: BaseException) -> str:
    """An error's first line, or its type's name if it has none, at most 200 characters of it."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
