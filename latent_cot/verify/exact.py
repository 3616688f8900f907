"""The posterior p(Z | X, Y), log Z(X) and log q by brute force: every rationale, each scored by itself.

This is the reference that the engine is held against, so it shares nothing with what computes the same
numbers there: no token tree, no key-value cache, no padding. It takes from the engine the weights of a
model, and `Chain`, which defines what a rationale is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.types import Rationale


def enumerate_rationales(rules: ChainRules) -> list[Rationale]:
    """Every complete rationale: it stops at a state, or is cut at `max_tokens` chosen tokens."""
    tokens = [int(token) for token in rules.codec.actions if token != rules.codec.stop_id]

    def grow(chosen: tuple[int, ...]) -> Iterator[Rationale]:
        chain = Chain(rules)
        for token in chosen:
            chain.push(token)
        if chain.may_stop or chain.full:
            yield chain.finish()
        if not chain.full:
            for token in tokens:
                yield from grow((*chosen, token))

    return list(grow(()))


@torch.no_grad()
def log_probs(
    model: PreTrainedModel,
    prompt: Sequence[int],
    rationales: Sequence[Rationale],
    codec: TextCodec,
    answer: Sequence[int] = (),
) -> torch.Tensor:
    """(B,) log q(Z | prompt) or, with an answer, log p(Z ⊤ Y | prompt), in nats: the tokens of Z that were chosen and,
    unless it was cut, the stop, over the actions; Y, over all tokens. Where Y begins with the stop, that is the one
    that counts."""
    with_stop = list(answer[:1]) != [codec.stop_id]
    values = torch.empty(len(rationales), dtype=torch.float64)
    by_length = sorted(range(len(rationales)), key=lambda k: len(rationales[k]))
    for n, group in itertools.groupby(by_length, key=lambda k: len(rationales[k])):
        rows = list(group)
        zs = [rationales[k] for k in rows]
        sequences = torch.tensor([[*prompt, *z.tokens, *answer] for z in zs])
        logits = model(input_ids=sequences.to(model.device), use_cache=False).logits.cpu().double()
        logits = logits[:, len(prompt) - 1 :]  # (B, n + |Y| + 1, V); entry i predicts the token after the prefix s_i

        blocked = torch.ones(len(zs), n + 1, codec.vocab_size, dtype=torch.bool)
        blocked[:, :, codec.actions] = False
        blocked[:, :, codec.stop_id] = ~torch.tensor([z.states for z in zs])
        over_actions = logits[:, : n + 1].masked_fill(blocked, -torch.inf).log_softmax(-1)

        tokens = torch.tensor([z.tokens for z in zs], dtype=torch.long).reshape(len(zs), n)
        chosen = torch.tensor([z.policy_mask for z in zs], dtype=torch.bool).reshape(len(zs), n)
        log_token = over_actions[:, :n].gather(2, tokens[:, :, None])[:, :, 0]
        total = torch.where(chosen, log_token, 0.0).sum(1)  # a tool's tokens: probability one
        if with_stop:
            cut = torch.tensor([z.truncated for z in zs])
            total = total + torch.where(cut, 0.0, over_actions[:, n, codec.stop_id])
        if answer:
            over_all = logits[:, n : n + len(answer)].log_softmax(-1)
            total = total + over_all.gather(2, torch.tensor(answer).expand(len(zs), -1)[:, :, None]).sum((1, 2))
        values[rows] = total
    return values


@dataclass(frozen=True)
class Distance:
    """How far q is from the posterior, for one question; over all rationales that are listed, nothing sampled."""

    kl: float
    """KL(q ‖ p(Z | X, Y)) of q restricted to the list, nats."""
    total_variation: float
    """Half the sum of |q − p|, with what q has outside of the list: the largest difference in the probability of any
    set of rationales."""
    mass: float
    """q's probability of the list: 1, or the list is not complete."""


def log_partition(log_joint: torch.Tensor) -> float:
    """log Z(X) = log p(Y | X) = log of the sum over Z of p(Z Y | X), nats."""
    return float(torch.logsumexp(log_joint, 0))


def distance(log_q: torch.Tensor, log_joint: torch.Tensor) -> Distance:
    """Between q and the posterior p(Z | X, Y) = p(Z Y | X) / Z(X).

    Args:
        log_q: (B,) nats, from `log_probs`.
        log_joint: (B,) nats, of the same rationales.
    """
    log_p = log_joint - log_partition(log_joint)
    q = log_q.exp()
    restricted = log_q.log_softmax(0)
    mass = q.sum()
    apart = (q - log_p.exp()).abs().sum() + (1 - mass).clamp(min=0)
    return Distance(
        kl=float((restricted.exp() * (restricted - log_p)).sum()),
        total_variation=min(1.0, float(apart) / 2),  # but for rounding
        mass=float(mass),
    )
