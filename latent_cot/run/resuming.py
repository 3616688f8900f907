"""What a run that was stopped, or killed, must have to go on, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from latent_cot import disk
from latent_cot.run.run_folder import Checkpoint, RunFolder
from latent_cot.types import UsageError

SAME = ("method", "q_sees", "seed", "safeguard")
"""A run that goes on must have these, and the adapters' settings, as when it began."""


def refuse_others(checkpoint: Checkpoint, own: Mapping[str, Any], data: str) -> None:
    """Raises UsageError for a checkpoint of other training data, another model or precision, or other settings."""
    what = {
        "training": f"the training data are not those that this run began with; restore them ({data})",
        "settings": f"it was saved with other settings (lora, {', '.join(SAME)}); put config.yaml right",
        "model": "it was saved with another model, or in another precision; restore it, or give the `precision`",
    }
    for name, why in what.items():
        if checkpoint.state.get(name) != own[name]:
            raise UsageError(f"{checkpoint.path}: {why}, or start again in another --output-dir")


def refuse_without_checkpoint(folder: RunFolder) -> None:
    """Raises UsageError for a run that has saved its state: it would begin anew, over what it has found."""
    status = "finished" if (folder.path / "results.json").exists() else None
    with suppress(UsageError):  # no run.json: it was killed when it had hardly begun
        status = status or folder.about.status
    if status in ("finished", "stopped"):
        remedy = "restore them, or start again in another --output-dir"
        raise UsageError(f"{folder.path}: is {status}, and its checkpoints are gone; {remedy}")


def changed_settings(checkpoint: Checkpoint, folder: RunFolder, settings: Mapping[str, Any]) -> Iterator[str]:
    """A sentence on each setting in config.yaml that has another value than when the state was saved.

    Args:
        settings: all that there are in this version, as they are now.

    Raises UsageError where one is missing that was there: a default would take its place.
    """
    file = folder.path / "config.yaml"
    saved = disk.decoded(dict[str, Any], checkpoint.state.get("config", {}), f"{checkpoint.path}: config")
    there, here, known = (dict(_leaves(record)) for record in (saved, folder.config, settings))
    if lacking := [name for name in there if name in known and name not in here]:
        raise UsageError(f"{file}: lacks {', '.join(lacking[:5])}, which it had; restore it")
    for name, value in here.items():
        if name in there and value != there[name] and name != "output_dir":
            yield f"config.yaml has {name} {value!r:.80} now; it was {there[name]!r:.80}."


def _leaves(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict) and name != "options":
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def short_logs(checkpoint: Checkpoint, folder: RunFolder) -> Iterator[str]:
    """A sentence on each log that ends before the state was saved."""
    for name, size in checkpoint.log_sizes.items():
        there = (folder.path / name).stat().st_size if (folder.path / name).exists() else 0
        if there < size:
            yield f"{name} has lost its end: {size - there} bytes of what was logged before."
