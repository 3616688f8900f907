"""The replay buffer: order, capacity, near duplicates, sampling, and its state."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from latent_cot import disk
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.types import Example, Rationale, ToolCall, rationale_to_json
from tests.oracles import buffer as oracle

CODEC: Any = SimpleNamespace(
    vocab_size=2**21, stop_id=2**20, is_action=lambda token: 0 <= token < 2**21 and token != 99
)
"""Of a large alphabet, to which 99 does not belong."""


def rationale(*tokens: int) -> Rationale:
    n = len(tokens)
    return Rationale(tokens, (True,) * n, (True,) * (n + 1), "".join(map(str, tokens)))


def offer(buffer: ReplayBuffer, tokens: tuple[int, ...], reward: float, question: str = "x") -> bool:
    """Returns whether it was taken."""
    before = buffer.stored(question)
    buffer.add(question, rationale(*tokens), [-math.inf] * len(tokens) + [reward])
    return buffer.stored(question) != before


def reloaded(buffer: ReplayBuffer) -> ReplayBuffer:
    """A new buffer from the state of this one, by way of JSON text."""
    other = ReplayBuffer(buffer.capacity, buffer.tolerance)
    other.load_state_dict(json.loads(json.dumps(buffer.state_dict())), CODEC)
    return other


def test_best_first_and_bounded() -> None:
    buffer = ReplayBuffer(capacity=2, tolerance=0)
    assert offer(buffer, (1,), -3)
    assert offer(buffer, (2,), -1)
    assert offer(buffer, (3,), -2)
    assert not offer(buffer, (4,), -5)
    assert [item.rationale.tokens for item in buffer.stored("x")] == [(2,), (3,)]


def test_questions_that_differ_in_what_is_known_of_them_are_kept_apart() -> None:
    """Without Y a reward of the task's own may still depend on the answer. What Y says, the answer need not."""
    kept = [Example("x", y=y, answer=answer) for y, answer in ((". 1", "1"), (". 2", "2"), (None, "1"), (None, "2"))]
    assert len({example.key for example in [*kept, Example("x"), Example("z")]}) == 6
    assert Example("x", y=". 1", answer="1").key == Example("x", y=". 1").key
    assert Example("x").key == Example("x", y="").key


def test_without_capacity_it_takes_nothing() -> None:
    buffer = ReplayBuffer(capacity=0)
    assert not offer(buffer, (1,), -1)
    assert "x" not in buffer


def test_questions_have_stores_of_their_own() -> None:
    buffer = ReplayBuffer(capacity=1)
    offer(buffer, (1,), -3, "x")
    offer(buffer, (1,), -4, "y")
    assert buffer.stored("y")[0].priority == -4
    assert "x" in buffer
    assert "z" not in buffer
    assert buffer.sample("z", 3) == []
    buffer.clear()
    assert "x" not in buffer and "y" not in buffer


def test_an_equal_rationale_is_not_added() -> None:
    buffer = ReplayBuffer(tolerance=0)
    assert offer(buffer, (1, 2), -3)
    assert not offer(buffer, (1, 2), -3)
    assert len(buffer.stored("x")) == 1


def test_of_two_near_ones_the_better_stays() -> None:
    buffer = ReplayBuffer(tolerance=0.25)
    assert offer(buffer, (1, 2, 3, 4), -3)
    assert not offer(buffer, (1, 2, 3, 5), -4)
    assert offer(buffer, (1, 2, 3, 6), -2)
    assert [item.rationale.tokens for item in buffer.stored("x")] == [(1, 2, 3, 6)]


class BesideTheOracle(RuleBasedStateMachine):
    """Whatever is added, saved, restored and forgotten, the buffer holds what the oracle holds."""

    @initialize(capacity=st.integers(1, 12), tolerance=st.sampled_from([0.0, 0.1, 0.25, 0.5]))
    def begin(self, capacity: int, tolerance: float) -> None:
        self.buffer = ReplayBuffer(capacity, tolerance)
        self.oracle = oracle.ReplayBuffer(capacity, tolerance)

    @rule(
        question=st.sampled_from("xy"),
        tokens=st.lists(st.sampled_from([0, 1, 0xD800]), max_size=7).map(tuple),  # a surrogate: chr() of it is no text
        log_reward=st.sampled_from([-math.inf, -900.0, -3.0, -2.0, -1.5, -1.0, -0.0]),
    )
    def add(self, question: str, tokens: tuple[int, ...], log_reward: float) -> None:
        assert offer(self.buffer, tokens, log_reward, question) == self.oracle.add(question, tokens, log_reward)

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.oracle.stores.clear()

    @rule(seed=st.integers(0, 9), n=st.integers(1, 4))
    def resume(self, seed: int, n: int) -> None:
        resumed = reloaded(self.buffer)
        for question in self.oracle.stores:
            draws = [b.sample(question, n, torch.Generator().manual_seed(seed)) for b in (self.buffer, resumed)]
            assert draws[0] == draws[1]
        self.buffer = resumed

    @invariant()
    def same_content(self) -> None:
        for question in "xy":
            expected = self.oracle.stores.get(question, [])
            held = [(item.rationale.tokens, item.priority) for item in self.buffer.stored(question)]
            assert held == expected
            assert (question in self.buffer) == bool(expected)


