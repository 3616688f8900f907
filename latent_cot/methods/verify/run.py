"""Train q in each world with each objective, and measure how far it is from the exact posterior."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from latent_cot.evaluation.diagnostics import diagnose
from latent_cot.methods.verify import exact
from latent_cot.methods.verify.faults import FAULTS, injected
from latent_cot.methods.verify.train import Settings, train
from latent_cot.methods.verify.worlds import WORLDS, World, build
from latent_cot.objectives import LEARNS_LOG_Z, OBJECTIVES
from latent_cot.rationales.reward import Reward

KL_LIMIT = 0.01
"""Largest KL(q ‖ posterior) that passes, nats."""
TV_LIMIT = 0.03
"""Largest total variation distance that passes."""
LOG_Z_LIMIT = 0.02
"""Largest error of the estimated log Z(X) that passes, nats."""

QUICK_WORLDS = ("tool", "xy")
QUICK_OBJECTIVES = ("subtb", "pooled-subtb")

_DIAGNOSTIC_SAMPLES = 256


@dataclass(frozen=True)
class Case:
    """What is trained."""

    world: str
    objective: str
    fault: str | None = None
    """A deliberate mistake, by name."""

    @property
    def steps(self) -> int:
        """Of training."""
        return WORLDS[self.world].steps

    @property
    def required(self) -> bool:
        """Must it come within the limits? An objective that learns log Z(X), such as `tb`, has to find that first, and
        gets no more steps than the others: its figures are reported only."""
        return self.objective not in LEARNS_LOG_Z


@dataclass(frozen=True)
class Question:
    """The figures of one question; exact sums over all rationales, but for `log_z_estimate`."""

    question: str
    kl_before: float
    """KL(q ‖ posterior) before training, when q is p(Z | X): nats."""
    kl: float
    """The same after training."""
    total_variation: float
    mass: float
    """Sum of q over all rationales: 1, or the list is not complete."""
    log_z: float
    """log p(Y | X), nats."""
    log_z_estimate: float
    """What the engine takes it for: the parameter, where the objective has one, else the mean of a over the
    states of 256 fresh samples from q (`latent_cot.evaluation.diagnostics`)."""

    @property
    def log_z_error(self) -> float:
        """Absolute, nats."""
        return abs(self.log_z_estimate - self.log_z)


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    rationales: int
    """How many there are."""
    seconds: float
    questions: tuple[Question, ...]

    def worst(self, figure: str) -> float:
        """The largest value of a figure over the questions."""
        return max(float(getattr(question, figure)) for question in self.questions)

    def mean(self, figure: str) -> float:
        """The mean of a figure over the questions."""
        return sum(float(getattr(question, figure)) for question in self.questions) / len(self.questions)

    @property
    def learned(self) -> bool:
        """Is q the posterior of every question, within the limits?"""
        return (
            self.worst("kl") <= KL_LIMIT
            and self.worst("total_variation") <= TV_LIMIT
            and self.worst("log_z_error") <= LOG_Z_LIMIT
            and all(abs(question.mass - 1) < 1e-4 for question in self.questions)
        )

    @property
    def ok(self) -> bool:
        """A sound engine has learned the posterior, where that is required; a broken one has not."""
        if self.case.fault is not None:
            return not self.learned
        return self.learned or not self.case.required

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        figures = ("kl_before", "kl", "total_variation", "log_z_error")
        return {
            **asdict(self.case),
            "required": self.case.required,
            "learned": self.learned,
            "rationales": self.rationales,
            "steps": self.case.steps,
            "seconds": self.seconds,
            "mean": {figure: self.mean(figure) for figure in figures},
            "max": {figure: self.worst(figure) for figure in figures},
            "questions": [{**asdict(q), "log_z_error": q.log_z_error} for q in self.questions],
        }


def all_cases(worlds: Sequence[str] = tuple(WORLDS), objectives: Sequence[str] = tuple(OBJECTIVES)) -> list[Case]:
    """Every world with every objective."""
    return [Case(world, objective) for world in worlds for objective in objectives]


def faulty_cases(names: Sequence[str] = tuple(FAULTS)) -> list[Case]:
    """Each deliberate mistake, where it must show."""
    return [Case(FAULTS[name].world, FAULTS[name].objective, name) for name in names]


def run_case(case: Case, settings: Settings, on_step: Callable[[], None] = lambda: None) -> Result:
    """Build the world, train q, compare."""
    started = time.perf_counter()
    world = build(WORLDS[case.world])
    reference = _Reference(world)
    before = reference.distances()
    mistake = contextlib.nullcontext() if case.fault is None else injected(FAULTS[case.fault])
    with mistake:
        log_z = train(world, case.objective, case.steps, settings, on_step)
    after = reference.distances()
    estimates = _estimated_log_z(world, settings) if log_z is None else log_z
    questions = tuple(
        Question(
            question=query.example.question,
            kl_before=old.kl,
            **asdict(new),
            log_z=exact.log_partition(log_joint),
            log_z_estimate=estimate,
        )
        for query, old, new, log_joint, estimate in zip(
            world.queries, before, after, reference.log_joints, estimates, strict=True
        )
    )
    seconds = time.perf_counter() - started
    return Result(case, len(reference.rationales), seconds, questions)


class _Reference:
    """The exact posterior of each question of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rationales = exact.enumerate_rationales(world.rules)
        self.log_joints = [
            exact.log_joint(world.lm.merged("p"), query.model_prompt, self.rationales, query.answer, world.rules.codec)
            for query in world.queries
        ]

    def distances(self) -> list[exact.Distance]:
        """How far q is, as it is now."""
        world = self.world
        return [
            exact.distance(
                exact.log_policy(world.lm.merged("q"), query.policy_prompt, self.rationales, world.rules.codec),
                log_joint,
            )
            for query, log_joint in zip(world.queries, self.log_joints, strict=True)
        ]


def _estimated_log_z(world: World, settings: Settings) -> list[float]:
    figures = diagnose(
        world.lm,
        world.queries,
        world.rules,
        Reward(world.lm, world.rules.codec, max_tokens=settings.max_batch_tokens),
        n=_DIAGNOSTIC_SAMPLES,
        reward_temperature=1.0,
        reward_floor=world.floor,
        max_tokens=settings.max_batch_tokens,
        generator=torch.Generator().manual_seed(settings.seed + 1),
    )
    return [f.log_z for f in figures]
