"""What a run shows while it works: progress with the time left, figures, sampled rationales, accuracies.

On a terminal, or in a notebook, a live bar; elsewhere (a file, a pipe) a plain line now and then. Text that a model
wrote is hostile: it goes through `printable` and is never read as rich markup.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import fsum
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from latent_cot.report.tables import Cell, Table, escaped, figure_table, page
from latent_cot.run.printable import printable

if TYPE_CHECKING:
    from latent_cot.methods.method import Method
    from latent_cot.methods.state import Phase

NAMES = {"e_step": "E-step", "m_step": "M-step"}
"""Phase -> what it is called, where that is not its name."""

FIGURES = {
    "loss": "loss {:.3g}",
    "variance": "Var {:.3g}",
    "kl": "KL {:.2f}",
    "log_reward": "log R {:.1f}",
    "validation": "validation {:.0%}",
    "best": "best {:.0%}",
    "validation_loss": "validation loss {:.3g}",
    "best_loss": "best {:.3g}",
    "kept": "kept {}",
    "ess": "ESS {:.0%}",
    "elbo": "ELBO {:.2f}",
    "bound": "bound {:.2f}",
    "accuracy": "right {:.0%}",
    "distinct": "distinct {:.0%}",
    "questions": "{} questions",
}
"""Figure of a unit -> how it is shown."""

RATIONALE_HEADING = "rationale (‹tool's result›, ‹✗› failed call)"

LINE_SECONDS = 10.0
"""Without a terminal: how often a line is printed, at most."""
SAMPLES_EVERY = 10
"""Units of a phase between two tables of sampled rationales."""


def marked(rationale: Mapping[str, Any], decode: Callable[[Sequence[int]], str]) -> Text:
    """A rationale, as JSON gives it, with each tool's result set off and each failed call flagged.

    Args:
        decode: token ids -> text, `TextCodec.decode`.
    """
    text, tokens, shown = Text(), rationale["tokens"], 0

    def between(begin: int, end: int) -> str:  # as the continuation of the tokens before
        return printable(decode(tokens[:end])[len(decode(tokens[:begin])) :])

    for call in rationale["calls"]:
        begin, end = call["position"], call["position"] + call["n_tokens"]
        failed = call["result"] is None
        text.append(between(shown, begin))
        text.append(f"‹{'✗' if failed else between(begin, end).strip()}›", "bold red" if failed else "bold cyan")
        shown = end
    text.append(between(shown, len(tokens)))
    if rationale["truncated"]:
        text.append(" [cut]", style="dim")
    return text


def samples_table(samples: Sequence[Mapping[str, Any]], decode: Callable[[Sequence[int]], str]) -> Table:
    """A few sampled rationales, as a step's `samples` has them: question, chain, log-reward."""
    counts = [f"  ×{sample['count']}" if sample["count"] > 1 else "" for sample in samples]
    chains = [
        Cell(marked(sample["rationale"], decode).append(n, "dim")) for sample, n in zip(samples, counts, strict=True)
    ]
    return Table(
        {"question": [sample["question"] for sample in samples], RATIONALE_HEADING: chains},
        {"log R": [f"{sample['log_reward']:.1f}" for sample in samples]},
    )


@dataclass(frozen=True)
class Progress:
    """How far a loop has got, in units of work."""

    unit: int
    """Units that are done of the present phase, ..."""
    units: int
    """... and how many it has."""
    share: float
    """Of the units of all phases, how many are done, 0 to 1."""
    to_do: Mapping[str, int]
    """Kind of phase -> units left."""

    @classmethod
    def of(cls, loop: Method) -> Progress:
        counts = [loop.units(one) for one in loop.phases]
        place, unit = loop.state.phase, loop.state.unit
        to_do: Counter[str] = Counter()
        for one, n in zip(loop.phases[place:], [counts[place] - unit, *counts[place + 1 :]], strict=True):
            to_do[one.name] += max(0, n)
        return cls(unit, counts[place], (sum(counts[:place]) + unit) / max(1, sum(counts)), to_do)


_COST = {"init": 0.7, "warm_start_q": 0.7, "m_step": 1.0, "fit": 20.0}
"""Rough cost of a unit of a phase, relative to an optimiser step of the M-step; of all others `_OTHER_COST`."""
_OTHER_COST = 4.0


def time_left(measured: Mapping[str, Sequence[float]], to_do: Mapping[str, int]) -> timedelta:
    """How long so many units of each kind of phase take: the mean time of those that are done, else by their cost.

    Args:
        measured: kind of phase -> seconds of each of its units that are done; there is at least one.
    """
    per_cost = sum(map(fsum, measured.values())) / sum(
        _COST.get(name, _OTHER_COST) * len(times) for name, times in measured.items()
    )
    means = {name: _COST.get(name, _OTHER_COST) * per_cost for name in to_do} | {
        n: fmean(t) for n, t in measured.items()
    }
    return timedelta(seconds=round(sum(n * means[name] for name, n in to_do.items())))


