"""GFlowNet fine-tuning, as in the paper's tables: one E-step, and no M-step.

The sampler is q(Z | X); or q(Z | X, Y), first fine-tuned on the demonstrations as it sees them, where tests give Y.
"""

from __future__ import annotations

from latent_cot.em import EM
from latent_cot.methods.state import Phase


class GFlowNet(EM):
    """The sampler is the reasoner; p stays the initial model, whose posterior q learns."""

    def plan(self) -> list[Phase]:
        start = ["imitate"] if self.config.condition == "xy" else []
        return [*self.round(0, "init"), *self.round(1, *start, "prepare", "e_step", "diagnose", last=True)]
