"""Rollouts ahead: those of the next steps, by an engine elsewhere (`model.engine`), while the trainer trains.

A step has the questions and the seeds that it would have had in its turn; only the adapter is some steps older, and
so is the buffer, where rationales are replayed. None is used twice, and what a stopped run had sampled ahead is sampled
again when it goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from latent_cot.model.engine import Completion, Request
from latent_cot.model.lm import LanguageModel
from latent_cot.rationales import engine_rollout
from latent_cot.rationales.rollout import Draw

Rollouts = TypeVar("Rollouts")


class _Cancelled(Exception):
    """Nobody waits for these rollouts any more."""


def ahead(
    lm: LanguageModel, sample: Callable[[int, Draw], Rollouts], first: int, last: int, staleness: int
) -> Generator[tuple[Rollouts, Mapping[str, float]], None, None]:
    """The rollouts of each step, sampled in other threads by q as the engine of `lm` has it, and figures of how they
    came to be: `staleness`, in steps between the adapter that they come from and the one that learns them; in
    seconds, how long they took, and how long the trainer waited for them, or they for the trainer.

    Args:
        sample: makes the rollouts of a step by what it is given.
        first: the step that is taken first; `last`: the one after the last. Each is taken when the ones before it have
            been learned.
        staleness: how many steps old, at most, the adapter may be.
    """
    assert lm.engine is not None
    engine, trained, stopped = lm.engine, first, threading.Event()

    def complete(requests: Sequence[Request]) -> list[Completion]:
        if stopped.is_set():
            raise _Cancelled
        return engine.complete("q", requests)

    def timed(step: int) -> tuple[Rollouts, int, float, float]:
        version, began = trained, time.monotonic()
        rollouts = sample(step, partial(engine_rollout.rollout, complete))
        return rollouts, version, began, time.monotonic()

    workers = ThreadPoolExecutor(staleness + 1, thread_name_prefix="sampler")
    try:
        to_begin = iter(range(first, last))
        begun = deque[Future[tuple[Rollouts, int, float, float]]]()
        for trained in range(first, last):
            lm.publish("q")
            asked = time.monotonic()
            begun.extend(workers.submit(timed, step) for step in islice(to_begin, staleness + 1 - len(begun)))
            rollouts, version, began, ended = begun.popleft().result()
            figures = {
                "staleness": trained - version,
                "sampling_seconds": ended - began,
                "trainer_waited": time.monotonic() - asked,
                "sampler_waited": max(0.0, asked - ended),
            }
            yield rollouts, figures
    finally:
        stopped.set()
        workers.shutdown(cancel_futures=True)
