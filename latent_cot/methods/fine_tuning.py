"""Fine-tuning p, and a q that reads Y, on rationales: lessons are made of them (`augmentation.py`) and learned
(`likelihood.py`), in round 0 and in each M-step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from latent_cot.config.schema import MStepConfig, trained_tokens
from latent_cot.methods import likelihood
from latent_cot.methods.augmentation import frame_of, vary
from latent_cot.methods.evaluator import Evaluator
from latent_cot.methods.state import Info, WeightedRationale
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.rationales.reward import other_answers
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example, Rationale, Reasoner

MAX_GRAD_NORM = 1.0
"""Largest norm of an M-step's gradient."""


class FineTuning(Evaluator):
    """What a method fine-tunes with."""

    @property
    def init_step(self) -> MStepConfig:
        """How p, and a q that sees Y, are fine-tuned on the demonstrations."""
        return MStepConfig(**vars(self.config.init_step))

    @property
    def demonstrated(self) -> list[WeightedRationale]:
        return [WeightedRationale(i, rationale) for i, rationale in enumerate(self.demonstrations)]

    def fine_tune(self, adapter: Reasoner, records: Sequence[WeightedRationale], c: MStepConfig) -> Iterator[Info]:
        """Raise the likelihood of the records' rationales under an adapter, each step one unit, and interpolate."""
        self.new_optimiser(adapter, Schedule(c.learning_rate, c.steps, c.warmup), MAX_GRAD_NORM)
        sees_answer = adapter == "q" and self.config.q_sees == "question-and-answer"
        for step in range(self.state.unit, c.steps):
            info = self.fine_tuning_step(adapter, records, c, step, sees_answer=sees_answer)
            if step == c.steps - 1:  # before the unit is over, so that what is saved then has it
                self.lm.interpolate(adapter, c.interpolation)
            yield info

    def fine_tuning_step(
        self, adapter: Reasoner, records: Sequence[WeightedRationale], c: MStepConfig, step: int, *, sees_answer: bool
    ) -> Info:
        assert self.optimiser is not None
        torch.manual_seed(self.unit_seed(step))  # for LoRA's dropout
        rng = random.Random(self.unit_seed(step))
        batch = likelihood.epoch_batch(len(records), c.batch_size, step, f"{self.config.seed}/{self.state.phase}")
        chosen = [records[k] for k in batch]
        lessons = [self.lesson(self.questions[one.question], one.rationale, sees_answer=sees_answer) for one in chosen]
        target: likelihood.Target = "joint" if sees_answer else c.target  # who has read Y learns to write Z
        variations = dict(vars(self.config.augmentation))
        if sees_answer:  # a question joined to others has another answer
            variations["concat_questions"] = 0
        frame = self._frame if variations["concat_questions"] else (0, 0)
        mean_weight = sum(one.weight for one in records) / len(records)
        groups = []
        for k, lesson, one in zip(batch, lessons, chosen, strict=True):
            others = [other for other_k, other in zip(batch, lessons, strict=True) if other_k != k]
            lesson = vary(lesson, others, self.rules.codec, rng, frame=frame, held_out=self._is_held_out, **variations)
            if target == "candidates":
                others_of = other_answers(self.task, self.questions[one.question], self.rules.codec)
                lesson = replace(lesson, others=others_of)
            groups.append(lesson)
        info = likelihood.likelihood_step(
            self.lm,
            adapter,
            groups,
            self.rules,
            self.optimiser,
            step,
            max_tokens=trained_tokens(self.config),
            weights=[[one.weight / mean_weight] for one in chosen],
            target=target,
        )
        self.state.budget.gradient_steps += 1
        return vars(info)

    @cached_property
    def _frame(self) -> tuple[int, int]:
        """What all training prompts begin and end with: see `frame_of`."""
        return frame_of([self.rules.codec.encode_prompt(example.x) for example in self.questions], self.rules.codec)

    def _is_held_out(self, prompt: Sequence[int]) -> bool:
        """Whether it is the prompt of a validation or test question."""
        text = self.rules.codec.decode(prompt)
        return text in self._held_out_prompts or self.task.is_held_out(text)

    @cached_property
    def _held_out_prompts(self) -> frozenset[str]:
        """The prompts of the run's own validation and test questions, as text."""
        codec, tests = self.rules.codec, chain.from_iterable(self.tests.values())
        return frozenset(codec.decode(codec.encode_prompt(example.x)) for example in (*self.data.validation, *tests))

    def lesson(self, example: Example, rationale: Rationale, *, sees_answer: bool) -> Group:
        """What is learned from a rationale: to write it after X, and Y behind it; or, having read Y as well, to
        write it and stop."""
        codec = self.rules.codec
        if sees_answer:
            return Group(codec.encode_prompt(self.task.posterior_prompt(example)), [rationale])
        return Group(codec.encode_prompt(example.x), [rationale], codec.encode(example.y or ""))

    def new_optimiser(
        self, adapter: Reasoner, schedule: Schedule, max_grad_norm: float, **log_z: Any
    ) -> AdapterOptimiser:
        self.optimiser = AdapterOptimiser(
            self.lm.parameters(adapter), schedule, max_grad_norm, processes=self.lm.processes, **log_z
        )
        if self.state.unit and self._restore is not None:
            self._restore(self.optimiser.adam)
        self._restore = None
        return self.optimiser
