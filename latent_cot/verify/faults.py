"""Deliberate mistakes in the E-step's update, which the comparison with the exact posterior must notice.

The engine has no switch for being wrong. Each fault replaces one function that `e_step.balance_step` calls by one
that makes the mistake, for as long as a `with` block lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from latent_cot.methods import e_step
from latent_cot.objectives import Loss, Objective
from latent_cot.objectives.balance import Balance, BalanceInfo
from latent_cot.rationales import batch
from latent_cot.rationales.scoring import Scores


@dataclass(frozen=True)
class Fault:
    """A mistake, and where it must show."""

    description: str
    world: str
    objective: str
    module: ModuleType
    name: str
    """What it replaces, of what this module calls ..."""
    faulty: Callable[[Any], Any]
    """... and by what, given the right one."""


def injected(fault: Fault) -> AbstractContextManager[Any]:
    """Within the block `e_step.balance_step` makes this mistake."""
    return patch.object(fault.module, fault.name, fault.faulty(getattr(fault.module, fault.name)))


def _without_s0(objectives: Mapping[str, Objective]) -> Mapping[str, Objective]:
    """The losses over all states but the empty rationale."""

    def without_s0(loss: Loss) -> Loss:
        def masked(balance: Balance) -> tuple[torch.Tensor, BalanceInfo]:
            states = balance.states.clone()
            states[:, 0] = False
            return loss(balance._replace(a=torch.where(states, balance.a, 0.0), states=states))

        return masked

    return {name: one._replace(loss=without_s0(one.loss)) for name, one in objectives.items()}


def _tool_tokens_in_q(score_in_batches: Callable[..., Any]) -> Callable[..., Any]:
    """A tool's tokens scored as if the policy had chosen them, over the whole vocabulary."""

    def scored(*arguments: Any, **settings: Any) -> Iterator[tuple[list[int], Scores]]:
        for members, scores in score_in_batches(*arguments, **settings, tool_tokens=True):
            yield members, replace(scores, log_pf=scores.log_pf + scores.log_tool)

    return scored


def _shifted_reward(temper: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Each state given the reward of the state before it; s_0 keeps its own."""

    def shifted(log_reward: torch.Tensor, states: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
        moved = log_reward.clone()
        for row, is_state in zip(moved, states, strict=True):
            places = is_state.nonzero()[:, 0]
            row[places[1:]] = row[places[:-1]]  # the right side is a copy
        return temper(moved, states, *rest, **settings)

    return shifted


FAULTS: Mapping[str, Fault] = {
    "no-s0": Fault("s_0 left out of the states", "xy", "subtb", e_step, "OBJECTIVES", _without_s0),
    "tool-tokens-in-q": Fault(
        "a tool's tokens counted in log q", "tool", "pooled-subtb", e_step, "score_in_batches", _tool_tokens_in_q
    ),
    "shifted-reward": Fault(
        "each state given the reward of the one before", "xy", "pooled-subtb", batch, "temper", _shifted_reward
    ),
}
"""Name -> fault."""
