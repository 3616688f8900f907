"""Random numbers: see `README.md`."""

from __future__ import annotations

from latent_cot.tasks.random_numbers.task import RandomNumbers

__all__ = ["TASK", "RandomNumbers"]

TASK = RandomNumbers()
