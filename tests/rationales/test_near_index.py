"""The index of nearly alike sequences: what it finds, that it forgets, and that its order is the content's."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.rationales import near_index
from latent_cot.rationales.near_index import CANDIDATES, NearIndex, _SortedKeys, signature


def sequence(rng: random.Random) -> tuple[int, ...]:
    """24 of 16 tokens, as digits and signs are."""
    return tuple(rng.randrange(16) for _ in range(24))


def edited(tokens: tuple[int, ...], edits: int, rng: random.Random) -> tuple[int, ...]:
    result = list(tokens)
    for _ in range(edits):
        place = rng.randrange(len(result))
        kind = rng.randrange(3)
        result[place : place + (kind > 0)] = [rng.randrange(16)] * (kind < 2)
    return tuple(result)


@pytest.mark.parametrize(("edits", "found"), [(0, 1.0), (1, 0.97), (2, 0.9), (4, 0.65)])
def test_most_of_the_near_ones_are_candidates(edits: int, found: float) -> None:
    rng = random.Random(0)
    stored = [sequence(rng) for _ in range(3000)]
    index = NearIndex()
    for slot, tokens in enumerate(stored):
        index.add(slot, signature(tokens))
    slots = rng.sample(range(3000), 300)
    lists = [index.candidates(signature(edited(stored[slot], edits, rng))) for slot in slots]
    assert max(map(len, lists)) <= CANDIDATES
    assert sum(slot in candidates for slot, candidates in zip(slots, lists, strict=True)) >= found * 300


def test_candidates_depend_on_the_content_only() -> None:
    rng = random.Random(0)
    stored = {slot: sequence(rng) for slot in range(200)}
    used, fresh = NearIndex(), NearIndex()
    for slot in rng.sample(range(200), 200):
        used.add(slot, signature(sequence(rng)))
    for slot in rng.sample(range(200), 200):
        used.remove(slot)
        used.add(slot, signature(stored[slot]))
    for slot in stored:
        fresh.add(slot, signature(stored[slot]))
    for _ in range(50):
        query = signature(sequence(rng))
        assert used.candidates(query) == fresh.candidates(query)


@pytest.mark.parametrize("tokens", [(), (7,), (0, 0), (1_114_111,) * 300])
def test_sequences_of_all_lengths_are_found_again(tokens: tuple[int, ...]) -> None:
    index = NearIndex()
    assert index.candidates(signature(tokens)) == []
    index.add(3, signature(tokens))
    assert index.candidates(signature(tokens)) == [3]
    index.remove(3)
    assert index.candidates(signature(tokens)) == []


@given(st.lists(st.integers(0, 60), max_size=200), st.integers(0, 60), st.integers(1, 5), st.integers(1, 4))
def test_sorted_keys_are_a_sorted_list(toggles: list[int], key: int, n: int, block: int) -> None:
    """Each number is added, or removed if it is there, with blocks so small that they split and vanish."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_index, "_BLOCK", block)
        keys, present = _SortedKeys(), set[int]()
        for number in toggles:
            (keys.remove if number in present else keys.add)(number)
            present ^= {number}
        expected = sorted(present)
        i = bisect_left(expected, key)
        assert list(keys.around(key, n)) == expected[max(0, i - n) : i + n]
