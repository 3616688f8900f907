"""To evaluate: how good a reasoner is on test questions, by right answers, or by the task's own figures of its
rationales. Right answers: decode, vote, grade, and say what the wrong chains did wrong."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import binomtest

from latent_cot.evaluation import intervals
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import Counts
from latent_cot.rationales.scoring import Group, score_rows
from latent_cot.types import CodeError, Example, Measured, Rationale, Sample, Task

Judge = Literal["p", "base"]
"""Who picks the answer among candidates: an adapter, or the base model as it is without any."""

MISTAKES: Mapping[str, str] = {
    "token limit": "the chain was cut at the largest number of tokens",
    "failed call": "a tool refused one of the chain's requests",
    "no answer": "the chain stopped and arrives at no answer",
    "wrong answer": "none of these: the chain arrives at a wrong answer",
}
"""Category of a wrong chain -> what it means: for all tasks, by the first that applies."""


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

    @property
    def chain(self) -> Rationale:
        """The first that arrives at the answer given."""
        return self.rationales[list(self.answers).index(self.answer)]


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers."""

    correct: int
    n: int

    @classmethod
    def of(cls, marks: str) -> Accuracy:
        """Of a "1" for each right answer and a "0" for each other."""
        return cls(marks.count("1"), len(marks))

    @property
    def value(self) -> float:
        return self.correct / self.n if self.n else float("nan")

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval for a proportion."""
        if not self.n:
            return (0.0, 1.0)
        bounds = binomtest(self.correct, self.n).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)

    def to_json(self) -> dict[str, float | int | list[float]]:
        return {
            "accuracy": self.value,
            "correct": self.correct,
            "n": self.n,
            "interval_95": list(self.interval()),
        }


NO_RATIONALE = Rationale((), (), (True,), "")
"""The empty chain, before an answer that is given at once."""


def majority(answers: Sequence[str | None], same: Callable[[str, str], bool] = operator.eq) -> str | None:
    """The most frequent answer, as it was first written, the earliest of equally frequent ones; chains without an
    answer do not vote. `same`: whether an answer is the same as an earlier one."""
    votes = Counter[str]()
    for answer in answers:
        if answer is not None:
            votes[next((earlier for earlier in votes if answer == earlier or same(answer, earlier)), answer)] += 1
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def read_answers(
    lm: LanguageModel,
    judge: Judge,
    task: Task,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    rationales: Sequence[Sequence[Rationale]],
    rules: ChainRules,
    *,
    max_tokens: int,
) -> list[list[str | None]]:
    """Read the answer of each question's rationales off them, or let the judge pick the likeliest of the task's
    candidates after each."""
    picked = {g: candidates for g, example in enumerate(examples) if (candidates := task.candidates(example))}
    found: list[list[str | None]] = [
        [] if g in picked else [task.answer(rationale) for rationale in of_one] for g, of_one in enumerate(rationales)
    ]
    if not picked:
        return found
    groups = []
    for g, candidates in picked.items():
        first, *others = map(rules.codec.encode, candidates.values())
        groups.append(Group(prompts[g], rationales[g], first, others))
    with lm.without_adapters() if judge == "base" else nullcontext(lm.merged(judge)) as model:
        scored = score_rows(lm, model, groups, rules.codec, max_tokens=max_tokens, answers_at="end")
    for (g, candidates), scores in zip(picked.items(), scored, strict=True):
        # Y was scored at the ends only: elsewhere there are zeros, and -inf for a candidate that is not there.
        log_y = torch.cat([scores.log_y[..., None], scores.log_others], -1).sum(1)  # (B, candidates)
        names = list(candidates)
        found[g] = [names[place] for place in log_y.argmax(-1).tolist()]
    return found


@dataclass
class Mistakes:
    """What the wrong ones of a reasoner's answers did wrong, each counted in one category."""

    task: Task
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, Outcome] = field(default_factory=dict)
    """Category -> the first question with this mistake."""

    def add(self, outcome: Outcome) -> None:
        """Count a wrong answer."""
        category = mistake(self.task, outcome.example, outcome.chain, outcome.answer)
        self.counts[category] += 1
        self.first.setdefault(category, outcome)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Category -> what it means, in the order in which they are shown."""
        own = self.task.mistakes
        return {**own, **{name: meaning for name, meaning in MISTAKES.items() if name not in own}}

    def to_json(self) -> list[dict[str, Any]]:
        """The categories that occur, the most frequent first, each with its share of the wrong answers."""
        order = {name: place for place, name in enumerate(self.meanings)}
        ranked = sorted(self.counts, key=lambda name: (-self.counts[name], order.get(name, len(order))))
        return [
            {
                "category": name,
                "meaning": self.meanings.get(name, ""),
                "count": self.counts[name],
                "share": self.counts[name] / self.counts.total(),
                "example": {
                    "question": self.first[name].example.asked,
                    "right": self.first[name].example.answer,
                    "answer": self.first[name].answer,
                    "chain": self.first[name].chain.text,
                },
            }
            for name in ranked
        ]


def mistake(task: Task, example: Example, rationale: Rationale, answer: str | None) -> str:
    """The one category of a chain that does not arrive at the right answer: the task's, else one of `MISTAKES`."""
    category = task.mistake(example, rationale)
    if category is not None:
        return category
    if rationale.truncated:
        return "token limit"
    if rationale.failed:
        return "failed call"
    return "no answer" if answer is None else "wrong answer"


