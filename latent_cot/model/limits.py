"""How long a text may be for a model: a table of positions ends, and some architectures change behind a length.

What changes with the length of a whole row, or of a whole call, is not the same for a token whose keys are cached, or
for a text that shares a row with others. The few tokens that are tried when a model is loaded (`architecture.py`) are
fewer than that, so it is read from the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_SPARSE = ("keep_window_size", "index_topk")
"""Settings of attention that goes to so many tokens of a row only, those with the highest scores: Doge's, and those of
DeepSeek, GLM and others with an indexer."""


@dataclass(frozen=True)
class Limit:
    """Of a text's tokens."""

    tokens: int
    reason: str
    """What a user finds in the configuration."""
    of_rows: bool = False
    """It counts the columns of a row, whatever stands in them: padding, and other texts."""


def limits_of(model: PreTrainedModel) -> list[Limit]:
    """All that bounds a text's length, in no order; nothing where positions are computed, as rotary ones mostly are:
    a longer text is only one of a length that the model was not trained with there."""
    table = table_of_positions(model)
    found = [] if table is None else [Limit(table, "its table of positions")]
    config = model.config.get_text_config()
    # transformers picks the angles of all positions by the longest text of a call; cached keys keep what they had.
    for angles in _rotations(config):
        kind = str(angles.get("rope_type", angles.get("type")))
        name = "max_position_embeddings"
        most = getattr(config, name, None)
        if kind == "longrope":
            name = f"original_{name}"
            most = angles.get(name, getattr(config, name, most))
        if (kind == "longrope" or "dynamic" in kind) and isinstance(most, int):
            found.append(Limit(most, f"{name} of its configuration, past which rope_type {kind} turns all tokens anew"))
    for name in _SPARSE:
        if isinstance(most := getattr(config, name, None), int):
            found += [Limit(most, f"{name} of its configuration, past which attention is sparse", of_rows=True)]
    if (blocks := getattr(config, "index_topk_blocks", None)) and (size := getattr(config, "index_block_size", None)):
        why = "index_topk_blocks times index_block_size of its configuration, past which attention is sparse"
        found.append(Limit(blocks * size, why, of_rows=True))
    if getattr(config, "attn_temperature_tuning", None) and isinstance(
        scale := getattr(config, "floor_scale", None), int
    ):
        # By the column; it changes at the one of this number, counted from 1.
        why = "floor_scale of its configuration less 1, past which attention has another temperature"
        found.append(Limit(scale - 1, why, of_rows=True))
    return list(dict.fromkeys(found))  # one set of angles may have both names


def table_of_positions(model: PreTrainedModel) -> int | None:
    """The length of a table of positions, if there is one: an embedding of as many rows as there are positions, or of a
    few more, that is not the tokens', or a tensor of a name that such tables have."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings()]
    if not isinstance(limit, int):
        return None
    learned = any(limit <= table.num_embeddings <= limit + 4 for table in tables)
    fixed = any(name.endswith("embed_positions") and len(one) == limit for name, one in model.named_buffers())
    ctrl = getattr(model.base_model, "pos_encoding", None)  # no buffer, in older versions
    return limit if learned or fixed or (ctrl is not None and len(ctrl) == limit) else None


def _rotations(config: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions: one set, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None)
        if isinstance(settings, Mapping):
            yield from (one for one in (settings, *settings.values()) if isinstance(one, Mapping))