TestBesideTheOracle = BesideTheOracle.TestCase
TestBesideTheOracle.settings = settings(max_examples=60, stateful_step_count=60)


def test_everything_is_replayed_if_there_is_little() -> None:
    buffer = ReplayBuffer(tolerance=0)
    offer(buffer, (1,), -1)
    offer(buffer, (2,), -9)
    assert len(buffer.sample("x", 2)) == len(buffer.sample("x", 5)) == 2


def test_impossible_rationales_can_be_sampled() -> None:
    buffer = ReplayBuffer(tolerance=0)
    for token in range(3):
        offer(buffer, (token,), -math.inf)
    assert len(buffer.sample("x", 2, torch.Generator().manual_seed(0))) == 2


def test_draws_have_the_oracles_probabilities() -> None:
    """Within 4 standard deviations."""
    rng = random.Random(1)
    buffer, plain = ReplayBuffer(40, 0.0), oracle.ReplayBuffer(40, 0.0)
    for step in range(300):
        tokens, reward = (step,), rng.gauss(-400, 2) + step / 100
        assert offer(buffer, tokens, reward) == plain.add("x", tokens, reward)
    expected = dict(zip([tokens for tokens, _ in plain.stores["x"]], plain.probabilities("x"), strict=True))
    generator, n = torch.Generator().manual_seed(0), 20_000
    drawn = Counter(item.rationale.tokens for _ in range(n // 10) for item in buffer.sample("x", 10, generator))
    assert drawn.keys() <= expected.keys()
    for key, share in expected.items():
        assert abs(drawn[key] - n * share) < 4 * math.sqrt(n * share * (1 - share)) + 1


def test_a_reward_that_is_no_number_is_refused() -> None:
    buffer = ReplayBuffer()
    assert not offer(buffer, (1,), math.nan)
    assert "x" not in buffer


@pytest.mark.parametrize("token", [99, CODEC.stop_id])
def test_a_token_that_nobody_may_choose_is_refused(token: int) -> None:
    """It would be scored as another one."""
    buffer = ReplayBuffer()
    offer(buffer, (1, token), -1)
    with pytest.raises(ValueError, match="a token that may not be chosen"):
        reloaded(buffer)


def random_tokens(rng: random.Random, length: int = 24) -> tuple[int, ...]:
    return tuple(rng.randrange(16) for _ in range(length))


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.3])
def test_a_resumed_buffer_goes_on_as_the_one_never_stopped(tolerance: float) -> None:
    """Of the size of a run's, which `BesideTheOracle` is not."""
    rng = random.Random(0)
    buffer = ReplayBuffer(400, tolerance)
    offers = [(random_tokens(rng, rng.randint(4, 9)), float(rng.randint(-300, 0))) for _ in range(3000)]
    for tokens, reward in offers[:1500]:
        offer(buffer, tokens, reward)
    resumed = reloaded(buffer)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for tokens, reward in offers[1500:]:
        assert offer(buffer, tokens, reward) == offer(resumed, tokens, reward)
        assert buffer.sample("x", 3, generators[0]) == resumed.sample("x", 3, generators[1])
    assert buffer.stored("x") == resumed.stored("x")
    assert buffer.state_dict() == resumed.state_dict()


def test_the_state_is_json_and_complete() -> None:
    """Tool output, masks and −inf included: what is replayed is what was sampled."""
    buffer = ReplayBuffer(tolerance=0)
    with_tool = Rationale(
        (1, 2, 3),
        (True, False, False),
        (True, False, False, True),
        "=14",
        truncated=True,
        calls=(ToolCall("calculator", 1, "12 + 2", "14", n_tokens=2), ToolCall("calculator", 1, "", None, "bad")),
    )
    buffer.add("x", with_tool, [-1.5, -math.inf, -math.inf, -0.1])
    offer(buffer, (4,), -7)
    offer(buffer, (5,), -8, "y")
    other = reloaded(buffer)
    for question in "xy":
        assert other.stored(question) == buffer.stored(question)
    record = json.loads(json.dumps(rationale_to_json(with_tool)))
    assert disk.decoded(Rationale, record, "x") == with_tool
