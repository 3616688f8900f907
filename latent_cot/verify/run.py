"""Train q in each world with each objective, and measure how far it is from the exact posterior.

The E-step is `latent-cot em`'s, with other numbers: `sample`, `assemble` (together they are `collect`) and `update` of
`methods/e_step.py`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from latent_cot.config.schema import WITHIN_RATIONALES, EStepConfig
from latent_cot.evaluation.diagnostics import diagnose
from latent_cot.methods.e_step import Behaviour, balance_step, collect
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.objectives import OBJECTIVES, Objective
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.reward import Reward
from latent_cot.verify import exact
from latent_cot.verify.by_em import train_by_em
from latent_cot.verify.faults import FAULTS, injected
from latent_cot.verify.staleness import LaggingSampler
from latent_cot.verify.worlds import WORLDS, Settings, World, build

KL_LIMIT = 0.01
"""Largest KL(q ‖ posterior) that passes, nats."""
TV_LIMIT = 0.03
"""Largest total variation distance that passes."""
LOG_Z_LIMIT = 0.02
"""Largest error of the estimated log Z(X) that passes, nats."""

BY_EM = "em"
"""In place of an objective: EM's own E-step with its defaults, all of which work together, but for sizes, rates and
exploration."""
QUICK_WORLDS = ("tool", "xy")
QUICK_OBJECTIVES = ("subtb", "pooled-subtb")

_DIAGNOSTIC_SAMPLES = 256


@dataclass(frozen=True)
class Case:
    """What is trained."""

    world: str
    objective: str
    """One of `OBJECTIVES`, by the loop below, or `BY_EM`."""
    fault: str | None = None
    """A deliberate mistake, by name."""
    staleness: int = 0
    """How many optimiser steps the q that samples is behind the one that is trained (`LaggingSampler`)."""

    @property
    def slowdown(self) -> int:
        """How many times as many steps are taken, at a learning rate as many times lower.

        A gradient that comes K steps late overshoots. Where rewards are far apart, as in the worlds with a floor, q may
        not settle: at K = 8 and the full rate VarGrad's KL was 1.7 nats after 350 steps of 900, and 0.23 in the end.
        """
        return 2 if self.staleness and WORLDS[self.world].floor is not None else 1

    @property
    def steps(self) -> int:
        """Of training: batches, of each of which EM's own E-step learns several times."""
        return WORLDS[self.world].steps * self.slowdown // (2 if self.objective == BY_EM else 1)

    @property
    def required(self) -> bool:
        """Must it come within the limits? Else its figures are reported only.

        An objective that learns log Z(X), such as `tb`, has to find that first, and gets no more steps than the others.
        Under a floor one that compares the states of a trajectory with each other only, as `subtb` does, is not exact:
        where all but one of them are below the floor, nothing ties that one to those of other trajectories.
        """
        within_trajectories = self.objective in WITHIN_RATIONALES and WORLDS[self.world].floor is not None
        return not self.balance.log_z_rate and not within_trajectories

    @property
    def balance(self) -> Objective:
        """What q's deviations from balance are summed up by."""
        return OBJECTIVES[EStepConfig().objective if self.objective == BY_EM else self.objective]

    @property
    def floor(self) -> float | None:
        """The reward floor that q is trained with, nats."""
        return EStepConfig().reward_floor if self.objective == BY_EM else WORLDS[self.world].floor


@dataclass(frozen=True, kw_only=True)
class Question(exact.Distance):
    """The figures of one question: how far q is from the posterior after training, and more; exact sums over all
    rationales, but for `log_z_estimate`."""

    question: str
    kl_before: float
    """KL(q ‖ posterior) before training, when q is p(Z | X): nats."""
    log_z: float
    """log p(Y | X), nats."""
    log_z_estimate: float
    """What the engine takes it for: the parameter, where the objective has one, else the mean of a over those states of
    256 fresh samples from q that the objective compares (`latent_cot.evaluation.diagnostics`)."""

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
        of = {figure: [float(getattr(question, figure)) for question in self.questions] for figure in figures}
        return {
            **asdict(self.case),
            "required": self.case.required,
            "learned": self.learned,
            "rationales": self.rationales,
            "steps": self.case.steps,
            "seconds": self.seconds,
            "mean": {figure: fmean(values) for figure, values in of.items()},
            "max": {figure: max(values) for figure, values in of.items()},
            "questions": [{**asdict(q), "log_z_error": q.log_z_error} for q in self.questions],
        }


