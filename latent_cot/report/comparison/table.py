"""What the runs of a comparison add up to: rows of accuracies or metrics over the seeds, as a table and as a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latent_cot.report import plots
from latent_cot.types import Metric


@dataclass(frozen=True)
class Cell:
    """The accuracy of a reasoner on a split over the seeds."""

    mean: float
    deviation: float | None
    """Standard deviation over the seeds (n − 1); None with one seed."""
    correct: int
    n: int
    """Answers, of all seeds together."""
    interval_95: tuple[float, float]
    """Wilson's, of the pooled answers: how well these runs are measured, not how much another seed would differ."""


@dataclass(frozen=True)
class Measurement:
    """A metric of a reasoner on a split over the seeds."""

    mean: float
    """NaN where no seed has a value."""
    deviation: float | None
    """Standard deviation over the seeds (n − 1); None with one seed."""
    n: int
    """Questions, of all seeds together."""

    @classmethod
    def of(cls, figures: Sequence[Mapping[str, Any]]) -> Measurement:
        """From `measure.Figure.to_json()` of each seed."""
        values = [figure["value"] for figure in figures if figure["value"] is not None]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values) if values else math.nan
        return cls(mean, deviation, sum(figure["n"] for figure in figures))


@dataclass(frozen=True)
class Row:
    """A variant's reasoner."""

    variant: str
    reasoner: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Cell]
    """By split; none for a task without right answers."""
    metrics: Mapping[str, Mapping[str, Measurement]]
    """By split and metric; none for a task with right answers."""
    trajectories: float
    gradient_steps: float
    seconds: float
    """Means over the seeds of what training has cost: wall time without evaluation and diagnostics."""

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.reasoner}"


_NOT_TRAINING = (
    "evaluate",
    "diagnose",
    "diagnose_before",
    "diagnose_before",
)  # the last: in records of earlier versions


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The runs' records, those of different seeds taken together, in their order."""
    from latent_cot.evaluation.evaluate import Accuracy

    rows = []
    for variant in dict.fromkeys(record["variant"] for record in records):
        runs = [record for record in records if record["variant"] == variant]
        for reasoner in runs[0]["accuracy"] or runs[0]["metrics"]:
            metrics = {
                split: {
                    name: Measurement.of([run["metrics"][reasoner][split][name] for run in runs]) for name in figures
                }
                for split, figures in runs[0]["metrics"].get(reasoner, {}).items()
            }
            cells = {}
            for split in runs[0]["accuracy"].get(reasoner, {}):
                found = [run["accuracy"][reasoner][split] for run in runs]
                values = [one["accuracy"] for one in found]
                pooled = Accuracy(sum(one["correct"] for one in found), sum(one["n"] for one in found))
                deviation = statistics.stdev(values) if len(values) > 1 else None
                cells[split] = Cell(statistics.fmean(values), deviation, pooled.correct, pooled.n, pooled.interval())
            rows.append(
                Row(
                    variant,
                    reasoner,
                    tuple(run["seed"] for run in runs),
                    cells,
                    metrics,
                    statistics.fmean(run["budget"]["trajectories"] for run in runs),
                    statistics.fmean(run["budget"]["gradient_steps"] for run in runs),
                    statistics.fmean(_training_seconds(run["resources"]["phases"]) for run in runs),
                )
            )
    return rows


def _training_seconds(phases: Mapping[str, float]) -> float:
    return math.fsum(seconds for name, seconds in phases.items() if name not in _NOT_TRAINING)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def cell_text(cell: Cell | None) -> str:
    """`95.3 ± 1.2 (94-96)`, in %."""
    if cell is None:
        return "-"
    spread = "" if cell.deviation is None else f" ± {100 * cell.deviation:.1f}"
    low, high = cell.interval_95
    return f"{100 * cell.mean:.1f}{spread} ({100 * low:.0f}-{100 * high:.0f})"


def measurement_text(measurement: Measurement | None, metric: Metric) -> str:
    """`0.71 ± 0.02`, in the metric's own format."""
    if measurement is None or math.isnan(measurement.mean):
        return "-"
    spread = "" if measurement.deviation is None else f" ± {metric.format.format(measurement.deviation)}"
    return metric.format.format(measurement.mean) + spread


def heading(rows: Sequence[Row]) -> str:
    """What the cells are."""
    sizes = {cell.n for row in rows for cell in row.cells.values()}
    sizes |= {one.n for row in rows for figures in row.metrics.values() for one in figures.values()}
    least, most = min(sizes, default=0), max(sizes, default=0)
    n = f"n = {least}" if least == most else f"n = {least} to {most}"
    seeds = max((len(row.seeds) for row in rows), default=0)
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    if any(row.metrics for row in rows):
        return f"{over}, {n} questions"
    return f"% right: {over} (95 % interval of the pooled answers), {n}"


Columns = Mapping[str, Sequence[str]]
"""Heading -> the cells of all rows."""


def columns_of(rows: Sequence[Row], metrics: Mapping[str, Metric]) -> Columns:
    """The splits' accuracies, or their metrics in the task's order."""
    columns = {split: [cell_text(row.cells.get(split)) for row in rows] for split in splits_of(rows)}
    measured = list(dict.fromkeys(split for row in rows for split in row.metrics))
    for split in measured:
        for name, metric in metrics.items():
            found = [row.metrics.get(split, {}).get(name) for row in rows]
            if any(found):
                title = name if len(measured) == 1 else f"{split}: {name}"
                columns[title] = [measurement_text(one, metric) for one in found]
    return columns


