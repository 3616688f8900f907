"""The E-step's objectives by the name a configuration gives them: pure functions of tensors, no model and no
configuration."""

from collections.abc import Callable, Mapping

import torch

from latent_cot.objectives.balance import (
    Balance,
    BalanceInfo,
    below_floor,
    last_state,
    log_flow,
    pooled_subtb,
    prefix_balance,
    subtb,
    temper,
    trajectory_balance,
    vargrad,
)

__all__ = [
    "COMPLETE_ONLY",
    "LEARNS_LOG_Z",
    "LOG_Z_RATE",
    "OBJECTIVES",
    "Balance",
    "BalanceInfo",
    "Objective",
    "below_floor",
    "last_state",
    "log_flow",
    "pooled_subtb",
    "prefix_balance",
    "subtb",
    "temper",
    "trajectory_balance",
    "vargrad",
]

Objective = Callable[[Balance], tuple[torch.Tensor, BalanceInfo]]
"""Each question's loss, (G,), and its diagnostics."""

OBJECTIVES: Mapping[str, Objective] = {
    "subtb": subtb,
    "pooled-subtb": pooled_subtb,
    "vargrad": vargrad,
    "tb": trajectory_balance,
    "prefix-tb": prefix_balance,
}

COMPLETE_ONLY = frozenset({"vargrad", "tb"})
"""Objectives of complete rationales: the log-reward of their prefixes need not be known."""

LEARNS_LOG_Z = frozenset({"tb", "prefix-tb"})
"""Objectives that learn log Z(X)."""

LOG_Z_RATE = {"tb": 0.1, "prefix-tb": 0.3}
"""At what learning rate, in nats a step."""
