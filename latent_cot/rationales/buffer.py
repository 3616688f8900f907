"""The replay buffer: for each question, the best rationales seen, no two of them nearly alike."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from latent_cot.rationales.near_index import NearIndex, signature
from latent_cot.rationales.sampling_tree import SamplingTree
from latent_cot.types import Rationale, rationale_from_json, rationale_to_json

COMPARE_ALL = 64
"""Up to so many stored rationales, a new one is compared with each of them."""

# What −inf weighs: nothing beside any finite reward, and yet something can be drawn where all are impossible.
_IMPOSSIBLE = -1e12


@dataclass(frozen=True)
class Stored:
    """A rationale as it was sampled, its tool output and masks included, with its untempered rewards."""

    rationale: Rationale
    log_reward: tuple[float, ...]
    """n + 1 values in nats; −inf where the prefix is no state."""

    @property
    def priority(self) -> float:
        """log R of the complete rationale."""
        return self.log_reward[-1]


class ReplayBuffer:
    """One store a question (`Example.key`), of bounded size, ordered by log R of the complete rationale.

    A rationale that is there already is not added. Of two whose token sequences are nearer than
    `tolerance` times the sum of their lengths (edit distance), only the one of higher reward is kept.
    When a store is full, the lowest reward leaves.

    Adding and drawing take O(log n) and at most 64 comparisons, for any number n of rationales stored for a
    question. In a store of up to `COMPARE_ALL` all of this is exact. In a larger one, equal rationales, the order,
    what leaves and the draws are still exact, but a new rationale is compared only with the candidates of an index
    (`near_index.py`). That finds what differs in a token or two nearly always, and misses more of what is barely near:
    `tests/rationales/test_near_index.py` has shares.

    Args:
        capacity: rationales kept for each question.
        tolerance: 0 keeps everything that is not equal.
    """

    def __init__(self, capacity: int = 50, tolerance: float = 0.25) -> None:
        self.capacity = capacity
        self.tolerance = tolerance
        self._stores: dict[str, _Store] = {}

    def __len__(self) -> int:
        return sum(map(len, self._stores.values()))

    def __contains__(self, question: str) -> bool:
        return question in self._stores

    def add(self, question: str, rationale: Rationale, log_reward: Sequence[float]) -> bool:
        """Offer a rationale; returns whether it was taken. One whose reward is not a number never is."""
        item = Stored(rationale, tuple(log_reward[: len(rationale) + 1]))
        if math.isnan(item.priority):
            return False
        store = self._stores.get(question)
        if store is None:
            store = self._stores[question] = _Store(self.capacity, self.tolerance)
        return store.offer(item)

    def stored(self, question: str) -> list[Stored]:
        """All rationales of a question, best first; of equal rewards, the older first."""
        store = self._stores.get(question)
        return store.best_first() if store else []

    def sample(self, question: str, n: int, generator: torch.Generator | None = None) -> list[Stored]:
        """`n` rationales, with replacement, each with probability ∝ R; all of them if there are at most `n`."""
        store = self._stores.get(question)
        if store is None or len(store) <= n:
            return self.stored(question)
        return store.draw(torch.rand(n, dtype=torch.float64, generator=generator).tolist())

    def clear(self) -> None:
        """Forget everything: after an M-step the stored rewards are those of another model."""
        self._stores.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {question: store.to_json() for question, store in self._stores.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What is then added and drawn is what the saved buffer would have taken and drawn."""
        self._stores = {question: _Store(self.capacity, self.tolerance) for question in state}
        for question, store in self._stores.items():
            store.restore(state[question])


@dataclass(slots=True, eq=False)
class _Entry:
    item: Stored
    priority: float
    key: str
    """The tokens as a string, one character each: quick to hash and to compare."""
    slot: int
    """Its number in the sampling tree and in the index."""


