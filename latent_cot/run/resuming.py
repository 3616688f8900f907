"""Whether a run that is in a folder can go on, as it is asked to, and what there is to say of it. Importing this loads
no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from latent_cot import disk
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import from_dict, leaves, other_settings, to_dict
from latent_cot.run.run_folder import Checkpoint, RunFolder
from latent_cot.types import UsageError

SAME = ("method", "q_sees", "seed", "safeguard")
"""A run that goes on must have these, and the adapters' settings, as when it began."""


def is_run(path: Path) -> bool:
    """Whether there is a run in the folder."""
    return (path / "config.yaml").exists()


def own_settings(path: Path) -> RunConfig:
    """The configuration of the run in the folder. Raises UsageError as `RunFolder.open`."""
    own = from_dict(RunFolder.open(path).config, str(path / "config.yaml"))
    return replace(own, output_dir=str(path))


def contradictions(own: RunConfig, asked: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Each setting in which a run cannot go on as it is asked to: its name, its value in the run, and the one asked
    for. A run can go on to more rounds."""
    for name, there, wanted in other_settings(own, asked):
        if name != "rounds" or wanted < there:
            yield name, there, wanted


def with_more_rounds(own: RunConfig, asked: RunConfig) -> RunConfig:
    """The run's own configuration, with the rounds that are asked for where its method reads them."""
    reads = any(name == "rounds" for name, _, _ in other_settings(own, asked))
    return replace(own, rounds=asked.rounds) if reads else own


def is_finished(path: Path, config: RunConfig) -> bool:
    """Whether the run is finished, and is not asked for more: by `config`, or by its config.yaml as it is now."""
    folder = RunFolder.open(path)
    if config.rounds != own_settings(path).rounds or not (path / "results.json").exists():
        return False
    with suppress(UsageError):  # no run.json
        if folder.about.status == "finished":
            checkpoint = folder.latest()
            return checkpoint is None or not any(changed_settings(checkpoint, folder, to_dict(config)))
    return False


def refuse_others(checkpoint: Checkpoint, own: Mapping[str, Any], data: str) -> None:
    """Raises UsageError for a checkpoint of other training data, another model or precision, or other settings."""
    saved = checkpoint.state.get("settings")
    there = dict(leaves(saved)) if isinstance(saved, Mapping) else {}
    other = (
        f"{name} {there[name]!r:.80}, and config.yaml has {value!r:.80}"
        for name, value in leaves(own["settings"])
        if there.get(name, value) != value
    )
    what = {  # the settings first: other ones may draw other data
        "settings": f"it was saved with {next(other, 'other settings')}; put config.yaml right",
        "training": f"the training data are not those that this run began with; restore them ({data})",
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
    there, here, known = (dict(leaves(record)) for record in (saved, folder.config, settings))
    if lacking := [name for name in there if name in known and name not in here]:
        raise UsageError(f"{file}: lacks {', '.join(lacking[:5])}, which it had; restore it")
    for name, value in here.items():
        if name in there and value != there[name] and name != "output_dir":
            yield f"config.yaml has {name} {value!r:.80} now; it was {there[name]!r:.80}."


def short_logs(checkpoint: Checkpoint, folder: RunFolder) -> Iterator[str]:
    """A sentence on each log that ends before the state was saved."""
    for name, size in checkpoint.log_sizes.items():
        there = (folder.path / name).stat().st_size if (folder.path / name).exists() else 0
        if there < size:
            yield f"{name} has lost its end: {size - there} bytes of what was logged before."
