"""A sampler that is some optimiser steps behind, as where sampling and training run side by side.

In an asynchronous run the sampler writes with the adapter it was last sent, while the trainer goes on. Here the lag is
the same in each step, and the largest that is allowed: a sampler that is sometimes fresher would be an easier case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from latent_cot.model.lm import LanguageModel


class LaggingSampler:
    """Holds q as it was before each of the last optimiser steps.

    Args:
        staleness: K, how many steps behind q the sampler is; at step k < K all k of them. 0: q itself.
    """

    def __init__(self, lm: LanguageModel, staleness: int) -> None:
        self.lm = lm
        self._past: deque[list[torch.Tensor]] = deque(maxlen=staleness + 1)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within the block, which is entered once a step, q is what it was K steps ago; behind it, what it is."""
        self._past.append([weight.detach().clone() for weight in self.lm.parameters("q").values()])
        with torch.no_grad():
            for weight, old in zip(self.lm.parameters("kept").values(), self._past[0], strict=True):
                weight.copy_(old)
        self.lm.swap_adapters("q", "kept")
        try:
            yield
        finally:
            self.lm.swap_adapters("q", "kept")
