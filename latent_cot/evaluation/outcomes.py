"""Outcomes: what became of each test question; and two reasoners compared by them.

Two accuracies with an interval each do not say how sure their difference is, since both have been asked the same
questions: what makes a question hard makes it hard for both. The differences on the questions do. Importing this
loads no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from latent_cot.evaluation import intervals
from latent_cot.types import Example

RIGHT = "right"
"""The figure of a task with right answers: 1 or 0."""


class Question(NamedTuple):
    """A test question; a split may ask the same one again."""

    split: str
    text: str
    repetition: int


Outcomes = Mapping[Question, Mapping[str, float]]
"""Question -> figure -> value; a figure that is undefined for a question is missing."""


@dataclass(frozen=True)
class Difference:
    """A figure of the first reasoner minus that of the second, over questions."""

    n: int
    """Questions for which both have the figure."""
    first: float
    second: float
    """Means over these questions, and over the runs of each."""
    interval_95: tuple[float, float] | None
    """Of the difference, over questions: Agresti and Min's for right answers, else a bootstrap, which is None for fewer
    than two."""
    higher: int
    """Questions on which the first has the higher figure."""
    lower: int
    """Questions on which it has the lower one."""
    p_value: float
    """Two-sided exact sign test of the two numbers: McNemar's, where right answers of one run each are compared."""

    @property
    def value(self) -> float:
        return self.first - self.second

    def to_json(self) -> dict[str, Any]:
        between = None if self.interval_95 is None else list(self.interval_95)
        return {"difference": self.value, **vars(self), "interval_95": between}


def of_questions(split: str, examples: Sequence[Example], figures: Mapping[str, Sequence[float]]) -> Outcomes:
    """What became of the questions of a split.

    Args:
        figures: figure -> a value of each question; NaN: undefined for it.
    """
    seen: Counter[str] = Counter()
    found = {}
    for k, example in enumerate(examples):
        place = Question(split, example.asked, seen[example.asked])
        found[place] = {name: values[k] for name, values in figures.items() if not math.isnan(values[k])}
        seen[example.asked] += 1
    return found


def differences(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> dict[str, dict[str, Difference]]:
    """Split -> figure -> how the two differ.

    Args:
        first, second: the runs (seeds, say) of each. A question's figure is the mean over its runs, and counts where
            every run of both has it.
    """
    runs = [*first, *second]
    common = [question for question in runs[0] if all(question in run for run in runs)]
    found: dict[str, dict[str, Difference]] = {}
    for split in dict.fromkeys(question.split for question in common):
        members = [question for question in common if question.split == split]
        for figure in dict.fromkeys(name for question in members for name in runs[0][question]):
            rows = [question for question in members if all(figure in run[question] for run in runs)]
            if rows:
                of_first, of_second = (
                    np.array([[run[question][figure] for question in rows] for run in of_one]).mean(0)
                    for of_one in (first, second)
                )
                found.setdefault(split, {})[figure] = _difference(figure, of_first, of_second)
    return found


def _difference(figure: str, first: np.ndarray, second: np.ndarray) -> Difference:
    """`first`, `second`: (questions,)."""
    between = intervals.of_matched_proportions if figure == RIGHT else intervals.of_mean
    higher, lower = int((first > second).sum()), int((first < second).sum())
    p_value = float(binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    means = float(first.mean()), float(second.mean())
    return Difference(len(first), *means, between(first - second), higher, lower, p_value)
