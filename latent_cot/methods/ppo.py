"""PPO (Schulman et al., 2017), as it is used on language models (Ziegler et al., 2019; Ouyang et al., 2022).

The reward is that of the E-step, at the end of the rationale; each action pays kl · (log q − log p) for leaving the
initial p. An action's advantage is what it could still earn, less the mean of what its question's other rationales
earned, divided by its root mean square over the batch (plus `DEVIATION_FLOOR`, lest a batch in which nothing is left to
learn be blown up to the usual size).

Left out: a value head. It would have to be learned from a hundred batches, beside an adapter that moves, to predict a
reward that comes only at the end; the mean of the question's other samples is an unbiased baseline that costs nothing
(Ahmadian et al., "Back to Basics", 2024; Kazemnejad et al., "VinePPO", 2024). With it goes generalised advantage
estimation. Also left out: mini-batches within a batch, and an adaptive weight of the KL.
"""

from __future__ import annotations

import torch

from latent_cot.methods.policy_gradient import DEVIATION_FLOOR, PolicyGradient
from latent_cot.objectives.policy_gradient import leave_one_out, normalised, returns_to_go
from latent_cot.rationales.experience import Experience


class PPO(PolicyGradient):
    """Proximal policy optimisation with a group baseline."""

    kl_in_loss = False

    def advantages(self, experience: Experience, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        c = self.config.policy_gradient
        mask, count = experience.mask, experience.count
        to_go = returns_to_go(reward, old, experience.reference, mask, kl=c.kl)
        # The baseline is one number a rationale, formed of whole returns; what an action has paid before it is sunk.
        whole = reward - c.kl * torch.where(mask, old - experience.reference, 0.0).sum(1)
        if c.advantage == "leave-one-out":
            baseline = whole - leave_one_out(whole, count, experience.group)
            advantage = torch.where(mask, to_go - baseline[:, None], 0.0)
        else:
            of_whole = normalised(whole, count, experience.group, floor=DEVIATION_FLOOR)
            advantage = torch.where(mask, of_whole[:, None], 0.0)
        actions = count[:, None] * mask
        scale = ((actions * advantage**2).sum() / actions.sum()).sqrt()
        return advantage / (scale + DEVIATION_FLOOR)
