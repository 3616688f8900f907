"""The E-step in a small world: `collect` and `update` as `latent-cot em` calls them, other numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from latent_cot.methods.e_step import Behaviour, collect, update
from latent_cot.methods.verify.worlds import World
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.objectives import COMPLETE_ONLY, LEARNS_LOG_Z
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.reward import Reward


@dataclass(frozen=True)
class Settings:
    """How q is trained; the same in all worlds. At reward temperature 1: another would change what q
    converges to."""

    samples: int = 96
    """Rationales sampled for each question of each step."""
    learning_rate: float = 5e-3
    warmup: int = 10
    max_grad_norm: float = 0.3
    huber_delta: float = 3.0
    log_z_learning_rate: float = 0.2
    on_policy: float = 0.4
    """Share of questions whose rationales come from q, ..."""
    tempered: float = 0.3
    """... from q at a temperature of 1 to `temperature_high`, and, what is left, from the replay buffer."""
    temperature_high: float = 2.0
    max_batch_tokens: int = 1 << 16
    seed: int = 0


def train(
    world: World, objective: str, steps: int, settings: Settings, on_step: Callable[[], None] = lambda: None
) -> list[float] | None:
    """Train q for so many optimiser steps.

    Returns the log Z(X) of each question, if the objective learns it as a parameter.
    """
    c = settings
    rng = random.Random(c.seed)
    generator = torch.Generator().manual_seed(c.seed)
    buffer = ReplayBuffer(capacity=1000, tolerance=0.0)
    reward = Reward(world.lm, world.rules.codec, max_tokens=c.max_batch_tokens)
    learned = world.queries if objective in LEARNS_LOG_Z else []
    log_z = [torch.nn.Parameter(torch.zeros(())) for _ in learned]
    optimiser = AdapterOptimiser(
        world.lm.parameters("q"),
        Schedule(c.learning_rate, steps, c.warmup, "cosine"),
        c.max_grad_norm,
        log_z=log_z,
        log_z_rate=c.log_z_learning_rate,
    )
    for step in range(steps):
        batches = collect(
            world.lm,
            world.queries,
            [_behaviour(rng, c) for _ in world.queries],
            world.rules,
            buffer,
            reward,
            samples=c.samples,
            generator=generator,
            ends_only=objective in COMPLETE_ONLY,
        )
        update(
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
    return Behaviour(replay=1.0)
