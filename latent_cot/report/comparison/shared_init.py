"""Round 0 is the same for all methods that train: a comparison does it once for each seed and keeps it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from latent_cot.config.schema import SECTIONS
from latent_cot.config.settings import to_dict
from latent_cot.report.comparison.plan import IGNORED, Run

LATER = ("method", "q_sees", "rounds", "e_step", "m_step", "evaluation", *SECTIONS.values())
"""Settings that round 0 does not depend on."""


def folder_of(run: Run) -> Path:
    """Where the round 0 of a run is kept. Runs have it in common if they agree in everything that it depends on.

    It is beside the variants' folders; no variant's name begins with a full stop.
    """
    settings = {name: value for name, value in to_dict(run.config).items() if name not in (*LATER, *IGNORED)}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    return run.folder.parents[1] / ".round-0" / f"seed{run.config.seed}-{digest}"
