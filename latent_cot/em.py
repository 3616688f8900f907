"""THE ALGORITHM: EM with a GFlowNet sampler, after Hu et al., "Amortizing intractable inference in large language
models" (ICLR 2024).

X is a question, Y its answer, Z the rationale between them, which is not seen. The language model p gives p(Z Y | X);
the sampler is q(Z | X, Y), or q(Z | X). Both are one frozen base model, each with a LoRA adapter of its own.

The phases that other methods have too are in `methods/method.py` (fine-tuning, drawing, the M-step) and in
`methods/evaluator.py` (tests); what makes it resumable is in `methods/phases.py`. The algorithm on one page, without
this package: `examples/em_from_scratch.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from latent_cot.config.schema import trained_tokens
from latent_cot.methods.e_step import assemble, balance_step, mean_log_z, sample
from latent_cot.methods.exploration import draw_behaviour, fill_buffer, reward_temperature
from latent_cot.methods.forward_kl_steps import ForwardKLSteps
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.seeding import draw_distinct
from latent_cot.methods.state import Info, Phase
from latent_cot.objectives import OBJECTIVES
from latent_cot.rationales.batch import describe, shown_samples
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.rollout import Draw
from latent_cot.types import Rationale


class EM(ForwardKLSteps):
    """Alternate a GFlowNet E-step and an M-step."""

    def algorithm(self) -> Steps:
        """The method, from top to bottom."""
        yield from self.init(0)  # p ← the base model, fine-tuned on the demonstrations
        yield from self.evaluate(0)
        for number in range(1, self.rounds + 1):
            yield from self.start_q(number)  # first round: q ← p; where it sees Y, fine-tuned to write Z behind X and Y
            # How far is q from the posterior? Where q sees X only and p is clearly nearer by now, q ← p.
            yield from self.diagnose_before(number)
            if self.config.e_step.steps:
                yield from self.e_step(number)  # train q towards the posterior of p
                yield from self.diagnose(number)  # how far is it now? If clearly farther, it is put back
            yield from self.draw(number)  # rationales Z ~ q for the training questions
            yield from self.m_step(number)  # fine-tune p on (X, Z, Y)
            yield from self.validate(number)  # is p clearly worse at questions it has not seen? Then it is put back
            yield from self.evaluate(number)

    @phase(lambda self, _: self.config.e_step.steps)
    def e_step(self, at: Phase) -> Iterator[Info]:
        """Train q towards q(Z | X[, Y]) ∝ p(Z Y | X), from where it is: on each batch by balance, then by forward KL on
        what was sampled so far."""
        c = self.config.e_step
        if self.state.unit == 0:
            fill_buffer(self.buffer, self)
            if c.updates > 1:
                self.recall_drawn(at.round)
        objective = OBJECTIVES[c.objective]
        log_z = [self.log_z] if objective.log_z_rate else []
        optimiser = self.sampler_optimiser(log_z=log_z, log_z_rate=objective.log_z_rate)
        for step, (chosen, sampled, own, seed), timing in self.rollouts_of_steps(self._sample_step):
            # Score the samples under p: log R(z_{1:i}) = log p(z_{1:i} Y | X) of every prefix, or of the whole only,
            # as the objective has it. Rationales from the replay buffer, if there is one, are added.
            batches = assemble(
                [self.query(self.questions[i]) for i in chosen],
                sampled,
                self.buffer,
                self.reward,
                samples=c.samples,
                generator=torch.Generator().manual_seed(seed),
                step=step,
                ends_only=objective.complete_only,
            )
            self.count_sampled(sampled)

            # Train q on the balance of these (objectives/balance.py).
            temperature = reward_temperature(c, step)
            settings: dict[str, Any] = {
                "reward_temperature": temperature,
                "reward_floor": c.reward_floor,
                "max_tokens": trained_tokens(self.config),
            }
            if log_z and step == 0:
                self.log_z.data.fill_(mean_log_z(self.lm, batches, self.rules, **settings))
            marks = self.marks(batches)
            if c.updates > 1:  # before the update: log q is that of the q that sampled them
                self.remember(chosen, batches, own, marks)
            info = balance_step(
                self.lm,
                batches,
                self.rules,
                optimiser,
                step,
                objective=c.objective,
                huber_delta=c.huber_delta,
                log_z=[self.log_z] * len(batches) if log_z else None,
                **settings,
            )
            self.state.budget.gradient_steps += 1

            # And, by forward KL, on what was sampled so far for some of the questions (methods/forward_kl_steps.py).
            forward_kl = self.further_steps(optimiser, step, temperature=temperature)
            figures = describe(batches, marks if self.tells_right else None)
            figures["reward_temperature"] = temperature
            yield {**vars(info), **forward_kl, **figures, **timing, "samples": shown_samples(batches)}
        self.state.seen = []

    def _sample_step(
        self, step: int, draw: Draw
    ) -> tuple[list[int], list[Sequence[Rationale]], list[Sequence[Rationale]], int]:
        """The questions of a step, the rationales sampled for them by `draw`, those of them that were sampled at
        temperature 1, and the seed of all else."""
        c, rng = self.config.e_step, random.Random(self.unit_seed(step))
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        seed = rng.getrandbits(60)
        chosen = draw_distinct(self.question_weights, c.questions, rng)
        queries = [self.query(self.questions[i]) for i in chosen]
        behaviours = [draw_behaviour(c, rng) for _ in chosen]
        sampled = sample(draw, queries, behaviours, self.rules, self.buffer, samples=c.samples, generator=generator)
        own = [z[behaviour.tempered(len(z)) :] for behaviour, z in zip(behaviours, sampled, strict=True)]
        return chosen, sampled, own, seed

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        c = self.config.e_step
        if c.prior == "sampler":
            self.reward = replace(self.reward, prior=lambda example: self.query(example).policy_prompt)
        # Where none is replayed, none is kept. Chains of a few tokens have no near ones: each is a label or a number.
        tolerance = 0.25 if self.config.rollout.max_tokens > 8 else 0.0
        self.buffer = ReplayBuffer(128, tolerance) if c.replay_share else ReplayBuffer(0)
        self.log_z = torch.nn.Parameter(torch.zeros(()))  # one for all: a step asks few of the questions

    @property
    def final_reward_temperature(self) -> float:
        return reward_temperature(self.config.e_step, self.config.e_step.steps)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": self.buffer.state_dict(), "log_z": self.log_z.item()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        self.buffer.load_state_dict(saved["buffer"], self.rules.codec)
        if not abs(log_z := float(saved["log_z"])) < 1e30:  # as float32 has it
            raise ValueError(f"its log_z is {log_z}")
        self.log_z.data.fill_(log_z)


class GFlowNet(EM):
    """GFlowNet fine-tuning: one E-step, no M-step. The sampler is the reasoner. With `--preset paper` it is near what
    the paper's tables have (`docs/differences.md`)."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        yield from self.start_q(1)
        yield from self.diagnose_before(1)
        yield from self.e_step(1)
        yield from self.diagnose(1)
        yield from self.evaluate(1)
