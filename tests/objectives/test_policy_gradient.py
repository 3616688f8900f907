"""The policy-gradient kernels against brute force, and the surrogate's gradient against the policy gradient."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.objectives.policy_gradient import (
    clipped_surrogate,
    kl_penalty,
    leave_one_out,
    normalised,
    returns_to_go,
    truncated_weights,
)

REWARDS = st.floats(-30, 0, width=32)


@st.composite
def batches(draw: st.DrawFn) -> list[list[tuple[float, int]]]:
    """For each question its distinct trajectories: (reward, how often sampled)."""
    one = st.lists(st.tuples(REWARDS, st.integers(1, 3)), min_size=1, max_size=4)
    return draw(st.lists(one, min_size=1, max_size=3))


def tensors(batch: list[list[tuple[float, int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = [(reward, float(n), g) for g, question in enumerate(batch) for reward, n in question]
    reward, weight, group = zip(*rows, strict=True)
    return torch.tensor(reward).double(), torch.tensor(weight).double(), torch.tensor(group)


def samples(question: list[tuple[float, int]]) -> list[float]:
    """Each distinct trajectory as often as it was sampled."""
    return [reward for reward, n in question for _ in range(n)]


@given(batches())
def test_leave_one_out_is_the_mean_of_the_others(batch: list[list[tuple[float, int]]]) -> None:
    expected = []
    for question in batch:
        drawn = samples(question)
        for reward, _ in question:
            others = list(drawn)
            others.remove(reward)
            expected.append(reward - statistics.fmean(others) if others else 0.0)
    found = leave_one_out(*tensors(batch))
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@given(batches())
def test_normalised_is_the_standard_score(batch: list[list[tuple[float, int]]]) -> None:
    expected = []
    for question in batch:
        drawn = samples(question)
        deviation = statistics.stdev(drawn) if len(drawn) > 1 else 0.0
        expected += [(reward - statistics.fmean(drawn)) / (deviation + 0.5) for reward, _ in question]
    found = normalised(*tensors(batch), floor=0.5)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@given(batches(), st.floats(-5, 5))
def test_a_shared_constant_changes_no_advantage(batch: list[list[tuple[float, int]]], constant: float) -> None:
    reward, weight, group = tensors(batch)
    for advantage in (leave_one_out, partial(normalised, floor=1e-4)):
        assert torch.allclose(advantage(reward + constant, weight, group), advantage(reward, weight, group), atol=1e-4)
        total = torch.zeros(len(batch), dtype=torch.float64).index_add(
            0, group, weight * advantage(reward, weight, group)
        )
        assert torch.allclose(total, torch.zeros_like(total), atol=1e-6), "a question's advantages add up to 0"


def test_returns_to_go() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    log_prob, reference = torch.tensor([[-1.0, 9.0, -2.0], [-1.0, -1.0, 9.0]]), torch.full((2, 3), -3.0)
    # Log-ratios: 2, none, 1 and 2, 2, none.
    found = returns_to_go(torch.tensor([-10.0, -20.0]), log_prob, reference, mask, kl=0.5)
    assert found.tolist() == [[-11.5, 0.0, -10.5], [-22.0, -21.0, 0.0]]


def test_the_surrogate_by_hand() -> None:
    old = torch.zeros(1, 5)
    log_prob = torch.tensor([[1.1, 1.5, 0.5, 0.9, 7.0]]).log().requires_grad_()
    advantage = torch.tensor([[1.0, 1.0, 1.0, -2.0, 1.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    loss, clipped = clipped_surrogate(log_prob, old, advantage, mask, clip_range=0.2)
    assert float(loss.detach()) == pytest.approx(-(1.1 + 1.2 + 0.5 - 2 * 0.9))
    loss.sum().backward()
    # d ratio / d log_prob = ratio; nothing where the clipping has cut the gain off (1.5), or beyond the mask.
    assert log_prob.grad is not None
    assert log_prob.grad[0].tolist() == pytest.approx([-1.1, 0.0, -0.5, 1.8, 0.0])
    assert clipped.tolist() == [1]


def test_clipping_never_stops_a_correction() -> None:
    """A ratio beyond the range is still pulled back where the advantage says so."""
    log_prob = torch.tensor([[1.5, 0.5]]).log().requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, clipped = clipped_surrogate(log_prob, torch.zeros(1, 2), torch.tensor([[-1.0, 1.0]]), mask, clip_range=0.2)
    loss.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0].tolist() == pytest.approx([1.5, -0.5])
    assert clipped.tolist() == [0]


def test_where_old_is_new_the_gradient_is_the_policy_gradient() -> None:
    """For a categorical policy: the expectation of the surrogate's gradient is that of the expected reward."""
    torch.manual_seed(0)
    logits, reward = torch.randn(5).double().requires_grad_(), torch.randn(5).double()
    exact = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)[0]
    log_probs = logits.log_softmax(0)
    losses, _ = clipped_surrogate(
        log_probs[:, None],
        log_probs[:, None].detach(),
        reward[:, None],
        torch.ones(5, 1, dtype=torch.bool),
        clip_range=0.2,
    )
    found = torch.autograd.grad((logits.softmax(0).detach() * losses).sum(), logits)[0]
    assert torch.allclose(found, -exact)


