"""Where the rollouts of each step come from: from the sampler in its turn, or ahead, while the trainer trains.

Ahead, the samplers are threads that wait for an engine elsewhere (`model.engine`). A step has the rollouts that it
would have had in its turn, by the same seeds; only the adapter that they come from is some updates older. So none is
used twice, and what a stopped run had sampled ahead is sampled again when it goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from latent_cot.model.engine import Completion, Request
from latent_cot.model.lm import LanguageModel
from latent_cot.rationales import stretches
from latent_cot.rationales.rollout import Draw

Rollouts = TypeVar("Rollouts", covariant=True)


@dataclass(frozen=True)
class AheadInfo:
    """What came of sampling a step's rollouts ahead."""

    staleness: int
    """Updates of q between the adapter that they come from and the one that learns them."""
    sampling_seconds: float
    """From their beginning to their end."""
    trainer_waited: float
    """Seconds that the trainer waited for them, ..."""
    sampler_waited: float
    """... or they for the trainer."""


class Sampling(Protocol[Rollouts]):
    """The rollouts of each step of a phase."""

    def take(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        """Those of a step, and figures of how they came to be. Steps are taken in order, each when the ones before it
        have been learned."""

    def __enter__(self) -> Sampling[Rollouts]: ...

    def __exit__(self, *error: object) -> None: ...


class InTurn(Generic[Rollouts]):
    """Sampled when they are taken."""

    def __init__(self, sample: Callable[[int], Rollouts]) -> None:
        self._sample = sample

    def take(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        return self._sample(step), {}

    def __enter__(self) -> InTurn[Rollouts]:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Cancelled(Exception):
    """Nobody waits for these rollouts any more."""


class Ahead(Generic[Rollouts]):
    """Sampled by q as the engine of `lm` has it, in other threads.

    Args:
        sample: makes the rollouts of a step by what it is given.
        first: the step that is taken first; `last`: the one after the last.
        staleness: how many updates old, at most, the adapter may be.
    """

    def __init__(
        self, lm: LanguageModel, sample: Callable[[int, Draw], Rollouts], first: int, last: int, staleness: int
    ) -> None:
        assert lm.engine is not None
        self._lm, self._engine, self._sample = lm, lm.engine, sample
        self._last, self._staleness = last, staleness
        self._next = self._trained = first
        self._begun: dict[int, Future[tuple[Rollouts, int, float, float]]] = {}
        self._stopped = threading.Event()
        self._workers = ThreadPoolExecutor(staleness + 1, thread_name_prefix="sampler")

    def take(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        self._lm.publish("q")
        self._trained = step
        asked = time.monotonic()
        for ahead in range(self._next, min(step + self._staleness + 1, self._last)):
            self._begun[ahead] = self._workers.submit(self._timed, ahead)
            self._next = ahead + 1
        rollouts, version, begun, ended = self._begun.pop(step).result()
        waited = time.monotonic() - asked
        return rollouts, vars(AheadInfo(step - version, ended - begun, waited, max(0.0, asked - ended)))

    def _timed(self, step: int) -> tuple[Rollouts, int, float, float]:
        version, begun = self._trained, time.monotonic()
        rollouts = self._sample(step, partial(stretches.rollout, self._complete))
        return rollouts, version, begun, time.monotonic()

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        if self._stopped.is_set():
            raise _Cancelled
        return self._engine.complete("q", requests)

    def __enter__(self) -> Ahead[Rollouts]:
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._workers.shutdown(cancel_futures=True)
