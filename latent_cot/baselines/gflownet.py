"""GFlowNet fine-tuning, as in the paper's tables: one E-step on q(Z | X), and no M-step."""

from __future__ import annotations

from latent_cot.em import EM
from latent_cot.state import Phase


class GFlowNet(EM):
    """The sampler is the reasoner; p stays the initial model, whose posterior q learns."""

    def plan(self) -> list[Phase]:
        return [*self.round(0, "init"), *self.round(1, "prepare", "e_step", "diagnose", last=True)]
