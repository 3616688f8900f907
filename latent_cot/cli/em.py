"""`latent-cot em`: one run of the EM loop, which is `latent-cot fit` without a choice of the method."""

from __future__ import annotations

from collections.abc import Sequence

from latent_cot.cli import fit


def run(argv: Sequence[str]) -> int:
    """The command. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM."""
    return fit.run(argv, "em")
