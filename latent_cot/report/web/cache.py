"""The samples of a run, kept in its folder: the second report of a run needs no model.

The cache is used if it is of the same adapters, the same settings and the same format, else it is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_cot.report.web import FORMAT
from latent_cot.run.run_folder import RunFolder, write_text
from latent_cot.types import UsageError

FILE = "report-samples.json"


def key(folder: RunFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the samples depend on. Raises UsageError if the run has saved no adapters yet."""
    saved = folder.adapters()
    hashes = {}
    for adapter in ("p", "q"):
        with (saved / adapter / "adapter_model.safetensors").open("rb") as file:
            hashes[adapter] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"format": FORMAT, "adapters": hashes, "settings": dict(settings)}


def load(folder: RunFolder, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The samples that were kept under this key; None if there are none, or the file is broken."""
    try:
        kept = folder.read_json(FILE)
    except UsageError:
        return None
    if not isinstance(kept, dict) or kept.get("key") != wanted or not isinstance(kept.get("samples"), dict):
        return None
    samples: dict[str, Any] = kept["samples"]
    return samples


def store(folder: RunFolder, wanted: Mapping[str, Any], samples: Mapping[str, Any]) -> Path:
    """Keep them; returns the file. Raises UsageError if the folder cannot be written."""
    path = folder.path / FILE
    # ASCII: no lone surrogate of a model's text can spoil the file.
    write_text(path, json.dumps({"key": wanted, "samples": samples}, allow_nan=False, separators=(",", ":")) + "\n")
    return path
