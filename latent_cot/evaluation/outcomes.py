"""Outcomes: what became of each test question, in a file of JSON lines; and two reasoners compared by them.

Two accuracies with an interval each do not say how sure their difference is, since both have been asked the same
questions: what makes a question hard makes it hard for both. The differences on the questions do. Importing this
loads no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, FiniteFloat, ValidationError
from scipy.stats import binomtest

from latent_cot.evaluation import intervals
from latent_cot.types import Example, Measured, UsageError, finite

if TYPE_CHECKING:
    from latent_cot.evaluation.evaluate import Outcome

RIGHT = "right"
"""The figure of a task with right answers: 1 or 0."""


class Question(NamedTuple):
    """A test question; a split may ask the same one again."""

    split: str
    text: str
    repetition: int


class _Record(BaseModel, strict=True):
    """What is read of a question's line."""

    reasoner: str
    split: str
    question: str
    figures: dict[str, FiniteFloat | None]


Outcomes = Mapping[str, Mapping[Question, Mapping[str, float]]]
"""Reasoner -> question -> figure -> value; a figure that is undefined for a question is missing."""


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
    """Questions on which the first has more ..."""
    lower: int
    """... and less."""
    p_value: float
    """Two-sided exact sign test of the two numbers: McNemar's, where right answers of one run each are compared."""

    @property
    def value(self) -> float:
        return self.first - self.second

    def to_json(self) -> dict[str, Any]:
        between = None if self.interval_95 is None else list(self.interval_95)
        return {"difference": self.value, **vars(self), "interval_95": between}


def of_answered(reasoner: str, split: str, outcome: Outcome) -> dict[str, Any]:
    """The record of a question with a right answer."""
    given = Counter(zip((z.text for z in outcome.rationales), outcome.answers, strict=True))
    return {
        **_place(reasoner, split, outcome.example),
        "expected": outcome.example.answer,
        "answer": outcome.answer,
        "figures": {RIGHT: int(outcome.correct)},
        "rationales": [{"text": text, "answer": answer, "count": n} for (text, answer), n in given.items()],
    }


def of_measured(
    reasoner: str, split: str, questions: Sequence[Measured], found: Mapping[str, float | Sequence[float]]
) -> list[dict[str, Any]]:
    """The records of questions whose rationales have been measured; figures of all of them together are left out."""
    of_each = {name: values for name, values in found.items() if isinstance(values, Sequence)}
    return [
        {
            **_place(reasoner, split, question.example),
            "figures": {name: float(values[k]) for name, values in of_each.items()},
            "rationales": [{"text": sample.rationale.text, "count": sample.count} for sample in question.samples],
        }
        for k, question in enumerate(questions)
    ]


def _place(reasoner: str, split: str, example: Example) -> dict[str, str]:
    return {"reasoner": reasoner, "split": split, "question": example.asked}


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a line for each record, with at least what `read` wants. Raises UsageError where that cannot be."""
    lines = "".join(json.dumps(finite(dict(record)), allow_nan=False) + "\n" for record in records)
    try:
        path.write_text(lines, encoding="ascii")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); name another file") from error


def read(path: Path) -> Outcomes:
    """The outcomes in a file that `write` has made. Raises UsageError naming file and line."""
    found: dict[str, dict[Question, Mapping[str, float]]] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a file of latent-cot eval --outcomes") from error
    for number, line in enumerate(lines, 1):
        try:
            record = _Record.model_validate_json(line)
        except ValidationError:
            raise UsageError(f"{path}, line {number}: not an outcome of latent-cot eval --outcomes") from None
        place = (record.reasoner, record.split, record.question)
        figures = {name: value for name, value in record.figures.items() if value is not None}
        found.setdefault(record.reasoner, {})[Question(*place[1:], seen[place])] = figures
        seen[place] += 1
    if not found:
        raise UsageError(f"{path}: no outcomes are in it; give a file of latent-cot eval --outcomes")
    return found


def of_reasoner(path: Path, reasoner: str | None) -> tuple[str, Mapping[Question, Mapping[str, float]]]:
    """A reasoner in a file, the only one there is or the one named, and its outcomes.

    Raises UsageError where there are others only, or several and none is named.
    """
    found = read(path)
    if len(found) == 1:
        return next(iter(found.items()))
    if reasoner is None:
        raise UsageError(f"{path}: has outcomes of {' and '.join(found)}; say which by --reasoner")
    if reasoner not in found:
        raise UsageError(f"{path}: has outcomes of {' and '.join(found)}, none of {reasoner}")
    return reasoner, found[reasoner]


def differences(
    first: Sequence[Mapping[Question, Mapping[str, float]]], second: Sequence[Mapping[Question, Mapping[str, float]]]
) -> dict[str, dict[str, Difference]]:
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
