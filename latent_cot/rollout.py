"""Batched sampling of rationales with a key-value cache and tools called inline.

Every row advances by exactly one token a step. A row whose chain has asked for a tool is fed the
result's tokens, one a step, while the other rows sample theirs: nothing stalls, and the cache is never
touched, whatever the lengths of the results. Rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from latent_cot.chain import Chain, ChainRules
from latent_cot.lm import LanguageModel
from latent_cot.types import Rationale

# Rows that are done are dropped from the cache when they are this share of the batch: copying the cache
# for each one would cost more than carrying them on.
_COMPACT_AT = 0.2


@dataclass
class _Row:
    index: int
    """Place in the answer."""
    chain: Chain
    pending: list[int]
    """A tool's tokens that have still to be fed."""
    done: bool = False


def count_distinct(rationales: Sequence[Rationale]) -> dict[Rationale, int]:
    """How often each distinct rationale occurs, in order of first occurrence."""
    counts: dict[Rationale, int] = {}
    for rationale in rationales:
        counts[rationale] = counts.get(rationale, 0) + 1
    return counts


@torch.no_grad()
def rollout(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rules: ChainRules,
    *,
    n: int = 1,
    temperature: float | Sequence[Sequence[float]] = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[Rationale]]:
    """Sample `n` rationales for each prompt.

    Args:
        model: the weights to sample from, e.g. `lm.dense("q")`.
        prompts: token ids, of any lengths; each is run once and shared by its n rationales.
        temperature: of all rationales, or of each of the n of each prompt; 0 is greedy.
        generator: on the CPU. The same generator state gives the same rationales.

    Returns one list of `n` rationales a prompt.
    """
    device = lm.device
    codec = rules.codec
    actions = codec.actions.to(device)

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = lm.new_cache(model)
    hidden = lm.decode_step(model, ids.to(device), mask.to(device), positions.to(device), cache)

    if n > 1:
        cache.batch_repeat_interleave(n)
    hidden = hidden.repeat_interleave(n, 0)
    mask = mask.repeat_interleave(n, 0).to(device)
    position = (positions[:, -1:] + 1).repeat_interleave(n, 0).to(device)
    heat = torch.as_tensor(temperature, dtype=torch.float32).expand(len(prompts), n).flatten()

    rows = [_Row(i, Chain(rules), []) for i in range(len(prompts) * n)]
    finished: dict[int, Rationale] = {}
    while True:
        sampled = _sample(lm.logits(hidden, actions).cpu(), rows, heat, codec.stop_index, generator)
        feed = [
            _advance(row, action, codec.actions, codec.stop_index) for row, action in zip(rows, sampled, strict=True)
        ]
        for row in rows:
            if row.done:
                finished.setdefault(row.index, row.chain.finish())
        live = [i for i, row in enumerate(rows) if not row.done]
        if not live:
            break
        if len(live) <= (1 - _COMPACT_AT) * len(rows):
            keep = torch.tensor(live, device=device)
            cache.batch_select_indices(keep)
            mask, position, heat = mask[keep], position[keep], heat[keep.cpu()]
            rows, feed = [rows[i] for i in live], [feed[i] for i in live]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        hidden = lm.decode_step(model, torch.tensor(feed, device=device)[:, None], mask, position, cache)
        position = position + 1

    return [[finished[i * n + k] for k in range(n)] for i in range(len(prompts))]


def _sample(
    logits: torch.Tensor,
    rows: Sequence[_Row],
    temperature: torch.Tensor,
    stop_index: int,
    generator: torch.Generator | None,
) -> list[int]:
    """The action each row would take. `logits` (B, A), `temperature` (B,)."""
    stoppable = torch.tensor([row.chain.may_stop for row in rows])
    logits[~stoppable, stop_index] = -torch.inf
    greedy = logits.argmax(-1)
    if bool((temperature == 0).all()):
        return greedy.tolist()
    scaled = logits / temperature.clamp(min=1e-6)[:, None]
    drawn = torch.multinomial(scaled.softmax(-1), 1, generator=generator)[:, 0]
    return torch.where(temperature == 0, greedy, drawn).tolist()


def _advance(row: _Row, action: int, actions: torch.Tensor, stop_index: int) -> int:
    """The token to feed for this row: the next of a tool's result, or the one that was sampled."""
    if row.done:
        return 0
    if row.pending:
        return row.pending.pop(0)
    if action == stop_index:
        row.done = True
        return 0
    token = int(actions[action])
    row.pending = row.chain.push(token)
    row.done = row.chain.full  # a result that is still pending need not be fed any more
    return token
