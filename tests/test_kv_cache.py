"""The cache's buffers. That decoding with it is right is for tests/test_rollout.py to show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.attention import tree_attention
from latent_cot.kv_cache import COLUMNS_AT_ONCE, SlotLayer, with_spare_columns

HEADS, SIZE = 2, 4


def states(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, HEADS, columns, SIZE, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_it_holds_what_was_appended(rows: int, lengths: list[int]) -> None:
    layer = SlotLayer()
    parts = [states(rows, n, seed) for seed, n in enumerate(lengths)]
    for part in parts:
        keys, values = layer.update(part, -part)
    assert torch.equal(keys, torch.cat(parts, 2))
    assert torch.equal(values, -torch.cat(parts, 2))
    wide = with_spare_columns(keys)
    assert wide.shape[2] % COLUMNS_AT_ONCE == 0
    assert keys.shape[2] <= wide.shape[2] < keys.shape[2] + COLUMNS_AT_ONCE
    assert torch.equal(wide[:, :, : keys.shape[2]], keys)
    assert wide.isfinite().all()
    assert wide.data_ptr() == keys.data_ptr(), "copied"


def test_other_tensors_have_no_spare_columns() -> None:
    plain = states(3, 7, 0)
    assert with_spare_columns(plain) is plain
    part = states(3, 40, 0)[:, :, :33]  # of a buffer with too few
    assert with_spare_columns(part) is part


@pytest.mark.parametrize("columns", [5, 32, 45])
def test_attention_to_a_cache_is_attention_to_its_columns(columns: int) -> None:
    layer = SlotLayer()
    keys, values = layer.update(states(3, columns, 1), states(3, columns, 2))
    layer._key_buffer[:, :, columns:] = 7.0  # left by longer rows, say
    layer._value_buffer[:, :, columns:] = 7.0
    query = torch.randn(3, 2 * HEADS, 1, SIZE, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(3, 1, 1, columns)
    mask[1, ..., :2] = torch.finfo(mask.dtype).min
    found, _ = tree_attention(torch.nn.Module(), query, keys, values, mask)
    key, value = (x.repeat_interleave(2, 1) for x in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)
