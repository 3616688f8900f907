"""A key-value cache whose rows can be copied, dropped and joined while a batch is being decoded.

transformers' DynamicCache grows by concatenation: every token copies every key and value there is, into
memory fresh from the system. Here each layer owns a buffer with room to spare, and a token is written in
place. (Measured: of a decoding step of 64 rows, more than half went into concatenation.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

COLUMNS_AT_ONCE = 32
"""A buffer's columns are a multiple of this."""
_GROWTH = 1.5


class SlotLayer(DynamicLayer):
    """Keys and values of one layer: `keys` and `values` (rows, heads, columns, size) are views of buffers.

    What lies behind the last column in a buffer is finite (see `with_spare_columns`).
    """

    keys: torch.Tensor
    values: torch.Tensor
    _key_buffer: torch.Tensor
    _value_buffer: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns (rows, heads, n, size); returns all keys and values."""
        start = self.columns
        self.lazy_initialization(key_states, value_states)
        self._show(key_states.shape[0], start + key_states.shape[2])
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with empty buffers for keys and values such as these."""
        if self.is_initialized:
            return
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer = key_states.new_empty(0, key_states.shape[1], 0, key_states.shape[3])
        self._value_buffer = value_states.new_empty(0, value_states.shape[1], 0, value_states.shape[3])
        self.keys, self.values = self._key_buffer, self._value_buffer
        self.is_initialized = True

    @property
    def columns(self) -> int:
        return int(self.keys.shape[2]) if self.is_initialized else 0

    @property
    def rows(self) -> int:
        return int(self.keys.shape[0]) if self.is_initialized else 0

    def rearrange(self, index: torch.Tensor, moved: torch.Tensor, rows: int) -> None:
        """Make row `moved[k]` a copy of row `index[k]`, all at once, and keep the first `rows` rows."""
        keys, values = self.keys[index], self.values[index]
        self._show(max(rows, self.rows), self.columns)
        self.keys[moved], self.values[moved] = keys, values
        self._show(rows, self.columns)

    def join(self, other: SlotLayer, pinned: int) -> None:
        """Add the other's rows. Their first `pinned` columns stay first, the others end at the last column."""
        self.lazy_initialization(other.keys, other.values)
        rows, columns = self.rows, self.columns or other.columns
        self._show(rows + other.rows, columns)
        start = columns - (other.columns - pinned)
        for own, new in ((self.keys, other.keys), (self.values, other.values)):
            own[rows:, :, :pinned] = new[:, :, :pinned]
            own[rows:, :, pinned:start] = 0  # masked out, but 0 times whatever was there must not be NaN
            own[rows:, :, start:] = new[:, :, pinned:]

    def drop_columns(self, start: int, n: int) -> None:
        """Forget `n` columns from `start` on."""
        keys, values = self.keys[:, :, start + n :].clone(), self.values[:, :, start + n :].clone()
        self._show(self.rows, self.columns - n)
        self.keys[:, :, start:], self.values[:, :, start:] = keys, values

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
    """The cache of one rollout. Layers of other kinds (sliding windows, recurrent states) stay as they are."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [SlotLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def joinable(self) -> bool:
        """Whether `join` and `drop_columns` work: a sliding window would have to be cut anew."""
        return bool(self.layers) and all(isinstance(layer, SlotLayer) for layer in self.layers)

    def rearrange(self, sources: Sequence[int], device: torch.device) -> None:
        """Let row i be what row `sources[i]` was; there are `len(sources)` rows then."""
        everything = torch.tensor(sources, device=device)
        moved = torch.tensor([row for row, source in enumerate(sources) if row != source], device=device)
        moved = moved.long()
        index = everything[moved]
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.rearrange(index, moved, len(sources))
            else:
                layer.reorder_cache(cast("torch.LongTensor", everything))

    def join(self, other: KVCache, pinned: int = 0) -> None:
        """Add the other's rows below these: its first `pinned` columns stay where they are, its others end at
        the last column, and between them there is nothing (to be masked out)."""
        for own, new in zip(self._slots, other._slots, strict=True):
            own.join(new, pinned)

    def drop_columns(self, start: int, n: int) -> None:
        """Forget `n` columns, to which no row attends, from `start` on."""
        for layer in self._slots:
            layer.drop_columns(start, n)

    @property
    def _slots(self) -> list[SlotLayer]:
        return cast("list[SlotLayer]", self.layers)


def with_spare_columns(states: torch.Tensor) -> torch.Tensor:
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


def _larger(buffer: torch.Tensor, shown: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
    larger = buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3])
    if shown is not None and shown.numel():
        larger[: shown.shape[0], :, : shown.shape[2]] = shown
    return larger
