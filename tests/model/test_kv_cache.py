"""The cache's buffers. That decoding with it is right is for tests/rationales/test_rollout.py to show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.model import attention
from latent_cot.model.attention import tree_attention
from latent_cot.model.kv_cache import COLUMNS_AT_ONCE, SlotLayer, behind_beginning, with_spare_columns

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


@pytest.mark.parametrize("shared", [1, 20, 32, 45])
@pytest.mark.parametrize(("width", "columns"), [(1, 5), (1, 40), (1, 64), (6, 6), (3, 33)])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_behind_a_beginning_is_attention_to_both(
    shared: int, width: int, columns: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        monkeypatch.setattr(attention, "_MOST_SCORES", 0)
    first = SlotLayer()
    first.update(states(1, shared, 1), states(1, shared, 2))
    first._key_buffer[:, :, shared:] = 7.0
    first._value_buffer[:, :, shared:] = 7.0
    layer = SlotLayer(first, apart=True)
    keys, values = layer.update(states(3, columns, 3), states(3, columns, 4))
    layer._key_buffer[:, :, columns:] = 7.0
    layer._value_buffer[:, :, columns:] = 7.0
    assert layer.get_seq_length() == shared + columns
    query = torch.randn(3, 2 * HEADS, width, SIZE, generator=torch.Generator().manual_seed(5))
    seen = torch.ones(width, shared + columns).tril(shared + columns - width).bool().repeat(3, 1, 1, 1)
    seen[1, ..., shared : shared + columns - width] = False  # a shorter row
    mask = attention.additive(seen, torch.float32)
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    found, _ = tree_attention(module, query, keys, values, mask)
    key, value = (
        torch.cat([own.expand(3, -1, -1, -1), rest], 2).repeat_interleave(2, 1)
        for own, rest in ((states(1, shared, 1), states(3, columns, 3)), (states(1, shared, 2), states(3, columns, 4)))
    )
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_model_that_knows_of_no_beginning_is_handed_all() -> None:
    first = SlotLayer()
    first.update(states(1, 20, 1), states(1, 20, 2))
    layer = SlotLayer(first)
    keys, values = layer.update(states(3, 5, 3), states(3, 5, 4))
    assert torch.equal(keys, torch.cat([states(1, 20, 1).expand(3, -1, -1, -1), states(3, 5, 3)], 2))
    assert torch.equal(values, torch.cat([states(1, 20, 2).expand(3, -1, -1, -1), states(3, 5, 4)], 2))
    assert behind_beginning(keys) is keys
    assert layer.columns == 5
