"""The tasks, found by name or loaded from a user's own file.

Each folder beside this file is a task: its `__init__.py` exposes `TASK`, an instance of a
`latent_cot.types.Task`. Nothing is imported until it is asked for. How to add one: `tasks/README.md`.
"""

from __future__ import annotations

if not __name__.startswith("latent_cot."):
    raise ImportError(f"this folder is the package latent_cot.tasks, not {__name__!r}: write 'import latent_cot.tasks'")

import pkgutil
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from latent_cot import disk
from latent_cot.tools import _user_file
from latent_cot.tools._foreign import guard_needed, guard_task, needed
from latent_cot.types import Metric, Task, UsageError

__all__ = ["FILES", "code_of", "files_of", "load", "names", "settings_of"]

FILES = (".yaml", ".yml")
"""How the name of a file ends that describes a task of questions and answers."""


def names() -> list[str]:
    """The built-in tasks, sorted, without importing any of them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg and not m.name.startswith("_"))


def load(name_or_path: str, options: Mapping[str, str] | None = None) -> Task:
    """The built-in task of this name, or the one that a YAML file describes or a Python file defines, as it is with
    these options.

    The latter, `my_task.py` or `my_task.py:NAME`, is the user's own code and is run; so is a grader that a YAML file or
    an option names. Both are called within limits (`tools/_foreign.py`). Raises UsageError for an unknown name, for
    several, and for a file that is absent, does not run or holds no task.
    """
    if "," in name_or_path and set(name_or_path.split(",")) <= set(names()):
        raise UsageError(f"--task {name_or_path}: a run is of one; give one task")
    options = options or {}
    described = name_or_path.endswith(FILES)
    own_code = name_or_path not in names() and not described
    task = _described(name_or_path, options) if described else _found(name_or_path)
    if own_code:
        task = needed(name_or_path, "configured", task.configured, options)
    elif not described:
        task = task.configured(options)
    if not own_code and not task.code:
        return task
    guarded = guard_task(task, name_or_path if own_code else f"task {task.name}, {', '.join(task.code)}")
    if own_code:
        guard_needed(guarded, name_or_path)
    # What is guarded can be copied, but not pickled: then it is loaded again. (`copy` asks the class, and not this.)
    named = name_or_path if name_or_path in names() else str(disk.expanded(name_or_path).absolute())
    again = load, (named, dict(options))
    object.__setattr__(guarded, "__reduce_ex__", lambda protocol: again)
    return guarded


def _described(file: str, options: Mapping[str, str]) -> Task:
    from latent_cot.tasks.qa.task import from_file

    return from_file(file, options)


def _found(name_or_path: str) -> Task:
    where, task = _user_file.load(
        __name__,
        names(),
        "task",
        name_or_path,
        lambda value: isinstance(value, Task) or (isinstance(value, type) and issubclass(value, Task)),
    )
    if not isinstance(task, Task):
        raise UsageError(f"{where}: {type(task).__name__} is no task; its class has to extend latent_cot.types.Task")
    lacking = [name for name in ("name", "description", "default_splits") if not hasattr(task, name)]
    if lacking:
        raise UsageError(f"{where}: the task lacks {', '.join(lacking)} (see tasks/README.md)")
    if task.metrics and type(task).measure is Task.measure:
        raise UsageError(f"{where}: {task.name} has `metrics`, and no `measure` that finds them (see tasks/README.md)")
    for member in ("tools", "default_splits"):
        if not isinstance(getattr(task, member), tuple):
            raise UsageError(f"{where}: {member} must be a tuple of names, e.g. ('a',), not {getattr(task, member)!r}")
    for members, kind, what in _MEMBERS:
        for member in members:
            if not isinstance(value := getattr(task, member), kind):
                raise UsageError(f"{where}: {member} must be {what}, not {value!r:.80}")
    if any(not isinstance(metric, Metric) for metric in task.metrics.values()):
        raise UsageError(f"{where}: `metrics` must map names to latent_cot.types.Metric")
    step, characters = task.step_delimiter or "", task.allowed_characters
    if characters is not None and (lacking := sorted(set(step) - set(characters))):
        raise UsageError(
            f"{where}: no step could end: {lacking[0]!r} of the step_delimiter is not among the allowed_characters"
        )
    return task


_MEMBERS = (
    (("name", "description", "opening"), str, "a text"),
    (("stop", "allowed_characters", "step_delimiter", "portable"), (str, type(None)), "a text or None"),
    (("metrics", "mistakes"), Mapping, "a mapping"),
)
"""Attributes of a task, and what they may be."""


def code_of(name: str, options: Mapping[str, str]) -> list[str]:
    """The user's Python files that a task runs: its own, or those that a YAML file or its options name."""
    if name.endswith(FILES) or name in names():
        return list(load(name, options).code)
    return [name]


def settings_of(file: str) -> dict[str, Any]:
    """The settings of a YAML file, without its rows and the folders of what it names. Raises UsageError for a file that
    cannot be read."""
    from latent_cot.tasks.qa.spec import read_spec

    spec = read_spec(file)
    tools, grade = [PurePath(tool).name for tool in spec.tools], spec.grade and PurePath(spec.grade).name
    return {**spec.model_dump(mode="json", exclude={"data", "test"}), "tools": tools, "grade": grade}


def files_of(file: str) -> dict[str, str]:
    """The settings of a YAML file that may name files, with commas between these and whole paths. Raises UsageError for
    one that cannot be read."""
    from latent_cot.tasks.qa.spec import read_spec

    spec = read_spec(file)
    data, tools = ",".join(spec.data), ",".join(spec.tools)
    return {"data": data, "test": spec.test, "tools": tools, "grade": spec.grade or ""}
