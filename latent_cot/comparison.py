"""A comparison: which runs it consists of, and what they add up to. `latent-cot compare` carries it out.

A *variant* is a method with some settings of its own; a run is a variant with a seed. Importing this loads no torch.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from latent_cot import plots, tasks
from latent_cot.baselines import METHODS, Spend
from latent_cot.config import RunConfig
from latent_cot.errors import UsageError, did_you_mean
from latent_cot.run import RunFolder
from latent_cot.settings import DEFAULT_PRESET, flag, from_dict, load_config, parse_yaml, to_dict
from latent_cot.types import Metric, is_answer_given

_SHIPPED = resources.files("latent_cot") / "presets" / "variants"

IGNORED = ("output_dir", "checkpoint_seconds")
"""Settings in which a run that is there may differ from the one that is asked for."""


@dataclass(frozen=True)
class Variant:
    """A row of the comparison."""

    name: str
    method: str
    overrides: Mapping[str, Any]
    """Settings, in the form of a configuration file."""


@dataclass(frozen=True)
class Run:
    """A run of the comparison."""

    variant: str
    config: RunConfig
    """With the seed and the folder."""

    @property
    def folder(self) -> Path:
        assert self.config.output_dir is not None
        return Path(self.config.output_dir)


# -- variants --------------------------------------------------------------------------------------------


def methods(names: Sequence[str]) -> list[Variant]:
    """A variant for each method, with its default settings. Raises UsageError for an unknown one."""
    for name in names:
        if name not in METHODS:
            raise UsageError(f"--methods {name}: there is no such method.{did_you_mean(name, METHODS)}")
    return [Variant(name, name, {}) for name in names]


def shipped() -> list[str]:
    """Names of the variant files that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def read_variants(source: str) -> list[Variant]:
    """The variants of a file, `name: {method: ..., overrides: {...}}`, or of a shipped one by its name.

    Raises UsageError naming the file and the variant.
    """
    if source in shipped():
        text, where = (_SHIPPED / f"{source}.yaml").read_text(encoding="utf-8"), f"--variants {source}"
    else:
        where = f"--variants {source}"
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UsageError(
                f"{where}: no such file, and none of that name is shipped.{did_you_mean(source, shipped())}"
            ) from error
        except (OSError, ValueError) as error:
            raise UsageError(f"{where}: cannot be read ({error})") from error
    record = parse_yaml(text, where)
    if not isinstance(record, Mapping) or not record:
        raise UsageError(f"{where}: must be a mapping of names to {{method: NAME, overrides: {{...}}}}")
    return [_variant(str(name), entry, f"{where}: {name}") for name, entry in record.items()]


def _variant(name: str, entry: Any, where: str) -> Variant:
    if not name or not all(character.isalnum() or character in "-_.+" for character in name) or name[0] == ".":
        raise UsageError(f"{where}: a variant's name is that of a folder: letters, digits, - _ . +")
    if not isinstance(entry, Mapping) or not {"method"} <= entry.keys() <= {"method", "overrides"}:
        raise UsageError(f"{where}: write it as {{method: NAME, overrides: {{...}}}}")
    method, overrides = entry["method"], entry.get("overrides") or {}
    if method not in METHODS:
        raise UsageError(f"{where}: there is no method {method!r}.{did_you_mean(str(method), METHODS)}")
    if not isinstance(overrides, Mapping):
        raise UsageError(f"{where}: overrides must be a mapping of settings")
    return Variant(name, method, overrides)


