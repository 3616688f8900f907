"""What the E-step tries: the temperature of its reward, tempered samples, and the replay buffer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from latent_cot.config.schema import EStepConfig
from latent_cot.methods.e_step import Behaviour
from latent_cot.methods.method import Method
from latent_cot.methods.seeding import seed_of
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.rollout import count_distinct, rollout
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example, Rationale

SEED_SAMPLES = 20
"""Rationales sampled from p for each training question of a task that has prompts for it, such as one that gives the
answer away ("wishful" ones, in the paper). They count as trajectories, but not in a planned budget."""


def reward_temperature(c: EStepConfig, step: int) -> float:
    """T of log R / T at a step of the E-step."""
    share = min(1.0, step / max(1, c.reward_temperature_steps))
    return c.reward_temperature + (c.final_reward_temperature - c.reward_temperature) * share


def draw_behaviour(c: EStepConfig, rng: random.Random) -> Behaviour:
    """How a question's rationales are sampled at a step.

    On-policy and tempered ones are mixed within a question: the on-policy ones tell how good its rationales can be,
    without which a batch of hot, worthless chains would be compared among itself.
    """
    # Where the buffer has nothing yet for this question, a replay falls back on sampling.
    replay = c.replay_share
    if not c.mix_replay:
        replay = float(rng.random() < replay)
    return Behaviour(rng.uniform(*c.temperatures), share=c.tempered_share, replay=replay)


def fill_buffer(buffer: ReplayBuffer, method: Method) -> None:
    """Begin with what p writes after the task's own prompts."""
    buffer.clear()
    if not method.config.e_step.replay_share:
        return
    seeds: dict[str, list[Rationale]] = {}
    for example, rationales in _sample_seeds(method):
        known = seeds.setdefault(example.key, [])
        known.extend(z for z in rationales if z not in known)
    asked = {example.key: example for example in method.questions}
    examples = [example for key, example in asked.items() if seeds.get(key)]
    queries = [method.query(example) for example in examples]
    groups = [Group(query.model_prompt, seeds[query.example.key], query.answer) for query in queries]
    for group, example, rewards in zip(groups, examples, method.reward.of_prefixes(examples, groups), strict=True):
        for rationale, reward in zip(group.rationales, rewards.tolist(), strict=True):
            buffer.add(example.key, rationale, reward)


def _sample_seeds(method: Method) -> Iterator[tuple[Example, Sequence[Rationale]]]:
    """Distinct rationales of p for each question, after a prompt that makes good ones likely."""
    texts = [method.task.seed_prompt(example) for example in method.questions]
    if not texts or None in texts:
        return
    prompts = [method.rules.codec.encode_prompt(text or "") for text in texts]
    generator = torch.Generator().manual_seed(seed_of(method.config.seed, method.state.phase, "seeds"))
    sampled = rollout(method.lm, method.lm.merged("p"), prompts, method.rules, n=SEED_SAMPLES, generator=generator)
    for example, rationales in zip(method.questions, sampled, strict=True):
        method.state.budget.sampled(rationales)
        yield example, list(count_distinct(rationales))
