"""The rows of a comparison beside one of them, question by question.

All runs are tested on the same questions, so that the difference of two rows is surer than their intervals side by side
look: see `outcomes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from latent_cot.evaluation import intervals, outcomes
from latent_cot.evaluation.outcomes import RIGHT, Difference, Outcomes, Question
from latent_cot.report.comparison.records import Record
from latent_cot.report.tables import Table
from latent_cot.types import UsageError, did_you_mean

Target = tuple[str, str | None]
"""Variant and reasoner that rows are compared with; no reasoner: the one of the same name or, where there is none, the
last one."""


@dataclass(frozen=True)
class PairedDifference:
    """A row minus the one that it is compared with."""

    variant: str
    reasoner: str
    against: tuple[str, str]
    """Variant and reasoner."""
    seeds: tuple[int, ...]
    """Those that both have; a question counts by its mean over them."""
    splits: Mapping[str, Difference]
    """Those in which both were asked the same questions, which are the same for all seeds."""
    over_seeds: Mapping[str, tuple[float, float] | None]
    """The 95 % t-interval of the mean of the seeds' differences, of the splits in which each seed asked both the same
    questions; None for one seed."""
    means: Mapping[str, float]
    """That mean."""

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.reasoner}"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "splits": {split: difference.to_json() for split, difference in self.splits.items()}}


def parse_target(text: str, reasoners: Mapping[str, Sequence[str]]) -> Target:
    """`VARIANT` or `VARIANT:REASONER`.

    Args:
        reasoners: those of each variant that is compared.

    Raises UsageError for one that is not compared.
    """
    variant, _, reasoner = text.partition(":")
    if variant not in reasoners:
        raise UsageError(f"--against {text}: {variant!r} is not compared.{did_you_mean(variant, reasoners)}")
    if reasoner and reasoner not in reasoners[variant]:
        raise UsageError(f"--against {text}: the reasoners of {variant} are {' and '.join(reasoners[variant])}")
    return variant, reasoner or None


def differences(records: Sequence[Record], target: Target) -> list[PairedDifference]:
    """Each row beside the target, in their order."""
    rows: dict[tuple[str, str], dict[int, Outcomes]] = {}
    for record in records:
        for reasoner in record["right"]:
            rows.setdefault((record["variant"], reasoner), {})[record["seed"]] = _marks(record, reasoner)
    targets = [reasoner for variant, reasoner in rows if variant == target[0]]
    found = []
    for (variant, reasoner), seeds in rows.items():
        against = (target[0], target[1] or (reasoner if reasoner in targets else targets[-1]))
        common = [seed for seed in seeds if seed in rows[against]]
        if (variant, reasoner) != against and common:
            pairs = [(seeds[seed], rows[against][seed]) for seed in common]
            together = _of_right(pairs)
            each = [_of_right([pair]) for pair in pairs]
            values = {
                split: [one[split].value for one in each] for split in each[0] if all(split in one for one in each)
            }
            between = {split: _clipped(intervals.over_seeds(of_seeds)) for split, of_seeds in values.items()}
            means = {split: fmean(of_seeds) for split, of_seeds in values.items()}
            found.append(PairedDifference(variant, reasoner, against, tuple(common), together, between, means))
    return found


def _clipped(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Of a difference of two shares."""
    return None if interval is None else (max(-1.0, interval[0]), min(1.0, interval[1]))


def _of_right(runs: Sequence[tuple[Outcomes, Outcomes]]) -> dict[str, Difference]:
    """Split -> how the right answers of the first of each pair differ from those of the second."""
    first, second = zip(*runs, strict=True)
    return {split: figures[RIGHT] for split, figures in outcomes.differences(first, second).items()}


def _marks(record: Record, reasoner: str) -> dict[Question, Mapping[str, float]]:
    """Which questions are right. Other questions have other names."""
    return {
        Question(split, f"{record['questions'][split]}/{number}", 0): {RIGHT: float(mark)}
        for split, marks in record["right"][reasoner].items()
        for number, mark in enumerate(marks)
    }


def difference_text(one: PairedDifference, split: str) -> str:
    """`+2.5 (-0.1 to +5.1; seeds -3.0 to +8.0)`, in points; only the latter where seeds asked other questions."""
    if split not in one.means:
        return "-"
    difference, between = one.splits.get(split), one.over_seeds[split]
    parts = [] if difference is None or difference.interval_95 is None else [_points(difference.interval_95)]
    parts += [] if between is None else [f"seeds {_points(between)}"]
    return f"{100 * one.means[split]:+.1f} ({'; '.join(parts)})"


def _points(interval: tuple[float, float]) -> str:
    low, high = (f"{100 * x:+.1f}" for x in interval)
    return f"{low} to {high}"


def table_of(found: Sequence[PairedDifference]) -> Table:
    """A row for each."""
    splits = dict.fromkeys(split for one in found for split in one.means)
    return Table(
        {"method, reasoner": [one.name for one in found], "less that of": [", ".join(one.against) for one in found]},
        {split: [difference_text(one, split) for one in found] for split in splits},
        "% right, less that of the row named: mean of all seeds' answers, with 95 % intervals over the questions and, "
        "where there are several seeds, over the seeds (t); -: asked others",
    )
