"""What the E-step tries: the temperature of its reward, tempered samples, and the replay buffer."""

from __future__ import annotations

import random

import torch

from latent_cot.config.schema import EStepConfig
from latent_cot.methods.e_step import Behaviour, offer
from latent_cot.methods.method import Method
from latent_cot.methods.seeding import seed_of
from latent_cot.rationales.batch import score_sampled
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.rollout import rollout

SEED_SAMPLES = 20
"""Rationales sampled from p for each training question of a task that has prompts for it, such as one that gives the
answer away ("wishful" ones, in the paper). They count as trajectories, but not in a planned budget."""


def reward_temperature(c: EStepConfig, step: int) -> float:
    """T of log R / T at a step of the E-step."""
    share = step / c.reward_temperature_steps if step < c.reward_temperature_steps else 1.0
    first, last = c.reward_temperatures
    return first + (last - first) * share


def draw_behaviour(c: EStepConfig, rng: random.Random) -> Behaviour:
    """How a question's rationales are sampled at a step.

    On-policy and tempered ones are mixed within a question: the on-policy ones tell how good its rationales can be,
    without which a batch of hot, worthless chains would be compared among itself.
    """
    # Where the buffer has nothing yet for this question, a replay falls back on sampling.
    replay = c.replay_share if c.mix_replay else float(rng.random() < c.replay_share)
    return Behaviour(rng.uniform(*c.temperatures), tempered_share=c.tempered_share, replay_share=replay)


def fill_buffer(buffer: ReplayBuffer, method: Method) -> None:
    """Begin with what p writes after the task's own prompts, which make good rationales likely."""
    buffer.clear()
    if not method.config.e_step.replay_share:
        return
    task, questions = method.task, method.questions
    texts = [text for text in map(task.seed_prompt, questions) if text is not None]
    if not texts or len(texts) < len(questions):
        return
    prompts = list(map(method.rules.codec.encode_prompt, texts))
    generator = torch.Generator().manual_seed(seed_of(method.config.seed, method.state.phase, "seeds"))
    n, c = SEED_SAMPLES, method.config
    bounds = {"batch_size": c.rollout.batch_size, "max_tokens": c.max_batch_tokens}
    sampled = rollout(method.lm, "p", prompts, method.rules, n=n, generator=generator, **bounds)
    method.count_sampled(sampled)
    for trajectories in score_sampled(list(map(method.query, questions)), sampled, method.reward):
        offer(buffer, trajectories, method.rules.codec)
