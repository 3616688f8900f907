"""What a run shows while it works: progress with the time left, figures, sampled rationales, accuracies.

On a terminal a live bar; elsewhere (a file, a pipe) a plain line now and then. Text that a model wrote is
hostile: it goes through `printable` and is never read as rich markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latent_cot.run.printable import printable
from latent_cot.types import Metric

if TYPE_CHECKING:
    from latent_cot.methods.loop import Loop
    from latent_cot.methods.state import Phase

NAMES = {"e_step": "E-step", "m_step": "M-step"}
"""Phase -> what it is called, where that is not its name."""

_SAMPLED = {"accuracy": "right {:.0%}", "distinct": "distinct {:.0%}"}
_POSTERIOR = {"variance": "Var {:.3g}", "ess": "ESS {:.0%}", "bound": "bound {:.2f}"}
FIGURES: Mapping[str, Mapping[str, str]] = {
    "init": {"loss": "loss {:.3g}"},
    "warm_start_q": {"loss": "loss {:.3g}"},
    "diagnose_before": _POSTERIOR,
    "e_step": {"loss": "loss {:.3g}", "variance": "Var {:.3g}", "log_reward": "log R {:.1f}", **_SAMPLED},
    "diagnose": _POSTERIOR,
    "policy": {"loss": "loss {:.3g}", "kl": "KL {:.2f}", "log_reward": "log R {:.1f}", **_SAMPLED},
    "posterior": {"loss": "loss {:.3g}", "ess": "ESS {:.0%}", "bound": "bound {:.2f}", "distinct": "distinct {:.0%}"},
    "fit": {
        "loss": "loss {:.3g}",
        "validation": "validation {:.0%}",
        "best": "best {:.0%}",
        "validation_loss": "validation loss {:.3g}",
        "best_loss": "best {:.3g}",
    },
    "sample": {"kept": "kept {}", **_SAMPLED},
    "draw": {"kept": "kept {}", "ess": "ESS {:.0%}", **_SAMPLED},
    "m_step": {"loss": "loss {:.3g}"},
    "evaluate": {"accuracy": "right {:.0%}", "questions": "{} questions"},
}
"""Phase -> figure of a unit -> how it is shown."""

RATIONALE_HEADING = "rationale (‹tool's result›, ‹✗› failed call)"

LINE_SECONDS = 10.0
"""Without a terminal: how often a line is printed, at most."""
SAMPLES_EVERY = 10
"""Units with samples between two tables of sampled rationales."""

# Rough cost of a unit of each kind of phase, relative to an optimiser step of the M-step (1): only for phases
# of which no unit has been measured yet.
_COST = {
    "init": 0.7,
    "warm_start_q": 0.7,
    "diagnose_before": 4.0,
    "e_step": 3.0,
    "diagnose": 4.0,
    "draw": 4.0,
    "evaluate": 6.0,
} | {
    "policy": 4.0,
    "posterior": 3.0,
    "fit": 20.0,
    "sample": 4.0,
}


def marked(rationale: Mapping[str, Any], decode: Callable[[Sequence[int]], str]) -> Text:
    """A rationale, as JSON gives it, with each tool's result set off and each failed call flagged.

    Args:
        decode: token ids -> text, `TextCodec.decode`.
    """
    text, tokens, shown = Text(), rationale["tokens"], 0
    for call in rationale["calls"]:
        begin, end = call["position"], call["position"] + call["n_tokens"]
        text.append(_between(tokens, shown, begin, decode))
        if call["result"] is None:
            text.append("‹✗›", style="bold red")
        else:
            text.append("‹" + _between(tokens, begin, end, decode).strip() + "›", style="bold cyan")
        shown = end
    text.append(_between(tokens, shown, len(tokens), decode))
    if rationale["truncated"]:
        text.append(" [cut]", style="dim")
    return text


def _between(tokens: Sequence[int], begin: int, end: int, decode: Callable[[Sequence[int]], str]) -> str:
    """The text of tokens[begin:end] as the continuation of those before."""
    return printable(decode(tokens[:end])[len(decode(tokens[:begin])) :])


def accuracy_table(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Split by column, each cell the accuracy and its interval in %.

    Args:
        columns: heading -> split -> `Accuracy.to_json()`.
    """
    table = Table()
    table.add_column("% right (95 % interval)")
    for heading in columns:
        table.add_column(Text(heading), justify="right")
    for split in dict.fromkeys(split for column in columns.values() for split in column):
        cells = [_cell(column.get(split)) for column in columns.values()]
        table.add_row(Text(printable(split)), *cells)
    return table


