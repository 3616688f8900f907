"""One optimiser step of the E-step: collect rationales, score them under p, update q."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives import COMPLETE_ONLY, OBJECTIVES, Balance, below_floor, last_state, log_flow, temper
from latent_cot.rationales.buffer import ReplayBuffer, Stored
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import count_distinct, rollout
from latent_cot.rationales.scoring import Group, Query, score_in_batches
from latent_cot.types import Example, Rationale, rationale_to_json


@dataclass(frozen=True)
class Behaviour:
    """How the rationales of one question are come by."""

    temperature: float = 1.0
    """Of the rollout ..."""
    share: float = 1.0
    """... of this share of the sampled rationales; the others are sampled at 1."""
    replay: float = 0.0
    """The share of rationales that come from the buffer, if it has any for this question."""


@dataclass(frozen=True)
class Batch:
    """The distinct rationales collected for one question."""

    query: Query
    rationales: Sequence[Rationale]
    counts: Sequence[int]
    """How often each was sampled or replayed: scoring it once and weighting it is exact."""
    log_reward: torch.Tensor
    """(B, N + 1) untempered, in nats; −inf where the prefix is no state."""
    sampled: Sequence[int]
    """How often each was sampled now, and not replayed."""


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
    ends_only: bool = False,
) -> list[Batch]:
    """Sample `samples` rationales a query, or replay some of them, with the log-reward of every prefix; with
    `ends_only` that of the others than the whole rationale may be missing (`Reward.of_prefixes`)."""
    replayed: list[Sequence[Stored]] = []
    missing: dict[int, list[int]] = {}  # how many to sample -> of which queries
    for i, (query, behaviour) in enumerate(zip(queries, behaviours, strict=True)):
        n = round(behaviour.replay * samples) if query.example.key in buffer else 0
        replayed.append(buffer.sample(query.example.key, n, generator) if n else [])
        missing.setdefault(samples - n, []).append(i)
    fresh: dict[int, tuple[dict[Rationale, int], torch.Tensor]] = {}
    for n, members in missing.items():
        if not n:
            continue
        sampled = rollout(
            lm,
            lm.merged("q"),
            [queries[i].policy_prompt for i in members],
            rules,
            n=n,
            temperature=[_temperatures(behaviours[i], n) for i in members],
            generator=generator,
        )
        distinct = [count_distinct(rationales) for rationales in sampled]
        groups = [
            Group(queries[i].model_prompt, list(counts), queries[i].answer)
            for i, counts in zip(members, distinct, strict=True)
        ]
        rewards = reward.of_prefixes([queries[i].example for i in members], groups, ends_only=ends_only)
        fresh.update(zip(members, zip(distinct, rewards, strict=True), strict=True))
    batches = [_batch(query, fresh.get(i), replayed[i]) for i, query in enumerate(queries)]
    for i, (counts, log_reward) in sorted(fresh.items()):
        for rationale, row in zip(counts, log_reward.tolist(), strict=True):
            buffer.add(queries[i].example.key, rationale, row)
    return batches


def _batch(
    query: Query, fresh: tuple[Mapping[Rationale, int], torch.Tensor] | None, replayed: Sequence[Stored]
) -> Batch:
    """What was sampled for a question, with its rewards, and what was replayed, as one."""
    sampled, log_reward = fresh or ({}, torch.empty(0, 0))
    stored = {item.rationale: item.log_reward for item in replayed}
    counts = dict(sampled)
    for rationale, count in count_distinct([item.rationale for item in replayed]).items():
        counts[rationale] = counts.get(rationale, 0) + count
    table = torch.full((len(counts), max(map(len, counts)) + 1), -torch.inf)
    table[: log_reward.shape[0], : log_reward.shape[1]] = log_reward
    for row, rationale in enumerate(counts):
        if rationale not in sampled:
            table[row, : len(rationale) + 1] = torch.tensor(stored[rationale])
    return Batch(query, list(counts), list(counts.values()), table, [sampled.get(z, 0) for z in counts])


def _temperatures(behaviour: Behaviour, samples: int) -> list[float]:
    tempered = round(behaviour.share * samples)
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
    seconds: float


def update(
    lm: LanguageModel,
    batches: Sequence[Batch],
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
    started = time.perf_counter()
    n = len(batches)
    own = lm.processes.share(range(n))
    batches = [batches[g] for g in own]
    loss_of = OBJECTIVES[objective]
    loss_sum, variance_sum, log_z_sum = 0.0, 0.0, 0.0
    with lm.trainable("q") as model:
        for members, balance in _balances(
            lm,
            model,
            batches,
            rules,
            complete_only=objective in COMPLETE_ONLY,
            reward_temperature=reward_temperature,
            reward_floor=reward_floor,
            huber_delta=huber_delta,
            max_tokens=max_tokens,
        ):
            if log_z is not None:
                of_members = torch.stack([log_z[own[g]] for g in members])
                balance = balance._replace(log_z=of_members.to(balance.a.device))
            losses, info = loss_of(balance)
            lm.accelerator.backward(losses.sum() / n)
            loss_sum += float(losses.detach().sum())
            variance_sum += float(info.variance.sum())
            log_z_sum += float(info.log_z.sum())
        norm = optimiser.step(step)
    loss_sum, variance_sum, log_z_sum = lm.processes.sum([loss_sum, variance_sum, log_z_sum])
    return UpdateInfo(loss_sum / n, variance_sum / n, log_z_sum / n, norm, time.perf_counter() - started)


@torch.no_grad()
def mean_log_z(
    lm: LanguageModel,
    batches: Sequence[Batch],
    rules: ChainRules,
    *,
    reward_temperature: float,
    reward_floor: float | None,
    max_tokens: int,
) -> float:
    """The mean of a over the complete rationales of a question, tempered, averaged over the questions that have one
    above the floor: what a learned log Z starts from. 0 if no question has."""
    found = []
    for _, balance in _balances(
        lm,
        lm.merged("q"),
        batches,
        rules,
        complete_only=True,
        reward_temperature=reward_temperature,
        reward_floor=reward_floor,
        huber_delta=None,
        max_tokens=max_tokens,
    ):
        _, info = OBJECTIVES["vargrad"](balance)
        assert balance.censored is not None
        known = balance.group[(balance.states & ~balance.censored).any(1)].unique()
        found += info.log_z[known].tolist()
    return sum(found) / len(found) if found else 0.0


def _balances(
    lm: LanguageModel,
    model: PreTrainedModel,
    batches: Sequence[Batch],
    rules: ChainRules,
    *,
    complete_only: bool,
    reward_temperature: float,
    reward_floor: float | None,
    huber_delta: float | None,
    max_tokens: int,
) -> Iterator[tuple[list[int], Balance]]:
    """What the loss is a function of, in micro-batches of these questions; with gradients if `model` has them."""
    groups = [Group(batch.query.policy_prompt, batch.rationales) for batch in batches]
    for members, scores in score_in_batches(lm, model, groups, rules.codec, max_tokens=max_tokens):
        width = scores.states.shape[1]
        padded = [
            torch.nn.functional.pad(batches[g].log_reward, (0, width - batches[g].log_reward.shape[1])) for g in members
        ]
        states = last_state(scores.states) if complete_only else scores.states
        log_reward = torch.cat(padded).to(states.device)
        censored = below_floor(log_reward, states, scores.group, reward_floor)
        tempered = temper(log_reward, states, scores.group, temperature=reward_temperature, floor=reward_floor)
        weight = torch.cat([torch.tensor(batches[g].counts, dtype=torch.float32) for g in members])
        a = log_flow(scores.log_pf, scores.log_pterm, tempered, states)
        yield members, Balance(a, states, scores.group, weight.to(a.device), censored=censored, huber_delta=huber_delta)


def describe(batches: Sequence[Batch], is_correct: Callable[[Example, Rationale], bool] | None) -> dict[str, float]:
    """Figures of the freshly sampled rationales of a step; empty if all were replayed. The mean log-reward is that of
    those that are worth anything, if any are. `is_correct` None: there is no right and wrong, and no accuracy."""
    total = distinct = cut = failed = correct = possible = 0
    reward = 0.0
    for batch in batches:
        for rationale, count, row in zip(batch.rationales, batch.sampled, batch.log_reward, strict=True):
            if not count:
                continue
            total += count
            distinct += 1
            cut += count * rationale.truncated
            failed += count * any(call.error is not None for call in rationale.calls)
            correct += count * (is_correct is not None and is_correct(batch.query.example, rationale))
            if (log_reward := float(row[len(rationale)])) > -math.inf:
                possible += count
                reward += count * log_reward
    if not total:
        return {}
    return {
        **({"log_reward": reward / possible} if possible else {}),
        **({} if is_correct is None else {"accuracy": correct / total}),
        "distinct": distinct / total,
        "cut": cut / total,
        "failed_calls": failed / total,
    }


def shown_samples(batches: Sequence[Batch], n: int = 2) -> list[dict[str, Any]]:
    """A few rationales of a step, for people to read: the most frequent of the first questions."""
    samples = []
    for batch in batches[:n]:
        best = max(range(len(batch.rationales)), key=lambda k: batch.counts[k])
        rationale = batch.rationales[best]
        samples.append(
            {
                "question": batch.query.example.question,
                "rationale": rationale_to_json(rationale),
                "log_reward": float(batch.log_reward[best, len(rationale)]),
                "count": batch.counts[best],
            }
        )
    return samples
