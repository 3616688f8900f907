"""A small task that has figures instead of right answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from latent_cot.types import Example, Measured, Metric, Rationale
from tests.worlds import ToyTask


@dataclasses.dataclass
class LengthTask(ToyTask):
    """How long are the rationales, and how likely?"""

    name: str = "length"
    tools: tuple[str, ...] = ()
    allowed_characters: str | None = " abc"
    metrics: Mapping[str, Metric] = dataclasses.field(
        default_factory=lambda: {
            "length": Metric("mean number of characters", "neither", "{:.1f}"),
            "likelihood": Metric("mean log p(Z Y | X) under the base model, nats"),
            "distinct": Metric("different rationales of all questions"),
        }
    )
    samples: int = 5
    scored: bool = True
    answer_given: bool = False

    def example(self, question: str, answer: str | None = None) -> Example:
        return Example(f"{question}?", ".", f" {question}", question=question)

    def answer(self, rationale: Rationale) -> str | None:
        return None

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        found: dict[str, float | Sequence[float]] = {
            "length": [sum(s.count * len(s.rationale.text) for s in one.samples) / one.n for one in questions],
            "distinct": float(len({s.rationale for one in questions for s in one.samples})),
        }
        if self.scored:
            found["likelihood"] = [
                sum(s.count * ((s.log_z or 0.0) + (s.log_y or 0.0)) for s in one.samples) / one.n for one in questions
            ]
        return found


TASK = LengthTask()
