"""The folder of a run, and the files that its configuration names. Importing this loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from latent_cot import disk
from latent_cot.config.schema import RunConfig
from latent_cot.tasks import FILES, code_of, files_of, settings_of
from latent_cot.tasks.common import digest
from latent_cot.tasks.files import in_full, is_source, sources
from latent_cot.types import UsageError

DATA_OPTIONS = ("data", "test", "tests")
"""Options of tasks that name files of rows, with commas between them."""
CODE_OPTIONS = ("grade", "tools")
"""Options that name files of code."""
_LARGEST_FILE = 1 << 20
"""Of a task, in bytes."""


def task_digest(config: RunConfig) -> str | None:
    """A digest of the user's own task, which a YAML file or code describes, and of `rollout.tools`; None for a built-in
    one. (Of the data there is another digest.)"""
    described = [settings_of(config.task)] if config.task.endswith(FILES) else []
    named = [
        *code_of(config.task, config.data.options),
        *(tool for tool in config.rollout.tools or () if ".py" in tool),
    ]
    code = (re.sub(r"(?<=\.py):\w+$", "", name) for name in named)
    texts = [disk.user_text(file, _LARGEST_FILE) for file in dict.fromkeys(code) if Path(file).is_file()]
    return digest([*described, *texts]) if described or texts else None


def changed_task(state: Mapping[str, Any], config: RunConfig) -> Iterator[str]:
    """A sentence where the files of the task are not those of a run that has saved this state."""
    if state.get("task") not in (None, task_digest(config)):
        effect = "prompts, grades and tests may be others"
        yield f"The task's files have changed since the run began ({config.task}): {effect}; restore them."


def default_folder(config: RunConfig) -> str:
    """runs/TASK-MODEL-seedSEED, or runs/TASK-METHOD-MODEL-seedSEED if the method is not EM."""
    model = disk.expanded(config.model)
    name = (model.resolve() if model.is_dir() else model).name or "model"
    method = "" if config.method == "em" else f"-{config.method}"
    return f"runs/{Path(config.task).stem}{method}-{name}-seed{config.seed}"


def check_writable(path: Path, option: str) -> None:
    """Raises UsageError, naming the option, if the file cannot be written: better before the work that would be lost
    than after it. What is in it stays."""
    what = None
    if path.is_dir():
        what = "a folder"
    elif disk.is_special(path):
        what = "no regular file"
    elif not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first, or name another")
    if what is not None:
        raise UsageError(f"{option} {path}: {what}; name a file")
    places = (path.absolute().parent, *([path] if os.path.exists(path) else []))  # it is put in place by renaming
    if not all(os.access(place, os.W_OK) for place in places):
        raise UsageError(f"{option} {path}: cannot be written; name another file")


def train_files(config: RunConfig) -> list[str]:
    """The names in `data.train_file`."""
    return sources(config.data.train_file) if config.data.train_file else []


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Files and folders in full, so that a run can be resumed and evaluated from anywhere."""

    def listed(text: str) -> str:
        names = (name.strip() for name in text.split(","))
        return ",".join(in_full(name) if Path(name.partition("?")[0]).suffix or "/" in name else name for name in names)

    files = ",".join(map(in_full, train_files(config))) or None
    tools = config.rollout.tools
    if tools is not None:  # FILE.py or FILE.py:NAME
        tools = tuple(in_full(tool) if ".py" in tool else tool for tool in tools)
    is_file = config.task.endswith(FILES) or re.search(r"\.py(:\w+)?$", config.task)  # FILE.py:NAME too
    task = in_full(config.task) if is_file else config.task
    model = in_full(config.model) if (disk.expanded(config.model) / "config.json").is_file() else config.model
    of_files = (*DATA_OPTIONS, *CODE_OPTIONS)
    options = {name: listed(text) if name in of_files else text for name, text in config.data.options.items()}
    splits = config.evaluation.splits
    if splits is not None:  # a split is a file where it has a file's name: there may be a file, or a folder, `test`
        splits = tuple(in_full(name) if is_source(name) else name for name in splits)
    return replace(
        config,
        task=task,
        model=model,
        evaluation=replace(config.evaluation, splits=splits),
        data=replace(config.data, train_file=files, options=options),
        rollout=replace(config.rollout, tools=tools),
    )


def refuse_moved(config: RunConfig, file: Path, *, model: bool = True, data: bool = True) -> None:
    """Raises UsageError where a file or folder of this run, whose configuration is `file`, is not where it was: it
    names them by absolute paths. `model` and `data`: look for the model and for files of rows too. A task's YAML file
    is read for what it names."""
    named = [(file, "model", config.model)] if model else []
    named.append((file, "task", config.task))
    named += [(file, "rollout.tools", tool) for tool in config.rollout.tools or ()]
    if data:
        named += [(file, "data.train_file", name) for name in train_files(config)]
    _refuse_absent(named)
    options, asked = config.data.options, (*CODE_OPTIONS, *(DATA_OPTIONS if data else ()))
    settings = [(file, f"data.options.{key}", options[key]) for key in asked if key in options]
    if config.task.endswith(FILES):
        own = files_of(config.task)
        settings += [(Path(config.task), key, own[key]) for key in asked if key in own.keys() - options.keys()]
    _refuse_absent((where, key, name) for where, key, text in settings for name in sources(text))


def _refuse_absent(named: Iterable[tuple[Path, str, str]]) -> None:
    """Raises UsageError for the first that is not there. `named`: the file that names it, by which key, its name."""
    for where, key, name in named:
        path = name if os.path.exists(name) else re.sub(r"(?<=\.py):\w+$", "", name.partition("?")[0])
        if Path(path).is_absolute() and not os.path.exists(path):
            why = f"its `{key}` is {path}, which is not there any more"
            raise UsageError(f"{where}: {why}; write there where it is now")
