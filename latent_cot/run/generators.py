"""The global random generators belong to the user: a run draws from them, and leaves them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_generators() -> Iterator[None]:
    """What is done in here may seed and use Python's, numpy's and torch's global generators: afterwards they are as
    before. A notebook that draws learning rates at random, or a bootstrap, would else draw the same after each run."""
    python = random.getstate()
    torch_cpu = torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - the one that is seeded
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)
        if devices is None:  # a device that is not in use yet would begin with the seed of the CPU
            torch.cuda.manual_seed_all(torch.initial_seed())
        else:
            torch.cuda.set_rng_state_all(devices)
