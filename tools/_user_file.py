"""The task or tool of a name: a built-in one, or one of a user's own Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal

from latent_cot import disk
from latent_cot.types import UsageError, did_you_mean

Kind = Literal["task", "tool"]

_REMEDY = {
    ("tool", False): 'put @latent_cot.tools.tool(trigger="...") above a function of the request',
    ("task", False): "write a class that extends latent_cot.types.Task",
    ("tool", True): "end the file with 'TOOL = ...', the one that is meant",
    ("task", True): "end the file with 'TASK = ...', the one that is meant",
}
"""Kind, and whether the file defines any -> what to do."""

# Greedy, so that the colon of `C:\tools\mine.py` is part of the path.
_ROWS = "; rows of questions and answers by a YAML file (tasks/qa/README.md), or --task qa --data.options data FILE"
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?", re.DOTALL)


def load(package: str, known: Sequence[str], kind: Kind, name: str, fits: Callable[[Any], bool]) -> tuple[str, Any]:
    """Where a task or tool is, for errors, and the object: the one of `package` whose name is `known`, or that of
    `my_file.py` or `my_file.py:NAME`, as `pick` finds it.

    Raises UsageError for an unknown name, and for a file that is absent, does not run or holds none.
    """
    if name in known:
        where = f"{kind} {name!r}"
        return where, pick(importlib.import_module(f"{package}.{name}"), where, kind, fits)
    file = _FILE.fullmatch(name)
    if file is None:
        raise UsageError(
            f"unknown {kind} {name!r}.{did_you_mean(name, known)} A {kind} of your own is given as a Python file: "
            f"./my_{kind}.py or ./my_{kind}.py:NAME{_ROWS if kind == 'task' else ''}."
        )
    path = disk.expanded(file["path"])
    if not path.is_file():
        several = " Several are separated by spaces." if "," in str(path) else ""
        raise UsageError(f"{path}: no such {kind} file; name a .py file, or one of: {', '.join(known)}.{several}")
    return str(path), pick(run(path), str(path), kind, fits, file["name"])


def pick(module: ModuleType, where: str, kind: Kind, fits: Callable[[Any], bool], name: str | None = None) -> Any:
    """The object of a module called `name`; else the one called `TASK` or `TOOL`; else the only public one that the
    module itself defines and that `fits`. A class is made without arguments.

    Raises UsageError, naming the file `where`, if it cannot be made or it is not clear which one is meant.
    """
    default = kind.upper()
    known = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__ and fits(value)
    ]
    if name is None:
        name = default if hasattr(module, default) else known[0] if len(known) == 1 else None
    if name is None:
        raise UsageError(
            f"{where}: defines {', '.join(known) or f'no {kind}'}, and no {default}; {_REMEDY[kind, bool(known)]} "
            f"(see {kind}s/README.md)"
        )
    if not hasattr(module, name):
        raise UsageError(f"{where}: defines no {name!r}.{did_you_mean(name, known)}")
    value = getattr(module, name)
    if lacking := sorted(getattr(value, "__abstractmethods__", ())) if isinstance(value, type) else []:
        raise UsageError(f"{where}: {name} lacks {', '.join(lacking)} (see {kind}s/README.md)")
    try:
        return value() if isinstance(value, type) else value
    except (Exception, SystemExit) as error:  # the user's constructor may raise anything
        raise UsageError(
            f"{where}: {name}() failed: {type(error).__name__}: {error}; end the file with '{default} = {name}(...)'"
        ) from error


class _AsItIs(SourceFileLoader):
    """Compiles a file anew: what Python has cached is told from it by its size and its second only."""

    def get_code(self, fullname: str) -> CodeType | None:
        return self.source_to_code(self.get_data(self.path), self.path)


_RUN: dict[str, tuple[str, ModuleType]] = {}
"""Name of a module -> a digest of its file's content when it was run, and the module."""


def run(path: Path) -> ModuleType:
    """The module in a file. Its siblings are not put on `sys.path`. It is run once, and again where it has changed: its
    classes stay the same.

    Raises UsageError, naming file and line, for whatever stops it.
    """
    path = path.resolve()
    # Two files of one name must not share a module; the stem is kept for tracebacks.
    name = f"_latent_cot_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    try:
        with disk.opened(path) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error}); check the file") from error
    if name in _RUN and _RUN[name][0] == content:
        return _RUN[name][1]
    _RUN.pop(name, None)
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsItIs(name, str(path)))
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything; say where
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        reached = [frame.lineno for frame in frames if frame.filename == str(path)]
        own = isinstance(error, SyntaxError) and error.filename == str(path)
        line = error.lineno if isinstance(error, SyntaxError) and own else reached[-1] if reached else 1
        raise UsageError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    _RUN[name] = content, module
    return module
