"""Beam search without a cache, one sequence at a time, over Python lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from latent_cot.rationales.chain import ChainRules

Chain = tuple[int, ...]


@torch.no_grad()
def next_log_probs(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Chain, rules: ChainRules
) -> dict[int, torch.Tensor]:
    """Token -> log-probability among those that the rules allow here; the stop is one of them, and the only one that is
    left at the largest number of tokens: it costs what it costs."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
    allowed = [
        token
        for token in rules.codec.actions.tolist()
        if token != rules.codec.stop_id or len(tokens) >= rules.min_tokens
    ]
    found = dict(zip(allowed, logits[allowed].log_softmax(-1), strict=True))
    return {rules.codec.stop_id: found[rules.codec.stop_id]} if len(tokens) == rules.max_tokens else found


def enumerate_chains(
    model: PreTrainedModel, prompt: Sequence[int], rules: ChainRules
) -> list[tuple[Chain, torch.Tensor]]:
    """Every chain and its log-probability, the stop included."""
    found: list[tuple[Chain, torch.Tensor]] = []
    going: list[tuple[Chain, torch.Tensor]] = [((), torch.tensor(0.0))]
    while going:
        tokens, before = going.pop()
        for token, log_prob in next_log_probs(model, prompt, tokens, rules).items():
            if token == rules.codec.stop_id:
                found.append((tokens, before + log_prob))
            else:
                going.append(((*tokens, token), before + log_prob))
    return found


def search(
    model: PreTrainedModel, prompt: Sequence[int], rules: ChainRules, *, width: int, groups: int, penalty: float
) -> list[list[tuple[Chain, float]]]:
    """For each group its best finished chains."""
    live: list[list[tuple[Chain, float]]] = [[((), 0.0)] for _ in range(groups)]
    finished: list[list[tuple[Chain, float]]] = [[] for _ in range(groups)]
    for _ in range(rules.max_tokens + 1):
        chosen: dict[int, int] = {}
        for g in range(groups):
            if len(finished[g]) == width and live[g] and live[g][0][1] <= finished[g][-1][1]:
                live[g] = []
            candidates = [
                (before + float(p) - penalty * chosen.get(token, 0), tokens, token, before + float(p))
                for tokens, before in live[g]
                for token, p in next_log_probs(model, prompt, tokens, rules).items()
            ]
            candidates.sort(key=lambda one: -one[0])
            going: list[tuple[Chain, float]] = []
            for rank, (_, tokens, token, log_prob) in enumerate(candidates[: 2 * width]):
                if len(going) == width:
                    break
                if token == rules.codec.stop_id:
                    if rank >= width:
                        continue
                    finished[g].append((tokens, log_prob))
                else:
                    going.append(((*tokens, token), log_prob))
                chosen[token] = chosen.get(token, 0) + 1
            finished[g] = sorted(finished[g], key=lambda one: -one[1])[:width]
            live[g] = sorted(going, key=lambda one: -one[1])
    return finished
