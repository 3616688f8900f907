"""Rejection-sampling EM: STaR (Zelikman et al., 2022) and ReST-EM (Singh et al., "Beyond human data", 2024).

    sample  chains from p for the training questions, keep the distinct ones that arrive at Y
    M-step  p ← the initial p, fine-tuned on them and on the demonstrations

As in ReST-EM, chains are sampled at a temperature, each round fine-tunes the same starting point, and a question
keeps a bounded number of chains. Left out: STaR's rationalisation, in which p is shown the answer of a question that it
got wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from latent_cot.methods.likelihood import epoch_batch
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.seeding import slices
from latent_cot.methods.state import Info, Phase, WeightedRationale
from latent_cot.rationales.batch import shown
from latent_cot.types import Rationale

PER_QUESTION = 4
"""Distinct right chains kept for a question, at most: ReST-EM's guard against easy questions."""


class Rejection(Method):
    """p is the only model. The adapter q, which is not needed, holds what each round fine-tunes."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        for number in range(1, self.rounds + 1):
            yield from self.sample(number)
            yield from self.m_step(number)
            yield from self.evaluate(number)

    @phase(lambda self, _: len(self._batches))
    def sample(self, at: Phase) -> Iterator[Info]:
        """Chains from p, a batch a unit, over all training questions in random order, again and again."""
        if self.state.unit == 0:
            if at.round == 1:
                self.lm.copy_adapter("p", "q")
            self.state.drawn = self.demonstrated
        known: dict[int, set[tuple[int, ...]]] = {}
        for one in self.state.drawn:
            known.setdefault(one.question, set()).add(one.rationale.tokens)
        for unit in range(self.state.unit, len(self._batches)):
            order_seed = f"{self.config.seed}/{self.state.phase}"
            batch = epoch_batch(len(self.questions), self.config.rollout.batch_size, unit, order_seed)
            members = batch[: len(self._batches[unit])]
            sampled = self.sample_questions(
                "p", members, self.unit_seed(unit), temperature=self.config.m_step.temperature
            )
            drawn = [WeightedRationale(i, replace(z, log_probs=None)) for i, (z,) in zip(members, sampled, strict=True)]
            marks = self._marks(members, [one.rationale for one in drawn])
            right = [one for one, good in zip(drawn, marks, strict=True) if good]
            before = len(self.state.drawn)
            for one in right:
                own = known.setdefault(one.question, set())
                if len(own) < PER_QUESTION and one.rationale.tokens not in own:
                    own.add(one.rationale.tokens)
                    self.state.drawn.append(one)
            share = {"accuracy": len(right) / len(members)} if self.tells_right or self._picks else {}
            samples = [shown(self.questions[one.question], one.rationale) for one in drawn[:2]]
            yield {"drawn": len(members), "kept": len(self.state.drawn) - before, **share, "samples": samples}

    @property
    def _picks(self) -> bool:
        """Whether the answer is one of a few candidates, which p picks behind a rationale."""
        return not self.tells_right and not self.task.is_measured

    def _marks(self, members: Sequence[int], rationales: Sequence[Rationale]) -> list[bool]:
        """Whether each rationale leads to its training question's answer. All do where there is no right answer."""
        examples = [self.questions[i] for i in members]
        if not self._picks:
            return self.are_correct(list(zip(examples, rationales, strict=True)))
        answers = self.decide("p", examples, [[z] for z in rationales])
        marks = [self.task.grade(example, answer) for example, (answer,) in zip(examples, answers, strict=True)]
        return self.lm.processes.of_main(marks)

    def start_model(self) -> None:
        """An M-step fine-tunes the starting point, not the last p."""
        if self.state.drawn:
            self.lm.copy_adapter("q", "p")

    @property
    def _batches(self) -> list[range]:
        e = self.config.e_step
        return slices(e.steps * e.questions * e.samples, self.config.rollout.batch_size)
