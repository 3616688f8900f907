"""The E-step's objectives: pure functions of tensors, no model and no configuration."""

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
from latent_cot.objectives.registry import COMPLETE_ONLY, LEARNS_LOG_Z, OBJECTIVES, Objective

__all__ = [
    "COMPLETE_ONLY",
    "LEARNS_LOG_Z",
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
