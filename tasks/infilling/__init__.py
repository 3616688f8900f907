"""Story infilling (section 4.2 of the paper). See README.md beside this file."""

from __future__ import annotations

from latent_cot.tasks.infilling.task import Infilling

TASK = Infilling()

__all__ = ["TASK", "Infilling"]
