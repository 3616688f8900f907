"""Supervised fine-tuning on the demonstrations, stopped early.

It goes on from the initial p, which has itself been fine-tuned on the demonstrations (`init_step`), so that it is
never given less training than what the other methods start from. Every `check_every` steps the validation questions are
answered as test questions are; after `patience` checks without a new best it stops, and the best p is kept. The
test splits play no part in this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from latent_cot.config import MStepConfig
from latent_cot.loop import Info, Job, Loop
from latent_cot.optimise import Schedule
from latent_cot.state import Phase


class SFT(Loop):
    """p learns from the demonstrations only. The adapter q, which is not needed, holds the best p so far."""

    def plan(self) -> list[Phase]:
        return [*self.round(0, "init"), *self.round(1, "fit", last=True)]

    def jobs(self) -> Mapping[str, Job]:
        return {**super().jobs(), "fit": Job(self.fit, self._fit_units)}

    def fit(self, phase: Phase) -> Iterator[Info]:
        """Fine-tune p. The first unit is a check only; each further one is `check_every` steps and a check."""
        c, step_config = self.config.sft, self._step_config
        schedule = Schedule(c.learning_rate, c.steps, c.warmup, "constant")
        optimiser = self._new_optimiser("p", schedule, step_config.clip)
        questions = self.data.validation[: c.questions]
        while (unit := self.state.unit) < self._fit_units(phase):
            figures: Info = {}
            for step in range(max(0, unit - 1) * c.check_every, min(unit * c.check_every, c.steps)):
                figures = self._likelihood_step("p", self._demonstrated, step_config, optimiser, step)
                self.state.model_trained = True
            right = self._count_right("p", questions, unit)
            if right > max(self.state.checks, default=-1):
                self.lm.copy_adapter("p", "q")
            self.state.checks.append(right)
            yield {**figures, "validation": right / len(questions), "best": max(self.state.checks) / len(questions)}
        self.lm.copy_adapter("q", "p")

    def _fit_units(self, phase: Phase) -> int:
        """The checks there will be at most; those that were made, once it has stopped early."""
        c, checks = self.config.sft, self.state.checks
        most = 1 + -(-c.steps // c.check_every)
        since_best = len(checks) - 1 - checks.index(max(checks)) if checks else 0
        return len(checks) if since_best >= c.patience else most

    @property
    def _step_config(self) -> MStepConfig:
        c = self.config.sft
        return replace(self.config.init_step, batch_size=c.batch_size, learning_rate=c.learning_rate, steps=c.steps)
