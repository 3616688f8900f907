"""To learn again what q has sampled, by forward KL: the wake phase of reweighted wake-sleep (Bornschein & Bengio,
2015), on samples that are kept.

All samples of a question in an E-step are weighted together, by w ∝ R(Z) / q(Z), of the q that sampled each: they stand
for the posterior of p, which does not change meanwhile, the better the more there are. What is good is pulled up, and
nothing is pushed down. Where the task tells right from wrong, samples without a right one are left out, which favours
right ones: the optimum is the posterior only as far as that is right.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch

from latent_cot.config.schema import trained_tokens
from latent_cot.methods import m_step
from latent_cot.methods.method import Method
from latent_cot.methods.seeding import slices
from latent_cot.methods.state import Info, Seen
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives.importance import NEGLIGIBLE, ImportanceInfo, importance_weights
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.experience import experience_of, log_probs_when_sampled
from latent_cot.rationales.scoring import Group
from latent_cot.types import Rationale


class LearnsAgain(Method):
    """What methods share whose E-step keeps what it samples, in `state.seen`."""

    def remember(
        self, chosen: Sequence[int], trajectories: Sequence[Trajectories], sampled: Sequence[Sequence[Rationale]]
    ) -> tuple[list[Seen], ImportanceInfo]:
        """Keep what q, as it is, has `sampled` at temperature 1 for these training questions, of their `trajectories`:
        that of questions for which a right rationale is among it, where the task tells. The weights of wrong ones only
        say which of them is least wrong.

        Returns what is kept, and what the weights of all are like."""
        own = [(i, t.only(Counter(z))) for i, t, z in zip(chosen, trajectories, sampled, strict=True) if z]
        if not own:
            return [], ImportanceInfo(*[torch.empty(0)] * 3)
        e = experience_of([t for _, t in own])
        log_q = log_probs_when_sampled(self.lm, e, self.rules.codec, max_tokens=self.config.max_batch_tokens)
        _, info = importance_weights(e.log_reward, log_q, e.count, e.group)
        columns = (e.rationales, e.count.int().tolist(), e.log_reward.tolist(), log_q.tolist())
        rows = [Seen(own[g][0], *one) for g, *one in zip(e.group.tolist(), *columns, strict=True)]
        right = {one.question for one in rows if self.is_correct(self.questions[one.question], one.rationale)}
        kept = [one for one in rows if one.question in right and math.isfinite(one.log_reward)]
        self.state.seen.extend(kept)
        return kept, info

    def learn_again(self, optimiser: AdapterOptimiser, step: int, *, temperature: float = 1.0) -> Info:
        """The `updates` that follow the first, each on what is kept of some questions, drawn at random: of twice as
        many as a step asks, or of all, if they are fewer. `temperature`: of the reward. Returns their mean figures."""
        rng = random.Random(f"{self._unit_seed(step)}/again")
        infos = []
        for _ in range(self.config.e_step.updates - 1):
            known = sorted({one.question for one in self.state.seen})
            some = set(rng.sample(known, min(2 * self.config.e_step.questions, len(known))))
            if some:
                records = [one for one in self.state.seen if one.question in some]
                infos.append(self.learn(records, optimiser, step, temperature=temperature))
        if not infos:
            return {}
        figures = {"again_loss": [i.loss for i in infos], "again_gradient_norm": [i.gradient_norm for i in infos]}
        return {name: fmean(values) for name, values in figures.items()}

    def learn(
        self, records: Sequence[Seen], optimiser: AdapterOptimiser, step: int, *, temperature: float = 1.0
    ) -> m_step.LikelihoodInfo:
        """One gradient step of q on the mean over the questions of −Σ w̃ log q(Z), nats."""
        of_question, groups, weights = pooled(records, temperature), list[Group](), list[list[float]]()
        for i, own in of_question.items():
            prompt, rationales = self.query(self.questions[i]).policy_prompt, list(own)
            for part in slices(len(own), self.config.e_step.samples):  # what bounds a pass: they are not compared here
                groups.append(Group(prompt, [rationales[k] for k in part]))
                weights.append([own[rationales[k]] for k in part])
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
            divisor=len(of_question),
            dropout=False,
        )


def pooled(records: Sequence[Seen], temperature: float = 1.0) -> dict[int, dict[Rationale, float]]:
    """Question -> its distinct rationales -> their weights w̃, which add up to 1; without those that weigh nothing.
    `temperature`: T of R^(1/T)."""
    rows: dict[int, dict[Rationale, list[float]]] = {}
    for one in records:
        ratio = math.log(one.times) + one.log_reward / temperature - one.log_q
        rows.setdefault(one.question, {}).setdefault(one.rationale, []).append(ratio)
    found = {}
    for question, own in rows.items():
        log_weight = torch.tensor([torch.tensor(of_one).logsumexp(0) for of_one in own.values()]).softmax(0).tolist()
        weighty = {z: w for z, w in zip(own, log_weight, strict=True) if w * len(own) > NEGLIGIBLE}
        total = math.fsum(weighty.values())
        found[question] = {z: w / total for z, w in weighty.items()}
    return found
