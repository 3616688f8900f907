"""Few-shot chain-of-thought prompting: the base model with demonstrations before the question."""

from __future__ import annotations

from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps
from latent_cot.model.lm import Adapter


class FewShot(Method):
    """Nothing is trained. Where no rationale is demonstrated, questions are shown with their answers, and answered at
    once."""

    def algorithm(self) -> Steps:
        yield from self.evaluate(0)

    @property
    def rounds(self) -> int:
        return 0

    @property
    def shown(self) -> int:
        return self.config.shots

    @property
    def model_prefix(self) -> str:
        if self.data.demonstrations:
            return super().model_prefix
        return "".join(f"{example.x}{example.y}\n" for example in self.data.unlabelled[: self.shown])

    def sampler_of(self, reasoner: Adapter) -> Adapter | None:
        return super().sampler_of(reasoner) if self.data.demonstrations else None
