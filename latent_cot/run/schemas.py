"""What the files of a run hold, as types: pydantic checks them before anything else sees them.

A part that no schema names is let through; one that is named is there, and of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from latent_cot.types import Rationale

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True)]
"""No text that looks like one: what is read is used as it is."""
Status = Literal["running", "stopped", "failed", "finished"]
"""A killed process leaves "running"."""


@dataclass
class About:
    """`run.json`."""

    status: Status
    started_at: str = ""
    platform: str = "?"
    torch_threads: Count | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class Accuracy:
    accuracy: Number | None
    """None: of no question."""
    correct: Count
    n: Count
    interval_95: tuple[Number, Number]

    def __post_init__(self) -> None:
        if self.n and self.accuracy is None:
            raise ValueError(f"no accuracy of {self.n} questions")


@dataclass
class Figure:
    value: Number | None
    n: Count
    interval_95: tuple[Number, Number] | None


@dataclass
class Budget:
    trajectories: Count
    tokens: Count
    gradient_steps: Count


@dataclass
class Resources:
    """What a run has cost up to now."""

    seconds: Annotated[float, Field(strict=True, ge=0, le=1e12, allow_inf_nan=False)]
    phases: dict[str, Number] = field(default_factory=dict)
    peak_memory_bytes: Count = 0


Round = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


@dataclass
class Results:
    """`results.json`."""

    posterior: dict[Round, dict[Literal["before", "after"], dict[str, Number | None]]]
    budget: Budget
    resources: Resources
    log_y: dict[Round, dict[Literal["before", "after"], Number | None]] = field(default_factory=dict)
    elbo: dict[Round, dict[Literal["before", "after"], Number | None]] = field(default_factory=dict)
    taken_back: list[tuple[Count, Literal["e_step", "m_step"]]] = field(default_factory=list)
    begun_as_p: list[Count] = field(default_factory=list)
    accuracy: dict[Round, dict[str, dict[str, Accuracy]]] = field(default_factory=dict)
    metrics: dict[Round, dict[str, dict[str, dict[str, Figure]]]] = field(default_factory=dict)
    right: dict[Round, dict[str, dict[str, str]]] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Number] = field(default_factory=dict)
    training: str = ""
    """A digest of the training data; empty: of an earlier version."""
    weights: str = ""
    """Of the base model, likewise."""
    m_steps: Count = 1
    """How many have changed p; of an earlier version, some."""
    task_files: str | None = None
    """A digest of the task's own files, if it has any."""


@dataclass
class Tracked:
    """`tracking.json`."""

    step: Count
    runs: dict[str, str | None]
    place: tuple[Count, Count] | None = None
    """The last phase and unit that was tracked; None: before that was kept."""


@dataclass
class Saved:
    """`state.json` of a checkpoint."""

    log_sizes: dict[str, Count]
    state: dict[str, Any]


@dataclass
class Trained:
    """Of the loop's state in a checkpoint, what sampling needs to know."""

    m_steps: Count
    """How many M-steps have changed p, one under way included."""


@dataclass
class SavedFile:
    size: Count
    sha256: str


@dataclass
class Manifest:
    """`manifest.json` of a checkpoint."""

    files: dict[str, SavedFile]


@dataclass
class Event:
    """A line of `events.jsonl`."""

    time: str
    kind: str
    round: Count | None = None
    unit: Count | None = None
    text: str = ""
    """Of a note."""


@dataclass
class Diagnosed(Event):
    round: Count = field(kw_only=True)
    unit: Count = field(kw_only=True)


@dataclass
class Evaluated(Diagnosed):
    reasoner: str = field(kw_only=True)
    split: str = field(kw_only=True)
    accuracy: Number | None = None
    n: Count | None = None
    interval_95: tuple[Number, Number] | None = None
    metrics: dict[str, Figure] | None = None


@dataclass(frozen=True)
class LoggedRationale:
    """A rationale that was sampled while a run trained: a line of `rationales.jsonl`."""

    round: Count
    phase: str
    unit: Count
    """The unit of work within that phase, such as the step of the E-step, from 1."""
    question: str
    rationale: Rationale
    log_reward: Number | None
    """log R of it at that time, nats; None: it was not finite or, for what was drawn for the M-step, not asked for."""
    count: Count
    """How often it was among the samples of its question."""


EVENTS: dict[str, type[Event]] = {
    "evaluate": Evaluated,
    "diagnose_before": Diagnosed,
    "diagnose": Diagnosed,
}
"""Kind of an event -> what it holds, where that is more than others do."""


def of_event(event: Mapping[str, Any]) -> type[Event]:
    """What a line of `events.jsonl` holds: a unit of work has its round, too."""
    return EVENTS.get(str(event.get("kind")), Diagnosed if "unit" in event else Event)