def parse_setting(text: str, known: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """`VARIANT:flag=value`, or `flag=value` for all -> (the variant, the setting as a configuration file has it).

    Raises UsageError for another form or an unknown variant.
    """
    path, equals, value = text.partition("=")
    variant, colon, rest = path.rpartition(":")
    if not equals or not rest:
        raise UsageError(f"--set {text}: write it as flag=value or METHOD:flag=value, e.g. ppo:ppo.kl=0.1")
    if colon and variant not in known:
        raise UsageError(f"--set {text}: {variant!r} is not compared.{did_you_mean(variant, known)}")
    record: Any = parse_yaml(value, f"--set {text}") if value not in ("", "None") else None
    for key in reversed(rest.removeprefix("--").replace("-", "_").split(".")):
        record = {key: record}
    return (variant if colon else None), record


# -- the runs --------------------------------------------------------------------------------------------


def parse_budget(text: str, own: Spend) -> Spend | None:
    """`trajectories=5120` or `trajectories=5120,gradient-steps=160`, what is not named as `own` has it; "none": None.

    Raises UsageError.
    """
    if text == "none":
        return None
    values = own._asdict()
    for part in text.split(","):
        key, _, value = part.partition("=")
        name = key.strip().replace("-", "_")
        if name not in values or not value.strip().isdecimal() or int(value) < 1:
            raise UsageError(f"--budget {text}: write it as trajectories=5120,gradient-steps=160, or none")
        values[name] = int(value)
    return Spend(**values)


def configure(
    variant: Variant,
    seed: int,
    common: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
    budget: Spend | None,
    *,
    preset: str | None = None,
    file: str | None = None,
) -> RunConfig:
    """The configuration of a run: preset, method, file, the settings common to all, the variant's, the budget.

    Raises UsageError for a bad setting, and for one that contradicts the budget.
    """
    named = [record["task"] for record in (common, variant.overrides, *overrides) if "task" in record]
    base = load_config(preset, file, variant.method, named[-1] if named else None)
    config = from_dict(common, "--set", base)
    config = from_dict(variant.overrides, f"variant {variant.name}", config)
    for record in overrides:
        config = from_dict(record, f"--set {variant.name}", config)
    if config.method != variant.method:
        raise UsageError(f"variant {variant.name}: the method is {variant.method}; settings cannot change it")
    config = replace(config, seed=seed)
    if budget is None:
        return config
    scaled = METHODS[variant.method].within(config, budget)
    given = [path for record in (common, variant.overrides, *overrides) for path in _paths(record)]
    for path, value, other in differences(config, scaled):
        if path in given:
            raise UsageError(
                f"{variant.name}: {flag(path)} is {value}, but the budget makes it {other}; leave it out, or "
                "compare with --budget none"
            )
    return scaled


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of each setting in which two configurations differ."""
    for item in fields(a):
        left, right = getattr(a, item.name), getattr(b, item.name)
        inner = f"{path}.{item.name}" if path else item.name
        if is_dataclass(left):
            yield from differences(left, right, inner)
        elif left != right:
            yield inner, left, right


def is_finished(run: Run) -> bool:
    """Whether the run is there and complete. Raises UsageError, naming what differs, if another one is."""
    if not (run.folder / "config.yaml").exists():
        return False
    folder = RunFolder.open(run.folder)
    there = from_dict(folder.config, str(run.folder / "config.yaml"))
    other = [entry for entry in differences(there, run.config) if entry[0] not in IGNORED]
    if other:
        named = "; ".join(f"{flag(path)} {old} there, {new} here" for path, old, new in other[:5])
        raise UsageError(
            f"{run.folder}: holds a run with other settings ({named}); compare in another --output-dir, or remove it"
        )
    return (run.folder / "results.json").exists()


def command_of(config: RunConfig, preset: str | None) -> str:
    """The command that does the run again, in its default folder: everything that the preset does not say."""
    words = ["latent-cot", "fit", "--method", config.method]
    words += ["--preset", preset] if preset not in (None, DEFAULT_PRESET) else []
    base = load_config(preset, method=config.method, task=config.task)
    words += ["--task", config.task] if config.task != load_config(preset).task else []
    for path, _, value in differences(base, config):
        if path not in IGNORED:
            words += _flag_words(path, value)
    return shlex.join(words)


def _flag_words(path: str, value: Any) -> list[str]:
    name = flag(path)
    if isinstance(value, bool):
        head, dot, last = name.removeprefix("--").rpartition(".")
        return [name if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, Mapping):
        return [name, *(word for item in value.items() for word in item)]
    return [name, *value] if isinstance(value, tuple) else [name, str(value)]


def _paths(record: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in record.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _paths(value, inner)
        else:
            yield inner


# -- what they add up to ---------------------------------------------------------------------------------


def record_of(run: Run, preset: str | None) -> dict[str, Any]:
    """A finished run, as comparison.json has it; splits and reasoners in the configuration's order.

    Raises UsageError if its files cannot be read.
    """
    folder = RunFolder.open(run.folder)
    results, about = folder.read_json("results.json"), folder.read_json("run.json")
    task = tasks.load(run.config.task)
    splits = run.config.evaluation.splits or task.default_splits
    reasoners = METHODS[run.config.method].reasoners(run.config, is_answer_given(task))
    planned = METHODS[run.config.method].planned(run.config)
    return {
        "variant": run.variant,
        "method": run.config.method,
        "seed": run.config.seed,
        **{
            kind: {name: {split: last[name][split] for split in splits} for name in reasoners if name in last}
            for kind, last in (("accuracy", _last(results["accuracy"])), ("metrics", _last(results.get("metrics", {}))))
        },
        "posterior": results["posterior"],
        "budget": {**results["budget"], "planned": planned._asdict()},
        "resources": results["resources"],
        "command": command_of(run.config, preset),
        "folder": str(run.folder),
        "config": to_dict(run.config),
        "versions": about["versions"],
        "platform": about["platform"],
        "torch_threads": about["torch_threads"],
    }


def _last(rounds: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the last round has; nothing if there is none."""
    found: Mapping[str, Any] = rounds[max(rounds, key=int)] if rounds else {}
    return found


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


_NOT_TRAINING = ("evaluate", "diagnose", "prepare")


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The runs' records, those of different seeds taken together, in their order."""
    from latent_cot.evaluate import Accuracy

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
    return sum(seconds for name, seconds in phases.items() if name not in _NOT_TRAINING)


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
    over = f"mean ± standard deviation over {seeds} seeds"
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
    rows: Sequence[Row], title: str, commands: Mapping[str, str], metrics: Mapping[str, Metric] | None = None
) -> str:
    """The table, and a command for each run, by `VARIANT seed N`. `metrics`: what the metrics are."""
    found = columns_of(rows, metrics or {})
    columns = ["", *found, *COST_COLUMNS]
    lines = [f"# {title}", "", f"{heading(rows)}.", ""]
    lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for place, row in enumerate(rows):
        cells = [row.name, *(cells[place] for cells in found.values()), *cost_cells(row)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{name}: {metric.description}." for name, metric in (metrics or {}).items()]
    lines += ["", "Each run again:", ""]
    lines += [f"- {name}: `{command}`" for name, command in commands.items()]
    return "\n".join(lines) + "\n"


def save_plot(rows: Sequence[Row], path: Path, title: str, metrics: Mapping[str, Metric] | None = None) -> None:
    """Accuracies, or one metric against another, as a figure. Raises as `plots.figure_in` does."""
    if any(row.metrics for row in rows):
        _plot_metrics(rows, path, title, metrics or {})
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
