"""Whether a run that is in a folder already can go on as it is asked to. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import from_dict, other_settings, to_dict
from latent_cot.run.resuming import changed_settings
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError


def is_there(path: Path) -> bool:
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


def is_done(path: Path, config: RunConfig) -> bool:
    """Whether the run is finished, and is not asked for more: by `config`, or by its config.yaml as it is now."""
    folder = RunFolder.open(path)
    if config.rounds != own_settings(path).rounds or not (path / "results.json").exists():
        return False
    with suppress(UsageError):  # no run.json
        if folder.about.status == "finished":
            checkpoint = folder.latest()
            return checkpoint is None or not any(changed_settings(checkpoint, folder, to_dict(config)))
    return False
