"""Few-shot chain-of-thought prompting: the base model with k demonstrations before the question."""

from __future__ import annotations

from latent_cot.loop import Loop
from latent_cot.state import Phase


class FewShot(Loop):
    """Nothing is trained."""

    def plan(self) -> list[Phase]:
        return [Phase(0, "evaluate")]

    @property
    def shown(self) -> int:
        return self.config.fewshot.k
