"""A posterior learned by forward KL, and an importance-weighted M-step: "Variational reasoning for language models"
(Zhou et al., ICLR 2026, arXiv 2509.22637), in the form of reweighted wake-sleep (Bornschein & Bengio, 2015).

    posterior  minimise KL(p(Z | X, Y) || q): samples from q itself, weighted by w ∝ p(Z Y | X) / q(Z)
    draw       samples from q for some training questions, with such weights
    M-step     raise Σ w̃ log p(Z Y | X), the gradient of the importance-weighted bound on log p(Y | X)

The E-step's target is the same posterior as the GFlowNet's; what differs is the divergence. All samples come from q,
whose chains reach Y more often than p's, and their weights are exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from latent_cot.config.methods import questions_drawn
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives.importance import weighted_likelihood
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.experience import Experience, policy_log_probs, weigh


class ForwardKL(Method):
    """Alternate the two."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        yield from self.warm_start_q(1)
        for number in range(1, self.rounds + 1):
            yield from self.diagnose_before(number)
            yield from self.posterior(number)
            yield from self.diagnose(number)
            yield from self.draw(number)
            yield from self.m_step(number)
            yield from self.validate(number)
            yield from self.evaluate(number)

    @phase(lambda self, _: self.config.e_step.steps)
    def posterior(self, at: Phase) -> Iterator[Info]:
        """Train q, each optimiser step on samples of its own."""
        optimiser = self._sampler_optimiser()
        for step in range(self.state.unit, self.config.e_step.steps):
            experience = self._fresh_experience(step)
            info = update(self.lm, experience, self.rules, optimiser, step, max_tokens=self.config.max_batch_tokens)
            self.state.budget.gradient_steps += 1
            yield {**vars(info), "distinct": len(experience.rationales) / float(experience.count.sum())}

    @phase(lambda self, _: len(self._parts))
    def draw(self, at: Phase) -> Iterator[Info]:
        """Weighted rationales for the M-step."""
        if self.state.unit == 0:
            self.state.drawn = []
        for unit in range(self.state.unit, len(self._parts)):
            order = random.Random(self._unit_seed(0)).sample(range(len(self.questions)), self._parts[-1].stop)
            members = [order[k] for k in self._parts[unit]]
            sampled = self._sample("q", members, self._unit_seed(unit + 1), n=self.config.m_step.samples)
            kept, info = self._weigh(members, self._experience(members, sampled))
            self.state.drawn.extend(kept)
            yield {"drawn": sum(map(len, sampled)), "kept": len(kept), "ess": float(info.ess.mean())}

    @property
    def _parts(self) -> list[range]:
        n = min(questions_drawn(self.config), len(self.questions))
        return self._batches_of(n, self.config.m_step.samples)


@dataclass(frozen=True)
class ForwardKLInfo:
    """What a step saw; means over the questions."""

    loss: float
    """−Σ w̃ log q(Z), nats."""
    ess: float
    """Effective sample size of the weights, as a share of the samples."""
    bound: float
    """Importance-weighted estimate of log p(Y | X), nats, over the questions with a possible sample."""
    gradient_norm: float


def update(
    lm: LanguageModel,
    experience: Experience,
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    max_tokens: int,
) -> ForwardKLInfo:
    """One gradient step of q on the weighted likelihood of its own samples."""
    n = len(experience.trajectories)
    loss_sum = 0.0
    # By the merged weights, which have sampled: in bf16 those that are trained are another q.
    weight, weights = weigh(lm, experience, rules.codec, max_tokens=max_tokens)
    with lm.trainable("q") as model:
        for rows, log_prob in policy_log_probs(lm, model, experience, rules.codec, max_tokens=max_tokens, shared=True):
            there = log_prob.device
            losses = weighted_likelihood(log_prob.sum(1), weight[rows].to(there), experience.group[rows].to(there))
            loss = losses.sum() / n
            lm.accelerator.backward(loss)
            loss_sum += float(loss.detach())
        norm = optimiser.step(step)
    (loss_sum,) = lm.processes.sum([loss_sum])
    possible = weights.bound[weights.bound.isfinite()]
    bound = float(possible.mean()) if len(possible) else float("-inf")
    return ForwardKLInfo(loss_sum, float(weights.ess.mean()), bound, norm)
