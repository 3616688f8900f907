"""GRPO (Shao et al., "DeepSeekMath", 2024), or RLOO (Ahmadian et al., 2024) with
`--policy-gradient.advantage leave-one-out`.

All actions of a rationale have the same advantage: its reward compared with those of its question's other
rationales. The KL to the initial p is a term of the loss. `--policy-gradient.reward correct` makes it the usual one
with a reward of 0 or 1.
"""

from __future__ import annotations

import torch

from latent_cot.methods.policy_gradient import DEVIATION_FLOOR, PolicyGradient
from latent_cot.objectives.policy_gradient import leave_one_out, normalised
from latent_cot.rationales.experience import Experience


class GRPO(PolicyGradient):
    """Group-relative policy optimisation."""

    kl_in_loss = True

    def advantages(self, experience: Experience, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        c = self.config.policy_gradient
        if c.advantage == "leave-one-out":
            advantage = leave_one_out(reward, experience.count, experience.group)
        else:
            advantage = normalised(reward, experience.count, experience.group, floor=DEVIATION_FLOOR)
        return torch.where(experience.mask, advantage[:, None], 0.0)
