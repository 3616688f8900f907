"""`latent-cot methods`, `tasks` and `tools`: what there is, and how to add to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_cot import tasks, tools
from latent_cot.cli import fill
from latent_cot.cli.options import Switch, parse, print_json
from latent_cot.config.methods import METHODS
from latent_cot.types import UsageError


@dataclass(frozen=True)
class ListOptions:
    """How a list is printed."""

    json: Switch = False
    """Print JSON."""


class MethodsOptions(ListOptions):
    """List the methods: what `latent-cot fit --method` and `latent-cot compare --methods` take."""


class TasksOptions(ListOptions):
    """List the tasks: what --task takes, with their test splits, the tools their chains may call, and the figures of
    those that have no right answers."""


class ToolsOptions(ListOptions):
    """List the tools that a chain can call while it is being generated: what --rollout.tools takes."""


def _methods() -> list[dict[str, Any]]:
    return [{"name": name, "description": method.description} for name, method in METHODS.items()]


def _tasks() -> list[dict[str, Any]]:
    return [
        {
            "name": task.name,
            "description": task.description,
            "tools": task.tools,
            "splits": task.default_splits,
            "metrics": {name: metric.description for name, metric in task.metrics.items()} if task.is_measured else {},
        }
        for task in map(tasks.load, tasks.names())
    ]


def _tools() -> list[dict[str, Any]]:
    loaded = map(tools.load, tools.names())
    return [{"name": tool.name, "description": tool.description, "trigger": tool.trigger} for tool in loaded]


_OWN = "A {} of your own is a Python file: {}. What goes into it, with an example: {}/README.md in the source."
_LISTS = {
    "methods": (
        MethodsOptions,
        _methods,
        "Each is in a file of latent_cot/methods/, EM in latent_cot/em.py; settings: latent-cot fit --help-all.",
    ),
    "tasks": (
        TasksOptions,
        _tasks,
        "Rows of questions and answers need no code (tasks/qa/README.md). "
        + _OWN.format("task", "--task my_task.py", "tasks"),
    ),
    "tools": (ToolsOptions, _tools, _OWN.format("tool", "--rollout.tools ./my_tool.py", "tools")),
}


def run(argv: Sequence[str], command: str) -> int:
    """The command; returns 0."""
    kind, find, how_to_add = _LISTS[command]
    if argv and not argv[0].startswith("-"):
        raise UsageError(
            f"latent-cot {command} lists those that are built in, and takes no {argv[0]!r:.80}. {how_to_add}"
        )
    options = parse(kind, argv, command)
    found = find()
    if options.json:
        print_json(found)
        return 0
    for one in found:
        lines = [f"{one['name']}: {one['description']}"]
        for key in [key for key in one if key not in ("name", "description")]:
            value = one[key]
            if isinstance(value, Mapping):
                lines += [f"  {name}: {text}" for name, text in value.items()]
            else:
                lines += [f"  {key}: {repr(value) if isinstance(value, str) else ', '.join(value) or 'none'}"]
        for line in lines:
            print(fill(line, "      ") if sys.stdout.isatty() else line)
    print(f"\n{fill(how_to_add) if sys.stdout.isatty() else how_to_add}")
    return 0
