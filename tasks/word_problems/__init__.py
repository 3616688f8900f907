"""Sums in words, with a calculator. See README.md beside this file."""

from latent_cot.tasks.word_problems.task import WordProblems

TASK = WordProblems()
