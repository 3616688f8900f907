"""The replay buffer: order, capacity, near duplicates, sampling, and its state."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.buffer import ReplayBuffer, rationale_from_json, rationale_to_json
from latent_cot.types import Rationale, ToolCall


def rationale(*tokens: int) -> Rationale:
    n = len(tokens)
    return Rationale(tokens, (True,) * n, (True,) * (n + 1), "".join(map(str, tokens)))


def offer(buffer: ReplayBuffer, tokens: tuple[int, ...], reward: float, question: str = "x") -> bool:
    return buffer.add(question, rationale(*tokens), [-math.inf] * len(tokens) + [reward])


def edit_distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """The textbook recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def test_best_first_and_bounded() -> None:
    buffer = ReplayBuffer(capacity=2, tolerance=0)
    assert offer(buffer, (1,), -3)
    assert offer(buffer, (2,), -1)
    assert offer(buffer, (3,), -2)
    assert not offer(buffer, (4,), -5)
    assert [item.rationale.tokens for item in buffer.stored("x")] == [(2,), (3,)]
    assert len(buffer) == 2


def test_questions_have_stores_of_their_own() -> None:
    buffer = ReplayBuffer(capacity=1)
    offer(buffer, (1,), -3, "x")
    offer(buffer, (1,), -4, "y")
    assert buffer.stored("y")[0].priority == -4
    assert "x" in buffer
    assert "z" not in buffer
    assert buffer.sample("z", 3) == []
    buffer.clear()
    assert len(buffer) == 0
    assert "x" not in buffer


def test_an_equal_rationale_is_not_added() -> None:
    buffer = ReplayBuffer(tolerance=0)
    assert offer(buffer, (1, 2), -3)
    assert not offer(buffer, (1, 2), -3)
    assert len(buffer) == 1


def test_of_two_near_ones_the_better_stays() -> None:
    buffer = ReplayBuffer(tolerance=0.25)
    assert offer(buffer, (1, 2, 3, 4), -3)
    assert not offer(buffer, (1, 2, 3, 5), -4)
    assert offer(buffer, (1, 2, 3, 6), -2)
    assert [item.rationale.tokens for item in buffer.stored("x")] == [(1, 2, 3, 6)]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=6).map(tuple), st.integers(-9, 0)), max_size=15),
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    st.integers(1, 5),
)
def test_invariants(offers: list[tuple[tuple[int, ...], int]], tolerance: float, capacity: int) -> None:
    buffer = ReplayBuffer(capacity, tolerance)
    best = -math.inf
    for tokens, reward in offers:
        offer(buffer, tokens, reward)
        best = max(best, reward)
    store = buffer.stored("x")
    assert len(store) <= capacity
    priorities = [item.priority for item in store]
    assert priorities == sorted(priorities, reverse=True)
    assert not offers or priorities[0] == best
    for i, a in enumerate(store):
        for b in store[i + 1 :]:
            left, right = a.rationale.tokens, b.rationale.tokens
            assert left != right
            assert edit_distance(left, right) >= tolerance * (len(left) + len(right))


def test_everything_is_replayed_if_there_is_little() -> None:
    buffer = ReplayBuffer(tolerance=0)
    offer(buffer, (1,), -1)
    offer(buffer, (2,), -9)
    assert len(buffer.sample("x", 2)) == len(buffer.sample("x", 5)) == 2


def test_replay_is_in_proportion_to_the_reward() -> None:
    buffer = ReplayBuffer(tolerance=0)
    rewards = {(1,): math.log(0.6), (2,): math.log(0.3), (3,): math.log(0.1)}
    for tokens, reward in rewards.items():
        offer(buffer, tokens, reward - 500)
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(item.rationale.tokens for _ in range(3000) for item in buffer.sample("x", 2, generator))
    for tokens, reward in rewards.items():
        assert drawn[tokens] / 6000 == pytest.approx(math.exp(reward), abs=0.03)


def test_impossible_rationales_can_be_sampled() -> None:
    buffer = ReplayBuffer(tolerance=0)
    for token in range(3):
        offer(buffer, (token,), -math.inf)
    assert len(buffer.sample("x", 2, torch.Generator().manual_seed(0))) == 2


def test_the_state_is_json_and_complete() -> None:
    """Tool output, masks and −inf included: what is replayed is what was sampled."""
    buffer = ReplayBuffer(tolerance=0)
    with_tool = Rationale(
        (1, 2, 3),
        (True, False, False),
        (True, False, False, True),
        "=14",
        cut=True,
        calls=(ToolCall("calculator", 1, "12 + 2", "14", n_tokens=2), ToolCall("calculator", 1, "", None, "bad")),
    )
    buffer.add("x", with_tool, [-1.5, -math.inf, -math.inf, -0.1])
    offer(buffer, (4,), -7)
    offer(buffer, (5,), -8, "y")
    other = ReplayBuffer(tolerance=0)
    other.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    for question in "xy":
        assert other.stored(question) == buffer.stored(question)
    assert rationale_from_json(json.loads(json.dumps(rationale_to_json(with_tool)))) == with_tool
