"""The folder of a run, and the files that its configuration names. Importing this loads no torch."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from latent_cot import disk
from latent_cot.config.schema import RunConfig
from latent_cot.tasks import FILES
from latent_cot.tasks.files import in_full, sources
from latent_cot.types import UsageError

FILE_OPTIONS = ("data", "grade", "test", "tests", "tools")
"""Options of tasks that name files, with commas between them."""


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
    elif os.path.lexists(path) and not path.is_symlink() and not path.is_file():
        what = "no regular file"
    elif not path.absolute().parent.is_dir():
        what = "its folder does not exist"
    if what is not None:
        raise UsageError(f"{option} {path}: {what}; name a file")
    if not os.access(path if os.path.exists(path) else path.absolute().parent, os.W_OK):
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
    task = in_full(config.task) if config.task.endswith((".py", *FILES)) else config.task
    model = in_full(config.model) if (disk.expanded(config.model) / "config.json").is_file() else config.model
    options = {name: listed(text) if name in FILE_OPTIONS else text for name, text in config.data.options.items()}
    splits = config.evaluation.splits
    if splits is not None:  # a split is a file where it has a file's name: there may be a file, or a folder, `test`
        splits = tuple(in_full(name) if Path(name).suffix else name for name in splits)
    return replace(
        config,
        task=task,
        model=model,
        evaluation=replace(config.evaluation, splits=splits),
        data=replace(config.data, train_file=files, options=options),
        rollout=replace(config.rollout, tools=tools),
    )


def refuse_moved(config: RunConfig, file: Path, *, model: bool = True) -> None:
    """Raises UsageError where a file or folder of this run, whose configuration is `file`, is not where it was: it
    names them by absolute paths. `model`: look for the model too."""
    named = [("model", config.model)] if model else []
    named.append(("task", config.task))
    named += [("rollout.tools", re.sub(r"(?<=\.py):\w+$", "", tool)) for tool in config.rollout.tools or ()]
    for name in train_files(config):
        named.append(("data.train_file", name if os.path.exists(name) else name.partition("?")[0]))
    for key, name in named:
        if Path(name).is_absolute() and not os.path.exists(name):
            raise UsageError(f"{file}: its `{key}` is {name}, which is not there any more; write there where it is now")
