"""Subjectivity classification (section 4.3 of the paper). See README.md beside this file."""

from latent_cot.tasks.subjectivity.task import Subjectivity

TASK = Subjectivity()
