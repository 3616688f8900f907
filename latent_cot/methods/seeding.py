"""Seeds by place, ranges of questions, and which questions a step takes."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence


def seed_of(*parts: object) -> int:
    """A seed that depends on all of `parts`, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def slices(n: int, size: int) -> list[range]:
    """0, ..., n − 1 in consecutive ranges of at most `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def draw_distinct(weights: Sequence[float], k: int, rng: random.Random) -> list[int]:
    """k different indices, drawn one after the other with probability ∝ weight (Efraimidis & Spirakis, 2006)."""
    # The logarithm of their keys, which neither tiny nor huge weights make all alike.
    keys = [(math.log(rng.random() or 5e-324) / weight, i) for i, weight in enumerate(weights) if weight > 0]
    return [i for _, i in sorted(keys, reverse=True)[:k]]
