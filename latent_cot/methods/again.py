"""To learn again what q has sampled, by forward KL: the wake phase of reweighted wake-sleep (Bornschein & Bengio,
2015), on samples that are kept.

Of each question the samples are weighted by w ∝ R(Z) / q(Z), of the q that sampled them, so that they stand for the
posterior whichever q learns them, and however late. What is good is pulled up, and nothing is pushed down. Where
the task tells right from wrong, samples without a right one are left out, which favours right ones: the optimum is the
posterior only as far as that is right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from latent_cot.config.schema import trained_tokens
from latent_cot.methods import m_step
from latent_cot.methods.method import Method
from latent_cot.methods.state import WeightedRationale
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives.importance import ImportanceInfo
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.experience import experience_of
from latent_cot.rationales.scoring import Group


class LearnsAgain(Method):
    """What methods share whose E-step keeps what it samples, in `state.drawn`."""

    def remember(
        self, chosen: Sequence[int], trajectories: Sequence[Trajectories]
    ) -> tuple[list[WeightedRationale], ImportanceInfo]:
        """Keep what q, as it is, has sampled for these training questions: that of questions for which a right
        rationale is among it, where the task tells. The weights of wrong ones only say which of them is least wrong.

        Returns what is kept, and what the weights of all are like."""
        weighted, info = self._weigh(chosen, experience_of(trajectories))
        right = {i for i, rationale, _ in weighted if self.is_correct(self.questions[i], rationale)}
        kept = [one for one in weighted if one.question in right or not self.tells_right]
        self.state.drawn.extend(kept)
        return kept, info

    def recall(self, rng: random.Random) -> list[WeightedRationale]:
        """What is kept of `m_step.batch_size` questions, drawn at random; of all, if they are fewer."""
        seen = sorted({one.question for one in self.state.drawn})
        some = set(rng.sample(seen, min(self.config.m_step.batch_size, len(seen))))
        return [one for one in self.state.drawn if one.question in some]

    def learn(
        self, records: Sequence[WeightedRationale], optimiser: AdapterOptimiser, step: int
    ) -> m_step.LikelihoodInfo:
        """One gradient step of q on the mean over the questions of −Σ w̃ log q(Z), nats, where the weights w̃ of a
        question's rationales add up to 1."""
        of: dict[int, list[WeightedRationale]] = {}
        for one in records:
            of.setdefault(one.question, []).append(one)
        groups = [
            Group(self.query(self.questions[i]).policy_prompt, [one.rationale for one in own]) for i, own in of.items()
        ]
        weights = [[one.weight / math.fsum(each.weight for each in own) for one in own] for own in of.values()]
        self.state.budget.gradient_steps += 1
        return m_step.update(
            self.lm,
            "q",
            groups,
            self.rules,
            optimiser,
            step,
            max_tokens=trained_tokens(self.config),
            weights=weights,
            divisor=len(groups),
            dropout=False,
        )