def test_the_kl_penalty_is_the_divergence() -> None:
    """Its expectation under the policy is KL(policy || reference), and no sample is negative."""
    torch.manual_seed(1)
    policy, reference = torch.randn(2, 6).double().log_softmax(-1).unbind()
    each = kl_penalty(policy[:, None], reference[:, None], torch.ones(6, 1, dtype=torch.bool))
    assert bool((each >= 0).all())
    exact = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * each).sum()) == pytest.approx(float(exact))
    assert float(exact) > 0.1


def test_what_is_masked_does_not_count() -> None:
    mask = torch.tensor([[True, False]])
    log_prob = torch.tensor([[-1.0, math.nan]])
    loss, _ = clipped_surrogate(log_prob, torch.zeros(1, 2), torch.ones(1, 2), mask, clip_range=0.2)
    assert bool(loss.isfinite().all())
    assert bool(kl_penalty(log_prob, torch.zeros(1, 2), mask).isfinite().all())
    assert bool(truncated_weights(log_prob, log_prob, mask, cap=2.0)[0].isfinite().all())


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(4, 3) log-probabilities under trainer and sampler, up to two nats apart, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    log_trainer, log_sampler = -2 * torch.rand((2, 4, 3), generator=generator, dtype=torch.float64)
    return log_trainer, log_sampler, torch.rand((4, 3), generator=generator) < 0.7


@given(st.integers(0, 1000), st.floats(0.5, 3))
def test_weights_are_ratios_up_to_the_cap(seed: int, cap: float) -> None:
    log_trainer, log_sampler, mask = random_batch(seed)
    weight, cut = truncated_weights(log_trainer, log_sampler, mask, cap=cap)
    for row in range(4):
        n = 0
        for place in range(3):
            ratio = math.exp(log_trainer[row, place]) / math.exp(log_sampler[row, place])
            acts = bool(mask[row, place])
            assert float(weight[row, place]) == pytest.approx(min(ratio, cap) if acts else 0.0)
            n += acts and ratio > cap
        assert cut[row] == n


def test_a_policy_that_has_sampled_itself_has_weights_of_one() -> None:
    log_prob, _, mask = random_batch(0)
    weight, cut = truncated_weights(log_prob, log_prob, mask, cap=2.0)
    assert torch.equal(weight, mask.double()) and not cut.any()


def test_the_gradient_of_the_weighted_surrogate() -> None:
    """It is that of finite differences, and none goes through the weights, which are those of before the step."""
    log_prob, log_sampler, mask = random_batch(1)
    old, advantage = log_prob + 0.05, torch.randn(4, 3, dtype=torch.float64)
    weight, _ = truncated_weights(old.requires_grad_(), log_sampler, mask, cap=1.5)
    assert not weight.requires_grad

    def loss(log_prob: torch.Tensor) -> torch.Tensor:
        return clipped_surrogate(log_prob, old.detach(), weight * advantage, mask, clip_range=0.2)[0]

    assert torch.autograd.gradcheck(loss, log_prob.requires_grad_())
    plain, _ = clipped_surrogate(log_prob, old.detach(), advantage, mask, clip_range=0.2)
    by_row = [torch.autograd.grad(of.sum(), log_prob, retain_graph=True)[0] for of in (loss(log_prob), plain)]
    assert torch.allclose(by_row[0], weight * by_row[1]), "as if each action's surrogate were weighted"


@pytest.mark.parametrize(("cap", "exact"), [(math.inf, True), (1.0, False)])
def test_weights_make_up_for_another_sampler(cap: float, exact: bool) -> None:
    """For a single action the expectation under the sampler is the trainer's policy gradient, unless the cap cuts."""
    torch.manual_seed(2)
    logits, reward = torch.randn(5).double().requires_grad_(), torch.randn(5).double()
    sampler, log_prob = torch.randn(5).double().log_softmax(0), logits.log_softmax(0)
    expected = torch.autograd.grad((log_prob.exp() * reward).sum(), logits, retain_graph=True)[0]
    mask = torch.ones(5, 1, dtype=torch.bool)
    old = log_prob[:, None].detach()
    weight, _ = truncated_weights(old, sampler[:, None], mask, cap=cap)
    losses, _ = clipped_surrogate(log_prob[:, None], old, weight * reward[:, None], mask, clip_range=0.2)
    found = torch.autograd.grad((sampler.exp() * losses).sum(), logits)[0]
    assert torch.allclose(found, -expected) == exact