class _Store:
    """The rationales of one question."""

    def __init__(self, capacity: int, tolerance: float) -> None:
        self.capacity = capacity
        self.tolerance = tolerance
        self._entries: dict[str, _Entry] = {}  # by key, the oldest first
        self._by_slot: dict[int, _Entry] = {}
        # Keys by slot, those of free slots out of date: comparing by way of the entries would touch more memory.
        self._keys: list[str] = []
        self._free: list[int] = []  # a heap: the slots 0, 1, ... that are not in use but have been
        self._lowest: list[tuple[float, int, _Entry]] = []  # a heap: the worst, and of equal ones the newest, first
        self._arrivals = 0
        self._tree = SamplingTree()
        self._index: NearIndex | None = None  # made when the store outgrows COMPARE_ALL

    def __len__(self) -> int:
        return len(self._entries)

    def offer(self, item: Stored) -> bool:
        """Take `item`, and let those go that it replaces; or refuse it, and return False."""
        full = len(self) >= self.capacity
        if full and self._worst().priority >= item.priority:
            return False  # and if some are nearly alike, they are better too
        entry = _Entry(item, item.priority, key_of(item.rationale.tokens), slot=-1)
        indexed = self.tolerance > 0 and (self._index is not None or len(self) >= COMPARE_ALL)
        hashes = signature(item.rationale.tokens) if indexed else ()
        leaving = self._nearly_alike(entry.key, hashes)
        if any(other.priority >= entry.priority for other in leaving):
            return False
        if full and not leaving:
            leaving = [self._worst()]
        for other in leaving:
            self._remove(other)
        self._insert(entry, hashes)
        for other in leaving:
            if other.slot != entry.slot:
                self._tree[other.slot] = -math.inf
        return True

    def best_first(self) -> list[Stored]:
        return [entry.item for entry in sorted(self._entries.values(), key=lambda entry: -entry.priority)]

    def draw(self, quantiles: Iterable[float]) -> list[Stored]:
        """One rationale for each number in [0, 1)."""
        return [self._by_slot[self._tree.draw(u)].item for u in quantiles]

    def to_json(self) -> list[dict[str, Any]]:
        """The oldest first. On its slot depends which rationale a random number draws."""
        return [
            {"rationale": rationale_to_json(e.item.rationale), "log_reward": e.item.log_reward, "slot": e.slot}
            for e in self._entries.values()
        ]

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        """Fill an empty store with what `to_json` gave."""
        for place, record in enumerate(records):
            item = Stored(rationale_from_json(record["rationale"]), tuple(record["log_reward"]))
            self._put(_Entry(item, item.priority, key_of(item.rationale.tokens), record.get("slot", place)))
        self._free = sorted(set(range(max(self._by_slot, default=0))) - self._by_slot.keys())
        if self.tolerance > 0 and len(self) > COMPARE_ALL:
            self._index = self._make_index()

    def _nearly_alike(self, key: str, hashes: Sequence[int]) -> list[_Entry]:
        equal = self._entries.get(key)
        if equal is not None:
            return [equal]  # whatever is nearly alike the new one is so to this one, and was dealt with
        if self.tolerance <= 0:
            return []
        others: Iterable[str] = self._entries
        if self._index is not None and len(self) > COMPARE_ALL:
            others = [self._keys[slot] for slot in self._index.candidates(hashes)]
        length, tolerance, alike = len(key), self.tolerance, []
        for other in others:
            limit = tolerance * (length + len(other))
            if abs(length - len(other)) >= limit:
                continue
            if Levenshtein.distance(key, other, score_cutoff=int(limit) + 1) < limit:
                alike.append(self._entries[other])
        return alike

    def _insert(self, entry: _Entry, hashes: Sequence[int]) -> None:
        if hashes and self._index is None:
            self._index = self._make_index()
        # The lowest free slot: which one that is can be told from those in use, so it need not be saved.
        entry.slot = heapq.heappop(self._free) if self._free else len(self)
        self._put(entry)
        if self._index is not None:
            self._index.add(entry.slot, hashes)

    def _put(self, entry: _Entry) -> None:
        self._entries[entry.key] = entry
        self._by_slot[entry.slot] = entry
        self._keys.extend([""] * (entry.slot + 1 - len(self._keys)))
        self._keys[entry.slot] = entry.key
        self._tree[entry.slot] = max(entry.priority, _IMPOSSIBLE)
        self._arrivals += 1
        heapq.heappush(self._lowest, (entry.priority, -self._arrivals, entry))

    def _remove(self, entry: _Entry) -> None:
        """From everything but the tree, where the one that replaces it may take its place."""
        del self._entries[entry.key], self._by_slot[entry.slot]
        heapq.heappush(self._free, entry.slot)
        if self._index is not None:
            self._index.remove(entry.slot)
        if len(self._lowest) > 2 * len(self) + COMPARE_ALL:
            self._lowest = [item for item in self._lowest if self._is_stored(item[-1])]
            heapq.heapify(self._lowest)

    def _worst(self) -> _Entry:
        while not self._is_stored(self._lowest[0][-1]):
            heapq.heappop(self._lowest)
        return self._lowest[0][-1]

    def _is_stored(self, entry: _Entry) -> bool:
        return self._by_slot.get(entry.slot) is entry

    def _make_index(self) -> NearIndex:
        index = NearIndex()
        for entry in self._entries.values():
            index.add(entry.slot, signature(entry.item.rationale.tokens))
        return index


def key_of(tokens: Sequence[int]) -> str:
    """Token ids as a string, one character each. No vocabulary is as large as Unicode (1,114,112)."""
    return "".join(map(chr, tokens))
