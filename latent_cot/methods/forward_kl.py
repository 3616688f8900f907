"""EM whose E-step minimises the other divergence, KL(p(Z | X, Y) || q): the wake phase of reweighted wake-sleep
(Bornschein & Bengio, 2015), for rationales "Variational reasoning for language models" (Zhou et al., ICLR 2026, arXiv
2509.22637).

Samples of q itself are weighted by w ∝ p(Z Y | X) / q(Z), and q learns to write them: what is good is pulled up, and
nothing is pushed down. Each batch of samples is learned from several times, beside later ones; its weights are those of
the q that sampled it, and stay right. With `--m-step.weighted` and several `--m-step.samples` p learns from such
weights too, as in the paper.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from latent_cot.config.schema import trained_tokens
from latent_cot.methods import m_step
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase, WeightedRationale
from latent_cot.rationales.batch import describe, shown_samples
from latent_cot.rationales.scoring import Group


class ForwardKL(Method):
    """EM's loop, with another E-step."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        yield from self.warm_start_q(1)
        for number in range(1, self.rounds + 1):
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
        """Train q on the samples of its own: of each step, and again on those of the steps before."""
        c, size = self.config.e_step, trained_tokens(self.config)
        optimiser = self._sampler_optimiser()
        if self.state.unit == 0:
            self.state.drawn = []
        for step, (chosen, rollouts), ahead in self.rollouts_of_steps(self._rollouts):
            self._count(rollouts)
            experience = self._experience(chosen, rollouts)
            weighted, seen = self._weigh(chosen, experience)
            fresh = self._explaining(weighted)
            self.state.drawn.extend(fresh)
            rng = random.Random(f"{self._unit_seed(step)}/again")
            batches = [fresh, *(self._again(rng) for _ in range(c.updates - 1))]
            lessons = [self._by_question(batch) for batch in batches if batch]
            infos = [
                m_step.update(
                    self.lm,
                    "q",
                    groups,
                    self.rules,
                    optimiser,
                    step,
                    max_tokens=size,
                    weights=weights,
                    divisor=len(groups),  # the mean over the questions of −Σ w̃ log q(Z), nats
                    dropout=False,
                )
                for groups, weights in lessons
            ]
            self.state.budget.gradient_steps += len(infos)
            bound = seen.bound[seen.bound.isfinite()]
            yield {
                **(vars(infos[0]) if infos else {}),
                "ess": float(seen.ess.mean()),
                "bound": float(bound.mean()) if len(bound) else float("-inf"),
                **describe(experience.trajectories, self.is_correct if self.tells_right else None),
                **ahead,
                "samples": shown_samples(experience.trajectories),
            }

    def _explaining(self, records: Sequence[WeightedRationale]) -> list[WeightedRationale]:
        """Those of questions for which a right rationale was sampled, where the task tells: the weights of wrong ones
        only say which of them is least wrong."""
        right = {i for i, rationale, _ in records if self.is_correct(self.questions[i], rationale)}
        return [one for one in records if one.question in right or not self.tells_right]

    def _again(self, rng: random.Random) -> list[WeightedRationale]:
        """What was sampled so far for some of the questions."""
        seen = sorted({one.question for one in self.state.drawn})
        some = set(rng.sample(seen, min(self.config.m_step.batch_size, len(seen))))
        return [one for one in self.state.drawn if one.question in some]

    def _by_question(self, records: Sequence[WeightedRationale]) -> tuple[list[Group], list[list[float]]]:
        """The rationales behind what q reads, and their weights, which add up to 1 for each question."""
        of: dict[int, list[WeightedRationale]] = {}
        for one in records:
            of.setdefault(one.question, []).append(one)
        prompts = (self.query(self.questions[i]).policy_prompt for i in of)
        rationales = ([one.rationale for one in own] for own in of.values())
        groups = [Group(*one) for one in zip(prompts, rationales, strict=True)]
        return groups, [[one.weight / math.fsum(each.weight for each in own) for one in own] for own in of.values()]
