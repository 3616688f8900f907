"""Integer arithmetic with a calculator (section 4.4 of the paper). See README.md beside this file."""

from latent_cot.tasks.arithmetic.task import Arithmetic

TASK = Arithmetic()