def run_case(case: Case, settings: Settings, on_step: Callable[[], None] = lambda: None) -> Result:
    """Build the world, train q, compare."""
    started = time.perf_counter()
    world = build(WORLDS[case.world])
    codec, rationales = world.rules.codec, exact.enumerate_rationales(world.rules)
    p = world.lm.merged("p")
    joints = [exact.log_probs(p, query.model_prompt, rationales, codec, query.answer) for query in world.queries]

    def distances() -> list[exact.Distance]:
        q = world.lm.merged("q")
        log_q = (exact.log_probs(q, query.policy_prompt, rationales, codec) for query in world.queries)
        return list(map(exact.distance, log_q, joints))

    before = distances()
    settings = replace(settings, learning_rate=settings.learning_rate / case.slowdown)
    with contextlib.nullcontext() if case.fault is None else injected(FAULTS[case.fault]):
        if case.objective != BY_EM:
            log_z = train(world, case.objective, case.steps, settings, on_step, staleness=case.staleness)
        else:
            train_by_em(world, case.steps, settings, on_step)
            log_z = None
    estimates = log_z or _estimated_log_z(world, case, settings)
    columns = zip(world.queries, before, distances(), joints, estimates, strict=True)
    questions = tuple(
        Question(
            question=query.example.question,
            kl_before=old.kl,
            **vars(new),
            log_z=exact.log_partition(log_joint),
            log_z_estimate=estimate,
        )
        for query, old, new, log_joint, estimate in columns
    )
    return Result(case, len(rationales), time.perf_counter() - started, questions)


def train(
    world: World,
    objective: str,
    steps: int,
    settings: Settings,
    on_step: Callable[[], None] = lambda: None,
    *,
    staleness: int = 0,
) -> list[float] | None:
    """Train q for so many optimiser steps, `staleness` as in `Case`.

    Returns the log Z(X) of each question, if the objective learns it as a parameter.
    """
    c = settings
    rng = random.Random(c.seed)
    generator = torch.Generator().manual_seed(c.seed)
    buffer = ReplayBuffer(capacity=1000, tolerance=0.0)
    reward = Reward(world.lm, world.rules.codec, max_tokens=c.max_batch_tokens)
    learned = world.queries if OBJECTIVES[objective].log_z_rate else []
    log_z = [torch.nn.Parameter(torch.zeros(())) for _ in learned]
    optimiser = AdapterOptimiser(
        world.lm.parameters("q"),
        Schedule(c.learning_rate, steps, c.warmup, "cosine"),
        c.max_grad_norm,
        log_z=log_z,
        log_z_rate=c.log_z_learning_rate,
    )
    sampler = LaggingSampler(world.lm, staleness)
    for step in range(steps):
        with sampler.sampling():
            batches = collect(
                world.lm,
                world.queries,
                [_behaviour(rng, c) for _ in world.queries],
                world.rules,
                buffer,
                reward,
                samples=c.samples,
                generator=generator,
                ends_only=OBJECTIVES[objective].complete_only,
            )
        balance_step(
            world.lm,
            batches,
            world.rules,
            optimiser,
            step,
            objective=objective,
            reward_temperature=1.0,
            reward_floor=world.floor,
            huber_delta=c.huber_delta,
            max_tokens=c.max_batch_tokens,
            log_z=log_z or None,
        )
        on_step()
    return [z.item() for z in log_z] if log_z else None


def _behaviour(rng: random.Random, c: Settings) -> Behaviour:
    kind = rng.random()
    if kind < c.on_policy:
        return Behaviour()
    if kind < c.on_policy + c.tempered:
        return Behaviour(rng.uniform(1.0, c.temperature_high))
    return Behaviour(replay_share=1.0)


def _estimated_log_z(world: World, case: Case, settings: Settings) -> list[float]:
    figures = diagnose(
        world.lm,
        world.queries,
        world.rules,
        Reward(world.lm, world.rules.codec, max_tokens=settings.max_batch_tokens),
        n=_DIAGNOSTIC_SAMPLES,
        reward_temperature=1.0,
        reward_floor=case.floor,
        complete_only=case.balance.complete_only,
        max_tokens=settings.max_batch_tokens,
        generator=torch.Generator().manual_seed(settings.seed + 1),
    )
    return [f.log_z for f in figures]
