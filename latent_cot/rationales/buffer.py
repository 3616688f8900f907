"""The replay buffer: for each question, the best rationales seen, no two of them nearly alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from latent_cot import disk
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import check_rationale
from latent_cot.types import Rationale

# What −inf weighs: nothing beside any finite reward, and yet something can be drawn where all are impossible.
_IMPOSSIBLE = -1e12


@dataclass(frozen=True)
class Stored:
    """A rationale as it was sampled, its tool output and masks included, with its untempered rewards."""

    rationale: Rationale
    log_reward: tuple[float, ...]
    """n + 1 values in nats; −inf where the prefix is no state."""
    step: int = 0
    """The step of the E-step at which it was sampled; 0 for what was there before."""

    @property
    def priority(self) -> float:
        """log R of the complete rationale."""
        return self.log_reward[-1]


_Stores = dict[str, list[Stored]]


class ReplayBuffer:
    """One store of bounded size for each question (`Example.key`).

    Of two rationales that are equal, or whose token sequences are nearer than `tolerance` times the sum of their
    lengths (edit distance), only the one of higher reward is kept.
    When a store is full, the lowest reward leaves, the newest of equal ones first. A new rationale is compared with
    each stored one: a buffer is meant to hold dozens of a question.

    Args:
        capacity: rationales kept for each question; 0: it takes none.
        tolerance: 0 keeps everything that is not equal.
    """

    def __init__(self, capacity: int = 128, tolerance: float = 0.25) -> None:
        self.capacity = capacity
        self.tolerance = tolerance
        self._stores: dict[str, dict[tuple[int, ...], Stored]] = {}
        """Question -> tokens -> rationale, the oldest first."""

    def __contains__(self, question: str) -> bool:
        return question in self._stores

    def add(self, question: str, rationale: Rationale, log_reward: Sequence[float], step: int = 0) -> None:
        """Offer a rationale. One whose reward is not a number is never taken."""
        rationale = replace(rationale, log_probs=None)  # of the q that sampled it, which is another one by now
        item = Stored(rationale, tuple(log_reward[: len(rationale) + 1]), step)
        if math.isnan(item.priority) or not self.capacity:
            return
        store = self._stores.setdefault(question, {})
        leaving = self._nearly_alike(store, rationale.tokens)
        if not leaving and len(store) >= self.capacity:
            leaving = [min(reversed(store.values()), key=lambda other: other.priority)]
        if all(other.priority < item.priority for other in leaving):
            for other in leaving:
                del store[other.rationale.tokens]
            store[rationale.tokens] = item

    def stored(self, question: str) -> list[Stored]:
        """All rationales of a question, best first; of equal rewards, the older first."""
        return sorted(self._stores.get(question, {}).values(), key=lambda item: -item.priority)

    def sample(self, question: str, n: int, generator: torch.Generator | None = None) -> list[Stored]:
        """`n` rationales, with replacement, each with probability ∝ R; all of them if there are at most `n`."""
        items = list(self._stores.get(question, {}).values())
        if len(items) <= n:
            return self.stored(question)
        log_weight = torch.tensor([max(item.priority, _IMPOSSIBLE) for item in items], dtype=torch.float64)
        drawn = torch.multinomial(log_weight.softmax(0), n, replacement=True, generator=generator)
        return [items[k] for k in drawn.tolist()]

    def clear(self) -> None:
        """Forget everything: after an M-step the stored rewards are those of another model."""
        self._stores.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON, the oldest first: on the order depends which rationale a random number draws."""
        stores = {question: list(store.values()) for question, store in self._stores.items()}
        found: dict[str, Any] = disk.schema(_Stores).dump_python(stores, mode="json")
        return found

    def load_state_dict(self, state: dict[str, Any], codec: TextCodec) -> None:
        """What is then added and drawn is what the saved buffer would have taken and drawn. Raises ValueError or
        UsageError for what no buffer has saved."""
        stores = disk.decoded(_Stores, state, "its replay buffer")
        for item in (item for of in stores.values() for item in of):
            check_rationale(item.rationale, codec)
            rewards = item.log_reward
            if len(rewards) != len(item.rationale) + 1 or not all(value < math.inf for value in rewards):
                raise ValueError(f"the rewards of the rationale {item.rationale.text!r:.80} do not fit it")
        self._stores = {question: {item.rationale.tokens: item for item in of} for question, of in stores.items()}

    def _nearly_alike(self, store: dict[tuple[int, ...], Stored], tokens: tuple[int, ...]) -> list[Stored]:
        if tokens in store:
            return [store[tokens]]  # whatever is nearly alike the new one is so to this one, and was dealt with
        limits = {other: self.tolerance * (len(tokens) + len(other)) for other in store}
        # The cutoff spares the rest of a comparison once the two are too far apart.
        return [
            store[other]
            for other, limit in limits.items()
            if Levenshtein.distance(tokens, other, score_cutoff=int(limit) + 1) < limit
        ]
