"""`latent-cot tasks`: which tasks there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot import tasks
from latent_cot.cli.options import Switch, parse, print_json

_HOW_TO_ADD = (
    "A task of your own is a Python file: --task my_task.py. What goes into it, with an example:\n"
    "tasks/README.md in the source."
)


@dataclass(frozen=True)
class TasksOptions:
    """List the tasks: what --task takes, with their test splits, the tools their chains may call, and the figures of
    those that have no right answers."""

    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(TasksOptions, argv, "tasks")
    found = [tasks.load(name) for name in tasks.names()]
    if options.json:
        print_json(
            [
                {
                    "name": task.name,
                    "description": task.description,
                    "tools": task.tools,
                    "splits": task.default_splits,
                    "metrics": {name: metric.description for name, metric in task.metrics.items()},
                }
                for task in found
            ]
        )
        return 0
    for task in found:
        print(f"{task.name}: {task.description}")
        print(f"  tools:  {', '.join(task.tools) or 'none'}")
        print(f"  splits: {', '.join(task.default_splits)}")
        for name, metric in task.metrics.items():
            print(f"  {name}: {metric.description}")
    print(f"\n{_HOW_TO_ADD}")
    return 0
