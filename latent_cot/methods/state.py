"""Where a run is in the loop, and what it has found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from latent_cot import disk
from latent_cot.evaluation.diagnostics import mean_figures
from latent_cot.evaluation.evaluate import Accuracy
from latent_cot.types import Rationale, Sample

Info = dict[str, Any]
"""The figures of a unit of work."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Marks = Annotated[str, Field(pattern="^[01]*$")]
When = Annotated[str, Field(pattern="^(before|after)$")]
Compared = Annotated[str, Field(pattern="^(before|after|of_p)$")]
Round = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


@dataclass(frozen=True)
class Phase:
    """A part of the loop."""

    round: int
    name: str


class WeightedRationale(NamedTuple):
    """A rationale to fine-tune on."""

    question: Count
    """Index of its training question."""
    rationale: Rationale
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of its log-likelihood."""


class Seen(NamedTuple):
    """A rationale that q has sampled in this E-step, or for the last M-step."""

    question: Count
    """Index of its training question."""
    rationale: Rationale
    times: Annotated[int, Field(gt=0, lt=2**63)]
    """How often it was sampled then."""
    log_reward: Annotated[float, Field(lt=float("inf"))]
    """Untempered, in nats; −inf: it is worth nothing."""
    log_q: Annotated[float, Field(allow_inf_nan=False)]
    """Of the q that sampled it, in nats."""
    right: bool
    """Whether it arrives at Y, as far as the task can tell."""


@dataclass
class Budget:
    """What training has cost. Evaluation and diagnostics are not counted."""

    trajectories: Count = 0
    """Rationales sampled."""
    tokens: Count = 0
    """Their tokens, the tools' included."""
    gradient_steps: Count = 0
    """Optimiser steps of either adapter, those on the demonstrations included."""

    def sampled(self, rationales: Sequence[Rationale]) -> None:
        """Count these."""
        self.trajectories += len(rationales)
        self.tokens += sum(map(len, rationales))


@dataclass
class State:
    """Where a run is and what it has found; with the adapters, the optimiser and the buffer, all of it."""

    phase: Count = 0
    """Index into `Method.phases`."""
    unit: Count = 0
    """Units of that phase that are done."""
    m_steps: Count = 0
    """How many M-steps have changed p for good, the one under way included."""
    drawn: list[WeightedRationale] = field(default_factory=list)
    """Rationales for the M-step."""
    seen: list[Seen] = field(default_factory=list)
    """What the E-step has sampled, and what was drawn for the last M-step, where it learns from it."""
    budget: Budget = field(default_factory=Budget)
    checks: list[float] = field(default_factory=list)
    """How good p was at each check of a method that stops early: right answers to the validation questions or, where
    there are none, minus the loss of their rationales."""
    right: dict[Round, dict[str, dict[str, Marks]]] = field(default_factory=dict)
    """round -> reasoner -> split -> "1" or "0" for each question, in their order."""
    metrics: dict[Round, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    """round -> reasoner -> split -> metric -> `evaluation.evaluate.Figure.to_json()`."""
    sampled: list[list[Sample]] = field(default_factory=list)
    """The samples of each question so far of the split that is being measured."""
    posterior: dict[Round, dict[Compared, list[dict[str, float]]]] = field(default_factory=dict)
    """round -> "before" or "after" q's training -> figures of each validation question; "of_p", of p as it is before,
    until it is known whether q begins as p."""
    log_y: dict[Round, dict[When, list[float]]] = field(default_factory=dict)
    """round -> "before" or "after" p's training -> log p(Y | X) of each validation question, in nats."""
    elbo: dict[Round, dict[When, list[float]]] = field(default_factory=dict)
    """The same of the bound on it that q gives, by the same samples."""
    taken_back: list[tuple[Count, Literal["e_step", "m_step"]]] = field(default_factory=list)
    """In which round which training has made the validation questions less likely, and was taken back."""
    begun_as_p: list[Count] = field(default_factory=list)
    """The rounds before whose E-step q was put where p is: `posterior` has that q before it."""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = disk.schema(State).dump_python(self, mode="json")
        return found

    @property
    def model_trained(self) -> bool:
        """Whether an M-step has changed p."""
        return self.m_steps > 0

    @property
    def tested(self) -> list[str]:
        """The splits that any reasoner was tested on."""
        rounds: list[Mapping[str, Mapping[str, object]]] = [*self.right.values(), *self.metrics.values()]
        return sorted({split for reasoners in rounds for splits in reasoners.values() for split in splits})

    @classmethod
    def from_json(cls, record: Any) -> State:
        """Raises ValueError for what has other parts than `to_json` gives, UsageError where one is not of its type."""
        if not isinstance(record, Mapping) or set(record) != {one.name for one in fields(cls)}:
            raise ValueError("it has other parts")
        return disk.decoded(State, record, "its state")

    def results(self) -> dict[str, Any]:
        """Accuracies, which questions are right, and metrics (round -> reasoner -> split), how near q came to the
        posterior and how likely p finds Y (round -> before and after its training; means over the validation
        questions), what it cost, and how many M-steps have changed p."""
        posterior = {
            number: {w: {**mean_figures(of), "n": len(of)} for w, of in of_round.items() if w != "of_p" and of}
            for number, of_round in self.posterior.items()
        }
        accuracy = {
            number: {
                reasoner: {split: Accuracy.of(marks).to_json() for split, marks in splits.items()}
                for reasoner, splits in reasoners.items()
            }
            for number, reasoners in self.right.items()
        }
        return {
            "accuracy": accuracy,
            "right": self.right,
            "metrics": self.metrics,
            "posterior": posterior,
            "log_y": _means(self.log_y),
            "elbo": _means(self.elbo),
            "taken_back": self.taken_back,
            "begun_as_p": self.begun_as_p,
            "budget": asdict(self.budget),
            "m_steps": self.m_steps,
        }


def _means(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {number: {when: fmean(of) for when, of in of_round.items()} for number, of_round in found.items()}
