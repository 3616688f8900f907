"""The learning rate, and AdamW on an adapter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.model.optimise import MAX_SKIPPED, AdapterOptimiser, Schedule
from latent_cot.types import UsageError


@given(st.integers(1, 300), st.integers(0, 400), st.sampled_from(["cosine", "constant"]))
def test_no_step_is_wasted(steps: int, warmup: int, decay: Any) -> None:
    """The learning rate is never 0 (the reference code's first one is), and never above its peak."""
    schedule = Schedule(0.1, steps, warmup, decay)
    rates = [schedule.at(step) for step in range(steps)]
    assert all(0 < rate <= 0.1 for rate in rates)
    before, after = rates[:warmup], rates[warmup:]
    assert before == sorted(before)
    assert after == sorted(after, reverse=True)


def test_the_schedule_by_hand() -> None:
    schedule = Schedule(1.0, 6, 2, "cosine")
    cosines = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert [schedule.at(step) for step in range(6)] == pytest.approx([1 / 3, 2 / 3, *cosines])
    assert [Schedule(1.0, 4, 0, "constant").at(step) for step in range(4)] == [1.0] * 4


def has_gradient(weight: torch.nn.Parameter) -> bool:
    return weight.grad is not None


def optimiser(weight: torch.nn.Parameter, **options: Any) -> AdapterOptimiser:
    return AdapterOptimiser({"w": weight}, Schedule(0.1, 10, 0, "constant"), max_grad_norm=1.0, **options)


def test_a_step_follows_the_schedule_and_clears_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    own = AdapterOptimiser({"w": weight}, Schedule(0.1, 10, 4, "cosine"), max_grad_norm=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    assert own.step(1) == pytest.approx(5.0)
    assert own.adam.param_groups[0]["lr"] == pytest.approx(0.1 * 2 / 5)
    assert not has_gradient(weight)
    assert bool((weight < 1).all())


@pytest.mark.parametrize(
    ("gradient", "kept"), [([30.0, 40.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])], ids=["large", "small"]
)
def test_a_large_gradient_is_clipped_and_a_small_one_is_not(gradient: list[float], kept: list[float]) -> None:
    """Seen by Adam's mean of the gradients: the size of its first step does not depend on theirs."""
    weight = torch.nn.Parameter(torch.zeros(2))
    own = optimiser(weight)
    weight.grad = torch.tensor(gradient)
    own.step(0)
    (group,) = own.adam.param_groups
    mean = own.adam.state[weight]["exp_avg"] / (1 - group["betas"][0])
    assert mean.tolist() == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_left_out(bad: float) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    own = optimiser(weight)
    weight.grad = torch.tensor([bad, 1.0])
    assert not math.isfinite(own.step(0))
    assert weight.tolist() == [1.0, 1.0]
    assert not has_gradient(weight)
    weight.grad = torch.ones(2)
    own.step(1)
    assert bool(weight.isfinite().all()) and bool((weight < 1).all())


def test_log_z_has_a_rate_of_its_own() -> None:
    weight, log_z = torch.nn.Parameter(torch.ones(2)), [torch.nn.Parameter(torch.zeros(())) for _ in range(3)]
    own = AdapterOptimiser({"w": weight}, Schedule(1e-6, 5, 0, "cosine"), 1.0, log_z=log_z, log_z_rate=0.25)
    weight.grad = torch.ones(2)
    log_z[0].grad, log_z[2].grad = torch.tensor(-1.0), torch.tensor(100.0)
    assert own.step(3) == pytest.approx(2**0.5), "log Z is not part of the norm that is clipped"
    assert [z.item() for z in log_z] == pytest.approx([0.25, 0.0, -0.25], abs=1e-4)
    torch.testing.assert_close(weight.detach(), torch.ones(2), atol=1e-5, rtol=0)


def test_a_log_z_stays_where_it_is_while_its_question_is_not_asked() -> None:
    """And when it is asked late for the first time, it moves as the first one did."""
    weight, log_z = torch.nn.Parameter(torch.ones(1)), [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
    own = AdapterOptimiser({"w": weight}, Schedule(1e-6, 99, 0, "constant"), 1.0, log_z=log_z, log_z_rate=0.1)
    for step in range(50):
        weight.grad = torch.ones(1)
        if step in (0, 40):
            log_z[bool(step)].grad = torch.tensor(-0.3)
        own.step(step)
    assert [z.item() for z in log_z] == pytest.approx([0.1, 0.1], abs=1e-4)


def test_log_z_without_a_finite_gradient_is_left_out_too() -> None:
    weight, log_z = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(()))
    own = optimiser(weight, log_z=[log_z])
    weight.grad, log_z.grad = torch.ones(2), torch.tensor(math.nan)
    assert not math.isfinite(own.step(0))
    assert weight.tolist() == [1.0, 1.0] and log_z.detach().item() == 0


def test_training_that_has_come_apart_ends() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    own = optimiser(weight)
    for step in range(3 * MAX_SKIPPED - 1):  # now and then is no reason
        weight.grad = torch.full((2,), math.nan if step % MAX_SKIPPED else 1.0)
        own.step(step)
    for _ in range(2 * MAX_SKIPPED):  # all in one step
        weight.grad = torch.full((2,), math.inf)
        own.step(20)
    for step in range(20, 20 + MAX_SKIPPED - 1):
        for value in (math.inf, 1.0):  # that a step's other loss is fine does not help
            weight.grad = torch.full((2,), value)
            own.step(step)
    weight.grad = torch.full((2,), math.inf)
    with pytest.raises(UsageError, match=r"training has come apart: .* lower learning rate \(here 0.1\)"):
        own.step(20 + MAX_SKIPPED - 1)
