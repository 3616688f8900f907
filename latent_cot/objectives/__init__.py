"""The E-step's objectives by the name a configuration gives them: pure functions of tensors, no model and no
configuration."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from latent_cot.objectives import balance

Loss = Callable[[balance.Balance], tuple[torch.Tensor, balance.BalanceInfo]]
"""Each question's loss, (G,), and its diagnostics."""


class Objective(NamedTuple):
    """A loss, and what it is a loss of."""

    loss: Loss
    complete_only: bool = False
    """Of complete rationales: the last state of each is its only one, and the log-reward of prefixes need not be
    known."""
    log_z_rate: float = 0.0
    """The learning rate of the log Z(X) that it learns, in nats a step; 0: it learns none."""


OBJECTIVES: Mapping[str, Objective] = {
    "subtb": Objective(balance.subtb),
    "pooled-subtb": Objective(balance.pooled_subtb),
    "vargrad": Objective(balance.pooled_subtb, complete_only=True),
    "tb": Objective(balance.trajectory_balance, complete_only=True, log_z_rate=0.1),
    "prefix-tb": Objective(balance.trajectory_balance, log_z_rate=0.3),
}
