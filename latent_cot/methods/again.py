"""To learn again what q has sampled, by forward KL: the wake phase of reweighted wake-sleep (Bornschein & Bengio,
2015), on samples that are kept.

All samples of a question in an E-step are weighted together, by w ∝ R(Z)^(1/T) / q(Z), with the q that drew each. p
does not change meanwhile, so all of them stand for one posterior: the more, the better. q learns to write the good
ones, and nothing is pushed down. Where the task can tell, a question waits until a right rationale of it has been
sampled.
"""

from __future__ import annotations

import math
import operator
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
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
    ) -> ImportanceInfo:
        """Keep what q, as it is, has `sampled` at temperature 1 for these training questions, of their `trajectories`.
        Returns what the weights of these samples are like."""
        own = [(i, t.only(Counter(z))) for i, t, z in zip(chosen, trajectories, sampled, strict=True) if z]
        if not own:
            return ImportanceInfo(*[torch.empty(0)] * 3)
        e = experience_of([t for _, t in own])
        log_q = log_probs_when_sampled(self.lm, e, self.rules.codec, max_tokens=self.config.max_batch_tokens)
        _, info = importance_weights(e.log_reward, log_q, e.count, e.group)
        asked = [own[g][0] for g in e.group.tolist()]
        right = [self.is_correct(self.questions[i], z) for i, z in zip(asked, e.rationales, strict=True)]
        rationales = [replace(z, log_probs=None) for z in e.rationales]
        columns = (asked, rationales, e.count.int().tolist(), e.log_reward.tolist(), log_q.tolist(), right)
        self.state.seen.extend(one for one in map(Seen, *columns) if math.isfinite(one.log_reward))
        return info

    def instructive(self) -> list[Seen]:
        """What is kept of questions for which a right rationale has been seen: the weights of wrong ones alone only say
        which of them is least wrong."""
        right = {one.question for one in self.state.seen if one.right}
        return [one for one in self.state.seen if one.question in right]

    def learn_again(self, optimiser: AdapterOptimiser, step: int, *, temperature: float = 1.0) -> Info:
        """The `updates` that follow the first, each on what is kept of some questions, drawn at random: of twice as
        many as a step asks, or of all, if they are fewer. `temperature`: of the reward. Returns their mean figures."""
        rng = random.Random(f"{self._unit_seed(step)}/again")
        infos = []
        seen = self.instructive()
        known = sorted({one.question for one in seen})
        for _ in range(self.config.e_step.updates - 1):
            some = set(rng.sample(known, min(2 * self.config.e_step.questions, len(known))))
            if some:
                records = [one for one in seen if one.question in some]
                infos.append(self.learn(records, optimiser, step, rng, temperature=temperature))
        if not infos:
            return {}
        figures = {"again_loss": [i.loss for i in infos], "again_gradient_norm": [i.gradient_norm for i in infos]}
        return {name: fmean(values) for name, values in figures.items()}

    def learn(
        self,
        records: Sequence[Seen],
        optimiser: AdapterOptimiser,
        step: int,
        rng: random.Random,
        *,
        temperature: float = 1.0,
    ) -> m_step.LikelihoodInfo:
        """One gradient step of q on the mean over the questions of −Σ w̃ log q(Z), nats. Of each question at most twice
        `e_step.samples` distinct rationales are learned; of more, some are drawn by weight."""
        of_question = posterior_weights(records, temperature)
        groups = list[Group]()
        weights = list[list[float]]()
        for i, weighty in of_question.items():
            own = resampled(weighty, 2 * self.config.e_step.samples, rng)
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


def resampled(weights: Mapping[Rationale, float], most: int, rng: random.Random) -> Mapping[Rationale, float]:
    """At most so many of the rationales, whose weights add up to 1: each with its weight in expectation. Systematic
    resampling (Kitagawa, "Monte Carlo filter and smoother", 1996)."""
    if len(weights) <= most:
        return weights
    start = rng.random()
    sums = accumulate(weights.values())
    places = [min(most, max(0, math.ceil(most * total - start))) for total in sums]  # of start, start + 1, ... below it
    times = map(operator.sub, places, [0, *places])
    return {z: n / places[-1] for z, n in zip(weights, times, strict=True) if n}


def posterior_weights(records: Sequence[Seen], temperature: float = 1.0) -> dict[int, dict[Rationale, float]]:
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
