"""Many draws from few categorical distributions over a large alphabet."""

from __future__ import annotations

import torch

_BLOCK = 256
"""Weights that are added up as one."""
_BELOW_ONE = 1 - 2**-53


def draw(weights: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """An index for each number, by the inverse of its row's distribution function.

    Each weight is added up once, in blocks, and the sums of a row are shared by all that draw from it; then each looks
    into one block. `torch.multinomial` makes a random number for each weight and each draw instead: for an alphabet of
    tens of thousands that takes longer than the language model does.

    Args:
        weights: (D, A) of any scale, at least 0, not all 0 in a row.
        rows: (n,) the row that each draws from.
        numbers: (n,) float64, uniform in [0, 1).

    Returns (n,) indices. One of weight 0 is never drawn; the probabilities are right to one in a million.
    """
    n_actions = weights.shape[1]
    if n_actions <= _BLOCK:
        own = weights[rows].double()
        return _invert(own.cumsum(1), own, numbers)[0]
    even = n_actions - n_actions % _BLOCK
    blocks = weights[:, :even].unflatten(1, (-1, _BLOCK)).sum(-1)
    blocks = torch.cat([blocks, weights[:, even:].sum(-1, keepdim=True)], dim=1).double()
    block, rest = _invert(blocks.cumsum(1)[rows], blocks[rows], numbers)
    index = block[:, None] * _BLOCK + torch.arange(_BLOCK)
    inner = weights[rows[:, None], index.clamp(max=n_actions - 1)].double().masked_fill_(index >= n_actions, 0)
    within, _ = _invert(inner.cumsum(1), inner, rest)
    return block * _BLOCK + within


def _invert(sums: torch.Tensor, weights: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the index on which each number falls, how far it is into that index, in [0, 1)); `sums` (n, K) of `weights`."""
    # A number below 1 times the last sum is below it, in floating point too: it falls on a weight that is not 0.
    targets = numbers[:, None] * sums[:, -1:]
    index = torch.searchsorted(sums, targets, right=True)
    own = weights.gather(1, index)
    into = (targets - (sums.gather(1, index) - own)) / own
    return index[:, 0], into[:, 0].clamp(0, _BELOW_ONE)
