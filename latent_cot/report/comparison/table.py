"""What the runs of a comparison add up to: rows of accuracies or metrics over the seeds, as a table and as a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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
    interval_95: tuple[float, float] | None = None
    """Of an accuracy: Wilson's, of the pooled answers. It tells how well these runs are measured, not how much another
    seed would differ."""

    @classmethod
    def of(cls, values: Sequence[float | None], n: int, interval: tuple[float, float] | None = None) -> Mean:
        """Of the values of all seeds; None: undefined."""
        known = [value for value in values if value is not None]
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known) if known else math.nan, deviation, n, interval)


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


_NOT_TRAINING = ("evaluate", "diagnose", "diagnose_before")


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The runs' records, those of different seeds taken together, in their order."""
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        variants.setdefault(record["variant"], []).append(record)
    return [_row(runs, name) for runs in variants.values() for name in runs[0]["accuracy"] or runs[0]["metrics"]]


def _row(runs: Sequence[Mapping[str, Any]], reasoner: str) -> Row:
    phases = [run["resources"]["phases"] for run in runs]
    cells = {
        split: _accuracy([run["accuracy"][reasoner][split] for run in runs])
        for split in runs[0]["accuracy"].get(reasoner, {})
    }
    metrics = {
        split: {name: _metric([run["metrics"][reasoner][split][name] for run in runs]) for name in names}
        for split, names in runs[0]["metrics"].get(reasoner, {}).items()
    }
    return Row(
        runs[0]["variant"],
        reasoner,
        tuple(run["seed"] for run in runs),
        cells,
        metrics,
        statistics.fmean(run["budget"]["trajectories"] for run in runs),
        statistics.fmean(run["budget"]["gradient_steps"] for run in runs),
        statistics.fmean(math.fsum(s for name, s in one.items() if name not in _NOT_TRAINING) for one in phases),
    )


def _accuracy(found: Sequence[Mapping[str, Any]]) -> Mean:
    from latent_cot.evaluation.evaluate import Accuracy

    pooled = Accuracy(sum(one["correct"] for one in found), sum(one["n"] for one in found))
    return Mean.of([one["accuracy"] for one in found], pooled.n, pooled.interval())


def _metric(found: Sequence[Mapping[str, Any]]) -> Mean:
    return Mean.of([one["value"] for one in found], sum(one["n"] for one in found))


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


# -- the table -------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Row], metrics: Mapping[str, Metric]) -> Table:
    """The splits' accuracies, or their metrics in the task's order, and what training has cost."""
    columns = {split: [_accuracy_text(row.cells.get(split)) for row in rows] for split in splits_of(rows)}
    measured = _measured_splits(rows)
    for split in measured:
        for name, metric in metrics.items():
            found = [row.metrics.get(split, {}).get(name) for row in rows]
            if any(found):
                title = name if len(measured) == 1 else f"{split}: {name}"
                columns[title] = [_mean_text(one, metric.format) for one in found]
    columns |= {
        "trajectories": [f"{row.trajectories:.0f}" for row in rows],
        "gradient steps": [f"{row.gradient_steps:.0f}" for row in rows],
        "minutes": [f"{row.seconds / 60:.1f}" for row in rows],
    }
    return Table({"method, reasoner": [row.name for row in rows]}, columns, _caption(rows))


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Those with accuracies."""
    return list(dict.fromkeys(split for row in rows for split in row.cells))


def _measured_splits(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(split for row in rows for split in row.metrics))


def _mean_text(figure: Mean | None, form: str, scale: float = 1.0) -> str:
    """`0.71 ± 0.02`."""
    if figure is None or math.isnan(figure.mean):
        return "-"
    spread = "" if figure.deviation is None else f" ± {form.format(scale * figure.deviation)}"
    return form.format(scale * figure.mean) + spread


def _accuracy_text(figure: Mean | None) -> str:
    """`95.3 ± 1.2 (94-96)`, in %."""
    text = _mean_text(figure, "{:.1f}", 100)
    if figure is None or figure.interval_95 is None:
        return text
    low, high = figure.interval_95
    return f"{text} ({100 * low:.0f}-{100 * high:.0f})"


def _caption(rows: Sequence[Row]) -> str:
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


def to_markdown(title: str, tables: Sequence[Table], metrics: Mapping[str, Metric], commands: Mapping[str, str]) -> str:
    """A page: the tables, what the metrics are, and a command for each run, by `VARIANT seed N`."""
    parts = [f"# {title}"]
    for table in tables:
        parts += [f"{table.caption}.", table.markdown()]
    parts += [f"{name}: {metric.description}." for name, metric in metrics.items()]
    parts += ["Each run again:", "\n".join(f"- {name}: `{command}`" for name, command in commands.items())]
    return "\n\n".join(parts) + "\n"


# -- the plot --------------------------------------------------------------------------------------------


def save_plot(
    rows: Sequence[Row], path: Path, title: str, metrics: Mapping[str, Metric], numbers: Mapping[str, Mapping[str, int]]
) -> None:
    """Accuracies, or one metric against another, as a figure. Raises as `plots.figure_in` does.

    Args:
        numbers: of each split that is named by some. Where these say it all, accuracies are drawn along them.
    """
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
        _save_panels(rows, path, title, metrics)


def _save_panels(rows: Sequence[Row], path: Path, title: str, metrics: Mapping[str, Metric]) -> None:
    """A panel for each split, a point a row: the accuracy with its interval; or the metric of the y axis over that of
    the x axis or, where the task names no such pair, a panel for each metric, with deviations over the seeds."""
    on = {metric.axis: name for name, metric in metrics.items() if metric.axis is not None}
    pairs = [(on["x"], on["y"])] if len(on) == 2 else [(name, "") for name in metrics]
    panels = [(split, "right answers (%)", "") for split in splits_of(rows)]
    panels += [
        (split, *pair) for split in dict.fromkeys(split for row in rows for split in row.metrics) for pair in pairs
    ]
    with plots.figure_in(path, 4.6 * len(panels) + 2.0, max(4.0, 0.25 * len(rows) + 1)) as figure:
        for axes, (split, x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for place, row in enumerate(rows):
                found = {name: _point(one) for name, one in row.metrics.get(split, {}).items()}
                if split in row.cells:
                    found[x] = _point(row.cells[split], 100)
                found[""] = place, [[0.0], [0.0]]
                if x in found and y in found:
                    (across, x_error), (up, y_error) = found[x], found[y]
                    marker, color, name = "osD^vP"[place // 10 % 6], f"C{place % 10}", plots.plain(row.name)
                    look = {"marker": marker, "color": color, "linestyle": "none", "label": name}
                    axes.errorbar([across], [up], xerr=x_error, yerr=y_error, **look)
            axes.set(xlabel=plots.plain(x), ylabel=plots.plain(y), title=plots.plain(split))
            axes.grid(alpha=0.3)
            if not y:
                axes.set_yticks([])
                axes.invert_yaxis()
        figure.suptitle(plots.plain(title))
        plots.name_all(figure)


def _point(figure: Mean, scale: float = 1.0) -> tuple[float, list[list[float]]]:
    """Where it is on an axis, and how far the error bar goes below and above it."""
    if figure.interval_95 is None:
        spread = scale * (figure.deviation or 0.0)
        return scale * figure.mean, [[spread], [spread]]
    low, high = figure.interval_95
    return scale * figure.mean, [[max(0.0, scale * (figure.mean - low))], [max(0.0, scale * (high - figure.mean))]]
