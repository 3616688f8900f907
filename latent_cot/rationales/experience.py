"""Complete rationales as a policy gradient and importance weights see them: a row for each, its actions in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.objectives.importance import ImportanceInfo, importance_weights
from latent_cot.rationales.batch import Trajectories, action_mask, score_sampled
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.scoring import Query, score_in_batches
from latent_cot.types import Rationale


@dataclass(frozen=True)
class Experience:
    """B distinct rationales of at most N tokens. An action is a token that the policy chose, or the stop that follows
    the last token; it has S = N + 1 places."""

    trajectories: Sequence[Trajectories]
    """The same by question."""
    rationales: Sequence[Rationale]
    """(B), question after question."""
    count: torch.Tensor
    """(B,) how often each was sampled."""
    group: torch.Tensor
    """(B,) long, its question."""
    mask: torch.Tensor
    """(B, S) bool, the actions: a tool's tokens are none, nor is a forced stop."""
    reference: torch.Tensor
    """(B, S) log-probability of each action under p, in nats; 0 where it was not asked for."""
    log_reward: torch.Tensor
    """(B,) of the complete rationales, untempered, in nats; −inf for one that is worth nothing."""


def gather(
    queries: Sequence[Query], sampled: Sequence[Sequence[Rationale]], reward: Reward, *, reference: bool = False
) -> Experience:
    """Reward the distinct rationales among those sampled for each query. `reference`: score them under the frozen p
    besides, which a reward of the task's own does not need."""
    return experience_of(score_sampled(queries, sampled, reward, ends_only=True, reference=reference))


def experience_of(trajectories: Sequence[Trajectories]) -> Experience:
    """The same for rationales that have been rewarded already."""
    rationales = [rationale for t in trajectories for rationale in t.rationales]
    width = max(map(len, rationales)) + 1
    references = [torch.zeros(len(t.rationales), 1) if t.reference is None else t.reference for t in trajectories]
    return Experience(
        trajectories,
        rationales,
        torch.tensor([float(n) for t in trajectories for n in t.counts]),
        torch.tensor([g for g, t in enumerate(trajectories) for _ in t.counts]),
        action_mask(rationales, width),
        torch.cat([_widened(reference, width) for reference in references]),
        torch.cat([t.log_reward_at_end for t in trajectories]),
    )


def policy_log_probs(
    lm: LanguageModel,
    model: PreTrainedModel,
    experience: Experience,
    codec: TextCodec,
    *,
    max_tokens: int,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(rows of the experience, (len(rows), S) log-probability of their actions under `model`), in micro-batches of
    whole questions, of this process's share of them; with gradients if `model` has them."""
    own = lm.processes.share(range(len(experience.trajectories)))
    rows_of: list[list[int]] = [[] for _ in experience.trajectories]
    for row, g in enumerate(experience.group.tolist()):
        rows_of[g].append(row)
    groups = [experience.trajectories[g].policy_group for g in own]
    for members, scores in score_in_batches(lm, model, groups, codec, max_tokens=max_tokens):
        rows = [row for k in members for row in rows_of[own[k]]]
        yield rows, _widened(scores.log_actions, experience.mask.shape[1])


@torch.no_grad()
def action_log_probs(
    lm: LanguageModel, model: PreTrainedModel, experience: Experience, codec: TextCodec, *, max_tokens: int
) -> torch.Tensor:
    """(B, S) log-probability of the actions under `model`, nats; several processes divide the questions among them."""
    own: dict[int, list[list[float]]] = {g: [] for g in lm.processes.share(range(len(experience.trajectories)))}
    for rows, log_prob in policy_log_probs(lm, model, experience, codec, max_tokens=max_tokens):
        for g, actions in zip(experience.group[rows].tolist(), log_prob.tolist(), strict=True):
            own[g].append(actions)
    return torch.tensor(list(chain.from_iterable(lm.processes.join(list(own.values())))))


def log_probs_by_sampler(experience: Experience) -> torch.Tensor:
    """(B, S) log-probability of the actions by the engine that sampled them, at temperature 1."""
    found = torch.zeros_like(experience.reference)
    found[experience.mask] = torch.tensor([value for z in experience.rationales for value in z.log_probs or ()])
    return found


@torch.no_grad()
def log_probs_when_sampled(
    lm: LanguageModel, experience: Experience, codec: TextCodec, *, max_tokens: int
) -> torch.Tensor:
    """(B,) log q(Z) of rationales, nats, under the q that sampled them. Without an engine that is q as it is now.

    An engine elsewhere may have sampled them from an older q, and has told its log q. (Of equal rationales that of the
    first counts; they differ only where the adapter was replaced between two of them.)
    """
    if lm.engine is not None:
        return log_probs_by_sampler(experience).sum(1)
    return action_log_probs(lm, lm.merged("q"), experience, codec, max_tokens=max_tokens).sum(1)


def weigh(
    lm: LanguageModel, experience: Experience, codec: TextCodec, *, max_tokens: int
) -> tuple[torch.Tensor, ImportanceInfo]:
    """(B,) normalised importance weights of rationales sampled from q, and what they are like by question."""
    log_q = log_probs_when_sampled(lm, experience, codec, max_tokens=max_tokens)
    return importance_weights(experience.log_reward, log_q, experience.count, experience.group)


def _widened(table: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))
