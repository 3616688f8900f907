"""What the E-step does with a batch: sample rationales, score them under p, update q once by balance. The updates by
forward KL that follow are in `forward_kl_steps.py`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.model.text import TextCodec
from latent_cot.objectives import OBJECTIVES
from latent_cot.objectives.balance import pooled_subtb
from latent_cot.rationales.batch import Trajectories, balance_of, sampler_gap, score_sampled
from latent_cot.rationales.buffer import ReplayBuffer, Stored
from latent_cot.rationales.chain import ChainRules, stopped_at
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import Draw, rollout
from latent_cot.rationales.scoring import Query, score_in_batches
from latent_cot.types import Rationale


@dataclass(frozen=True)
class Behaviour:
    """How a step gets the rationales of one question."""

    temperature: float = 1.0
    """Of the tempered share of the sampled rationales."""
    tempered_share: float = 1.0
    """The others are sampled at temperature 1."""
    replay_share: float = 0.0
    """Share of all rationales that come from the buffer, if it has any for this question."""

    def tempered(self, samples: int) -> int:
        """How many of so many sampled ones have the temperature: the first ones."""
        return round(self.tempered_share * samples)


def sample(
    draw: Draw,
    queries: Sequence[Query],
    behaviours: Sequence[Behaviour],
    rules: ChainRules,
    buffer: ReplayBuffer,
    *,
    samples: int,
    generator: torch.Generator,
) -> list[Sequence[Rationale]]:
    """New rationales for each query by `draw`: of its `samples` those that the buffer is not to give."""
    of_buffer = [
        round(behaviour.replay_share * samples) if query.example.key in buffer else 0
        for query, behaviour in zip(queries, behaviours, strict=True)
    ]
    sampled: list[Sequence[Rationale]] = [()] * len(queries)
    for replayed in dict.fromkeys(of_buffer):
        if n := samples - replayed:
            members = [i for i, of_one in enumerate(of_buffer) if of_one == replayed]
            prompts = [queries[i].policy_prompt for i in members]
            heat = [_temperatures(behaviours[i], n) for i in members]
            found = draw(prompts, rules, n=n, temperature=heat, generator=generator)
            for i, rationales in zip(members, found, strict=True):
                sampled[i] = rationales
    return sampled


def assemble(
    queries: Sequence[Query],
    sampled: Sequence[Sequence[Rationale]],
    buffer: ReplayBuffer,
    reward: Reward,
    *,
    samples: int,
    generator: torch.Generator,
    step: int = 0,
    ends_only: bool = False,
) -> list[Trajectories]:
    """The rationales that were sampled for each query, filled up to `samples` from the buffer, with the log-reward of
    every prefix; with `ends_only` only whole rationales need one (`Reward.score`). `step`: of the E-step, from
    which the age of what is replayed is counted."""
    replayed: list[Sequence[Stored]] = []
    for query, rationales in zip(queries, sampled, strict=True):
        n = samples - len(rationales)
        replayed.append(buffer.sample(query.example.key, n, generator) if n else [])
    asked = [i for i, rationales in enumerate(sampled) if rationales]
    found = score_sampled([queries[i] for i in asked], [sampled[i] for i in asked], reward, ends_only=ends_only)
    fresh = dict(zip(asked, found, strict=True))
    if buffer.capacity:  # else each prefix would be looked at for nothing
        for of_one in found:
            offer(buffer, of_one, reward.codec, step)
    return [_with_replayed(query, fresh.get(i), replayed[i], step) for i, query in enumerate(queries)]


def offer(buffer: ReplayBuffer, trajectories: Trajectories, codec: TextCodec, step: int = 0) -> None:
    """Offer the buffer each rationale and, if it is worth more, the best of its prefixes that are not empty. Otherwise
    q could never learn to stop where it always writes on."""
    question = trajectories.query.example.key
    for rationale, row in zip(trajectories.rationales, trajectories.log_reward.tolist(), strict=True):
        buffer.add(question, rationale, row, step)
        # Of equal ones the longest: the shorter are prefixes of more.
        best = max(range(len(rationale) - 1, 0, -1), key=row.__getitem__, default=len(rationale))
        if row[best] > row[len(rationale)]:
            buffer.add(question, stopped_at(rationale, best, codec), row, step)


def collect(
    lm: LanguageModel,
    queries: Sequence[Query],
    behaviours: Sequence[Behaviour],
    rules: ChainRules,
    buffer: ReplayBuffer,
    reward: Reward,
    *,
    samples: int,
    generator: torch.Generator,
    **options: Any,
) -> list[Trajectories]:
    """`sample` from q as it is, and `assemble`, which has the `options`."""
    how: dict[str, Any] = {"samples": samples, "generator": generator}
    sampled = sample(partial(rollout, lm, "q"), queries, behaviours, rules, buffer, **how)
    return assemble(queries, sampled, buffer, reward, **how, **options)


def _with_replayed(query: Query, fresh: Trajectories | None, replayed: Sequence[Stored], step: int) -> Trajectories:
    """What was sampled for a question, with its rewards, and what was replayed, as one."""
    sampled = Counter(dict(zip(fresh.rationales, fresh.counts, strict=True))) if fresh else Counter[Rationale]()
    rows = dict(zip(fresh.rationales, fresh.log_reward, strict=True)) if fresh else {}
    counts = sampled + Counter(item.rationale for item in replayed)
    for item in replayed:
        rows.setdefault(item.rationale, torch.tensor(item.log_reward))
    table = pad_sequence(list(rows.values()), batch_first=True, padding_value=-math.inf)
    ages = [step - item.step for item in replayed]
    return Trajectories(query, list(rows), [counts[z] for z in rows], table, [sampled[z] for z in rows], ages=ages)


def _temperatures(behaviour: Behaviour, samples: int) -> list[float]:
    tempered = behaviour.tempered(samples)
    return [behaviour.temperature] * tempered + [1.0] * (samples - tempered)


@dataclass(frozen=True)
class UpdateInfo:
    """What an update saw; means over the questions."""

    loss: float
    variance: float
    """Of a over the states of a question, nats²: 0 once q is the posterior."""
    log_z: float
    """Estimate of log Z(X), tempered, in nats."""
    gradient_norm: float
    mismatch: float
    """Mean |Δ log q| of an action between q and what sampled it, nats; NaN if none is known."""
    mismatch_99: float
    """The 99th percentile of the same, nats."""


def balance_step(
    lm: LanguageModel,
    batches: Sequence[Trajectories],
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    objective: str,
    reward_temperature: float,
    reward_floor: float | None,
    huber_delta: float | None,
    max_tokens: int,
    log_z: Sequence[torch.Tensor] | None = None,
) -> UpdateInfo:
    """One gradient step of q on the balance of the collected rationales, in micro-batches of questions, which several
    processes divide among them.

    `log_z` holds what log Z(X) is taken for, () for each question, for an objective that learns it.
    """
    n = len(batches)
    own = lm.processes.share(range(n))
    batches = [batches[g] for g in own]
    loss_of, complete_only, _ = OBJECTIVES[objective]
    loss_sum, variance_sum, log_z_sum, gaps = 0.0, 0.0, 0.0, [torch.empty(0)]
    groups = [batch.policy_group for batch in batches]
    with lm.trainable("q") as model:
        for members, scores in score_in_batches(lm, model, groups, rules.codec, max_tokens=max_tokens):
            balance = balance_of(
                scores,
                [batches[g] for g in members],
                temperature=reward_temperature,
                floor=reward_floor,
                complete_only=complete_only,
                huber_delta=huber_delta,
            )
            if log_z is not None:
                of_members = torch.stack([log_z[own[g]] for g in members])
                balance = balance._replace(log_z=of_members.to(balance.a.device))
            losses, info = loss_of(balance)
            lm.accelerator.backward(losses.sum() / n)
            loss_sum += float(losses.detach().sum())
            variance_sum += float(info.variance.sum())
            log_z_sum += float(info.log_z.sum())
            gaps.append(sampler_gap(scores, [z for g in members for z in batches[g].rationales]))
        norm = optimiser.step(step)
    loss_sum, variance_sum, log_z_sum = lm.processes.sum([loss_sum, variance_sum, log_z_sum])
    gap = torch.tensor([value for part in lm.processes.join([torch.cat(gaps).tolist()]) for value in part])
    most = float(gap.quantile(0.99)) if len(gap) else math.nan
    return UpdateInfo(loss_sum / n, variance_sum / n, log_z_sum / n, norm, float(gap.mean()), most)


@torch.no_grad()
def mean_log_z(
    lm: LanguageModel,
    batches: Sequence[Trajectories],
    rules: ChainRules,
    *,
    reward_temperature: float,
    reward_floor: float | None,
    max_tokens: int,
) -> float:
    """The mean of a over the complete rationales of a question, tempered, averaged over the questions that have a
    possible one: what a learned log Z starts from. 0 if no question has."""
    found = []
    groups = [batch.policy_group for batch in batches]
    for members, scores in score_in_batches(lm, lm.merged("q"), groups, rules.codec, max_tokens=max_tokens):
        of_members = [batches[g] for g in members]
        balance = balance_of(scores, of_members, temperature=reward_temperature, floor=reward_floor, complete_only=True)
        _, info = pooled_subtb(balance)
        known = balance.group[(balance.states & ~balance.censored).any(1)].unique()
        found += info.log_z[known].tolist()
    return lm.processes.of_main(sum(found) / len(found) if found else 0.0)
