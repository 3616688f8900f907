"""A key-value cache whose rows can be copied, dropped and joined while a batch is being decoded.

transformers' DynamicCache grows by concatenation: every token copies every key and value there is, into
memory fresh from the system. Here each layer owns a buffer with room to spare, and a token is written in
place. (Measured: of a decoding step of 64 rows, more than half went into concatenation.)

What all rows begin with, such as demonstrations, is in memory once, and read once a step for all rows
("cascade" or "Hydragen" attention: Juravsky et al., "Hydragen: High-throughput LLM inference with shared
prefixes", 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

COLUMNS_AT_ONCE = 32
"""A buffer's columns are a multiple of this."""
_GROWTH = 1.5


class SlotLayer(DynamicLayer):
    """Keys and values of one layer: `keys` and `values` (rows, heads, columns, size) are views of buffers.

    What lies behind the last column in a buffer is finite (see `with_spare_columns`).

    Args:
        beginning: the layer of a single row behind which all rows go on.
        apart: the attention function knows of it (`beginning_of`); otherwise it is handed beginning and rows in one.
    """

    def __init__(self, beginning: SlotLayer | None = None, *, apart: bool = False) -> None:
        super().__init__()
        self.beginning, self._apart = beginning, apart

    keys: Tensor
    values: Tensor
    _key_buffer: Tensor
    _value_buffer: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns (rows, heads, n, size); returns what attention is to see."""
        start = self.columns
        self.lazy_initialization(key_states, value_states)
        self._show(key_states.shape[0], start + key_states.shape[2])
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        if self.beginning is None:
            return self.keys, self.values
        for states, beginning in ((self.keys, self.beginning.keys), (self.values, self.beginning.values)):
            states.beginning = beginning  # type: ignore[attr-defined]
        if self._apart:
            return self.keys, self.values
        return behind_beginning(self.keys), behind_beginning(self.values)

    def get_seq_length(self) -> int:
        """Columns of a row, with those of the beginning."""
        return self.columns + (self.beginning.columns if self.beginning else 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with empty buffers for keys and values such as these."""
        if self.is_initialized:
            return
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._key_buffer, self._value_buffer = key_states[:0, :, :0], value_states[:0, :, :0]
        self.is_initialized = True

    @property
    def columns(self) -> int:
        return int(self.keys.shape[2]) if self.is_initialized else 0

    def rearrange(self, index: Tensor, moved: Tensor, rows: int) -> None:
        """Make row `moved[k]` a copy of row `index[k]`, all at once, and keep the first `rows` rows."""
        keys, values = self.keys[index], self.values[index]
        self._show(max(rows, len(self.keys)), self.columns)
        self.keys[moved], self.values[moved] = keys, values
        self._show(rows, self.columns)

    def join(self, other: SlotLayer) -> None:
        """Add the other's rows, which have no more columns; they end at the last column."""
        rows, start = len(self.keys), self.columns - other.columns
        self._show(rows + len(other.keys), self.columns)
        for own, new in ((self.keys, other.keys), (self.values, other.values)):
            own[rows:, :, :start] = 0  # masked out, but 0 times whatever was there must not be NaN
            own[rows:, :, start:] = new

    def drop_columns(self, n: int) -> None:
        """Forget the first `n` columns."""
        keys, values = self.keys[:, :, n:].clone(), self.values[:, :, n:].clone()
        self._show(len(self.keys), self.columns - n)
        self.keys[:], self.values[:] = keys, values

    def _show(self, rows: int, columns: int) -> None:
        """Let `keys` and `values` be the first `rows` rows and `columns` columns, making room if need be."""
        room = self._key_buffer.shape
        if rows > room[0] or columns > room[2]:
            tall = room[0] if rows <= room[0] else max(rows, int(_GROWTH * room[0]))
            wide = room[2] if columns <= room[2] else -(-columns // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
            self._key_buffer = _larger(self._key_buffer, self.keys, tall, wide)
            self._value_buffer = _larger(self._value_buffer, self.values, tall, wide)
        self.keys = self._key_buffer[:rows, :, :columns]
        self.values = self._value_buffer[:rows, :, :columns]


class KVCache(DynamicCache):
    """The cache of one rollout. Layers of other kinds (sliding windows, recurrent states) stay as they are.

    Args:
        beginning: a `joinable` cache of a single row behind which all rows go on.
        apart: see `SlotLayer`.
    """

    def __init__(self, config: PreTrainedConfig, beginning: KVCache | None = None, *, apart: bool = False) -> None:
        super().__init__(config=config)
        beginnings = beginning._slots if beginning else [None] * len(self.layers)
        self.layers = [
            SlotLayer(first, apart=apart) if type(layer) is DynamicLayer else layer
            for layer, first in zip(self.layers, beginnings, strict=True)
        ]

    @property
    def joinable(self) -> bool:
        """Whether `join` and `drop_columns` work: a sliding window would have to be cut anew."""
        return bool(self.layers) and all(isinstance(layer, SlotLayer) for layer in self.layers)

    def rearrange(self, sources: Sequence[int], device: torch.device) -> None:
        """Let row i be what row `sources[i]` was; there are `len(sources)` rows then."""
        everything = torch.tensor(sources, device=device)
        moved = (everything != torch.arange(len(sources), device=device)).nonzero()[:, 0]
        index = everything[moved]
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.rearrange(index, moved, len(sources))
            else:
                layer.reorder_cache(cast("torch.LongTensor", everything))

    def join(self, other: KVCache) -> None:
        """Add the other's rows, which have no more columns and the same beginning, below these: they end at the last
        column, and before them there is nothing (to be masked out)."""
        for own, new in zip(self._slots, other._slots, strict=True):
            own.join(new)

    def drop_columns(self, n: int) -> None:
        """Forget the first `n` columns behind the beginning, to which no row attends."""
        for layer in self._slots:
            layer.drop_columns(n)

    @property
    def _slots(self) -> list[SlotLayer]:
        return cast("list[SlotLayer]", self.layers)


def beginning_of(states: Tensor) -> Tensor | None:
    """The keys or values (1, heads, columns, size) behind which a `SlotLayer`'s go on, if they are kept apart."""
    return getattr(states, "beginning", None)


def behind_beginning(states: Tensor) -> Tensor:
    """A `SlotLayer`'s keys or values with those of their beginning in front, copied for each row."""
    beginning = beginning_of(states)
    return states if beginning is None else torch.cat([beginning.expand(states.shape[0], -1, -1, -1), states], 2)


def with_spare_columns(states: Tensor) -> Tensor:
    """A `SlotLayer`'s keys or values (rows, heads, columns, size) with the columns behind them, to be masked out, up to
    the next multiple of `COLUMNS_AT_ONCE`.

    They are there in memory, so that nothing is copied; often the whole buffer is then one piece, as products want it.
    Any other tensor is returned as it is.
    """
    rows, heads, columns, size = states.shape
    wide = -(-columns // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
    if states.stride(1) < wide * states.stride(2):
        return states
    return states.as_strided((rows, heads, wide, size), states.stride(), states.storage_offset())


def _larger(buffer: Tensor, shown: Tensor, rows: int, columns: int) -> Tensor:
    larger = buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3])
    larger[: shown.shape[0], :, : shown.shape[2]] = shown
    return larger
