"""How an answer is read off a rationale, and when it is right. Both are text that a model wrote: bounded, never run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from fractions import Fraction

import regex

from latent_cot import disk
from latent_cot.tasks.qa.same_text import DASHES, SMALL
from latent_cot.tasks.word_problems.working import near, number
from latent_cot.tools import _user_file
from latent_cot.types import UsageError

SECONDS = 0.1
"""For which a pattern is searched in one rationale: then it has found nothing."""
MAX_CHARACTERS = 10_000
"""Of a rationale, from its end, in which is searched."""
AFTER = "after:So the answer is"

_GAP = r"[ '’\u00a0\u2009\u202f]"
"""What may stand between thousands, and the spaces between a number and a fraction."""
_NUMBER = (
    rf"(?<![\w.^⁄])(?<!\^[-+])(?<!\d,)(?<!\d/)(?<!\d[eE][-+])[-{DASHES}]?\$?"
    rf"(?!(?<=\d{_GAP})\d+/\d)(?!\d+{_GAP}(?:\d+/\d|[¼-¾⅐-⅞]))"
    rf"(?!(?:(?<=(?<!\d)\d{_GAP})|(?<=(?<!\d)\d\d{_GAP})|(?<=(?<!\d)\d\d\d{_GAP}))\d{{3}}(?!\d))"
    rf"(?!\d{{1,3}}{_GAP}\d{{3}}(?!\d))"
    r"(?>(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    rf"(?!,\d|[eE][-+]?\d|\s?\^|[{SMALL}¼-¾⅐-⅞⁄]|\s?[x*×·]\s?10\s?[\^{SMALL}])(?:/\d+)?+(?![.,/]\d|_\d)"
)
"""Not a part of what may be read in two ways or is no number of ours: `0,5`, `1e-3`, `3×10⁸`, `3 1/2`, `5 000`,
`1.000.000`."""
_BEFORE = " \n\t,;:!?\"'*"
_BEHIND = f"{_BEFORE}."

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
    return bare(found[-1][found[-1].re.groups] or "") if found else None


def bare(text: str) -> str | None:
    """An answer without the punctuation around it; None if there is nothing else."""
    return text.lstrip(_BEFORE).rstrip(_BEHIND) or None


def portable(pattern: str) -> str | None:
    """The same as source code that needs the standard library only (`Task.portable`); None where its `re` has no such
    pattern, or reads it otherwise: `[[:digit:]]`, of which it warns, and `{e<=1}`, an approximate match."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
    except (re.error, FutureWarning):
        return None
    if re.search(r"(?<!\\)\{[^{}]*[eids][^{}]*\}", pattern):
        return None
    return PORTABLE.format(pattern=pattern, before=_BEFORE, behind=_BEHIND)


def number_of(text: str) -> Fraction | None:
    """`number`, with whichever dash is written for a minus sign."""
    return number(regex.sub(rf"^\s*[{DASHES}]", "-", text))


def same_number(answer: str, right: str, tolerance: float) -> bool:
    """Equal as numbers, but for rounding (`near`) or for a share of the right one; what is no number is wrong."""
    value, wanted = number_of(answer), number_of(right)
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
