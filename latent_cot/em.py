"""THE ALGORITHM.

    round 0     p ← the base model, or the base model fine-tuned on the demonstrations
    round 1     warm_start_q  where q sees Y: q ← p, fine-tuned on the demonstrations as q sees them
    round r     diagnose_before  where q sees X only: q ← p; compare q with the posterior (diagnostics.py)
                E-step   train q(Z | X[, Y]) towards p(X Z Y)                      (e_step.py)
                diagnose compare q with the posterior     (neither with no steps: then q = p)
                draw     rationales Z ~ q for the training questions
                M-step   fine-tune p on (X, Z, Y)                                  (m_step.py)
    after each  evaluate p and, where it sees X only, q                            (evaluate.py)

`Loop` (loop.py) goes through these phases, and has the ones that the baselines share.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from latent_cot.config.schema import RunConfig
from latent_cot.methods.e_step import Batch, Behaviour, collect, describe, mean_log_z, update
from latent_cot.methods.loop import Job, Loop
from latent_cot.methods.seeding import draw_distinct, seed_of
from latent_cot.methods.state import Info, Phase
from latent_cot.model.optimise import Schedule
from latent_cot.objectives import COMPLETE_ONLY, LEARNS_LOG_Z
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.reward import Prior
from latent_cot.rationales.rollout import count_distinct, rollout
from latent_cot.rationales.scoring import Group
from latent_cot.types import (
    Example,
    Rationale,
    RewardingTask,
    SeedingTask,
    Task,
    TaskData,
    UsageError,
    rationale_to_json,
)

LOG_Z_RATE = {"tb": 0.1, "prefix-tb": 0.3}
"""An objective that learns log Z -> its learning rate, in nats a step."""
SEED_SAMPLES = 20
"""Rationales sampled from p for each training question of a task that has prompts for it, such as one that gives the
answer away ("wishful" ones, in the paper). They count as trajectories, but not in a planned budget."""

ROUND = ("diagnose_before", "e_step", "diagnose", "draw", "m_step")
"""The phases of a round, in order, before its evaluation."""


class EM(Loop):
    """Alternate a GFlowNet E-step and an M-step."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        c = self.config.e_step
        if c.prior == "sampler":
            self.reward = replace(self.reward, prior=Prior(lambda example: self.query(example).policy_prompt))
        # Chains of a few tokens have no near ones: each is another label or number.
        self.buffer = ReplayBuffer(c.buffer_capacity, 0.25 if self.config.rollout.max_tokens > 8 else 0.0)
        self.log_z = torch.nn.Parameter(torch.zeros(()))
        """The log Z that all questions share, for an objective that learns it. A step asks eight of a thousand
        questions: a parameter of each question's own would never leave its start."""

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        super().check(config, task, data)
        if isinstance(task, RewardingTask) and config.e_step.prior == "sampler":
            raise UsageError(
                f"--e-step.prior sampler: {task.name} has a reward of its own, with no prior in it; give model"
            )

    def plan(self) -> list[Phase]:
        c = self.config
        phases = self.round(0, "init", last=c.rounds == 0)
        if c.q_sees == "question-and-answer" and c.rounds:
            phases.append(Phase(1, "warm_start_q"))
        names = ROUND if c.e_step.steps else tuple(name for name in ROUND if name not in ("e_step", "diagnose"))
        for number in range(1, c.rounds + 1):
            phases += self.round(number, *names, last=number == c.rounds)
        return phases

    def jobs(self) -> Mapping[str, Job]:
        return {
            **super().jobs(),
            "e_step": Job(self.e_step, lambda _: self.config.e_step.steps),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": self.buffer.state_dict(), "log_z": self.log_z.item()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.buffer.load_state_dict(saved["buffer"])
        self.log_z.data.fill_(saved["log_z"])

    # -- the phases ----------------------------------------------------------------------------------

    def start_sampler(self, number: int) -> None:
        super().start_sampler(number)
        if self.config.q_sees == "question" and not self.config.e_step.steps:
            self.lm.copy_adapter("p", "q")  # without an E-step q has nothing of its own
        if number == 1 and self.reward.prior is not None:
            self.lm.copy_adapter("q", "prior")

    def e_step(self, phase: Phase) -> Iterator[Info]:
        """Train q towards q(Z | X[, Y]) ∝ p(X Z Y), from where it is."""
        c = self.config.e_step
        if self.state.unit == 0:
            self._fill_buffer()
        schedule = Schedule(c.learning_rate, c.steps, c.warmup, c.decay)
        log_z = [self.log_z] if c.objective in LEARNS_LOG_Z else []
        rate = LOG_Z_RATE.get(c.objective, 0.0)
        optimiser = self._new_optimiser("q", schedule, c.max_grad_norm, log_z=log_z, log_z_rate=rate)
        weights = [c.demonstration_weight] * len(self.data.demonstrations) + [1.0] * len(self.data.unlabelled)
        for step in range(self.state.unit, c.steps):
            rng = random.Random(self._unit_seed(step))
            generator = torch.Generator().manual_seed(rng.getrandbits(60))
            torch.manual_seed(rng.getrandbits(60))  # nothing of ours draws from it; a model's own code may
            chosen = draw_distinct(weights, c.questions, rng)
            batches = collect(
                self.lm,
                [self.query(self.questions[i]) for i in chosen],
                [self._behaviour(rng) for _ in chosen],
                self.rules,
                self.buffer,
                self.reward,
                samples=c.samples,
                generator=generator,
                ends_only=c.objective in COMPLETE_ONLY,
            )
            for batch in batches:
                self.state.budget.sampled(batch.rationales, batch.sampled)
            temperature = self.reward_temperature(step)
            if log_z and step == 0:
                start = mean_log_z(
                    self.lm,
                    batches,
                    self.rules,
                    reward_temperature=temperature,
                    reward_floor=c.reward_floor,
                    max_tokens=self.config.max_batch_tokens,
                )
                self.log_z.data.fill_(start)
            info = update(
                self.lm,
                batches,
                self.rules,
                optimiser,
                step,
                objective=c.objective,
                reward_temperature=temperature,
                reward_floor=c.reward_floor,
                huber_delta=c.huber_delta,
                max_tokens=self.config.max_batch_tokens,
                log_z=log_z * len(batches) or None,
            )
            self.state.budget.gradient_steps += 1
            figures = describe(batches, self.is_correct if self.tells_right else None)
            yield {**vars(info), **figures, "reward_temperature": temperature, "samples": _samples(batches)}

    # -- what they need ------------------------------------------------------------------------------

    def reward_temperature(self, step: int) -> float:
        """T of log R / T at a step of the E-step."""
        c = self.config.e_step
        share = min(1.0, step / max(1, c.reward_temperature_steps))
        return c.reward_temperature + (c.final_reward_temperature - c.reward_temperature) * share

    @property
    def final_reward_temperature(self) -> float:
        return self.reward_temperature(self.config.e_step.steps)

    def _fill_buffer(self) -> None:
        """Begin with what p writes after the task's own prompts."""
        self.buffer.clear()
        if not self.config.e_step.replay_share:
            return
        seeds: dict[str, list[Rationale]] = {}
        for example, rationales in self._sample_seeds():
            known = seeds.setdefault(example.key, [])
            known.extend(z for z in rationales if z not in known)
        asked = {example.key: example for example in self.questions}
        examples = [example for key, example in asked.items() if seeds.get(key)]
        queries = [self.query(example) for example in examples]
        groups = [Group(query.model_prompt, seeds[query.example.key], query.answer) for query in queries]
        for group, example, rewards in zip(groups, examples, self.reward.of_prefixes(examples, groups), strict=True):
            for rationale, reward in zip(group.rationales, rewards.tolist(), strict=True):
                self.buffer.add(example.key, rationale, reward)

    def _sample_seeds(self) -> Iterator[tuple[Example, Iterable[Rationale]]]:
        """Distinct rationales of p for each question, after a prompt that makes good ones likely."""
        if not isinstance(self.task, SeedingTask):
            return
        prompts = [self.rules.codec.encode_prompt(self.task.seed_prompt(example)) for example in self.questions]
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, self.state.phase, "seeds"))
        sampled = rollout(self.lm, self.lm.merged("p"), prompts, self.rules, n=SEED_SAMPLES, generator=generator)
        for example, rationales in zip(self.questions, sampled, strict=True):
            self.state.budget.sampled(rationales)
            yield example, count_distinct(rationales)

    def _behaviour(self, rng: random.Random) -> Behaviour:
        """On-policy and tempered rationales are mixed within a question: the on-policy ones tell how good its
        rationales can be, without which a batch of hot, worthless chains would be compared among itself."""
        c = self.config.e_step
        # Where the buffer has nothing yet for this question, a replay falls back on sampling.
        replay = c.replay_share
        if not c.mix_replay:
            replay = float(rng.random() < replay)
        return Behaviour(rng.uniform(*c.temperatures), share=c.tempered_share, replay=replay)


class GFlowNet(EM):
    """GFlowNet fine-tuning, as in the paper's tables: one E-step, and no M-step.

    The sampler is the reasoner: q(Z | X); or q(Z | X, Y), first fine-tuned on the demonstrations as it sees them, where
    tests give Y. p stays the initial model, whose posterior q learns.
    """

    def plan(self) -> list[Phase]:
        start = ["warm_start_q"] if self.config.q_sees == "question-and-answer" else []
        return [*self.round(0, "init"), *self.round(1, *start, "diagnose_before", "e_step", "diagnose", last=True)]


def _samples(batches: Sequence[Batch], n: int = 2) -> list[Info]:
    """A few rationales of a step, for people to read: the most frequent of the first questions."""
    samples = []
    for batch in batches[:n]:
        best = max(range(len(batch.rationales)), key=lambda k: batch.counts[k])
        rationale = batch.rationales[best]
        samples.append(
            {
                "question": batch.query.example.question,
                "rationale": rationale_to_json(rationale),
                "log_reward": float(batch.log_reward[best, len(rationale)]),
                "count": batch.counts[best],
            }
        )
    return samples
