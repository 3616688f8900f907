"""EM whose E-step minimises the other divergence, KL(p(Z | X, Y) || q): the wake phase of reweighted wake-sleep
(Bornschein & Bengio, 2015), for rationales "Variational reasoning for language models" (Zhou et al., ICLR 2026, arXiv
2509.22637).

Samples of q itself are weighted by w ∝ p(Z Y | X) / q(Z), and q learns to write them (`forward_kl_steps.py`). Each
batch is learned from several times, beside later ones: a sample is weighted by the q that sampled it, and all of a
question together. With `--m-step.weighted` and several `--m-step.samples` p learns from such weights too, as in the
paper.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from latent_cot.methods.forward_kl_steps import ForwardKLSteps
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase
from latent_cot.rationales.batch import describe, shown_samples


class ForwardKL(ForwardKLSteps):
    """EM's loop, with another E-step."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        for number in range(1, self.rounds + 1):
            yield from self.start_q(number)
            yield from self.diagnose_before(number)
            if self.config.e_step.steps:
                yield from self.e_step(number)
                yield from self.diagnose(number)
            yield from self.draw(number)
            yield from self.m_step(number)
            yield from self.validate(number)
            yield from self.evaluate(number)

    @phase(lambda self, _: self.config.e_step.steps)
    def e_step(self, at: Phase) -> Iterator[Info]:
        """Train q on its samples so far: first on those of the step's questions, then of others."""
        optimiser = self.sampler_optimiser()
        if self.state.unit == 0:
            self.recall_drawn(at.round)
        for step, (chosen, rollouts), timing in self.rollouts_of_steps(self._rollouts):
            self.count_sampled(rollouts)
            trajectories = self._experience(chosen, rollouts).trajectories
            marks = self.marks(trajectories)
            weights = self.remember(chosen, trajectories, rollouts, marks)
            of_step = set(chosen)
            asked = [one for one in self.instructive() if one.question in of_step]
            rng = random.Random(f"{self.unit_seed(step)}/asked")
            info = vars(self.learn(asked, optimiser, step, rng)) if asked else {}
            bound = weights.bound[weights.bound.isfinite()]
            yield {
                **info,
                **self.further_steps(optimiser, step),
                "ess": float(weights.ess.mean()),
                "bound": float(bound.mean()) if len(bound) else float("-inf"),
                **describe(trajectories, marks if self.tells_right else None),
                **timing,
                "samples": shown_samples(trajectories),
            }
        self.state.seen = []