# -- figures of rationales, for tasks that have no right answers (`Task.metrics`) ----------------------


def score_by_base(
    lm: LanguageModel,
    task: Task,
    groups: Sequence[Group],
    counts: Sequence[Counts],
    codec: TextCodec,
    *,
    max_tokens: int,
) -> list[list[Sample]]:
    """Each question's distinct rationales with their counts and, where the task asks for it, the base model's scores.

    These are over its whole vocabulary, a tool's tokens included, and without the stop. A reasoner that judged its own
    rationales would find them as likely as it has made them.

    Args:
        groups: what the base model reads: X, the rationales of `counts`, and Y where it is known.
        max_tokens: padded size of a forward pass; bounds memory.
    """
    if not task.scored:
        return [[Sample(rationale, count=count) for rationale, count in of_one.items()] for of_one in counts]
    with lm.without_adapters() as base:
        texts = list(map(_as_text, groups))
        scored = score_rows(lm, base, texts, codec, max_tokens=max_tokens, answers_at="end", tool_tokens=True)
    found = []
    for of_one, group, scores in zip(counts, groups, scored, strict=True):
        log_z = scores.log_tool.double().sum(1).tolist()
        log_y = scores.at_end(scores.log_y).tolist() if group.answer else [None] * len(log_z)
        rows = zip(of_one.items(), log_z, log_y, strict=True)
        found.append([Sample(rationale, z, y, count) for (rationale, count), z, y in rows])
    return found


def _as_text(group: Group) -> Group:
    """Its rationales as texts no token of which is the policy's own."""
    texts = [
        replace(z, policy_mask=(False,) * len(z), states=(*[False] * len(z), True), truncated=True)
        for z in group.rationales
    ]
    return replace(group, rationales=texts)


@dataclass(frozen=True)
class Figure:
    """A metric's value on a split."""

    value: float
    """The mean over the questions, or the number of all of them together."""
    n: int
    """Questions."""
    interval_95: tuple[float, float] | None = None
    """Bootstrap over the questions; None for a number of all of them together, and for fewer than two questions."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval_95": None if self.interval_95 is None else list(self.interval_95)}


def figures(task: Task, questions: Sequence[Measured]) -> dict[str, Figure]:
    """Metric's name -> its value on these questions, in the task's order."""
    return {name: figure_of(found, len(questions)) for name, found in measure(task, questions).items()}


def measure(task: Task, questions: Sequence[Measured]) -> dict[str, float | Sequence[float]]:
    """What `task.measure` finds, in the task's order, once it is checked."""
    found = task.measure(questions)
    unknown = found.keys() - task.metrics.keys()
    if unknown:
        raise CodeError(f"{task.name}: `measure` gives {', '.join(sorted(unknown))}, which `metrics` does not name")
    return {name: _checked(task, name, found[name], len(questions)) for name in task.metrics if name in found}


def _checked(task: Task, name: str, found: Any, n: int) -> float | list[float]:
    """One number, or a number for each of n questions; an array is as good as a list."""
    found = found.tolist() if isinstance(found, np.ndarray | np.generic) else found
    several = isinstance(found, Sequence) and not isinstance(found, str)
    values = list(found) if several else [found]
    if several and len(values) != n:
        raise CodeError(f"{task.name}: `measure` gives {len(values)} values for {n} questions")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise CodeError(f"{task.name}: `measure` gives {name} as what is no number: {error}") from error
    return numbers if several else numbers[0]


def figure_of(found: float | Sequence[float], n: int) -> Figure:
    """A metric's value on n questions, given its value on all together, or those on each."""
    if not isinstance(found, Sequence):
        return Figure(float(found), n)
    values = np.array([value for value in found if not math.isnan(value)], dtype=float)
    if not len(values):
        return Figure(math.nan, 0)
    return Figure(float(values.mean()), len(values), intervals.of_mean(values))
