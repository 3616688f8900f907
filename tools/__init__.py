"""The tools a chain may call: `names` lists the built-in ones, `load` gives one, built-in or the user's own.

Finding the names imports no tool. A tool's module should import anything slow inside `__call__`, so that
listing every tool with its description stays quick.
"""

from __future__ import annotations

if not __name__.startswith("latent_cot."):
    raise ImportError(f"import this package as `latent_cot.tools`, not as `{__name__}`")

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from latent_cot.types import Tool, UsageError, did_you_mean

__all__ = ["load", "names"]

_TEXTS = ("name", "description", "trigger")
_MEMBERS = (*_TEXTS, "request", "__call__")

# Greedy, so that the colon of `C:\tools\mine.py` is part of the path.
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<member>\w+))?", re.DOTALL)


def names() -> list[str]:
    """The built-in tools, sorted. A tool is a module or folder of this package whose name is public."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def load(name: str) -> Tool:
    """A new instance of the tool called `name`.

    `name` is a built-in name (`calculator`), or a Python file (`./my_tool.py`), which is run: load only
    files you trust. The file defines the tool as an instance called `TOOL`, or as its only public class
    with the protocol's members; `my_tool.py:Name` picks one of several classes or instances.

    Raises UsageError for an unknown name, a missing file, and a file that fails or defines no tool.
    """
    if match := _FILE.fullmatch(name):
        return _tool_of(_run(Path(match["path"])), match["path"], match["member"])
    if name in names():
        return _tool_of(importlib.import_module(f"{__name__}.{name}"), f"tools/{name}", None)
    raise UsageError(
        f"unknown tool {name!r}.{did_you_mean(name, names())}"
        " A tool of your own is given as a Python file: ./my_tool.py or ./my_tool.py:ClassName."
    )


def _run(path: Path) -> ModuleType:
    """The module in a user's file. Its siblings are not put on `sys.path`."""
    if not path.is_file():
        several = " Several tools are separated by spaces." if "," in str(path) else ""
        raise UsageError(
            f"{path}: no such tool file. Give an existing .py file or one of: {', '.join(names())}.{several}"
        )
    path = path.resolve()
    # Two files of one name must not share a module; the stem is kept for tracebacks.
    module_name = f"_latent_cot_tool_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UsageError(
            f"{path}:{_line(error, path)}: the tool file could not be run: {type(error).__name__}: {error}."
            f" Run `{Path(sys.executable).name} {path}` to see where it fails."
        ) from error
    return module


def _line(error: BaseException, path: Path) -> int:
    """The last line of the file at `path` that was reached before the error; 1 if none was."""
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == str(path)), 1)


def _tool_of(module: ModuleType, where: str, member: str | None) -> Tool:
    """The tool a module defines: `member` if given, else `TOOL`, else its only class that looks like one."""
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    if member is not None and not hasattr(module, member):
        raise UsageError(f"{where}: defines no {member!r}.{did_you_mean(member, classes)}")
    if member is None and hasattr(module, "TOOL"):
        member = "TOOL"
    if member is None:
        tools = [key for key, value in classes.items() if not _missing(value)]
        if len(tools) > 1:
            raise UsageError(f"{where}: defines several tools: {', '.join(tools)}. Name one: {where}:{tools[0]}")
        if not tools:
            raise UsageError(f"{where}: defines no tool. {_what_is_missing(classes)}")
        member = tools[0]

    tool = getattr(module, member)
    if isinstance(tool, type):
        try:
            tool = tool()
        except Exception as error:
            raise UsageError(
                f"{where}: {member}() failed: {type(error).__name__}: {error}. A tool's class takes no"
                f" arguments, or the file makes the instance itself: TOOL = {member}(...)."
            ) from error
    return _checked(tool, f"{where}: {member}")


def _missing(kind: type) -> list[str]:
    """The members of the protocol that a class lacks."""
    # Not hasattr: every class has a `__call__`, its metaclass's.
    return [name for name in _MEMBERS if not any(name in vars(base) for base in kind.__mro__)]


def _what_is_missing(classes: dict[str, type]) -> str:
    if not classes:
        return f"A tool is a class, or an instance called TOOL, with {', '.join(_MEMBERS)}."
    nearest = min(classes, key=lambda key: len(_missing(classes[key])))
    return f"The class {nearest} lacks {', '.join(_missing(classes[nearest]))} (in the class, not in __init__)."


def _checked(tool: object, where: str) -> Tool:
    """`tool`, if it satisfies the protocol."""
    if not isinstance(tool, Tool):
        lacking = [name for name in _MEMBERS if not hasattr(tool, name)]
        raise UsageError(f"{where} is no tool: it lacks {', '.join(lacking)}.")
    for name in _TEXTS:
        value = getattr(tool, name)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{where}.{name} must be a string that is not empty, not {value!r}.")
    if not callable(tool.request):
        raise UsageError(f"{where}.request must be a method, not {tool.request!r}.")
    return tool
