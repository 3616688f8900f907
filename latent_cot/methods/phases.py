"""How an algorithm that reads from top to bottom can be stopped anywhere, and gone on with.

A method writes its algorithm as a generator, `Resumable.algorithm`, which goes through *phases*:

    yield from self.init(0)
    for number in range(1, rounds + 1):
        yield from self.e_step(number)
        yield from self.m_step(number)

A phase is a generator too, marked by `@phase`. It does one unit of work (an optimiser step, a batch of questions)
between two `yield`s, from unit `state.unit` on, and seeds all its randomness by its place in the algorithm. A resumed
run goes through the same algorithm: what `state` says is done is skipped, so it ends as a run that was never stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from functools import cached_property, wraps
from typing import Any

from latent_cot.methods.state import Info, Phase, State
from latent_cot.model.optimise import AdapterOptimiser

Steps = Generator[tuple[Phase, Info], None, None]
"""The phase and the figures of each unit of work."""


def phase(
    units: Callable[[Any, int], int],
    when: Callable[[Any, int], bool] = lambda method, number: True,
) -> Callable[[Callable[[Any, Phase], Iterator[Info]]], Callable[[Any, int], Steps]]:
    """Make a method of a `Resumable` a phase of its algorithm, which is called with the number of the round.

    Args:
        units: how many units of work there are, for a progress display and to check a saved one.
        when: whether there is such a phase in a round.

    Both are given the method and the number of the round.
    """

    def mark(work: Callable[[Any, Phase], Iterator[Info]]) -> Callable[[Any, int], Steps]:
        @wraps(work)
        def resumable(self: Resumable, number: int) -> Steps:
            at = Phase(number, work.__name__)
            if not when(self, number):
                return
            if self._planning is not None:
                self._planning.append(at)
                return
            place, self._place = self._place, self._place + 1
            if place < self.state.phase:
                return
            for info in work(self, at):
                self.state.unit += 1
                yield at, info
            self.state.phase, self.state.unit = place + 1, 0
            self.optimiser = None

        resumable.units = units  # type: ignore[attr-defined]
        return resumable

    return mark


class Resumable(ABC):
    """An algorithm in phases.

    Args:
        state: where it is, if it was begun before.
    """

    optimiser: AdapterOptimiser | None = None
    """That of the present phase, if it has one."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._planning: list[Phase] | None = None
        self._place = 0

    @abstractmethod
    def algorithm(self) -> Steps:
        """The method from top to bottom. It must go through the same phases each time it is called."""

    @cached_property
    def phases(self) -> list[Phase]:
        """All phases, in order: the algorithm gone through without doing any."""
        found: list[Phase] = []
        self._planning = found
        try:
            list(self.algorithm())
        finally:
            self._planning = None
        return found

    def run(self) -> Steps:
        """Go through the algorithm from where `state` is. After each unit its figures are yielded, and the caller may
        save, or stop for good: what it has then is the state after that unit."""
        self._place = 0
        yield from self.algorithm()

    def units(self, phase: Phase) -> int:
        """The number of units of a phase."""
        return int(getattr(type(self), phase.name).units(self, phase.round))
