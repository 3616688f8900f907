"""Accuracy along a number, such as that of operands: as a table with bars, and as a figure in a file."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_cot import disk
from latent_cot.report.tables import Figures, Table, accuracy_text
from latent_cot.run.paths import check_writable
from latent_cot.types import Example, Sweep, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
BAR_WIDTH = 10
"""Characters of a bar at 100 %."""
MARKERS = "osD^vP"


def trained_splits(points: Mapping[str, Mapping[str, int]], training: Iterable[Example]) -> set[str]:
    """The splits with the same numbers as a training question, whose numbers are read off its `meta`. One that is not
    there is 0."""
    names = tuple(dict.fromkeys(name for numbers in points.values() for name in numbers))
    seen = {tuple(example.meta.get(name, 0) for name in names) for example in training}
    return {split for split, numbers in points.items() if tuple(numbers.get(name, 0) for name in names) in seen}


@dataclass(frozen=True)
class Curve:
    """Test splits along one number or more."""

    axes: tuple[str, ...]
    points: Mapping[str, Mapping[str, int]]
    """Split -> number -> value, of the axes and of others, in the order in which they are shown."""
    trained: Collection[str] = ()
    """The splits with the same numbers as a training question."""

    @classmethod
    def of(cls, sweep: Sweep, training: Iterable[Example]) -> Curve:
        """A sweep's points in its order."""
        return cls(sweep.axes, sweep.points, trained_splits(sweep.points, training))

    @classmethod
    def along(cls, axis: str, numbers: Mapping[str, Mapping[str, int]]) -> Curve | None:
        """The splits that differ in one number alone: of several such sets the largest. None if it has less than three,
        or several with the same number, such as those of test and of validation questions.

        Args:
            numbers: split -> number -> value.
        """
        alike: dict[tuple[tuple[str, int], ...], dict[str, Mapping[str, int]]] = {}
        for split, values in numbers.items():
            if axis in values:
                rest = tuple(sorted((name, value) for name, value in values.items() if name != axis))
                alike.setdefault(rest, {})[split] = values
        found = max(alike.values(), key=len, default={})
        if len(found) < 3 or len({values[axis] for values in found.values()}) < len(found):
            return None
        return cls((axis,), dict(sorted(found.items(), key=lambda point: point[1][axis])))

    def to_json(self) -> dict[str, Any]:
        """The points as rows: split, the axes' values, and whether there were such questions in training."""
        rows = (
            {"split": split, **{axis: values[axis] for axis in self.axes}, "trained": split in self.trained}
            for split, values in self.points.items()
        )
        return {"axes": list(self.axes), "points": list(rows)}

    def lines(self) -> dict[str, list[str]]:
        """Name of what is drawn as one line -> its splits: all of them, or, where a second number varies, those that
        share its value."""
        found: dict[str, list[str]] = {}
        for split, values in self.points.items():
            found.setdefault(", ".join(f"{values[axis]} {axis}" for axis in self.axes[1:]), []).append(split)
        return found


def curve_table(curve: Curve, results: Figures, *, ascii_only: bool = False) -> Table:
    """A row a point: its numbers, marked where they occur in training, and each reasoner's accuracy as a bar."""
    numbers = {axis: [str(values[axis]) for values in curve.points.values()] for axis in curve.axes}
    last = curve.axes[-1]
    numbers[last] = [n + "*" * (split in curve.trained) for n, split in zip(numbers[last], curve.points, strict=True)]
    character = "#" if ascii_only else "\N{FULL BLOCK}"

    def bar(accuracy: Mapping[str, Any]) -> str:
        length: int = round(BAR_WIDTH * accuracy["accuracy"])
        return (character * length).ljust(BAR_WIDTH + 1) + accuracy_text(accuracy)

    bars = {name: [bar(splits[split]) for split in curve.points] for name, splits in results.items()}
    return Table(numbers, bars, "% right (95 % interval)" + ("; * as in training" if curve.trained else ""))


def check_plot(path: Path) -> None:
    """Raises UsageError if no figure can be written there: better before a long evaluation than after it."""
    if path.suffix.removeprefix(".") not in FORMATS:
        raise UsageError(f"--plot {path}: the name must end with .{', .'.join(FORMATS)}")
    check_writable(path, "--plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'latent-cot[plot]', or leave --plot out") from None


@contextmanager
def figure_in(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches to draw on, which is then written to `path`: the same figure gives the same file.

    Raises ImportError without matplotlib, and UsageError if the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and looks for a display

    with matplotlib.rc_context({"svg.hashsalt": "latent-cot", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
        try:
            figure.savefig(drawn := io.BytesIO(), format=path.suffix[1:], metadata=metadata)
            disk.write(path, drawn.getvalue())
        except OSError as error:
            raise UsageError(f"{path}: the figure cannot be written: {error}") from None


def save_plot(path: Path, curves: Sequence[Curve], results: Figures, title: str) -> None:
    """A panel a curve, a line a reasoner, with 95 % intervals; the numbers that all of its lines have in training are
    shaded.

    Raises as `figure_in` does.
    """
    height = max(3.8, 0.22 * len(results) + 0.8)
    with figure_in(path, 5.2 * len(curves) + 2.0, height) as figure:
        for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            _draw(axes, curve, results)
        named = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles = {label: handle for of_axes in named for handle, label in zip(*of_axes, strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
        figure.suptitle(plain(title), fontsize="medium", wrap=True)


def _draw(axes: Axes, curve: Curve, results: Figures) -> None:
    places = {split: values[curve.axes[0]] for split, values in curve.points.items()}
    for reasoner, accuracies in results.items():
        for label, splits in curve.lines().items():
            where = [places[split] for split in splits]
            right = [100 * accuracies[split]["accuracy"] for split in splits]
            low, high = ([100 * accuracies[split]["interval_95"][end] for split in splits] for end in (0, 1))
            name = f"{reasoner}, {label}" if label else reasoner
            marker = MARKERS[len(axes.get_lines()) % len(MARKERS)]
            (line,) = axes.plot(where, right, marker=marker, markersize=4, label=plain(name))
            axes.fill_between(where, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    others = {places[split] for split in curve.points if split not in curve.trained}
    for number, value in enumerate(sorted({places[split] for split in curve.trained} - others)):
        # "_": once in the legend is enough
        label = "_again" if number else "as in training"
        axes.axvspan(value - 0.5, value + 0.5, color="0.92", zorder=0, linewidth=0, label=label)
    axes.set(xlabel=plain(curve.axes[0]), ylabel="right answers (%)", ylim=(-3, 103))
    axes.set_xticks(sorted(set(places.values())))
    axes.grid(alpha=0.3)


def plain(text: str) -> str:
    """For matplotlib: `$` would begin a formula, and a name that begins with `_` is left out of the legend."""
    return text.replace("$", r"\$").replace("_", " _", 1 if text.startswith("_") else 0)
