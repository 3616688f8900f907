"""The E-step's objectives by the name a configuration gives them: pure functions of tensors, no model and no
configuration."""

from collections.abc import Callable, Mapping

import torch

from latent_cot.objectives import balance

Objective = Callable[[balance.Balance], tuple[torch.Tensor, balance.BalanceInfo]]
"""Each question's loss, (G,), and its diagnostics."""

OBJECTIVES: Mapping[str, Objective] = {
    "subtb": balance.subtb,
    "pooled-subtb": balance.pooled_subtb,
    "vargrad": balance.vargrad,
    "tb": balance.trajectory_balance,
    "prefix-tb": balance.prefix_balance,
}

COMPLETE_ONLY = frozenset({"vargrad", "tb"})
"""Objectives of complete rationales: the log-reward of their prefixes need not be known."""

LOG_Z_RATE = {"tb": 0.1, "prefix-tb": 0.3}
"""Objectives that learn log Z(X) -> at what learning rate, in nats a step."""
