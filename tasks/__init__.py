"""The tasks, found by name or loaded from a user's own file.

Each folder beside this file is a task: its `__init__.py` exposes `TASK`, an instance that satisfies
`latent_cot.types.Task`. Nothing is imported until it is asked for. How to add one: `tasks/README.md`.
"""

from __future__ import annotations

if not __name__.startswith("latent_cot."):
    raise ImportError(f"this folder is the package latent_cot.tasks, not {__name__!r}: write 'import latent_cot.tasks'")

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from latent_cot.types import Task, UsageError, did_you_mean

__all__ = ["load", "names"]

_ATTRIBUTES = tuple(Task.__annotations__)
_METHODS = tuple(name for name, member in vars(Task).items() if name[0] != "_" and callable(member))


def names() -> list[str]:
    """The built-in tasks, sorted, without importing any of them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg and not m.name.startswith("_"))


def load(name_or_path: str) -> Task:
    """The built-in task of this name, or the one that a Python file defines.

    A file is meant if the text ends with `.py` or has a slash in it. It is the user's own code and is run.
    Raises UsageError for an unknown name, and for a file that is absent, does not run or holds no task.
    """
    if name_or_path.endswith(".py") or "/" in name_or_path or "\\" in name_or_path:
        return _from_file(Path(name_or_path).expanduser())
    known = names()
    if name_or_path not in known:
        raise UsageError(
            f"unknown task {name_or_path!r}.{did_you_mean(name_or_path, known)} "
            "A task of your own is named by its file, e.g. my_task.py"
        )
    return _checked(importlib.import_module(f"{__name__}.{name_or_path}").TASK, f"task {name_or_path!r}")


def _from_file(path: Path) -> Task:
    module = _run(path)
    if hasattr(module, "TASK"):
        return _checked(module.TASK, f"{path}: TASK")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__  # defined here, not imported
        and all(callable(getattr(value, method, None)) for method in _METHODS)
    ]
    if len(classes) != 1:
        found = ", ".join(value.__name__ for value in classes) or "no task"
        raise UsageError(
            f"{path}: found {found}; end the file with 'TASK = YourTask()', an object with the methods "
            f"{', '.join(_METHODS)} (see tasks/README.md)"
        )
    try:
        instance = classes[0]()
    except Exception as error:  # the user's constructor may raise anything
        raise UsageError(
            f"{path}: {classes[0].__name__}() failed: {type(error).__name__}: {error}; "
            f"end the file with 'TASK = {classes[0].__name__}(...)'"
        ) from error
    return _checked(instance, f"{path}: {classes[0].__name__}")


def _run(path: Path) -> ModuleType:
    """Import the file under a name of its own, so that two files of one name do not meet."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; name a Python file that defines TASK, or one of: {', '.join(names())}")
    name = f"latent_cot_user_task_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file; a task's file ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything; say where
        del sys.modules[name]
        raise UsageError(f"{path}{_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """`":12"`, the last line of the user's file that the error went through."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f":{lines[-1]}" if lines else ""


def _checked(task: Any, where: str) -> Task:
    """The task itself if it has everything that the protocol asks for."""
    missing = [member for member in (*_ATTRIBUTES, *_METHODS) if not hasattr(task, member)]
    if missing:
        raise UsageError(f"{where}: not a task, it lacks {', '.join(missing)} (see tasks/README.md)")
    if isinstance(task, type):
        raise UsageError(f"{where}: a class, not an instance; write 'TASK = {task.__name__}()'")
    for member in ("tools", "default_splits"):
        if not isinstance(getattr(task, member), tuple):
            raise UsageError(f"{where}: {member} must be a tuple of names, e.g. ('a',), not {getattr(task, member)!r}")
    assert isinstance(task, Task)
    return task
