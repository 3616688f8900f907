"""The batch that flows from sampling to the loss: the distinct rationales of each question, counted and rewarded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from latent_cot.objectives.balance import Balance, below_floor, last_state, log_flow, temper
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.scoring import Group, Query, Scores
from latent_cot.types import Example, Rationale, rationale_to_json


@dataclass(frozen=True)
class Trajectories:
    """The B distinct rationales of one question, of at most N tokens."""

    query: Query
    rationales: Sequence[Rationale]
    counts: Sequence[int]
    """How often each was sampled or replayed: scoring it once and weighting it is exact."""
    log_reward: torch.Tensor
    """(B, N + 1) of every prefix, untempered, in nats; −inf where it is no state, and where only the rewards of the
    complete rationales were asked for."""
    sampled: Sequence[int]
    """How often each was sampled now, and not replayed."""
    reference: torch.Tensor | None = None
    """(B, N + 1) log p of each action (`Scores.log_actions`), nats; None where it was not asked for."""
    ages: Sequence[int] = ()
    """For each that was replayed, how many steps ago q, as it was then, had sampled it."""

    @property
    def log_reward_at_end(self) -> torch.Tensor:
        """(B,) of the complete rationales."""
        return self.log_reward.gather(1, torch.tensor([[len(rationale)] for rationale in self.rationales]))[:, 0]

    def only(self, counts: Mapping[Rationale, int]) -> Trajectories:
        """The rationales in `counts`, each so often. The objects are those of `counts`: an equal one may have the
        `log_probs` of another temperature."""
        own = {rationale: rationale for rationale in counts}
        rows = [k for k, rationale in enumerate(self.rationales) if rationale in own]
        found = [own[self.rationales[k]] for k in rows]
        reference = None if self.reference is None else self.reference[rows]
        often = [counts[z] for z in found]
        return Trajectories(self.query, found, often, self.log_reward[rows], often, reference)

    @property
    def policy_group(self) -> Group:
        """The rationales behind what q reads."""
        return Group(self.query.policy_prompt, self.rationales)


def score_sampled(
    queries: Sequence[Query],
    sampled: Sequence[Sequence[Rationale]],
    reward: Reward,
    *,
    ends_only: bool = False,
    reference: bool = False,
) -> list[Trajectories]:
    """The rationales sampled for each query, counted and rewarded."""
    counts = [Counter(rationales) for rationales in sampled]  # in order of first occurrence
    groups = [Group(query.model_prompt, list(c), query.answer) for query, c in zip(queries, counts, strict=True)]
    rewarded = reward.score([query.example for query in queries], groups, ends_only=ends_only, reference=reference)
    return [
        Trajectories(query, list(c), list(c.values()), log_reward, list(c.values()), log_p)
        for query, c, (log_reward, log_p) in zip(queries, counts, rewarded, strict=True)
    ]


def balance_of(
    scores: Scores,
    trajectories: Sequence[Trajectories],
    *,
    temperature: float,
    floor: float | None,
    complete_only: bool,
    huber_delta: float | None = None,
) -> Balance:
    """What the losses of q are functions of, given the scores under q of these questions' rationales."""
    states = last_state(scores.states) if complete_only else scores.states
    width = states.shape[1]
    padded = [torch.nn.functional.pad(t.log_reward, (0, width - t.log_reward.shape[1])) for t in trajectories]
    log_reward = torch.cat(padded).to(states.device)
    censored = below_floor(log_reward, states, scores.group, floor)
    tempered = temper(log_reward, states, scores.group, temperature=temperature, floor=floor)
    a = log_flow(scores.log_pf, scores.log_pterm, tempered, states)
    weight = torch.tensor([float(count) for t in trajectories for count in t.counts], device=a.device)
    return Balance(a, states, scores.group, weight, censored, huber_delta=huber_delta)


def sampler_gap(scores: Scores, rationales: Sequence[Rationale]) -> torch.Tensor:
    """(actions,) nats by which the log-probability of an action in `scores` differs from that by what sampled it, of
    all actions of which the latter is known. What an engine computes in another precision, or another order, or from
    an older adapter, shows here."""
    known = [k for k, rationale in enumerate(rationales) if rationale.log_probs is not None]
    theirs = [value for k in known for value in rationales[k].log_probs or ()]
    ours = scores.log_actions[known][action_mask([rationales[k] for k in known], scores.log_actions.shape[1])]
    return (ours.detach().cpu() - torch.tensor(theirs)).abs()


def action_mask(rationales: Sequence[Rationale], width: int) -> torch.Tensor:
    """(B, width) bool: the actions, which are the chosen tokens and the stop that follows the last one."""
    masks = [[*rationale.policy_mask, not rationale.truncated] for rationale in rationales]
    rows = [mask + [False] * (width - len(mask)) for mask in masks]
    return torch.tensor(rows, dtype=torch.bool).view(len(rationales), width)


def describe(
    trajectories: Sequence[Trajectories], is_correct: Callable[[Example, Rationale], bool] | None = None
) -> dict[str, float]:
    """Figures of the freshly sampled rationales, and how many were replayed of which mean age, in steps. `single` is
    the share of questions whose samples are all the same, of those that have several. The mean log-reward is that of
    those that are worth anything, if any are. `is_correct` None: there is no right and wrong, and no accuracy."""
    ages = [age for t in trajectories for age in t.ages]
    replay = {"replayed": len(ages) / sum(sum(t.counts) for t in trajectories), "age": fmean(ages)} if ages else {}
    fresh = [
        (t.query.example, rationale, count, log_reward)
        for t in trajectories
        for rationale, count, log_reward in zip(t.rationales, t.sampled, t.log_reward_at_end.tolist(), strict=True)
        if count
    ]
    total = sum(count for *_, count, _ in fresh)
    if not total:
        return replay
    several = [t for t in trajectories if sum(t.sampled) > 1]
    single = {"single": fmean(sum(map(bool, t.sampled)) == 1 for t in several)} if several else {}
    figures = {
        **replay,
        "distinct": len(fresh) / total,
        **single,
        "cut": sum(count * rationale.truncated for _, rationale, count, _ in fresh) / total,
        "failed_calls": sum(count * rationale.failed for _, rationale, count, _ in fresh) / total,
    }
    if is_correct is not None:
        figures["accuracy"] = sum(count * is_correct(example, z) for example, z, count, _ in fresh) / total
    worth = [(count, log_reward) for *_, count, log_reward in fresh if log_reward > -math.inf]
    if worth:
        figures["log_reward"] = sum(count * value for count, value in worth) / sum(count for count, _ in worth)
    return figures


def shown_samples(trajectories: Sequence[Trajectories]) -> list[dict[str, Any]]:
    """The most frequent rationale of each of the first two questions, for people to read."""
    found = []
    for t in trajectories[:2]:
        best = max(range(len(t.rationales)), key=lambda k: t.counts[k])
        found.append(shown(t.query.example, t.rationales[best], t.counts[best], float(t.log_reward_at_end[best])))
    return found


def shown(example: Example, rationale: Rationale, count: int = 1, log_reward: float | None = None) -> dict[str, Any]:
    """A rationale as `rationales.jsonl` has it. `log_reward` None: it was not asked for."""
    return {
        "question": example.asked,
        "rationale": rationale_to_json(rationale),
        "log_reward": log_reward,
        "count": count,
    }
