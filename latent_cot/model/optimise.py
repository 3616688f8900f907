"""AdamW on one adapter, with the learning rate a function of the step: what both EM steps train with."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from latent_cot import disk
from latent_cot.model.processes import Processes
from latent_cot.types import UsageError

MAX_SKIPPED = 5
"""So many steps in a row without finite gradients are no accident."""

STATE_FILE = "optimizer.pt"


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then cosine decay to 0 or constant."""

    peak: float
    steps: int
    warmup: int
    decay: Literal["cosine", "constant"] = "cosine"

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps − 1; never 0, so that no step is wasted."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        if self.decay == "constant":
            return self.peak
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


class AdapterOptimiser:
    """AdamW with gradient clipping over an adapter's weights.

    Args:
        weights: the adapter's.
        schedule: of their learning rate.
        max_grad_norm: largest norm of their gradient.
        log_z: learned log-partition functions, a parameter each, with a constant learning rate of their own.
        log_z_rate: that learning rate, in nats a step.
        processes: each of which has the gradients of its share of a step's questions.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        schedule: Schedule,
        max_grad_norm: float,
        *,
        log_z: Sequence[nn.Parameter] = (),
        log_z_rate: float = 0.1,
        processes: Processes | None = None,
    ) -> None:
        self.weights = [weights[name] for name in sorted(weights)]
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.log_z = list(log_z)
        self.processes = processes or Processes()
        groups = [{"params": self.weights, "lr": schedule.peak, "weight_decay": 0.01}]
        if self.log_z:
            groups.append({"params": self.log_z, "lr": log_z_rate, "weight_decay": 0.0})
        self.adam = torch.optim.AdamW(groups, fused=True)
        self._last_skipped, self._skipped = -2, 0

    def step(self, number: int) -> float:
        """Update with the accumulated gradients and clear them; returns their norm before clipping.

        An update by a gradient that is infinite, or no number, would ruin the adapter and is left out; its norm is then
        none either. Raises UsageError after `MAX_SKIPPED` steps in a row with such an update, whatever else they have.
        """
        self.processes.sum_gradients([*self.weights, *self.log_z])
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm))
        if not all(bool(z.grad.isfinite()) for z in self.log_z if z.grad is not None):
            norm = math.nan
        if math.isfinite(norm):
            self.adam.param_groups[0]["lr"] = self.schedule.at(number)
            self.adam.step()
        elif self._last_skipped != number:
            self._skipped = self._skipped + 1 if self._last_skipped == number - 1 else 1
            self._last_skipped = number
        self.adam.zero_grad(set_to_none=True)
        if not math.isfinite(norm) and self._skipped >= MAX_SKIPPED:
            why = f"the gradients of {self._skipped} steps in a row are infinite or no numbers"
            remedy = f"start again with a lower learning rate (here {self.schedule.peak})"
            raise UsageError(f"training has come apart: {why}; {remedy}")
        return norm


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write its state as `STATE_FILE`."""
    buffer = io.BytesIO()  # torch itself reports a full disk as a RuntimeError
    torch.save(optimizer.state_dict(), buffer)
    disk.write(folder / STATE_FILE, buffer.getvalue())


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `save_optimizer` wrote, bit for bit, into an optimiser over the same parameters.

    Raises UsageError if the file is damaged, holds anything but tensors and numbers, or is another optimiser's.
    """
    file = folder / STATE_FILE
    try:
        saved = torch.load(io.BytesIO(disk.read(file, disk.MAX_BYTES)), map_location="cpu", weights_only=True)
        for own, group in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=False):
            group |= {name: value for name, value in own.items() if name != "params"}  # settings are not learned
        shapes = [list(weight.shape) for group in optimizer.param_groups for weight in group["params"]]
        for index, entries in saved["state"].items():
            if not all(value.ndim == 0 or list(value.shape) == shapes[index] for value in entries.values()):
                raise ValueError(f"parameter {index} has another shape")
        optimizer.load_state_dict(saved)
    except (ValueError, IndexError) as error:
        remedy = "resume with the model and the --lora settings of the run"
        raise UsageError(f"{file}: another optimiser's state ({error}); {remedy}") from error
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); restore it, or start the run again") from error
