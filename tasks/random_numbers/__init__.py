"""Random numbers: see `README.md`."""

from latent_cot.tasks.random_numbers.task import RandomNumbers

TASK = RandomNumbers()
