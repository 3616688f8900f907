"""Objectives by the name a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from latent_cot.objectives.balance import BalanceInfo, pooled_subtb, subtb


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
    ) -> tuple[torch.Tensor, BalanceInfo]: ...


OBJECTIVES: Mapping[str, Objective] = {"subtb": subtb, "pooled-subtb": pooled_subtb}
