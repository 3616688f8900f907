"""How an answer is read off a rationale, and when it is right. Both are text that a model wrote: bounded, never run."""

from __future__ import annotations

import re
from collections.abc import Callable

import regex

from latent_cot import disk
from latent_cot.tasks.word_problems.working import near, number
from latent_cot.tools import _user_file
from latent_cot.types import UsageError

SECONDS = 0.1
"""For which a pattern is searched in one rationale: then it has found nothing."""
MAX_CHARACTERS = 10_000
"""Of a rationale, from its end, in which is searched."""
AFTER = "after:So the answer is"

_NUMBER = r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?"
_AROUND = " \n\t.,;:!?\"'*"
_ARTICLES = frozenset(("a", "an", "the"))

PORTABLE = """\
import re


def answer(text: str, result: str | None) -> str | None:
    found = list(re.finditer({pattern!r}, text, re.ASCII))
    return found[-1][found[-1].re.groups].strip({around!r}) or None if found else None
"""


def pattern_of(extract: str) -> str:
    """The regular expression whose last match, or its group, is the answer."""
    kind, _, text = extract.partition(":")
    if kind == "last-number":
        return _NUMBER
    if kind == "after":
        marker = re.escape(text)
        return rf"{marker}\s*((?:(?!{marker})[^\n])*)"
    return text


def find(pattern: str, text: str) -> str | None:
    """The last match of a pattern in a rationale, without what stands around an answer; None if there is none, or if
    the search takes too long."""
    try:
        found = list(regex.finditer(pattern, text[-MAX_CHARACTERS:], regex.ASCII, timeout=SECONDS))
    except TimeoutError:
        return None
    return ((found[-1][found[-1].re.groups] or "").strip(_AROUND) or None) if found else None


def portable(pattern: str) -> str:
    """The same as source code that needs the standard library only (`Task.portable`)."""
    return PORTABLE.format(pattern=pattern, around=_AROUND)


def same_text(answer: str, right: str) -> bool:
    """Equal but for case, punctuation, spaces and English articles."""
    one, other = (
        [word for word in re.findall(r"\w+", text.casefold()) if word not in _ARTICLES] for text in (answer, right)
    )
    return one == other if one or other else answer == right


def same_number(answer: str, right: str, tolerance: float) -> bool:
    """Equal as numbers, but for a millionth, for rounding, or for a share of the right one; what is no number is
    wrong."""
    value, wanted = number(answer), number(right)
    if value is None or wanted is None:
        return False
    return near(value, wanted) or abs(value - wanted) <= tolerance * abs(wanted)


def grader(name: str) -> Callable[[str, str], object]:
    """The function `FILE.py:NAME` of a user's own file, which is run. Raises UsageError."""
    file, _, function = name.rpartition(":")
    path = disk.expanded(file)
    if not path.is_file():
        raise UsageError(f"grade {name}: there is no such file; write it as FILE.py:NAME")
    module = _user_file.run(path)
    if not callable(getattr(module, function, None)):
        raise UsageError(f"grade {name}: the file has no function {function}(answer, right)")
    found: Callable[[str, str], object] = getattr(module, function)
    return found
