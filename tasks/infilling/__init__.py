"""Story infilling (section 4.2 of the paper). See README.md beside this file."""

from latent_cot.tasks.infilling.task import Infilling

TASK = Infilling()
