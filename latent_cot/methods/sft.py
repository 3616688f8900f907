"""Supervised fine-tuning on the demonstrations, stopped early.

It goes on from the initial p, which has itself been fine-tuned on the demonstrations (`init_step`), so that it is
never given less training than what the other methods start from. Every `check_every` steps the validation questions are
answered as test questions are; after `PATIENCE` checks without a new best it stops, and the best p is kept. Where a
task has no right answers, the check is the loss of the validation questions' own rationales. The test splits play no
part in this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from latent_cot.config.schema import RunConfig
from latent_cot.evaluation.evaluate import NO_RATIONALE
from latent_cot.methods import likelihood
from latent_cot.methods.fine_tuning import MAX_GRAD_NORM
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase, WeightedRationale
from latent_cot.model.optimise import Schedule
from latent_cot.rationales.chain import encode_rationale
from latent_cot.types import Example, Reasoner, Task, TaskData, UsageError

PATIENCE = 3
"""Checks without a new best after which it stops."""


class SFT(Method):
    """p learns from the demonstrations only, as tests ask for their rationales. The adapter q, which is not needed,
    holds the best p so far.

    Where there are none, and the answer is one of a few candidates, p learns to tell it from the others right after the
    question, and answers so. Without validation questions there is no early stopping: the last p is kept.
    """

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        yield from self.fit(1)
        yield from self.evaluate(1)

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        super().check(config, task, data)
        if not data.demonstrations and not all(map(task.candidates, data.unlabelled)):
            raise UsageError("--method sft learns --data.demonstrations, which have rationales; give some")
        without = sum(example.z is None for example in data.validation)
        if without and task.is_measured and config.sft.check_every:  # there are no right answers to be counted
            n = len(data.validation)
            told = f"{without} of {n} validation questions have no rationale, whose loss would tell when to stop"
            raise UsageError(f"{told}; give --sft.check-every 0, which takes all steps")

    @property
    def answers_at_once(self) -> bool:
        """Whether there is no rationale to learn."""
        return not self.data.demonstrations

    def sampler_of(self, reasoner: Reasoner) -> Reasoner | None:
        return None if self.answers_at_once else super().sampler_of(reasoner)

    @phase(lambda self, _: self._fit_units)
    def fit(self, at: Phase) -> Iterator[Info]:
        """Fine-tune p. The first unit is a check only; each further one is `check_every` steps and a check."""
        c = replace(self.config.m_step, target="candidates" if self.answers_at_once else "joint")
        every = self._every
        records = [WeightedRationale(i, NO_RATIONALE) for i in range(len(self.questions))]
        records = records if self.answers_at_once else self.demonstrated
        schedule = Schedule(c.learning_rate, c.steps, c.warmup, "constant")
        self.new_optimiser("p", schedule, MAX_GRAD_NORM)
        while (unit := self.state.unit) < self._fit_units:
            figures: Info = {}
            for step in range(max(0, unit - 1) * every, min(unit * every, c.steps)):
                figures = self.fine_tuning_step("p", records, c, step, sees_answer=self.task.answer_given)
                self.state.m_steps = 1
            found = self.lm.processes.of_main(self._check(unit))
            if found > max(self.state.checks, default=-math.inf) or not self._held_out:
                self.lm.copy_adapter("p", "q")
            self.state.checks.append(found)
            checks = self.state.checks
            if self._held_out and len(checks) == self._fit_units and checks[0] == max(checks):
                figures["note"] = "no check was better than the first: p stays as it is"
            yield {**figures, **self._shown_check(found, max(checks))}
        if self._held_out:  # the best p may be the one that the first check has seen
            self.state.m_steps = int(self.state.checks.index(max(self.state.checks)) > 0)
        self.lm.copy_adapter("q", "p")
        if self.state.m_steps:
            self.lm.interpolate("p", c.interpolation)

    def _check(self, unit: int) -> float:
        """How good p is now, the higher the better: right answers, or minus the loss of held-out rationales."""
        if not self._held_out:
            return 0
        if not self.task.is_measured:
            return self.mark("p", self._held_out, unit).count("1")
        groups = []
        for example in self._held_out:
            rationale = encode_rationale(example.z or "", self.rules)
            lesson = self.lesson(example, rationale, sees_answer=self.task.answer_given)
            # As in tests: an untrained p reads demonstrations first, if it is so configured.
            groups.append(replace(lesson, prompt=self.test_prompt("p", example)))
        return -likelihood.held_out_loss(self.lm, "p", groups, self.rules, max_tokens=self.config.max_batch_tokens)

    def _shown_check(self, found: float, best: float) -> Info:
        if not self._held_out:
            return {}
        if self.task.is_measured:
            return {"validation_loss": -found, "best_loss": -best}
        return {"validation": found / len(self._held_out), "best": best / len(self._held_out)}

    @property
    def _held_out(self) -> Sequence[Example]:
        return self.data.validation if self.config.sft.check_every else []

    @property
    def _fit_units(self) -> int:
        """The checks there will be at most; those that were made, once it has stopped early."""
        checks = self.state.checks
        most = 1 + -(-self.config.m_step.steps // self._every)
        since_best = len(checks) - 1 - checks.index(max(checks)) if checks else 0
        return len(checks) if since_best >= PATIENCE and self._held_out else most

    @property
    def _every(self) -> int:
        """Steps of a unit."""
        return self.config.sft.check_every or 20
