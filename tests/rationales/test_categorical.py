"""Draws in blocks against the plain sums."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.rationales import categorical


@given(
    seed=st.integers(0, 2**32),
    n_actions=st.sampled_from([1, 2, 20, 255, 256, 257, 512, 1000]),
    spread=st.sampled_from([0.0, 1.0, 10.0]),
    possible=st.sampled_from([1.0, 0.3, 0.01]),
)
def test_each_number_falls_on_its_index(seed: int, n_actions: int, spread: float, possible: float) -> None:
    """Where rounding decides, on a neighbour of it; never on one that is impossible."""
    generator = torch.Generator().manual_seed(seed)
    weights = (spread * torch.randn((4, n_actions), generator=generator)).exp()
    chosen = torch.randint(n_actions, (4, 1), generator=generator)
    weights *= (torch.rand(weights.shape, generator=generator) < possible).scatter(1, chosen, True)
    rows = torch.randint(4, (200,), generator=generator)
    numbers = torch.rand(200, dtype=torch.float64, generator=generator)
    numbers[:4] = torch.tensor([0.0, 1 - 2**-53, 0.5, 2**-53], dtype=torch.float64)
    drawn = categorical.draw(weights, rows, numbers)
    shares = weights.double() / weights.double().sum(1, keepdim=True)
    for row, number, index in zip(rows.tolist(), numbers.tolist(), drawn.tolist(), strict=True):
        assert weights[row, index] > 0
        before = float(shares[row, :index].sum())
        assert before - 1e-6 <= number <= before + float(shares[row, index]) + 1e-6


def test_no_token_of_a_large_alphabet_is_left_out() -> None:
    """Their shares are 1e-8: sums in float32, as far as they are near 1, do not tell them apart."""
    weights = torch.full((1, 50_001), 1e-8)
    weights[0, 0] = 1 - 50_000 * 1e-8
    numbers = 1 - 50_000 * 1e-8 * torch.linspace(2**-20, 1 - 2**-20, 200_000, dtype=torch.float64)
    counts = categorical.draw(weights, torch.zeros(len(numbers), dtype=torch.long), numbers).bincount()
    assert len(counts) == 50_001
    assert int(counts[1:].min()) >= 3
    assert int(counts[1:].max()) <= 5
