"""To diagnose: how near q is to the posterior, on questions that are in no training set.

All figures come from n rationales sampled from q for each question, scored under q and under the frozen p.
How to read them is in `docs/reading-a-run.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple

import torch
from scipy.stats import binomtest

from latent_cot.model.lm import LanguageModel
from latent_cot.objectives.balance import pooled_subtb
from latent_cot.objectives.importance import importance_weights
from latent_cot.rationales.batch import balance_of, describe, score_sampled
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Query, score_in_batches
from latent_cot.types import Example, Rationale, Reasoner

NOTICEABLE = 0.1
"""Nats by which a figure of a question has to change: a tenth of its probability."""


@dataclass(frozen=True)
class PosteriorFigures:
    """Figures of one question, or their means over questions."""

    variance: float
    """Variance of a = log R / T − log q(s_i ⊤) over the states that the loss compares, nats². 0 once q is the
    (tempered) posterior; states of which only a bound is known count where q gives them too much. NaN where no sample
    is worth anything."""
    censored: float
    """Share of the states of which only a bound is known: prefixes below the reward floor, and impossible chains. If it
    is large, the variance says little."""
    bound: float
    """Importance-weighted lower bound on log Z(X) = log Σ_Z R(Z), nats, untempered: log of the mean of R(Z) / q(Z).
    With R(Z) = p(Z Y | X) that is log p(Y | X), with Z as the sampler forms it."""
    elbo: float
    """Evidence lower bound on log Z(X), nats, untempered: mean of log R(Z) − log q(Z), which is log Z(X) less the
    KL divergence of q from the posterior. It is what an E-step raises; `bound` is nearer to log Z(X), and has to find
    one good rationale only. −inf if any of the samples is worth nothing."""
    ess: float
    """Effective sample size of those weights as a share of n: 1 once q is the untempered posterior, 1 / n at
    the worst; 0 if none of the samples is worth anything."""
    log_z: float
    """Mean of a over those states: the estimate of log Z(X) that the loss works with, nats, tempered; NaN likewise."""
    distinct: float
    """Number of different rationales among the n."""
    single: float
    """1 if they are all the same, else 0."""
    mass: float
    """Their total probability under q: near 1, the samples are all there is."""
    cut: float
    """Share of samples that were cut at the maximum length."""
    failed_calls: float
    """Share of samples in which a tool call failed."""
    accuracy: float = math.nan
    """Share of samples that arrive at Y."""


def mean_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the questions where it is known; NaN if it is nowhere. `bound_error` is the standard
    error of the mean bound, nats. Where R is p(Z Y | X), a mean bound above 0 is chance: none can be."""
    means = {}
    for name in figures[0]:
        known = [f[name] for f in figures if name in f and not math.isnan(f[name])]
        means[name] = sum(known) / len(known) if known else math.nan
        if name == "bound":
            several = len(known) > 1 and all(map(math.isfinite, known))
            means["bound_error"] = stdev(known) / math.sqrt(len(known)) if several else math.nan
    return means


class Fall(NamedTuple):
    """Of a figure of several questions, from before a training to after it."""

    fell: int
    """For how many questions it is lower by more than `NOTICEABLE`."""
    rose: int
    """For how many higher."""


def clear_fall(before: Sequence[float], after: Sequence[float]) -> Fall | None:
    """Whether a figure of the same questions, in nats, has fallen for more of them than chance would have it (a sign
    test among those for which it has changed noticeably); else None.

    By the number of questions, not by the mean: that is nearly all of those that nothing can answer, whose −20 may
    become −30 while others come within reach. A figure that is no number any more has fallen."""
    pairs = [(b, -math.inf if math.isnan(a) else a) for b, a in zip(before, after, strict=True)]
    fall = Fall(sum(b - a > NOTICEABLE for b, a in pairs), sum(a - b > NOTICEABLE for b, a in pairs))
    beyond_chance = fall.fell and binomtest(fall.fell, sum(fall), alternative="greater").pvalue < 0.025
    return fall if beyond_chance else None


@torch.no_grad()
def diagnose(
    lm: LanguageModel,
    queries: Sequence[Query],
    rules: ChainRules,
    reward: Reward,
    *,
    sampler: Reasoner = "q",
    n: int,
    reward_temperature: float,
    reward_floor: float | None,
    complete_only: bool,
    max_tokens: int,
    generator: torch.Generator,
    is_correct: Callable[[Example, Rationale], bool] | None = None,
) -> list[PosteriorFigures]:
    """Figures for each query, from `n` rationales sampled from q at temperature 1.

    Args:
        sampler: who is asked: q, or p as if it were q.
        reward_temperature, reward_floor: as in the loss; they apply to `variance` and `log_z` only.
        complete_only: as the loss, `variance`, `log_z` and `censored` take complete rationales, not all their prefixes.
        max_tokens: padded size of a forward pass; bounds memory.
        is_correct: None: nobody can tell, and `accuracy` is NaN.
    """
    prompts = [query.policy_prompt for query in queries]
    sampled = rollout(lm, sampler, prompts, rules, n=n, generator=generator, max_tokens=max_tokens)
    trajectories = score_sampled(queries, sampled, reward, ends_only=complete_only)
    figures: dict[int, PosteriorFigures] = {}
    groups = [t.policy_group for t in trajectories]
    for members, scores in score_in_batches(lm, lm.merged(sampler), groups, rules.codec, max_tokens=max_tokens):
        of_members = [trajectories[g] for g in members]
        b = balance_of(
            scores, of_members, temperature=reward_temperature, floor=reward_floor, complete_only=complete_only
        )
        _, balance = pooled_subtb(b)
        log_reward = torch.cat([t.log_reward_at_end for t in of_members])
        # On the CPU: not every device has float64.
        log_complete, weight = scores.log_complete.cpu().double(), b.weight.cpu().double()
        _, importance = importance_weights(log_reward.double(), log_complete, weight, b.group.cpu())
        for k, (g, t) in enumerate(zip(members, of_members, strict=True)):
            own = b.group == k
            counts, bounded, states = b.weight[own, None], b.censored[own], b.states[own]
            worth = bool((states & ~bounded).any())
            seen = describe([t], is_correct)
            figures[g] = PosteriorFigures(
                variance=float(balance.variance[k]) if worth else math.nan,
                censored=float((counts * bounded).sum() / (counts * states).sum()),
                bound=float(importance.bound[k]),
                elbo=float(importance.elbo[k]),
                ess=float(importance.ess[k]),
                log_z=float(balance.log_z[k]) if worth else math.nan,
                distinct=float(len(t.rationales)),
                single=float(len(t.rationales) == 1),
                mass=float(log_complete[own.cpu()].exp().sum()),
                cut=seen["cut"],
                failed_calls=seen["failed_calls"],
                accuracy=seen.get("accuracy", math.nan),
            )
    return [figures[g] for g in range(len(queries))]
