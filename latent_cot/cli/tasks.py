"""`latent-cot tasks`: which tasks there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot import tasks
from latent_cot.cli.methods import print_list
from latent_cot.cli.options import Switch, parse
from latent_cot.types import MeasuredTask


@dataclass(frozen=True)
class TasksOptions:
    """List the tasks: what --task takes, with their test splits, the tools their chains may call, and the figures of
    those that have no right answers."""

    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(TasksOptions, argv, "tasks")
    found = []
    for name in tasks.names():
        task = tasks.load(name)
        metrics = task.metrics if isinstance(task, MeasuredTask) else {}
        found.append(
            {
                "name": task.name,
                "description": task.description,
                "tools": task.tools,
                "splits": task.default_splits,
                "metrics": {name: metric.description for name, metric in metrics.items()},
            }
        )
    how = "A task of your own is a Python file: --task my_task.py. What goes into it, with an example:\n"
    return print_list(found, how + "tasks/README.md in the source.", json=options.json)
