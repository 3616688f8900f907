"""The samples of a run, kept in its folder: the second report of a run needs no model.

The cache is used if it is of the same adapters, the same settings and the same format, else it is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from latent_cot.report.web import FORMAT
from latent_cot.run.run_folder import RunFolder, write_text
from latent_cot.types import UsageError

FILE = "report-samples.json"


def key(folder: RunFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the samples depend on. Raises UsageError if the run has saved no adapters yet."""
    files = {adapter: folder.adapters() / adapter / "adapter_model.safetensors" for adapter in ("p", "q")}
    hashes = {adapter: hashlib.sha256(file.read_bytes()).hexdigest() for adapter, file in files.items()}
    return {"format": FORMAT, "adapters": hashes, "settings": dict(settings)}


def load(folder: RunFolder, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The samples that were kept under this key; None if there are none, or the file is broken."""
    try:
        kept = folder.read_json(FILE)
    except UsageError:
        return None
    found: dict[str, Any] | None = kept["samples"] if isinstance(kept, dict) and kept.get("key") == wanted else None
    return found


def store(folder: RunFolder, wanted: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Keep them. Raises UsageError if the folder cannot be written."""
    # ASCII: no lone surrogate of a model's text can spoil the file.
    text = json.dumps({"key": wanted, "samples": samples}, allow_nan=False, separators=(",", ":"))
    write_text(folder.path / FILE, text + "\n")
