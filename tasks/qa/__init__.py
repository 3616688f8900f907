"""Questions and answers of one's own, without code. See README.md beside this file."""

from latent_cot.tasks.qa.task import QA

TASK = QA()
