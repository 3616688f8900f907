"""How long the steps of a trainer of TRL's or of transformers' take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WARMUP = 1
"""Steps at the start that are not counted."""


class StopWatch(TrainerCallback):
    """Times optimiser steps, from before what a step does first until after the update of the weights.

    Args:
        between: called before each counted step, outside the time taken, with the number of the step: room for another
            contestant, so that both meet the same machine.
    """

    def __init__(self, between: Callable[[int], None] | None = None) -> None:
        self.between = between
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= WARMUP and self.between is not None:
            self.between(state.global_step - WARMUP)
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > WARMUP:
            self.seconds.append(time.perf_counter() - self._started)
