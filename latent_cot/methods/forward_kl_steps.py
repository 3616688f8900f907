"""Steps of q by forward KL on what it has sampled: the wake phase of reweighted wake-sleep (Bornschein & Bengio,
2015), on samples that are kept.

All samples of a question in an E-step are weighted together, by w ∝ R(Z)^(1/T) / q(Z), with the q that drew each. p
does not change meanwhile, so all of them stand for one posterior: the more, the better. What the last M-step kept is
among them from the start: an E-step asks some of the questions, these chains are of nearly all. q learns to write the
good ones. Where the task tells right from wrong, good ones are few, and a question waits until a right one has been
sampled. Elsewhere there may be more than are ever sampled: then what q gives the samples is subtracted, so that it does
not learn these few by heart (`objectives/importance.py`).
"""

from __future__ import annotations

import math
import operator
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import fmean
from typing import NamedTuple

import torch

from latent_cot.config.methods import draws_samples
from latent_cot.config.schema import trained_tokens
from latent_cot.methods.likelihood import LikelihoodInfo
from latent_cot.methods.method import Method
from latent_cot.methods.seeding import slices
from latent_cot.methods.state import Info, Seen
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives.importance import (
    NEGLIGIBLE,
    ImportanceInfo,
    baseline_weight,
    forward_kl,
    importance_weights,
)
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.experience import Experience, action_log_probs, experience_of, log_probs_when_sampled
from latent_cot.rationales.scoring import Group, score_in_batches
from latent_cot.types import Example, Rationale

BASELINE_PART = 8
"""Where a baseline is subtracted, so many rationales of a question may be learned together even if `e_step.samples` is
fewer: the baseline of a single rationale would cancel its gradient."""


class ForwardKLSteps(Method):
    """What methods share whose E-step keeps what it samples, in `state.seen`, and learns it by forward KL."""

    def recall_drawn(self, number: int) -> None:
        """What is kept begins with the rationales of the M-step of the round before, with rewards by the present p. q
        has not changed since it drew them; if it has (it began as p), or if it drew them at another temperature than
        1, or they are weighted, there are none. Nor are there those that teach nothing by themselves."""
        of_question: dict[int, list[Rationale]] = {}
        if draws_samples(self.config) and number not in self.state.begun_as_p:
            for one in self.state.drawn:
                if self.question_weights[one.question]:
                    of_question.setdefault(one.question, []).append(one.rationale)
        if self._subtracts:
            of_question = {i: own for i, own in of_question.items() if len(set(own)) > 1}
        self.state.seen = []
        chosen, sampled = [*of_question], [*of_question.values()]
        for part in slices(len(chosen), self.config.rollout.batch_size):
            asked = chosen[part.start : part.stop]
            e = self._experience(asked, sampled[part.start : part.stop])
            log_q = action_log_probs(
                self.lm, self.lm.merged("q"), e, self.rules.codec, max_tokens=self.config.max_batch_tokens
            ).sum(1)
            self._keep(asked, e, log_q, self.marks(e.trajectories))

    @property
    def _subtracts(self) -> bool:
        """Whether what q gives the samples is subtracted. Of a single rationale that cancels the gradient."""
        return self.task.has_own_reward or not self.tells_right

    def remember(
        self,
        chosen: Sequence[int],
        trajectories: Sequence[Trajectories],
        sampled: Sequence[Sequence[Rationale]],
        is_right: Callable[[Example, Rationale], bool],
    ) -> ImportanceInfo:
        """Keep the rationales that q has `sampled` at temperature 1 for these training questions, with their
        rewards (of the `trajectories`) and their log q, by q as it is. Returns what their weights are like."""
        own = [(i, t.only(Counter(z))) for i, t, z in zip(chosen, trajectories, sampled, strict=True) if z]
        if not own:
            return ImportanceInfo(*[torch.empty(0)] * 3)
        e = experience_of([t for _, t in own])
        log_q = log_probs_when_sampled(self.lm, e, self.rules.codec, max_tokens=self.config.max_batch_tokens)
        _, info = importance_weights(e.log_reward, log_q, e.count, e.group)
        self._keep([i for i, _ in own], e, log_q, is_right)
        return info

    def _keep(
        self,
        chosen: Sequence[int],
        e: Experience,
        log_q: torch.Tensor,
        is_right: Callable[[Example, Rationale], bool],
    ) -> None:
        asked = [chosen[g] for g in e.group.tolist()]
        right = [is_right(self.questions[i], z) for i, z in zip(asked, e.rationales, strict=True)]
        rationales = [replace(z, log_probs=None) for z in e.rationales]
        columns = (asked, rationales, e.count.int().tolist(), e.log_reward.tolist(), log_q.tolist(), right)
        self.state.seen.extend(map(Seen, *columns))

    def instructive(self) -> list[Seen]:
        """What is kept of questions for which a right rationale has been seen, that is worth anything: the weights of
        wrong ones alone only say which of them is least wrong."""
        right = {one.question for one in self.state.seen if one.right and one.log_reward > -math.inf}
        return [one for one in self.state.seen if one.question in right]

    def further_steps(self, optimiser: AdapterOptimiser, step: int, *, temperature: float = 1.0) -> Info:
        """The `updates` of a batch that follow its first, each on what is kept of some questions, drawn at random: of
        twice as many as a batch has, or of all, if they are fewer. `temperature`: of the reward. Returns their mean
        figures."""
        rng = random.Random(f"{self.unit_seed(step)}/again")
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
        loss, norm = fmean(info.loss for info in infos), fmean(info.gradient_norm for info in infos)
        return {"forward_kl_loss": loss, "forward_kl_gradient_norm": norm}

    def learn(
        self,
        records: Sequence[Seen],
        optimiser: AdapterOptimiser,
        step: int,
        rng: random.Random,
        *,
        temperature: float = 1.0,
    ) -> LikelihoodInfo:
        """One gradient step of q by forward KL on the mean over the questions (`objectives.importance.forward_kl`),
        nats. Of each question at most 2n distinct rationales are learned: n is `e_step.samples`, or `BASELINE_PART`
        where what q gives them is subtracted, if that is more."""
        n = max(self.config.e_step.samples, BASELINE_PART if self._subtracts else 1)
        of_question = samples_of(records, temperature, baseline=self._subtracts)
        groups, targets = list[Group](), list[Samples]()
        for i, samples in of_question.items():
            prompt = self.query(self.questions[i]).policy_prompt
            for part in samples.thinned(2 * n, rng).parts(n):
                groups.append(Group(prompt, part.rationales))
                targets.append(part)
        self.state.budget.gradient_steps += 1
        options = {"divisor": len(of_question), "max_tokens": trained_tokens(self.config)}
        return forward_kl_step(self.lm, groups, targets, self.rules, optimiser, step, **options)


