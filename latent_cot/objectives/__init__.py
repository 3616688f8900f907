"""The E-step's objectives: pure functions of tensors, no model and no configuration."""

from latent_cot.objectives.balance import log_flow, pooled_subtb, subtb, temper
from latent_cot.objectives.registry import OBJECTIVES, Objective

__all__ = ["OBJECTIVES", "Objective", "log_flow", "pooled_subtb", "subtb", "temper"]
