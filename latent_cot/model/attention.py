"""Attention for token trees that lie one behind the other, without padding, in one row.

All layers but attention treat tokens one by one, so a batch of trees of different sizes can run as a single
row of exactly as many tokens as there are nodes. In attention a node sees its ancestors, which are in its own
tree or in the beginning that all trees share; only there are the trees laid out side by side and padded.

transformers lets an attention function be registered by name; a model switches to it with
`set_attn_implementation`. For any other batch ours is transformers' "sdpa".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from latent_cot.model.kv_cache import beginning_of, behind_beginning, with_spare_columns
from latent_cot.model.tree import FlatTrees

NAME = "latent-cot-trees"
# More scores than this are not written out, but left to torch's fused kernel, which makes a block of them at a time.
_MOST_SCORES = 2**25


def install(model: PreTrainedModel) -> bool:
    """Let a model that uses transformers' "sdpa" use ours. Returns whether it does."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, eager_mask)  # made once a pass, to be added in every layer
    if model.config._attn_implementation != "sdpa":
        return False
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def lay_out(trees: FlatTrees, model: PreTrainedModel) -> Tensor:
    """The attention mask, (1, 1, 1, N), with which to call `model` for a pass over `trees`.

    A mask of four dimensions is handed on to the attention function as it is. This one has the trees as an attribute
    `trees`, on the model's device, each block's `attention` a mask (R, 1, Q, K) to be added to the scores.
    """
    device = model.device
    blocks = []
    for block in trees.blocks:
        mask = additive(block.attention[:, None].to(device), model.dtype)
        blocks.append(replace(block, queries=block.queries.to(device), keys=block.keys.to(device), attention=mask))
    # No numbers: a model that makes another mask of it is found out.
    sign = torch.full((1, 1, 1, len(trees.input_ids)), torch.nan, dtype=model.dtype, device=device)
    sign.trees = replace(trees, blocks=blocks, cell_of=trees.cell_of.to(device))  # type: ignore[attr-defined]
    return sign


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of query (1, H, N, D), key and value (1, H or fewer, N, D); returns (1, N, H, D)."""
    plain = not any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout: FlatTrees | None = getattr(attention_mask, "trees", None)
    if beginning_of(key) is not None:
        scores = 0 if attention_mask is None else query[..., 0].numel() * attention_mask.shape[-1]
        if plain and attention_mask is not None and scores <= _MOST_SCORES and not dropout:
            return _attend_behind(query, key, value, attention_mask, scale).transpose(1, 2), None
        key, value = behind_beginning(key), behind_beginning(value)
    if layout is None:
        decodes = query.shape[2] == 1 and query.device.type == "cpu" and plain and not dropout
        if decodes and attention_mask is not None:
            return _attend_decoding(query, key, value, attention_mask, scale).transpose(1, 2), None
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return output, None
    if not plain:
        raise ValueError("attention with a soft cap, a position bias or sinks")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    outputs = []
    for block in layout.blocks:
        # With a single block its queries, and perhaps its keys, are all nodes, each once.
        inverse = layout.cell_of if len(layout.blocks) == 1 else None
        own = inverse if block.own_keys else None
        taken = ((q, block.queries, inverse), (k, block.keys, own), (v, block.keys, own))
        some_q, some_k, some_v = (_take(*one).transpose(1, 2) for one in taken)
        outputs.append(attend(some_q, some_k, some_v, block.attention, scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.cell_of)[None], None


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to scores: 0 where `seen` is True, else the lowest number there is."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _attend_decoding(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`attend` of one query a row. The products do not copy a cache's buffer that is taken as a whole, and the softmax
    is fast on rows of whole vectors."""
    columns = key.shape[2]
    wide_key, wide_value = with_spare_columns(key), with_spare_columns(value)
    spare = wide_key.shape[2] - columns
    if not spare or wide_value.shape[2] != wide_key.shape[2]:
        return attend(query, key, value, mask, scale)
    mask = nn.functional.pad(mask[..., :columns], (0, spare), value=torch.finfo(mask.dtype).min)
    return attend(query, wide_key, wide_value, mask, scale)


def _attend_behind(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`attend` to a beginning that all rows share, and to what each has behind it.

    The queries of all rows are one matrix, whose products with the beginning's keys and values read these once.
    """
    rows, heads, width, size = query.shape
    groups, columns = key.shape[1], key.shape[2]
    first_key, first_value = beginning_of(key), beginning_of(value)
    if first_key is None or first_value is None:
        raise ValueError("this model changes keys or values behind the cache")
    shared = first_key.shape[2]
    # Columns to spare are masked out. They make whole vectors of a row of weights, and spare the products a copy.
    first_key, first_value, key, value = map(with_spare_columns, (first_key, first_value, key, value))
    split = first_key.shape[2]
    lowest = torch.finfo(mask.dtype).min
    own_mask = nn.functional.pad(mask[..., shared:], (0, key.shape[2] - columns), value=lowest)

    def with_first(x: Tensor, first: Tensor) -> Tensor:
        """x (R, G, n, m) times first (G, m, l), the rows of a group as one matrix."""
        product = torch.matmul(x.transpose(0, 1).reshape(groups, -1, x.shape[3]), first)
        return product.view(groups, rows, -1, first.shape[2]).transpose(0, 1)

    folded = query.reshape(rows, groups, heads // groups * width, size) * scale
    scores = query.new_empty(rows, groups, folded.shape[2], split + key.shape[2])
    scores[..., :split] = with_first(folded, first_key[0].transpose(1, 2))
    scores[..., shared:split] = lowest
    own = torch.matmul(folded, key.transpose(2, 3)).view(rows, groups, -1, width, key.shape[2])
    scores[..., split:] = (own + own_mask[:, :, None]).flatten(2, 3)
    kind = None if scores.shape[3] % 32 == 0 else torch.float32  # as in `attend`
    weights = scores.softmax(-1, dtype=kind).to(value.dtype)
    output = torch.matmul(weights[..., split:], value) + with_first(weights[..., :split], first_value[0])
    return output.view(rows, heads, width, size)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention of query (R, H, Q, D) over key and value (R, G, K, D), G dividing H, under `mask`.

    On a CPU torch's fused kernel is slow for short sequences and slower still in its backward pass (measured at
    sixty tokens: five times the time of the matrix products written out), so they are written out there.
    """
    rows, heads, width, size = query.shape
    groups = key.shape[1]
    if query.device.type != "cpu":
        key, value = (x.repeat_interleave(heads // groups, 1) for x in (key, value))
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    folded = query.reshape(rows, groups, heads // groups * width, size) * scale
    scores = torch.matmul(folded, key.transpose(2, 3)).view(rows, groups, heads // groups, width, key.shape[2])
    # Rows of whole vectors are fast in bf16 too; others are not.
    kind = None if key.shape[2] % 32 == 0 else torch.float32
    weights = (scores + mask[:, :, None]).softmax(-1, dtype=kind).view(rows, groups, -1, key.shape[2])
    return torch.matmul(weights.to(value.dtype), value).view(rows, heads, width, size)


def _take(x: Tensor, index: Tensor, inverse: Tensor | None) -> Tensor:
    """x[index] for x (N, ...) and index (R, L)."""
    if inverse is None or not (x.requires_grad and torch.is_grad_enabled()):
        return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])
    return cast("Tensor", _Gather.apply(x, index, inverse))


class _Gather(torch.autograd.Function):
    """x[index], where each row of x is wanted once and otherwise only as padding that gets no gradient: then
    the gradient is a gather too, and not an addition of scattered rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1).index_select(0, inverse), None, None