class Samples(NamedTuple):
    """K distinct rationales that q has sampled for a question."""

    rationales: list[Rationale]
    weight: torch.Tensor
    """(K,) w̃, with all samples of the question weighted together. Of all its rationales they add up to 1."""
    share: torch.Tensor
    """(K,) of the question's samples."""
    log_seen: torch.Tensor
    """(K,) log of (1/N) Σ 1/q over those of the question's N samples that are this rationale; q: who drew each."""
    b: float
    """`baseline_weight`, or 0: nothing is subtracted."""

    @property
    def chance(self) -> torch.Tensor:
        """(K,) with which each is drawn where they are too many: about its share of the loss. They add up to 1."""
        return (self.weight + self.b * self.share) / (1 + self.b)

    def only(self, places: Sequence[int], factor: torch.Tensor | None = None) -> Samples:
        """Those at `places`, their weights multiplied by `factor`."""
        k = torch.tensor(places)
        scale = torch.ones(len(k)) if factor is None else factor[k]
        weight, share, log_seen = self.weight[k] * scale, self.share[k] * scale, self.log_seen[k] + scale.log()
        return Samples([self.rationales[place] for place in places], weight, share, log_seen, self.b)

    def thinned(self, most: int, rng: random.Random) -> Samples:
        """At most `most` of them, resampled so that sums stay what they are in expectation; without negligible ones."""
        chance = self.chance
        if len(self.rationales) <= most:
            return self.only((chance * len(chance) > NEGLIGIBLE).nonzero()[:, 0].tolist())
        times = torch.tensor(systematic(chance.tolist(), most, rng))
        return self.only(times.nonzero()[:, 0].tolist(), times / (times.sum() * chance))

    def parts(self, size: int) -> list[Samples]:
        """The same in parts of at most so many, which bounds a pass; the weightiest in different ones."""
        order = self.chance.argsort(descending=True, stable=True).tolist()
        n = -(-len(order) // size)
        return [self.only(order[k::n]) for k in range(n)]


def forward_kl_step(
    lm: LanguageModel,
    groups: Sequence[Group],
    targets: Sequence[Samples],
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    divisor: int,
    max_tokens: int,
) -> LikelihoodInfo:
    """One gradient step of q by forward KL on each group's rationales, whose sum is divided by `divisor`. Several
    processes divide the groups among them."""
    groups, targets, total = lm.processes.share(groups), lm.processes.share(targets), 0.0
    with lm.trainable("q") as model:
        for members, scores in score_in_batches(lm, model, groups, rules.codec, max_tokens=max_tokens):
            of_groups = scores.log_complete.split([len(groups[g].rationales) for g in members])
            losses = [
                forward_kl(log_q, targets[g].weight.to(log_q), targets[g].log_seen.to(log_q), targets[g].b)
                for g, log_q in zip(members, of_groups, strict=True)
            ]
            loss = torch.stack(losses).sum() / divisor
            lm.accelerator.backward(loss)
            total += float(loss.detach())
        norm = optimiser.step(step)
    (total,) = lm.processes.sum([total])
    return LikelihoodInfo(total, norm)


def systematic(chances: Sequence[float], n: int, rng: random.Random) -> list[int]:
    """How often each is drawn in n draws, by systematic resampling (Kitagawa, "Monte Carlo filter and smoother", 1996):
    n times its chance in expectation. The chances add up to 1."""
    start = rng.random()
    places = [min(n, max(0, math.ceil(n * total - start))) for total in accumulate(chances)]
    return list(map(operator.sub, places, [0, *places]))


def samples_of(records: Sequence[Seen], temperature: float = 1.0, *, baseline: bool = False) -> dict[int, Samples]:
    """Question -> what is kept of it. `temperature`: T of w ∝ R^(1/T) / q. `baseline`: whether to subtract one."""
    rows: dict[int, dict[Rationale, list[Seen]]] = {}
    for one in records:
        rows.setdefault(one.question, {}).setdefault(one.rationale, []).append(one)
    found = {}
    for question, own in rows.items():
        seen = [torch.tensor([math.log(one.times) - one.log_q for one in same]).logsumexp(0) for same in own.values()]
        log_seen = torch.stack(seen)
        log_reward = torch.tensor([same[0].log_reward / temperature for same in own.values()])
        count = torch.tensor([float(sum(one.times for one in same)) for same in own.values()])
        weight = (log_seen + log_reward).softmax(0)
        b = baseline_weight(weight, count) if baseline else 0.0
        found[question] = Samples(list(own), weight, count / count.sum(), log_seen - count.sum().log(), b)
    return found
