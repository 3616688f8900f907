"""Sentence continuation: sampling whole sentences in proportion to a power of their likelihood."""

from latent_cot.tasks.continuation.task import Continuation

TASK = Continuation()