def _cell(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None or not accuracy["n"]:
        return "-"
    low, high = accuracy["interval_95"]
    return f"{100 * accuracy['accuracy']:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def metrics_table(
    columns: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], metrics: Mapping[str, Metric]
) -> Table:
    """A row a split and metric, each cell the metric's value and its interval.

    Args:
        columns: heading -> split -> metric -> `measure.Figure.to_json()`.
        metrics: what they are, in the order in which they are shown.
    """
    table = Table()
    table.add_column("split")
    table.add_column("metric (95 % interval)")
    for heading in columns:
        table.add_column(Text(heading), justify="right")
    for split in dict.fromkeys(split for column in columns.values() for split in column):
        for name, metric in metrics.items():
            found = [column.get(split, {}).get(name) for column in columns.values()]
            if any(figure is not None for figure in found):
                cells = [metric_text(figure, metric) for figure in found]
                table.add_row(Text(printable(split)), Text(printable(name)), *cells)
    return table


def metric_text(figure: Mapping[str, Any] | None, metric: Metric) -> str:
    """`0.71 (0.69 to 0.73)`, in the metric's own format."""
    if figure is None or figure["value"] is None:
        return "-"
    text = metric.format.format(figure["value"])
    if figure["interval_95"] is None:
        return text
    low, high = (metric.format.format(bound) for bound in figure["interval_95"])
    return f"{text} ({low} to {high})"


def samples_table(samples: Sequence[Mapping[str, Any]], decode: Callable[[Sequence[int]], str]) -> Table:
    """A few sampled rationales, as a step's `samples` has them: question, chain, log-reward."""
    table = Table()
    table.add_column("question")
    table.add_column(RATIONALE_HEADING, overflow="fold")
    table.add_column("log R", justify="right")
    for sample in samples:
        chain = marked(sample["rationale"], decode)
        if sample["count"] > 1:
            chain.append(f"  ×{sample['count']}", style="dim")
        table.add_row(Text(printable(sample["question"])), chain, f"{sample['log_reward']:.1f}")
    return table


