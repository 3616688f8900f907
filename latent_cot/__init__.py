"""Teach a language model to reason by treating its chain of thought as a latent variable.

    import latent_cot as lc

    run = lc.load("runs/mine")         # or lc.train(task="arithmetic", rounds=1)
    run.sample("6 - 0 - 4 - 8", n=8)   # rationales with log q, log-reward and importance weights

`docs/python.md` is the guide. Importing this loads nothing: each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latent_cot import tasks, tools
    from latent_cot.api.rationales import LoggedRationales, Rationales
    from latent_cot.api.results import Evaluation, Results
    from latent_cot.api.run import Run, load
    from latent_cot.api.training import Callback, Unit, configure, resume, train
    from latent_cot.config.schema import RunConfig
    from latent_cot.methods.scored import ScoredRationale
    from latent_cot.run.schemas import LoggedRationale
    from latent_cot.tools import tool
    from latent_cot.types import (
        DataRequest,
        Example,
        Rationale,
        Reasoner,
        Task,
        TaskData,
        Tool,
        ToolError,
        UsageError,
    )

__all__ = [
    # runs
    "load",
    "train",
    "resume",
    "configure",
    "Run",
    "RunConfig",
    "Unit",
    "Callback",
    "Reasoner",
    # what they give
    "Rationales",
    "ScoredRationale",
    "LoggedRationales",
    "LoggedRationale",
    "Results",
    "Evaluation",
    # tasks and tools of one's own
    "tasks",
    "tools",
    "Task",
    "Tool",
    "tool",
    "Example",
    "Rationale",
    "DataRequest",
    "TaskData",
    "UsageError",
    "ToolError",
]

_MODULES = {
    "latent_cot.api.run": ("load", "Run"),
    "latent_cot.api.training": ("train", "resume", "configure", "Unit", "Callback"),
    "latent_cot.api.rationales": ("Rationales", "LoggedRationales"),
    "latent_cot.api.results": ("Results", "Evaluation"),
    "latent_cot.config.schema": ("RunConfig",),
    "latent_cot.methods.scored": ("ScoredRationale",),
    "latent_cot.run.schemas": ("LoggedRationale",),
    "latent_cot.tools": ("tool",),
    "latent_cot.types": (
        *("Task", "Tool", "Example", "Rationale", "Reasoner", "DataRequest", "TaskData"),
        *("UsageError", "ToolError"),
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("tasks", "tools"):
        return importlib.import_module(f"latent_cot.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'latent_cot' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
