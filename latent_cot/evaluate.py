"""Decode, grade, vote, and give the accuracy with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from latent_cot.chain import ChainRules
from latent_cot.lm import Adapter, LanguageModel
from latent_cot.rollout import rollout
from latent_cot.scoring import Group, score_in_batches
from latent_cot.types import Example, Rationale, Task


@dataclass(frozen=True)
class Outcome:
    """What became of one test question."""

    example: Example
    rationales: Sequence[Rationale]
    answers: Sequence[str | None]
    """The answer of each rationale; None where it arrives at none."""
    answer: str | None
    """The answer given: the most frequent one."""
    correct: bool


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n if self.n else float("nan")

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval for a proportion."""
        if not self.n:
            return (0.0, 1.0)
        bounds = binomtest(self.correct, self.n).proportion_ci(level, method="wilson")
        return float(bounds.low), float(bounds.high)

    def to_json(self) -> dict[str, float | int | list[float]]:
        return {
            "accuracy": self.value,
            "correct": self.correct,
            "n": self.n,
            "interval_95": list(self.interval()),
        }


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the earliest of equally frequent ones; chains without an answer do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def answer_questions(
    lm: LanguageModel,
    adapter: Adapter,
    task: Task,
    examples: Sequence[Example],
    rules: ChainRules,
    *,
    prefix: str = "",
    votes: int = 1,
    temperature: float = 0.0,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Iterator[Outcome]:
    """Let a reasoner, which sees X only, answer each question; in batches of about `batch_size` chains.

    Args:
        adapter: the reasoner, "p" or "q".
        prefix: text before each question, such as demonstrations.
        votes: rationales a question; the majority of their answers is given.
        temperature: 0 is greedy (then one vote is as good as many).
    """
    codec = rules.codec
    model = lm.dense(adapter)
    per_batch = max(1, batch_size // votes)
    for start in range(0, len(examples), per_batch):
        batch = examples[start : start + per_batch]
        prompts = [codec.encode_prompt(prefix + example.x) for example in batch]
        sampled = rollout(lm, model, prompts, rules, n=votes, temperature=temperature, generator=generator)
        for example, prompt, rationales in zip(batch, prompts, sampled, strict=True):
            answers = _answers(lm, adapter, task, example, prompt, rationales, rules)
            answer = majority(answers)
            yield Outcome(example, rationales, answers, answer, task.grade(example, answer))


def _answers(
    lm: LanguageModel,
    adapter: Adapter,
    task: Task,
    example: Example,
    prompt: Sequence[int],
    rationales: Sequence[Rationale],
    rules: ChainRules,
) -> list[str | None]:
    """Read each rationale's answer off it, or pick the likeliest of the task's candidates after it."""
    candidates = task.candidates(example)
    if candidates is None:
        return [task.answer(rationale) for rationale in rationales]
    log_y = torch.empty(len(candidates), len(rationales))
    for k, text in enumerate(candidates.values()):
        group = Group(prompt, rationales, rules.codec.encode(text))
        with torch.no_grad():
            for _, scores in score_in_batches(
                lm, lm.dense(adapter), [group], rules.codec, max_tokens=4096, answers_at="end"
            ):
                log_y[k] = scores.log_y.sum(1).cpu()
    names = list(candidates)
    return [names[k] for k in log_y.argmax(0).tolist()]