class Line:
    """A line with a bar that is changed in place, on a terminal or in the output of a notebook's cell; elsewhere a line
    now and then. Use it as a context manager."""

    _SECONDS = 0.2
    """In a notebook at most so often: each change is a message to the browser."""

    def __init__(self, console: Console, time_of: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._time_of = time_of
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._begun = self._shown_at = time_of()
        self._card: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, share: float, text: str, *, always: bool = False) -> None:
        """Args:
        share: how much is done, 0 to 1.
        always: show it though the last one was shown only just now.
        """
        now = self._time_of()
        in_notebook = self.console.is_jupyter
        if self._live:
            self._live.start()
            bar = ProgressBar(total=1.0, completed=share)
            self._live.update(Group(Text(text, no_wrap=True, overflow="ellipsis"), bar), refresh=True)
        elif always or now - self._shown_at >= (self._SECONDS if in_notebook else LINE_SECONDS):
            self._shown_at = now
            if not in_notebook:
                self.console.print(Text(text), soft_wrap=True)
            elif not self.console.quiet:
                self._put(share, text)

    def _put(self, share: float, text: str) -> None:
        from IPython.display import display

        bar = f'<progress max="1" value="{share:.4f}" style="width: 16em; vertical-align: middle"></progress>'
        content = {"text/html": page(f"{bar} {escaped(text)}"), "text/plain": text}
        if self._card is None:
            self._card = display(content, raw=True, display_id=True)
        else:
            self._card.update(content, raw=True)


class Display(Line):
    """Shows a run; `on_unit` is what `run_loop` calls."""

    def __init__(self, console: Console, time_of: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, time_of)
        self._closed = False
        self._last_unit = self._begun
        self._measured: dict[str, list[float]] = {}

    def on_unit(self, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        """Take note of a unit of work, just finished. A run outlives its display: it goes on where nobody reads (a
        closed pipe, of which rich makes a SystemExit) and where the disk of its output is full."""
        if self._closed:
            return
        try:
            self._show(loop, phase, info)
        except (OSError, SystemExit):
            self._closed = True

    def _show(self, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        now = self._time_of()
        self._measured.setdefault(phase.name, []).append(now - self._last_unit)
        self._last_unit = now

        progress = Progress.of(loop)
        is_done = progress.unit == progress.units
        line = (
            f"round {phase.round}/{loop.phases[-1].round}  {NAMES.get(phase.name, phase.name)} "
            f"{progress.unit}/{progress.units}  {progress.share:.0%}  "
            f"{time_left(self._measured, progress.to_do)} left  {_figures(info)}"
        )
        self.show(progress.share, line, always=is_done or progress.unit == 1)
        if self.console.is_jupyter:  # tables would fill the cell: the run that is returned shows them
            return
        if info.get("samples") and progress.unit % SAMPLES_EVERY == 1:
            self.console.print(f"Sampled in round {phase.round}, step {progress.unit}:")
            samples_table(info["samples"], loop.rules.codec.decode).show(self.console)
        if is_done:
            self._show_outcome(loop, phase)

    def _show_outcome(self, loop: Method, phase: Phase) -> None:
        """What a phase that is done has found."""
        if phase.name == "evaluate":
            self.console.print(f"After round {phase.round}:")
            metrics = loop.task.metrics if loop.task.is_measured else {}
            found = loop.state.metrics if metrics else loop.state.results()["accuracy"]
            figure_table(round_columns(found, phase.round), metrics).show(self.console)
        elif phase.name == "diagnose":
            found = loop.state.results()["posterior"].get(str(phase.round), {})
            for when, figures in found.items():
                shown = _figures({name: figures.get(name) for name in ("variance", "ess", "elbo", "bound")})
                text = f"  q {when} its training, on {figures['n']} validation questions: {shown}"
                self.console.print(Text(text), soft_wrap=True)


class Items(Line):
    """So many of so many things are done, with the time left."""

    def __init__(
        self, console: Console, what: str, total: int, *, time_of: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console, time_of)
        self.what, self.total, self.done = printable(what), total, 0

    def advance(self, n: int = 1) -> None:
        self.done += n
        left = (self._time_of() - self._begun) * (self.total - self.done) / self.done
        text = f"{self.what} {self.done}/{self.total}  {timedelta(seconds=round(left))} left"
        self.show(self.done / self.total, text)


def round_columns(results: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The columns for `figure_table`: a round's reasoners, and those of the round before."""
    columns = dict(results.get(str(number), {}))
    for reasoner, splits in results.get(str(number - 1), {}).items():
        columns[f"{reasoner}, round {number - 1}"] = splits
    return columns


def _figures(info: Mapping[str, Any]) -> str:
    figures = "  ".join(form.format(info[name]) for name, form in FIGURES.items() if info.get(name) is not None)
    return f"{info['reasoner']} on {printable(info['split'])}  {figures}" if "split" in info else figures
