"""How near q is to the posterior, measured on questions that are in no training set.

All figures come from n rationales sampled from q for each question, scored under q and under the frozen p.
How to read them is in `docs/reading-a-run.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from latent_cot.model.lm import LanguageModel
from latent_cot.objectives import Balance, below_floor, log_flow, pooled_subtb, temper
from latent_cot.objectives.importance import importance_weights
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import count_distinct, rollout
from latent_cot.rationales.scoring import Group, Query, score_in_batches
from latent_cot.types import Rationale


@dataclass(frozen=True)
class PosteriorFigures:
    """Figures of one question, or their means over questions."""

    variance: float
    """Variance of a = log R / T − log q(s_i ⊤) over the states of all samples, nats². 0 once q is the
    (tempered) posterior; states of which only a bound is known count where q gives them too much. NaN where no sample
    is worth anything."""
    censored: float
    """Share of the states of which only a bound is known: those below the reward floor. If it is large, the variance
    says little."""
    bound: float
    """Importance-weighted lower bound on log Z(X) = log Σ_Z R(Z), nats, untempered: log of the mean of R(Z) / q(Z).
    With R(Z) = p(Z Y | X) that is log p(Y | X), with Z as the sampler forms it and its stop not scored."""
    ess: float
    """Effective sample size of those weights as a share of n: 1 once q is the untempered posterior, 1 / n at
    the worst; 0 if none of the samples is worth anything."""
    log_z: float
    """Mean of a over the states: the estimate of log Z(X) that the loss works with, nats, tempered; NaN likewise."""
    distinct: float
    """Number of different rationales among the n."""
    mass: float
    """Their total probability under q: near 1, the samples are all there is."""
    cut: float
    """Share of samples that were cut at the maximum length."""
    failed_calls: float
    """Share of samples in which a tool call failed."""


def mean_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the questions where it is known; NaN if it is nowhere."""
    means = {}
    for name in figures[0]:
        known = [f[name] for f in figures if name in f and not math.isnan(f[name])]
        means[name] = sum(known) / len(known) if known else math.nan
    return means


@torch.no_grad()
def diagnose(
    lm: LanguageModel,
    queries: Sequence[Query],
    rules: ChainRules,
    reward: Reward,
    *,
    n: int,
    reward_temperature: float,
    reward_floor: float | None,
    max_tokens: int,
    generator: torch.Generator,
) -> list[PosteriorFigures]:
    """Figures for each query, from `n` rationales sampled from q at temperature 1.

    Args:
        reward_temperature, reward_floor: as in the loss; they apply to `variance` and `log_z` only.
        max_tokens: padded size of a forward pass; bounds memory.
    """
    prompts = [query.policy_prompt for query in queries]
    sampled = rollout(lm, lm.merged("q"), prompts, rules, n=n, generator=generator)
    counts = [count_distinct(rationales) for rationales in sampled]
    p_groups = [Group(query.model_prompt, list(c), query.answer) for query, c in zip(queries, counts, strict=True)]
    rewards = reward.of_prefixes([query.example for query in queries], p_groups)
    q_groups = [Group(query.policy_prompt, list(c)) for query, c in zip(queries, counts, strict=True)]
    figures: dict[int, PosteriorFigures] = {}
    for members, scores in score_in_batches(lm, lm.merged("q"), q_groups, rules.codec, max_tokens=max_tokens):
        group = scores.group.cpu()
        for k, g in enumerate(members):
            rows = group == k
            width = rewards[g].shape[1]
            figures[g] = _figures(
                list(counts[g]),
                torch.tensor(list(counts[g].values()), dtype=torch.float64),
                rewards[g].double(),
                scores.log_pf.cpu()[rows, : width - 1].double(),
                scores.log_pterm.cpu()[rows, :width].double(),
                scores.states.cpu()[rows, :width],
                temperature=reward_temperature,
                floor=reward_floor,
            )
    return [figures[g] for g in range(len(queries))]


def _figures(
    rationales: Sequence[Rationale],
    count: torch.Tensor,
    log_reward: torch.Tensor,
    log_pf: torch.Tensor,
    log_pterm: torch.Tensor,
    states: torch.Tensor,
    *,
    temperature: float,
    floor: float | None,
) -> PosteriorFigures:
    """Of B distinct rationales of one question and how often each was sampled."""
    n = float(count.sum())
    group = torch.zeros(len(rationales), dtype=torch.long)
    tempered = temper(log_reward, states, group, temperature=temperature, floor=floor)
    a = log_flow(log_pf, log_pterm, tempered, states)
    censored = below_floor(log_reward, states, group, floor)
    _, balance = pooled_subtb(Balance(a, states, group, count, censored=censored))
    worth = bool((log_reward[states] > -math.inf).any())
    bounded = states & ~(log_reward > -math.inf) if censored is None else states & censored

    last = torch.tensor([len(rationale) for rationale in rationales])[:, None]
    log_q = log_pf.sum(1) + log_pterm.gather(1, last)[:, 0]
    _, importance = importance_weights(log_reward.gather(1, last)[:, 0], log_q, count, group)
    failed = [any(call.error is not None for call in rationale.calls) for rationale in rationales]
    return PosteriorFigures(
        variance=float(balance.variance) if worth else math.nan,
        censored=float((count[:, None] * bounded).sum() / (count[:, None] * states).sum()),
        bound=float(importance.bound),
        ess=float(importance.ess),
        log_z=float(balance.log_z) if worth else math.nan,
        distinct=float(len(rationales)),
        mass=float(log_q.exp().sum()),
        cut=float((count * torch.tensor([r.truncated for r in rationales])).sum()) / n,
        failed_calls=float((count * torch.tensor(failed)).sum()) / n,
    )
