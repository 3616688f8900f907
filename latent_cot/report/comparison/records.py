"""A finished run as a record, from its folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from latent_cot import tasks
from latent_cot.config.methods import METHODS
from latent_cot.config.schema import tested_splits
from latent_cot.config.settings import flag, from_dict, other_settings, to_dict
from latent_cot.report.comparison.plan import PlannedRun, command_of
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError, finite

Record = Mapping[str, Any]
"""As `record_of` makes it and comparison.json has it."""


def is_finished(run: PlannedRun) -> bool:
    """Whether the run is there and complete. Raises UsageError, naming what differs, if another one is."""
    file = run.folder / "config.yaml"
    if not file.exists():
        return False
    if other := other_settings(from_dict(RunFolder.open(run.folder).config, str(file)), run.config):
        what = "; ".join(f"{flag(path)} {old} there, {new} here" for path, old, new in other[:5])
        raise UsageError(
            f"{run.folder}: holds a run with other settings ({what}); compare in another --output-dir, or remove it"
        )
    return (run.folder / "results.json").exists()


def record_of(run: PlannedRun, preset: str | None) -> dict[str, Any]:
    """A finished run, as comparison.json has it; splits and reasoners in the configuration's order.

    Raises UsageError if its files cannot be read.
    """
    folder = RunFolder.open(run.folder)
    results, about = folder.results, folder.about
    rounds = ((kind, results.get(kind)) for kind in _FIGURES)
    last = {kind: found[max(found, key=int)] if found else {} for kind, found in rounds}
    shown = _in_order(run, last)
    if "questions" not in results or not (shown.get("accuracy") or shown.get("metrics")):
        why = "does not say of which questions its figures are, or has none"
        raise UsageError(f"{folder.path / 'results.json'}: {why}; take the folder away, and it is run again")
    return {
        "variant": run.variant,
        "method": run.config.method,
        "seed": run.config.seed,
        **shown,
        "questions": results["questions"],
        "training": results.get("training", ""),
        "task_files": results.get("task_files"),
        "weights": results.get("weights", ""),
        "posterior": results["posterior"],
        "budget": {**results["budget"], "planned": METHODS[run.config.method].planned(run.config)._asdict()},
        "resources": results["resources"],
        "command": command_of(run, preset),
        "folder": str(run.folder),
        "config": to_dict(run.config),
        **{name: getattr(about, name) for name in ("versions", "platform", "torch_threads")},
    }


_FIGURES = ("accuracy", "metrics", "right")


def _in_order(run: PlannedRun, found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by reasoner and split, in the configuration's order: JSON has them in that of the alphabet."""
    task = tasks.load(run.config.task, run.config.data.options)
    splits = tested_splits(run.config, task)
    reasoners = METHODS[run.config.method].reasoners(run.config, task.answer_given)
    for kind, by in found.items():
        for name in by.keys() & set(reasoners):
            if lacking := [split for split in splits if split not in by[name]]:
                file = run.folder / "results.json"
                remedy = "take the folder away, and it is run again"
                raise UsageError(f"{file}: has no {kind} of {name} on {lacking[0]}; {remedy}")
    return {
        kind: {name: {split: found[kind][name][split] for split in splits} for name in reasoners if name in found[kind]}
        for kind in _FIGURES
        if kind in found
    }


def to_text(found: Mapping[str, Any]) -> str:
    """comparison.json: one line a run, a row or a difference."""
    line = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    lines = []
    for key, value in {"generated": "by latent-cot compare: not to be edited", **finite(found)}.items():
        many = isinstance(value, list) and any(isinstance(one, dict) for one in value)
        text = "[\n" + ",\n".join(map(line, value)) + "\n]" if many else line(value)
        lines.append(f"{line(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
