"""Integer arithmetic with a calculator (section 4.4 of the paper). See README.md beside this file."""

from __future__ import annotations

from latent_cot.tasks.arithmetic.task import Arithmetic

TASK = Arithmetic()

__all__ = ["TASK", "Arithmetic"]
