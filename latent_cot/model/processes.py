"""Several processes, each with a device or some cores of its own, that share the work of one run.

All of them go through the same loop with the same state: adapters, buffer, optimiser. What takes time, sampling,
scoring and gradients, is divided by questions, and put together again before anybody goes on, so that nothing has to be
sent about but texts, rewards and one sum of gradients a step. Only the main process writes.

Where the base model is sharded (`sharding.py`), a forward pass takes all of them, and their shares need different
numbers of passes. So each announces its passes, and one that has come to where they meet makes empty ones until all
are there.

`accelerate launch` (or torchrun) starts them and accelerate gives each its device; here is what they say to each other.
With a single process nothing is divided, sent or awaited.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, reduce
from torch import distributed, nn

Item = TypeVar("Item")


LAUNCHER_SECONDS = 20.0
"""A process whose launcher is gone has so long to save and to stop."""


@functools.cache
def _stop_without_launcher() -> None:
    """Stop this process, as SIGTERM does, when the one that has started it is killed: nobody else would."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAUNCHER_SECONDS)  # the others may be gone, and be waited for
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Processes:
    """The processes of a run, as one of them sees them. All have to make the same calls, in the same order."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.index = 0 if accelerator is None else accelerator.process_index
        self.empty_pass: Callable[[bool], None] | None = None
        """Of a sharded model: a pass that counts for nothing, with a backward pass if True."""
        if self.count > 1 and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, or accelerate launch
            _stop_without_launcher()

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The part of `items` that this process works on."""
        return list(items[self.index :: self.count])

    def join(self, own: Sequence[Item]) -> list[Item]:
        """What all have made of their shares, in the order of the items: the inverse of `share`."""
        if self.count == 1:
            return list(own)
        self._meet()
        parts: list[list[Item]] = gather_object([list(own)])
        return [part[k] for k in range(len(parts[0])) for part in parts if k < len(part)]

    def of_main(self, value: Item) -> Item:
        """The main process's, of a value that each has computed: devices may differ in rounding, and a decision that
        hangs on it has to be the same in all."""
        return self.join([value])[0]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes."""
        if self.count == 1:
            return list(values)
        self._meet()
        return [sum(of_all) for of_all in zip(*gather_object([list(values)]), strict=True)]

    def any(self, condition: bool) -> bool:
        """Whether the condition holds in one of them."""
        return self.sum([float(condition)])[0] > 0

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Give each weight the sum of its gradients over the processes; none, if it has none in any of them."""
        if self._accelerator is None or self.count == 1:
            return
        self._meet()
        weights, device = list(weights), self._accelerator.device
        there = torch.tensor([w.grad is not None for w in weights], dtype=weights[0].dtype)
        parts = [(torch.zeros_like(w) if w.grad is None else w.grad).flatten().to(device) for w in weights]
        flat = reduce(torch.cat([*parts, there.to(device)]), "sum")
        *gradients, found = flat.split([*(w.numel() for w in weights), len(weights)])
        for weight, gradient, n in zip(weights, gradients, found.tolist(), strict=True):
            weight.grad = gradient.view_as(weight).to(weight.device) if n else None

    def generator(self, shared: torch.Generator | None) -> torch.Generator | None:
        """A generator of this process's own. All draw from `shared`, which so stays the same in all."""
        if self.count == 1:
            return shared
        seeds = torch.randint(2**62, (self.count,), generator=shared)
        return torch.Generator().manual_seed(int(seeds[self.index]))

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._meet()
            self._accelerator.wait_for_everyone()

    # -- passes of a sharded model -------------------------------------------------------------------

    def announce_pass(self, *, backward: bool) -> None:
        """A forward pass of the sharded model follows, and a backward pass if `backward`: the others make it too."""
        own = 1 + backward
        if (agreed := self._largest(own)) != own:  # between two meetings all passes are of one kind
            raise RuntimeError(f"processes make different passes: {own} here, {agreed} elsewhere")

    def _meet(self) -> None:
        """Make empty passes as long as others make passes of their own."""
        while self.empty_pass is not None and (kind := self._largest(0)):
            self.empty_pass(kind == 2)

    def _largest(self, kind: int) -> int:
        """Over the processes: 0 at a meeting, 1 before a forward pass, 2 before a forward and a backward pass."""
        assert self._accelerator is not None
        largest = torch.tensor(kind, device=self._accelerator.device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)
