"""Subjectivity classification (section 4.3 of the paper). See README.md beside this file."""

from __future__ import annotations

from latent_cot.tasks.subjectivity.task import Subjectivity

TASK = Subjectivity()

__all__ = ["TASK", "Subjectivity"]
