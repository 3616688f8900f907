"""AdamW on one adapter, with the learning rate a function of the step: what both EM steps train with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then cosine decay to 0 or constant."""

    peak: float
    steps: int
    warmup: int
    decay: Literal["cosine", "constant"]

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps − 1; never 0, so that no step is wasted."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        if self.decay == "constant":
            return self.peak
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


class AdapterOptimiser:
    """AdamW with gradient clipping over an adapter's weights."""

    def __init__(self, weights: Mapping[str, nn.Parameter], schedule: Schedule, clip: float) -> None:
        self.names = sorted(weights)
        self.weights = [weights[name] for name in self.names]
        self.schedule = schedule
        self.clip = clip
        self.adam = torch.optim.AdamW(self.weights, lr=schedule.peak, weight_decay=0.01)

    def step(self, number: int) -> float:
        """Update with the accumulated gradients and clear them; returns their norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.clip))
        if math.isfinite(norm):  # a step with an infinite gradient would ruin the adapter: leave it out
            for group in self.adam.param_groups:
                group["lr"] = self.schedule.at(number)
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm
