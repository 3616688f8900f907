"""How long the steps of a trainer of TRL's or of transformers' take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopWatch(TrainerCallback):
    """Times optimiser steps, from before what a step does first until after the update of the weights.

    Args:
        warmup: steps at the start that are not counted.
        between: called before each counted step, outside the time taken, with the number of the step: room for another
            contestant, so that both meet the same machine.
    """

    def __init__(self, warmup: int, between: Callable[[int], None] | None = None) -> None:
        self.warmup, self.between = warmup, between
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= self.warmup and self.between is not None:
            self.between(state.global_step - self.warmup)
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > self.warmup:
            self.seconds.append(time.perf_counter() - self._started)
