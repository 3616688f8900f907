"""Where a run is in the loop, and what it has found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_cot.buffer import rationale_from_json, rationale_to_json
from latent_cot.diagnostics import mean_figures
from latent_cot.evaluate import Accuracy
from latent_cot.types import Rationale


@dataclass(frozen=True)
class Phase:
    """A part of the loop."""

    round: int
    name: str


@dataclass
class State:
    """Where a run is and what it has found; with the adapters, the optimiser and the buffer, all of it."""

    phase: int = 0
    """Index into `EM.phases`."""
    unit: int = 0
    """Units of that phase that are done."""
    model_trained: bool = False
    """Whether an M-step has changed p."""
    drawn: list[tuple[int, Rationale]] = field(default_factory=list)
    """(training question, rationale drawn from q), for the M-step."""
    tally: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    """round -> reasoner -> split -> [right, questions]."""
    posterior: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    """round -> "before" or "after" its E-step -> figures of each validation question."""

    def to_json(self) -> dict[str, Any]:
        drawn = [[question, rationale_to_json(rationale)] for question, rationale in self.drawn]
        return {**vars(self), "drawn": drawn}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> State:
        drawn = [(question, rationale_from_json(rationale)) for question, rationale in record["drawn"]]
        return cls(**{**record, "drawn": drawn})

    def results(self) -> dict[str, Any]:
        """Accuracies (round -> reasoner -> split), and how near q came to the posterior (round -> before and
        after its E-step; means over the validation questions)."""
        posterior = {
            number: {when: {**mean_figures(found), "n": len(found)} for when, found in of_round.items()}
            for number, of_round in self.posterior.items()
        }
        accuracy = {
            number: {
                reasoner: {split: Accuracy(*tally).to_json() for split, tally in splits.items()}
                for reasoner, splits in reasoners.items()
            }
            for number, reasoners in self.tally.items()
        }
        return {"accuracy": accuracy, "posterior": posterior}
