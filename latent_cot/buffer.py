"""The replay buffer: for each question, the best rationales seen, no two of them nearly alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from latent_cot.types import Rationale, ToolCall


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
    """One store a question, of bounded size, ordered by log R of the complete rationale.

    A rationale that is there already is not added. Of two whose token sequences are nearer than
    `tolerance` times the sum of their lengths (edit distance), only the one of higher reward is kept.
    When a store is full, the lowest reward leaves.

    Args:
        capacity: rationales kept for each question.
        tolerance: 0 keeps everything that is not equal.
    """

    def __init__(self, capacity: int = 50, tolerance: float = 0.25) -> None:
        self.capacity = capacity
        self.tolerance = tolerance
        self._stores: dict[str, list[Stored]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._stores.values()))

    def __contains__(self, question: str) -> bool:
        return bool(self._stores.get(question))

    def add(self, question: str, rationale: Rationale, log_reward: Sequence[float]) -> bool:
        """Offer a rationale; returns whether it was taken."""
        store = self._stores.setdefault(question, [])
        item = Stored(rationale, tuple(log_reward[: len(rationale) + 1]))
        near = [other for other in store if self._alike(other.rationale, rationale)]
        if any(other.priority >= item.priority for other in near):
            return False
        if not near and len(store) >= self.capacity and store[-1].priority >= item.priority:
            return False
        for other in near:
            store.remove(other)
        store.append(item)
        store.sort(key=lambda stored: -stored.priority)
        del store[self.capacity :]
        return True

    def stored(self, question: str) -> list[Stored]:
        """All rationales of a question, best first."""
        return list(self._stores.get(question, ()))

    def sample(self, question: str, n: int, generator: torch.Generator | None = None) -> list[Stored]:
        """`n` rationales, with replacement, each with probability ∝ R; all of them if there are at most `n`."""
        store = self._stores.get(question, [])
        if len(store) <= n:
            return list(store)
        weights = torch.tensor([item.priority for item in store], dtype=torch.float64).softmax(0)
        if not bool(weights.isfinite().all()):  # every stored rationale is impossible
            weights = torch.full_like(weights, 1 / len(store))
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
        return [store[i] for i in drawn.tolist()]

    def clear(self) -> None:
        """Forget everything: after an M-step the stored rewards are those of another model."""
        self._stores.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            question: [{"rationale": rationale_to_json(s.rationale), "log_reward": s.log_reward} for s in store]
            for question, store in self._stores.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stores = {
            question: [Stored(rationale_from_json(s["rationale"]), tuple(s["log_reward"])) for s in store]
            for question, store in state.items()
        }

    def _alike(self, a: Rationale, b: Rationale) -> bool:
        if a.tokens == b.tokens:
            return True
        limit = self.tolerance * (len(a) + len(b))
        distance = Levenshtein.distance(a.tokens, b.tokens, score_cutoff=int(limit) + 1)
        return distance < limit


def rationale_to_json(rationale: Rationale) -> dict[str, Any]:
    """The inverse of `rationale_from_json`."""
    return asdict(rationale)


def rationale_from_json(record: dict[str, Any]) -> Rationale:
    return Rationale(
        tokens=tuple(record["tokens"]),
        chosen=tuple(record["chosen"]),
        states=tuple(record["states"]),
        text=record["text"],
        cut=record["cut"],
        calls=tuple(ToolCall(**call) for call in record["calls"]),
    )
