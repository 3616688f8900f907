"""What the runs of a comparison add up to: rows of accuracies or metrics over the seeds, as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from latent_cot.report import plots
from latent_cot.report.tables import Table
from latent_cot.types import Metric


@dataclass(frozen=True)
class Mean:
    """The accuracy, or a metric, of a reasoner on a split over the seeds."""

    mean: float
    """NaN where no seed has a value."""
    deviation: float | None
    """Standard deviation over the seeds (n − 1); None with one seed."""
    n: int
    """Questions, of all seeds together."""
    interval_95: tuple[float, float] | None
    """Of an accuracy: Wilson's, of the mean share for as many questions as one seed has. All seeds are asked the same
    ones, so that more seeds are not more questions. It tells how well these runs are measured, not how much another
    seed would differ."""


@dataclass(frozen=True)
class Row:
    """A variant's reasoner."""

    variant: str
    reasoner: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Mean]
    """Accuracy by split; none for a task without right answers."""
    metrics: Mapping[str, Mapping[str, Mean]]
    """By split and metric; none for a task with right answers."""
    trajectories: float
    gradient_steps: float
    seconds: float
    """Means over the seeds of what training has cost: wall time without evaluation and diagnostics."""

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.reasoner}"

    @property
    def figures(self) -> dict[tuple[str, str], Mean]:
        """By split and metric; an accuracy's is ""."""
        found = {(split, name): mean for split, of_split in self.metrics.items() for name, mean in of_split.items()}
        return found | {(split, ""): mean for split, mean in self.cells.items()}


_NOT_TRAINING = ("evaluate", "diagnose", "diagnose_before", "validate")


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The runs' records, those of different seeds taken together, in their order."""
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        variants.setdefault(record["variant"], []).append(record)
    return [_row(runs, name) for runs in variants.values() for name in runs[0]["accuracy"] or runs[0]["metrics"]]


def _row(runs: Sequence[Mapping[str, Any]], reasoner: str) -> Row:
    phases = [run["resources"]["phases"] for run in runs]
    accuracies, metrics = ([run[kind].get(reasoner, {}) for run in runs] for kind in ("accuracy", "metrics"))
    return Row(
        runs[0]["variant"],
        reasoner,
        tuple(run["seed"] for run in runs),
        {split: _mean([of_run[split] for of_run in accuracies]) for split in accuracies[0]},
        {split: _means([of_run.get(split, {}) for of_run in metrics]) for split in metrics[0]},
        fmean(run["budget"]["trajectories"] for run in runs),
        fmean(run["budget"]["gradient_steps"] for run in runs),
        fmean(math.fsum(s for name, s in one.items() if name not in _NOT_TRAINING) for one in phases),
    )


def _means(figures: Sequence[Mapping[str, Any]]) -> dict[str, Mean]:
    """Of each metric, over the seeds that have it."""
    names = dict.fromkeys(name for of_run in figures for name in of_run)
    return {name: _mean([of_run[name] for of_run in figures if name in of_run]) for name in names}


def _mean(figures: Sequence[Mapping[str, Any]]) -> Mean:
    """Of one figure of each seed: of `Accuracy.to_json()`, or of `Figure.to_json()`, whose value may be None."""
    from latent_cot.evaluation.evaluate import Accuracy

    sizes = [one["n"] for one in figures]
    key = "accuracy" if "accuracy" in figures[0] else "value"
    known = [one[key] for one in figures if one[key] is not None]
    mean = fmean(known) if known else math.nan
    interval = Accuracy(round(mean * min(sizes)), min(sizes)).interval() if key == "accuracy" else None
    return Mean(mean, stdev(known) if len(known) > 1 else None, sum(sizes), interval)


# -- the table -------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Row], metrics: Mapping[str, Metric]) -> Table:
    """The splits' accuracies, or their metrics in the task's order, and what training has cost."""
    splits = splits_of(rows)
    columns = {}
    for place in ((split, name) for split in splits for name in metrics or [""]):
        found = [row.figures.get(place) for row in rows]
        if any(found):
            split, name = place
            title = split if not name else name if len(splits) == 1 else f"{split}: {name}"
            columns[title] = [_text(one, metrics[name].format if name else "{:.1f}") for one in found]
    columns |= {
        "trajectories": [f"{row.trajectories:.0f}" for row in rows],
        "gradient steps": [f"{row.gradient_steps:.0f}" for row in rows],
        "minutes": [f"{row.seconds / 60:.1f}" for row in rows],
    }
    return Table({"method, reasoner": [row.name for row in rows]}, columns, _caption(rows))


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Those that have been tested, in their order."""
    return list(dict.fromkeys(split for row in rows for split in (*row.cells, *row.metrics)))


def _text(figure: Mean | None, form: str) -> str:
    """`0.71 ± 0.02`; of an accuracy `95.3 ± 1.2 (94-96)`, in %."""
    if figure is None or math.isnan(figure.mean):
        return "-"
    scale, between = 1, ""
    if figure.interval_95 is not None:
        low, high = figure.interval_95
        scale, between = 100, f" ({100 * low:.0f}-{100 * high:.0f})"
    spread = "" if figure.deviation is None else f" ± {form.format(scale * figure.deviation)}"
    return form.format(scale * figure.mean) + spread + between


def _caption(rows: Sequence[Row]) -> str:
    """What the cells are."""
    sizes = {figure.n for row in rows for figure in row.figures.values()} or {0}
    n = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
    seeds = max((len(row.seeds) for row in rows), default=0)
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    if any(row.metrics for row in rows):
        return f"{over}, n = {n} questions" + (" of all seeds together" if seeds > 1 else "")
    return f"% right: {over} (95 % interval for the questions of one seed), n = {n} answers"


def to_markdown(
    title: str,
    tables: Sequence[Table],
    metrics: Mapping[str, Metric],
    commands: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """A page: sentences on what cannot be compared, the tables, what the metrics are, and a command for each run, by
    `VARIANT seed N`."""
    parts = [f"# {title}", *notes]
    for table in tables:
        parts += [f"{table.caption}.", table.markdown()]
    parts += [f"{name}: {metric.description}." for name, metric in metrics.items()]
    parts += ["Each run again:", "\n".join(f"- {name}: `{command}`" for name, command in commands.items())]
    return "\n\n".join(parts) + "\n"


# -- the plot --------------------------------------------------------------------------------------------


def save_plot(rows: Sequence[Row], path: Path, title: str, numbers: Mapping[str, Mapping[str, int]]) -> None:
    """Accuracies as a figure, along the numbers that name their splits. Where these do not name all of them, as in a
    task without right answers, there is none, and one that is there is removed. Raises as `plots.save_plot` does.

    Args:
        numbers: of each split that is named by some.
    """
    path.unlink(missing_ok=True)  # an earlier one is of other runs
    axes = dict.fromkeys(name for values in numbers.values() for name in values)
    curves = [curve for axis in axes if (curve := plots.Curve.along(axis, numbers)) is not None]
    shown = {split for curve in curves for split in curve.points}
    if curves and all(row.cells.keys() == shown for row in rows):
        accuracies = {
            row.name: {s: {"accuracy": one.mean, "interval_95": one.interval_95} for s, one in row.cells.items()}
            for row in rows
        }
        plots.save_plot(path, curves, accuracies, title)