COST_COLUMNS = ("trajectories", "gradient steps", "minutes")


def cost_cells(row: Row) -> tuple[str, str, str]:
    return f"{row.trajectories:.0f}", f"{row.gradient_steps:.0f}", f"{row.seconds / 60:.1f}"


def splits_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(split for row in rows for split in row.cells))


def to_markdown(
    rows: Sequence[Row],
    title: str,
    commands: Mapping[str, str],
    metrics: Mapping[str, Metric] | None = None,
    differences: str | None = None,
) -> str:
    """The table, and a command for each run, by `VARIANT seed N`. `metrics`: what the metrics are; `differences`: a
    table that comes next."""
    found = columns_of(rows, metrics or {})
    columns = ["", *found, *COST_COLUMNS]
    lines = [f"# {title}", "", f"{heading(rows)}.", ""]
    lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for place, row in enumerate(rows):
        cells = [row.name, *(cells[place] for cells in found.values()), *cost_cells(row)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{name}: {metric.description}." for name, metric in (metrics or {}).items()]
    lines += ["", differences.rstrip()] if differences else []
    lines += ["", "Each run again:", ""]
    lines += [f"- {name}: `{command}`" for name, command in commands.items()]
    return "\n".join(lines) + "\n"


def save_plot(
    rows: Sequence[Row],
    path: Path,
    title: str,
    metrics: Mapping[str, Metric] | None = None,
    numbers: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """Accuracies, or one metric against another, as a figure. Raises as `plots.figure_in` does.

    Args:
        numbers: of each split that is named by some. Where these say it all, accuracies are drawn along them.
    """
    if any(row.metrics for row in rows):
        _plot_metrics(rows, path, title, metrics or {})
        return
    numbers = numbers or {}
    axes = dict.fromkeys(name for values in numbers.values() for name in values)
    curves = [curve for axis in axes if (curve := plots.Curve.along(axis, numbers)) is not None]
    shown = {point.split for curve in curves for point in curve.points}
    if curves and all(row.cells.keys() == shown for row in rows):
        accuracies = {
            row.name: {
                split: {"accuracy": cell.mean, "interval_95": cell.interval_95} for split, cell in row.cells.items()
            }
            for row in rows
        }
        plots.save_plot(path, curves, accuracies, title)
    else:
        _plot_accuracies(rows, path, title)


def _plot_accuracies(rows: Sequence[Row], path: Path, title: str) -> None:
    """A group of bars a split, a bar a row, with the pooled intervals."""
    splits = splits_of(rows)
    with plots.figure_in(path, max(6.0, 0.22 * (len(rows) + 1) * len(splits) + 2), 4) as figure:
        axes = figure.add_subplot()
        width = 0.85 / max(1, len(rows))
        for place, row in enumerate(rows):
            known = [(x, row.cells[split]) for x, split in enumerate(splits) if split in row.cells]
            where = [x + (place - (len(rows) - 1) / 2) * width for x, _ in known]
            height = [100 * cell.mean for _, cell in known]
            low = [max(0.0, 100 * (cell.mean - cell.interval_95[0])) for _, cell in known]
            high = [max(0.0, 100 * (cell.interval_95[1] - cell.mean)) for _, cell in known]
            label = plots.plain(row.name)
            axes.bar(where, height, width, yerr=[low, high], error_kw={"elinewidth": 0.8}, label=label)
        axes.set_xticks(range(len(splits)), [plots.plain(split) for split in splits], rotation=20)
        axes.set(ylabel="right answers (%)", ylim=(0, 105), title=plots.plain(title))
        axes.legend(fontsize="small", ncols=2)


def _plot_metrics(rows: Sequence[Row], path: Path, title: str, metrics: Mapping[str, Metric]) -> None:
    """For each split the metric of the y axis over that of the x axis, a point a row; or, where the task names no such
    pair, a bar a row for each metric. Error bars are deviations over the seeds."""
    splits = dict.fromkeys(split for row in rows for split in row.metrics)
    on = {metric.axis: name for name, metric in metrics.items() if metric.axis is not None}
    if len(on) == 2:
        panels = [(split, on["x"], on["y"]) for split in splits]
    else:
        panels = [(split, name, "") for split in splits for name in metrics]
    with plots.figure_in(path, 4.6 * len(panels) + 2.0, max(4.0, 0.25 * len(rows) + 1)) as figure:
        for axes, (split, x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for place, row in enumerate(rows):
                found = row.metrics.get(split, {})
                if x not in found or (y and y not in found):
                    continue
                label, color = plots.plain(row.name), f"C{place % 10}"
                spread = found[x].deviation or 0.0
                if not y:
                    axes.barh([place], [found[x].mean], xerr=[spread], color=color, label=label)
                    continue
                up = found[y].deviation or 0.0
                marker = "osD^vP"[place // 10 % 6]
                at = [found[x].mean], [found[y].mean]
                axes.errorbar(*at, xerr=[spread], yerr=[up], marker=marker, color=color, linestyle="none", label=label)
            axes.set(xlabel=plots.plain(x), ylabel=plots.plain(y), title=plots.plain(split))
            axes.grid(alpha=0.3)
            if not y:
                axes.set_yticks([])
                axes.invert_yaxis()
        figure.suptitle(plots.plain(title))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize="small")
