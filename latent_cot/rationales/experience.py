"""What a batch of rollouts looks like to the methods that learn from complete rationales: their log-probabilities
under q and under the frozen p, and their log-rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.objectives.importance import ImportanceInfo, importance_weights
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import count_distinct
from latent_cot.rationales.scoring import Group, Query, Scores, score_in_batches
from latent_cot.types import Rationale


@dataclass(frozen=True)
class Experience:
    """B distinct rationales of at most N tokens. An action is a token that the policy chose, or the stop that follows
    the last token; it has S = N + 1 places."""

    groups: Sequence[Group]
    """The questions as q reads them, and their rationales."""
    rationales: Sequence[Rationale]
    """(B), question after question."""
    count: torch.Tensor
    """(B,) how often each was sampled."""
    group: torch.Tensor
    """(B,) long, its question."""
    mask: torch.Tensor
    """(B, S) bool, the actions: a tool's tokens are none, nor is a forced stop."""
    reference: torch.Tensor
    """(B, S) log-probability of each action under p, in nats."""
    log_reward: torch.Tensor
    """(B,) of the complete rationales, untempered, in nats: without the stop; −inf for one that is worth nothing."""


@torch.no_grad()
def gather(
    queries: Sequence[Query],
    sampled: Sequence[Sequence[Rationale]],
    reward: Reward,
) -> Experience:
    """Score the distinct rationales among those sampled for each query under the frozen p, and reward them."""
    counts = [count_distinct(rationales) for rationales in sampled]
    rationales = [rationale for of_query in counts for rationale in of_query]
    width = max(map(len, rationales)) + 1
    reference = torch.zeros(len(rationales), width)
    log_reward = torch.zeros(len(rationales))
    model_groups = [Group(query.model_prompt, list(c), query.answer) for query, c in zip(queries, counts, strict=True)]
    policy_groups = [Group(query.policy_prompt, list(c)) for query, c in zip(queries, counts, strict=True)]
    for members, scores, of_rows in reward.of_complete([query.example for query in queries], model_groups):
        rows = rows_of(policy_groups, members)
        reference[rows, : scores.states.shape[1]] = action_log_probs(scores, [rationales[b] for b in rows]).cpu()
        log_reward[rows] = of_rows
    return Experience(
        policy_groups,
        rationales,
        torch.tensor([float(n) for c in counts for n in c.values()]),
        torch.tensor([g for g, c in enumerate(counts) for _ in c]),
        action_mask(rationales, width),
        reference,
        log_reward,
    )


def policy_log_probs(
    lm: LanguageModel,
    model: PreTrainedModel,
    experience: Experience,
    codec: TextCodec,
    *,
    max_tokens: int,
    shared: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(rows of the experience, (len(rows), S) log-probability of their actions under `model`), in micro-batches of
    whole questions; with gradients if `model` has them. `shared`: of this process's share of the questions only."""
    width = experience.mask.shape[1]
    every = range(len(experience.groups))
    own = lm.processes.share(every) if shared else list(every)
    groups = [experience.groups[g] for g in own]
    for members, scores in score_in_batches(lm, model, groups, codec, max_tokens=max_tokens):
        rows = rows_of(experience.groups, [own[k] for k in members])
        log_prob = action_log_probs(scores, [experience.rationales[b] for b in rows])
        yield rows, torch.nn.functional.pad(log_prob, (0, width - log_prob.shape[1]))


@torch.no_grad()
def log_probs_of(
    lm: LanguageModel, model: PreTrainedModel, experience: Experience, codec: TextCodec, *, max_tokens: int
) -> torch.Tensor:
    """(B,) log-probability of each complete rationale under `model`, in nats."""
    found = torch.zeros_like(experience.log_reward)
    for rows, log_prob in policy_log_probs(lm, model, experience, codec, max_tokens=max_tokens):
        found[rows] = log_prob.sum(1).cpu()
    return found


def weigh(
    lm: LanguageModel, experience: Experience, codec: TextCodec, *, max_tokens: int
) -> tuple[torch.Tensor, ImportanceInfo]:
    """(B,) normalised importance weights of rationales sampled from q, and what they are like by question."""
    log_q = log_probs_of(lm, lm.merged("q"), experience, codec, max_tokens=max_tokens)
    return importance_weights(experience.log_reward, log_q, experience.count, experience.group)


def action_log_probs(scores: Scores, rationales: Sequence[Rationale]) -> torch.Tensor:
    """(B, N + 1) log-probability of each action; 0 where there is none."""
    ends = torch.tensor([len(rationale) for rationale in rationales], device=scores.log_pf.device)[:, None]
    stop = scores.log_pterm.gather(1, ends)
    return torch.nn.functional.pad(scores.log_pf, (0, 1)).scatter(1, ends, stop)


def action_mask(rationales: Sequence[Rationale], width: int) -> torch.Tensor:
    """(B, width) bool."""
    mask = torch.zeros(len(rationales), width, dtype=torch.bool)
    for row, rationale in enumerate(rationales):
        mask[row, : len(rationale)] = torch.tensor(rationale.policy_mask, dtype=torch.bool)
        mask[row, len(rationale)] = not rationale.truncated
    return mask


def rows_of(groups: Sequence[Group], members: Sequence[int]) -> list[int]:
    """The rows of these questions' rationales, in the order in which `score_in_batches` gives them."""
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + len(group.rationales))
    return [row for g in members for row in range(starts[g], starts[g + 1])]
