"""Finding the few of many token sequences that may be nearly alike, without comparing them all.

An LSH forest (Bawa, Condie & Ganesan, 2005) of MinHash signatures (Broder, 1997). A MinHash of a sequence is the
smallest hash of its trigrams of tokens; two sequences have the same one with a probability that is the Jaccard
similarity of their trigrams. A tree of the forest keeps the sequences sorted by `DEPTH` MinHashes of its own:
the neighbours of a new one are those that agree in the longest prefix of MinHashes, whether that takes one of them
(among a hundred sequences) or four (among a million).
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

TREES = 6
DEPTH = 5
"""MinHashes a tree is sorted by, of a byte each."""
NEIGHBOURS = 2
"""Looked at on either side, in each tree."""
CANDIDATES = 12
"""Compared in the end. With all 2 · TREES · NEIGHBOURS hardly more are found."""

_SLOT_BITS = 24
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_BLOCK = 512
_random = random.Random(0)
_ONE, _HALF = np.uint64(1), np.uint64(32)
_BASE = np.uint64(_random.getrandbits(64) | 1)
_FACTORS = np.array([_random.getrandbits(64) | 1 for _ in range(TREES * DEPTH)], dtype=np.uint64)


class NearIndex:
    """Token sequences under small numbers, their slots (below 2²⁴).

    What `candidates` finds depends on the sequences and slots that are in the index, not on how they got there.
    """

    def __init__(self) -> None:
        self._trees = [_SortedKeys() for _ in range(TREES)]
        self._keys = array("Q")  # TREES for each slot, to find it again when it leaves

    def add(self, slot: int, signature: Sequence[int]) -> None:
        """Add a sequence of that `signature`, under a slot that is free."""
        missing = TREES * (slot + 1) - len(self._keys)
        if missing > 0:
            self._keys.extend([0] * missing)
        for t, (tree, key) in enumerate(zip(self._trees, signature, strict=True)):
            self._keys[TREES * slot + t] = key | slot
            tree.add(key | slot)

    def remove(self, slot: int) -> None:
        """Remove what is under `slot`."""
        for t, tree in enumerate(self._trees):
            tree.remove(self._keys[TREES * slot + t])

    def candidates(self, signature: Sequence[int]) -> list[int]:
        """The slots of at most CANDIDATES sequences: those that agree with it in most MinHashes of a tree."""
        found: list[int] = []
        for tree, key in zip(self._trees, signature, strict=True):
            # The earlier two keys differ, the larger is this number. Its last bits are the slot.
            found += [key ^ other for other in tree.around(key, NEIGHBOURS)]
        found.sort()
        return list(dict.fromkeys(difference & _SLOT_MASK for difference in found))[:CANDIDATES]


def signature(tokens: Sequence[int]) -> list[int]:
    """For each tree the 64-bit key of a sequence, its last `_SLOT_BITS` bits zero."""
    ids = np.array([0, 0, *tokens, 0, 0], dtype=np.uint64) + _ONE  # the ends count, so that there is always a trigram
    trigrams = (ids[:-2] * _BASE + ids[1:-1]) * _BASE + ids[2:]
    trigrams ^= trigrams >> _HALF  # multiplication alone would keep the order of neighbouring ids
    minima = (trigrams[:, None] * _FACTORS).min(0)  # multiplicative hashing, modulo 2⁶⁴
    key = np.zeros((TREES, 8), dtype=np.uint8)
    # Not a minimum's first bits, which are nearly always zero, nor its last, which are no good hash.
    key[:, :DEPTH] = (minima >> _HALF).astype(np.uint8).reshape(TREES, DEPTH)
    keys: list[int] = key.view(">u8")[:, 0].tolist()
    return keys


class _SortedKeys:
    """Distinct 64-bit integers in order, in blocks of at most 2 · _BLOCK.

    `sortedcontainers` does the same with Python objects. With a million keys it takes several times as long, each
    step of a search being a cache miss.
    """

    def __init__(self) -> None:
        self._blocks = [array("Q")]
        self._last = array("Q", [0])  # of each block

    def add(self, key: int) -> None:
        b = self._block(key)
        block = self._blocks[b]
        block.insert(bisect_left(block, key), key)
        if len(block) > 2 * _BLOCK:
            self._blocks[b : b + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._last.insert(b, block[_BLOCK - 1])
            b += 1
        self._last[b] = self._blocks[b][-1]

    def remove(self, key: int) -> None:
        b = self._block(key)
        block = self._blocks[b]
        block.pop(bisect_left(block, key))
        if block:
            self._last[b] = block[-1]
        elif len(self._blocks) > 1:
            del self._blocks[b]
            self._last.pop(b)

    def around(self, key: int, n: int) -> array[int]:
        """The `n` keys before and the `n` keys from `key` on, or as many as there are."""
        b = self._block(key)
        block = self._blocks[b]
        i = bisect_left(block, key)
        found = block[max(0, i - n) : i + n]
        below, above = b - 1, b + 1
        missing = n - i
        while missing > 0 and below >= 0:
            found = self._blocks[below][-missing:] + found
            missing -= len(self._blocks[below])
            below -= 1
        missing = i + n - len(block)
        while missing > 0 and above < len(self._blocks):
            found = found + self._blocks[above][:missing]
            missing -= len(self._blocks[above])
            above += 1
        return found

    def _block(self, key: int) -> int:
        """The block that `key` is or would be in."""
        return min(bisect_left(self._last, key), len(self._blocks) - 1)
