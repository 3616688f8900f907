"""Log-probabilities of one rationale, one prefix at a time: batch one, no cache, no tree, no mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latent_cot.types import Rationale


def last_logits(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """(V,) logits after the whole sequence `ids`."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0, -1].double()


def action_log_probs(
    logits: torch.Tensor, actions: Sequence[int], stop: int, may_stop: bool
) -> dict[int, torch.Tensor]:
    """log softmax over the allowed tokens, and the stop where it is allowed."""
    allowed = [a for a in actions if a != stop or may_stop]
    return dict(zip(allowed, logits[allowed].log_softmax(0), strict=True))


def log_policy(
    model: nn.Module, prompt: Sequence[int], rationale: Rationale, actions: Sequence[int], stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """log_pf (n,), 0 at a tool's tokens, and log_pterm (n + 1,), 0 at a forced stop and at no state."""
    n = len(rationale.tokens)
    zero = torch.zeros((), dtype=torch.float64)
    log_pf, log_pterm = [], []
    for i in range(n + 1):
        forced = i == n and rationale.truncated
        may_stop = rationale.states[i] and not forced
        logits = last_logits(model, [*prompt, *rationale.tokens[:i]])
        log_probs = action_log_probs(logits, actions, stop, may_stop)
        log_pterm.append(log_probs[stop] if may_stop else zero)
        if i < n:
            log_pf.append(log_probs[rationale.tokens[i]] if rationale.policy_mask[i] else zero)
    return torch.stack(log_pf) if log_pf else zero.new_zeros(0), torch.stack(log_pterm)


def log_text(model: nn.Module, before: Sequence[int], text: Sequence[int]) -> torch.Tensor:
    """log p(text | before) over the whole vocabulary."""
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(text):
        total = total + last_logits(model, [*before, *text[:t]]).log_softmax(0)[token]
    return total


def log_reward(
    model: nn.Module,
    prompt: Sequence[int],
    rationale: Rationale,
    answer: Sequence[int],
    actions: Sequence[int],
    stop: int,
    *,
    tool_tokens: bool = False,
) -> torch.Tensor:
    """(n + 1,) log p(z_{1:i} ⊤ Y | X) at each state, −inf elsewhere; a stop that Y begins with counts once."""
    log_pf, log_pterm = log_policy(model, prompt, rationale, actions, stop)
    rewards = []
    before = torch.zeros((), dtype=torch.float64)
    for i in range(len(rationale.tokens) + 1):
        prefix = [*prompt, *rationale.tokens[:i]]
        if rationale.states[i]:
            ended = before if list(answer[:1]) == [stop] else before + log_pterm[i]
            rewards.append(ended + log_text(model, prefix, answer))
        else:
            rewards.append(torch.tensor(-torch.inf, dtype=torch.float64))
        if i < len(rationale.tokens):
            if rationale.policy_mask[i]:
                before = before + log_pf[i]
            elif tool_tokens:
                before = before + log_text(model, prefix, [rationale.tokens[i]])
    return torch.stack(rewards)