class Clock:
    """How long the rest takes: the mean time of a unit of each kind of phase, measured as it goes."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._units: dict[str, int] = {}

    def measured(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._units[name] = self._units.get(name, 0) + 1

    def left(self, units: Mapping[str, int]) -> float | None:
        """Seconds for so many units of each kind of phase; None as long as nothing was measured."""
        if not self._units:
            return None
        cost = sum(_COST.get(name, 1.0) * n for name, n in self._units.items())
        unit_cost = sum(self._seconds.values()) / cost
        return sum(n * self._unit(name, unit_cost) for name, n in units.items())

    def _unit(self, name: str, unit_cost: float) -> float:
        if name in self._units:
            return self._seconds[name] / self._units[name]
        return _COST.get(name, 1.0) * unit_cost


@dataclass(frozen=True)
class Progress:
    """How far a loop has got, in units of work."""

    unit: int
    """Units that are done of the present phase, ..."""
    units: int
    """... and how many it has."""
    done: int
    """Units that are done of all phases, ..."""
    total: int
    """... and how many there are; at least 1."""
    rounds: int
    """Number of the last round."""
    to_do: Mapping[str, int]
    """Kind of phase -> units left."""

    @classmethod
    def of(cls, loop: Loop) -> Progress:
        counts = [loop.units(one) for one in loop.phases]
        place, unit = loop.state.phase, loop.state.unit
        to_do: dict[str, int] = {}
        for one, n in zip(loop.phases[place:], [counts[place] - unit, *counts[place + 1 :]], strict=True):
            to_do[one.name] = to_do.get(one.name, 0) + max(0, n)
        done = sum(counts[:place]) + unit
        return cls(unit, counts[place], done, max(1, sum(counts)), loop.phases[-1].round, to_do)


def progress_line(phase: Phase, info: Mapping[str, Any], progress: Progress, clock: Clock) -> str:
    """Where a run is, how long the rest takes, and the figures of the unit that was just done."""
    name = NAMES.get(phase.name, phase.name)
    return (
        f"round {phase.round}/{progress.rounds}  {name} {progress.unit}/{progress.units}  "
        f"{progress.done / progress.total:.0%}  {_left(clock.left(progress.to_do))}  {_figures(phase.name, info)}"
    )


class Display:
    """Shows a run; `on_unit` is what `run_loop` calls. Use it as a context manager."""

    def __init__(self, console: Console, *, time_of: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._time_of = time_of
        self._clock = Clock()
        self._closed = False
        self._last_unit = self._last_line = time_of()
        self._phase: Phase | None = None
        self._sampled = 0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        self._last_unit = self._time_of()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def on_unit(self, loop: Loop, phase: Phase, info: Mapping[str, Any]) -> None:
        """Take note of a unit of work, just finished. A run outlives its display: it goes on where nobody reads (a
        closed pipe, of which rich makes a SystemExit) and where the disk of its output is full."""
        if self._closed:
            return
        try:
            self._show(loop, phase, info)
        except (OSError, SystemExit):
            self._closed = True

    def _show(self, loop: Loop, phase: Phase, info: Mapping[str, Any]) -> None:
        now = self._time_of()
        self._clock.measured(phase.name, now - self._last_unit)
        self._last_unit = now

        self._show_progress(loop, phase, info, now)
        if info.get("samples"):
            self._sampled += 1
            if self._sampled % SAMPLES_EVERY == 1:
                self.console.print(f"Sampled in round {phase.round}, step {loop.state.unit}:")
                self.console.print(samples_table(info["samples"], loop.rules.codec.decode))
        if loop.state.unit == loop.units(phase):
            self._show_outcome(loop, phase)

    def _show_outcome(self, loop: Loop, phase: Phase) -> None:
        """What a phase that is done has found."""
        if phase.name == "evaluate":
            self.console.print(f"After round {phase.round}:")
            if loop.task.is_measured:
                columns = round_columns(loop.state.metrics, phase.round)
                self.console.print(metrics_table(columns, loop.task.metrics))
            else:
                self.console.print(accuracy_table(round_columns(loop.state.results()["accuracy"], phase.round)))
        elif phase.name == "diagnose":
            found = loop.state.results()["posterior"].get(str(phase.round), {})
            for when, figures in found.items():
                text = f"  q {when} its training, on {figures['n']} validation questions: {_shown(figures, _POSTERIOR)}"
                self.console.print(Text(text), soft_wrap=True)

    def _show_progress(self, loop: Loop, phase: Phase, info: Mapping[str, Any], now: float) -> None:
        progress = Progress.of(loop)
        line = progress_line(phase, info, progress, self._clock)
        if self._live:
            bar = ProgressBar(total=progress.total, completed=progress.done)
            self._live.update(Group(Text(line, no_wrap=True, overflow="ellipsis"), bar), refresh=True)
        elif phase != self._phase or progress.unit == progress.units or now - self._last_line >= LINE_SECONDS:
            self.console.print(Text(line), soft_wrap=True)
            self._last_line = now
        self._phase = phase


class Items:
    """So many of so many things are done: a bar on a terminal, elsewhere a line now and then, with the time left."""

    def __init__(
        self, console: Console, what: str, total: int, *, time_of: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.what, self.total, self.done = console, printable(what), total, 0
        self._time_of = time_of
        self._started = self._last_line = time_of()
        self._bar = rich.progress.Progress(console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Items:
        if self._bar:
            self._bar.start()
            self._bar.add_task(escape(self.what), total=self.total)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, n: int = 1) -> None:
        self.done += n
        now = self._time_of()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
        elif now - self._last_line >= LINE_SECONDS:
            left = _left((now - self._started) * (self.total - self.done) / self.done)
            self.console.print(Text(f"{self.what} {self.done}/{self.total}  {left}"), soft_wrap=True)
            self._last_line = now


def round_columns(results: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The columns for `accuracy_table` or `metrics_table`: a round's reasoners, and those of the round before."""
    columns = dict(results.get(str(number), {}))
    for reasoner, splits in results.get(str(number - 1), {}).items():
        columns[f"{reasoner}, round {number - 1}"] = splits
    return columns


def _figures(phase: str, info: Mapping[str, Any]) -> str:
    figures = _shown(info, FIGURES.get(phase, {}))
    return f"{info['reasoner']} on {printable(info['split'])}  {figures}" if "split" in info else figures


def _shown(info: Mapping[str, Any], forms: Mapping[str, str]) -> str:
    return "  ".join(form.format(info[name]) for name, form in forms.items() if info.get(name) is not None)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def narrow_tables(
    names: Mapping[str, Sequence[str]], columns: Mapping[str, Sequence[str]], caption: str, width: int
) -> Iterator[Table]:
    """A table, or several with some of the columns each, so that none has to be cut to be at most so wide.

    Args:
        names: heading -> cells of the columns that all of them begin with; `columns`: of the others.
    """

    def width_of(heading: str, cells: Sequence[str]) -> int:
        return max(map(cell_len, [heading, *cells])) + 3  # the padding and a line

    left = 1 + sum(width_of(*column) for column in names.items())
    parts: list[dict[str, Sequence[str]]] = [{}]
    used = left
    for heading, cells in columns.items():
        if parts[-1] and used + width_of(heading, cells) > width:
            parts.append({})
            used = left
        parts[-1][heading] = cells
        used += width_of(heading, cells)
    for part in parts:
        table = Table(caption=Text(caption) if part is parts[-1] else None, caption_justify="left")
        shown = {**names, **part}
        for heading in shown:
            table.add_column(Text(printable(heading)), justify="left" if heading in names else "right", no_wrap=True)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*(Text(printable(cell)) for cell in row))
        yield table
