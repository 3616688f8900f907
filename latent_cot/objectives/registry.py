"""Objectives by the name a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from latent_cot.objectives.balance import BalanceInfo, pooled_subtb, subtb, trajectory_balance, vargrad


class Objective(Protocol):
    """A loss of the deviations of the `a_i` (see `balance.log_flow`)."""

    def __call__(
        self,
        a: torch.Tensor,
        states: torch.Tensor,
        group: torch.Tensor,
        weight: torch.Tensor,
        *,
        huber: float | None = None,
        log_z: torch.Tensor | None = None,
        censored: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, BalanceInfo]: ...


OBJECTIVES: Mapping[str, Objective] = {
    "subtb": subtb,
    "pooled-subtb": pooled_subtb,
    "vargrad": vargrad,
    "tb": trajectory_balance,
}

LEARNS_LOG_Z = frozenset({"tb"})
"""Objectives that have a parameter log Z(X) for each question."""
