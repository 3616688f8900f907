"""The flags that a command has, and what is said of a word that it does not: tyro's own answer takes half a screen."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise, takewhile
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from latent_cot.types import UsageError

_ELSEWHERE = {"lr": "learning-rate", "epochs": "rounds", "num-train-epochs": "rounds", "lora-rank": "rank"}
"""What other trainers call a setting -> its name here."""
_POSITIONAL = set(get_args(tyro.conf.Positional[int])[1:])
_UNPAIRED = set(get_args(tyro.conf.FlagCreatePairsOff[int])[1:])
_REPEATED = set(get_args(tyro.conf.UseAppendAction[int])[1:])


@dataclass(frozen=True)
class Flag:
    """An option of a command, or, without a name, its words that belong to none."""

    names: tuple[str, ...]
    """With dashes; of a switch that is on by default the one that turns it off, too."""
    takes: float
    """Words that follow it: 0 for a switch, ∞ for a list."""
    repeated: bool
    """Whether it may be there several times."""
    owner: type
    field: str


def flags_of(cls: Any, prefix: str = "") -> Iterator[Flag]:
    """Those of a dataclass of options, as tyro makes them."""
    hints = get_type_hints(cls, include_extras=True)
    for item in fields(cls):
        kind, marks = _without_marks(hints[item.name])
        name = prefix + item.name.replace("_", "-")
        if is_dataclass(kind):
            nameless = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from flags_of(kind, prefix if nameless else f"{name}.")
            continue
        section, dot, last = name.rpartition(".")
        paired = kind is bool and _UNPAIRED.isdisjoint(marks)
        names = [f"--{name}", f"--{section}{dot}no-{last}"] if paired else [f"--{name}"]
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        repeated = not _REPEATED.isdisjoint(marks)
        shown = () if not _POSITIONAL.isdisjoint(marks) else (*names, *aliases)
        yield Flag(shown, 1 if repeated else _words(kind), repeated, cls, item.name)


def _without_marks(hint: Any) -> tuple[Any, list[Any]]:
    """The type itself, without `None`, and what it is annotated with."""
    marks: list[Any] = []
    while get_origin(hint) in (Annotated, Union, UnionType):
        inner, *others = get_args(hint)
        if get_origin(hint) is Annotated:
            marks += others
        elif len(kinds := [kind for kind in (inner, *others) if kind is not type(None)]) > 1:
            break
        else:
            inner = kinds[0]
        hint = inner
    return hint, [mark for mark in marks if getattr(mark, "__hash__", None)]


def _words(kind: Any) -> float:
    """How many words a value of this type has."""
    if kind is bool:
        return 0
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return len(get_args(kind))
    return math.inf if get_origin(kind) in (tuple, dict) else 1


def refuse_unknown(cls: Any, argv: Sequence[str], command: str) -> None:
    """Raises UsageError, with a remedy, for a flag that the command does not have, and for a word too many."""
    flags = list(flags_of(cls))
    known = {name: flag for flag in flags for name in flag.names}
    free = sum(flag.takes for flag in flags if not flag.names)
    last: Flag | None = None
    left: float = 0  # words that belong to the last flag
    said: list[str] = []
    for place, arg in enumerate(argv):
        name = arg.partition("=")[0].replace("_", "-")
        if name in known:
            last, left, said = known[name], 0 if "=" in arg else known[name].takes, [arg]
        elif re.fullmatch(r"--[a-z][\w.-]*", name, re.IGNORECASE):
            raise UsageError(f"unknown option {name!r}.{_meant(name, list(known), command)}")
        elif left > 0:
            left, said = left - 1, [*said, arg]
        elif free > 0:
            free -= 1
        elif not arg.startswith("-"):
            words = list(takewhile(lambda word: not word.startswith("-"), argv[place:]))
            raise UsageError(_too_many(words, last, said, command))


def _meant(name: str, known: Sequence[str], command: str) -> str:
    """The flags that may have been meant by one that there is not; where to see all, if none is near."""
    section, dot, last = name.removeprefix("--").rpartition(".")
    last = _ELSEWHERE.get(last, last)
    within = [other for other in known if other.startswith(f"--{section}.")] if dot else []
    ends = {other: other.removeprefix("--").rpartition(".")[2] for other in known}
    found = [other for other in within or known if (within or not dot) and ends[other] == last]
    if not found and within:
        near = difflib.get_close_matches(last, [ends[other] for other in within], n=1)
        found = [other for other in within if ends[other] in near]
    if not found and not within:
        found = difflib.get_close_matches(f"--{section}{dot}{last}", known, n=1, cutoff=0.7)
    if found:
        return f" Did you mean {' or '.join(map(repr, found[:4]))}?"
    if within:
        return f" Known: {', '.join(within)}."
    return f" latent-cot {command} --{'help-all' if '--e-step.steps' in known else 'help'} shows what there is."


def _too_many(words: Sequence[str], flag: Flag | None, said: Sequence[str], command: str) -> str:
    """What is said of words that belong to nothing, behind `said`."""
    if flag is None or not flag.takes:
        return f"{words[0]!r:.80} belongs to no option; latent-cot {command} --help shows what there is"
    name, equals, value = said[0].partition("=")
    if equals and flag.takes > 1:
        return f"{name} takes several words; write {name} {' '.join([value, *words])}"
    value = said[-1] if len(said) > 1 else value
    what = f"{name} takes {flag.takes} word{'s' if flag.takes > 1 else ''}, and {words[0]!r:.80} is one more"
    says = explanation(flag.owner, flag.field)
    if "`flag=value`" in says and len(words) == 1 and "=" not in value:
        return f"{what}; write {name} {value}={words[0]}"
    if flag.repeated:
        return f"{what}; write {' '.join(f'{name} {one}' for one in (value, *words))}"
    if "comma-separated" in says:
        return f"{what}; write {name} {','.join([value, *words])}"
    return f"{what}; leave it out, or put a text with spaces into quotes"


def explanation(cls: type, name: str) -> str:
    """The first sentence of the docstring under a field, on one line."""
    source = ast.parse("".join(inspect.getsource(base) for base in cls.__mro__[:-1]))
    below = pairwise(statement for of_class in source.body for statement in getattr(of_class, "body", []))
    for item, text in below:
        if isinstance(item, ast.AnnAssign) and getattr(item.target, "id", "") == name and isinstance(text, ast.Expr):
            return re.split(r"(?<=\w\.)\s", " ".join(str(ast.literal_eval(text.value)).split()))[0]
    return ""
