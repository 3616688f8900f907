"""How an answer is read off a rationale, and when it is right. Both are text that a model wrote: bounded, never run."""

from __future__ import annotations

import re
import unicodedata
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

_NUMBER = (
    r"(?<![\w.])(?<!\d,)(?<!\d[eE][-+])[-\u2212]?\$?"
    r"(?>(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?!,\d|[eE][-+]?\d)(?:/\d+)?"
)
"""Not a part of what may be read in two ways or is no number of ours: `0,5`, `1e-3`."""
_WORD = regex.compile(
    r"(?<!\w)[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])[-+]?\.[0-9]+"
    r"|[\w\p{M}]+|(?<=\w)#+|\p{Sm}|(?<=\w)[*/^](?=\w)|(?<=\s)[-*/^](?=\s)|(?<!\w)-(?=\w)"
)
"""Of an answer: a number with its sign, a word, an operator, or what tells C and C# apart."""
_BEFORE = " \n\t,;:!?\"'*"
_BEHIND = f"{_BEFORE}."
_ARTICLES = frozenset(("a", "an", "the"))

PORTABLE = """\
import re


def answer(text: str, result: str | None) -> str | None:
    found = list(re.finditer({pattern!r}, text, re.ASCII))
    return ((found[-1][found[-1].re.groups] or "").lstrip({before!r}).rstrip({behind!r}) or None) if found else None
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
    return ((found[-1][found[-1].re.groups] or "").lstrip(_BEFORE).rstrip(_BEHIND) or None) if found else None


def portable(pattern: str) -> str | None:
    """The same as source code that needs the standard library only (`Task.portable`); None where its `re` has no such
    pattern."""
    try:
        re.compile(pattern)
    except re.error:
        return None
    return PORTABLE.format(pattern=pattern, before=_BEFORE, behind=_BEHIND)


def same_text(answer: str, right: str) -> bool:
    """Equal but for case, punctuation, spaces and English articles; two numbers, as numbers."""
    answer, right = (unicodedata.normalize("NFC", text).replace("\N{MINUS SIGN}", "-") for text in (answer, right))
    value, wanted = number(answer), number(right)
    if value is not None and wanted is not None:
        return value == wanted
    one, other = _words(answer), _words(right)
    return one == other if one or other else answer == right


def _words(text: str) -> list[str]:
    """Without articles; where there is nothing else, the last of these: `A` may be an answer."""
    found = [word.replace(",", "") for word in _WORD.findall(text.casefold())]
    return [word for word in found if word not in _ARTICLES] or found[-1:]


def same_number(answer: str, right: str, tolerance: float) -> bool:
    """Equal as numbers, but for rounding (`near`) or for a share of the right one; what is no number is wrong."""
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
