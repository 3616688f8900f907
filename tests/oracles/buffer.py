"""A replay buffer that compares a new rationale with all stored ones, by the textbook edit distance, and sorts anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

Tokens = tuple[int, ...]


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The textbook recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def alike(a: Tokens, b: Tokens, tolerance: float) -> bool:
    """Are they equal, or fewer edits apart than `tolerance` times the sum of their lengths?"""
    return a == b or (tolerance > 0 and edit_distance(a, b) < tolerance * (len(a) + len(b)))


class ReplayBuffer:
    """For each question (tokens, log R), best first."""

    def __init__(self, capacity: int, tolerance: float) -> None:
        self.capacity = capacity
        self.tolerance = tolerance
        self.stores: dict[str, list[tuple[Tokens, float]]] = {}

    def add(self, question: str, tokens: Tokens, log_reward: float) -> bool:
        """Offer a rationale; returns whether it was taken."""
        store = self.stores.setdefault(question, [])
        near = [other for other in store if alike(other[0], tokens, self.tolerance)]
        if any(priority >= log_reward for _, priority in near):
            return False
        if not near and len(store) >= self.capacity and store[-1][1] >= log_reward:
            return False
        for other in near:
            store.remove(other)
        store.append((tokens, log_reward))
        store.sort(key=lambda item: -item[1])
        del store[self.capacity :]
        return True

    def probabilities(self, question: str) -> list[float]:
        """With which each stored rationale is drawn: softmax of log R."""
        priorities = [priority for _, priority in self.stores[question]]
        best = max(priorities)
        if best == -math.inf:  # all are impossible
            return [1 / len(priorities)] * len(priorities)
        weights = [math.exp(priority - best) for priority in priorities]
        return [weight / sum(weights) for weight in weights]
