"""What a run shows while it works: progress with the time left, figures, sampled rationales, accuracies.

On a terminal, or in a notebook, a live bar; elsewhere (a file, a pipe) a plain line now and then. Text that a model
wrote is hostile: it goes through `printable` and is never read as rich markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
"""Units with samples between two tables of sampled rationales."""

# Rough cost of a unit of a phase of which none has been measured yet, relative to an optimiser step of the M-step.
_COST = {"init": 0.7, "warm_start_q": 0.7, "m_step": 1.0, "fit": 20.0}
_OTHER_COST = 4.0


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


def samples_table(samples: Sequence[Mapping[str, Any]], decode: Callable[[Sequence[int]], str]) -> Table:
    """A few sampled rationales, as a step's `samples` has them: question, chain, log-reward."""
    chains = [marked(sample["rationale"], decode) for sample in samples]
    for sample, chain in zip(samples, chains, strict=True):
        if sample["count"] > 1:
            chain.append(f"  ×{sample['count']}", style="dim")
    return Table(
        {"question": [sample["question"] for sample in samples], RATIONALE_HEADING: list(map(Cell, chains))},
        {"log R": [f"{sample['log_reward']:.1f}" for sample in samples]},
    )


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
        cost = sum(_COST.get(name, _OTHER_COST) * n for name, n in self._units.items())
        unit_cost = sum(self._seconds.values()) / cost
        return sum(n * self._unit(name, unit_cost) for name, n in units.items())

    def _unit(self, name: str, unit_cost: float) -> float:
        if name in self._units:
            return self._seconds[name] / self._units[name]
        return _COST.get(name, _OTHER_COST) * unit_cost


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
    def of(cls, loop: Method) -> Progress:
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
        f"{progress.done / progress.total:.0%}  {_left(clock.left(progress.to_do))}  {_figures(info)}"
    )


class Line:
    """A line with a bar that is changed in place, on a terminal or in the output of a notebook's cell; elsewhere a line
    now and then."""

    _SECONDS = 0.2
    """In a notebook at most so often: each change is a message to the browser."""

    def __init__(self, console: Console, time_of: Callable[[], float]) -> None:
        self.console = console
        self._time_of = time_of
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown_at = time_of()
        self._card: Any = None

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

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def _put(self, share: float, text: str) -> None:
        from IPython.display import display

        bar = f'<progress max="1" value="{share:.4f}" style="width: 16em; vertical-align: middle"></progress>'
        content = {"text/html": page(f"{bar} {escaped(text)}"), "text/plain": text}
        if self._card is None:
            self._card = display(content, raw=True, display_id=True)
        else:
            self._card.update(content, raw=True)


class Display:
    """Shows a run; `on_unit` is what `run_loop` calls. Use it as a context manager."""

    def __init__(self, console: Console, *, time_of: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._time_of = time_of
        self._clock = Clock()
        self._closed = False
        self._last_unit = time_of()
        self._phase: Phase | None = None
        self._sampled = 0
        self._line = Line(console, time_of)

    def __enter__(self) -> Display:
        self._last_unit = self._time_of()
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.close()

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
        self._clock.measured(phase.name, now - self._last_unit)
        self._last_unit = now

        progress = Progress.of(loop)
        line = progress_line(phase, info, progress, self._clock)
        always = phase != self._phase or progress.unit == progress.units
        self._line.show(progress.done / progress.total, line, always=always)
        self._phase = phase
        if self.console.is_jupyter:  # tables would fill the cell: the run that is returned shows them
            return
        if info.get("samples"):
            self._sampled += 1
            if self._sampled % SAMPLES_EVERY == 1:
                self.console.print(f"Sampled in round {phase.round}, step {loop.state.unit}:")
                samples_table(info["samples"], loop.rules.codec.decode).show(self.console)
        if loop.state.unit == loop.units(phase):
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
                shown = _figures({name: figures.get(name) for name in ("variance", "ess", "bound")})
                text = f"  q {when} its training, on {figures['n']} validation questions: {shown}"
                self.console.print(Text(text), soft_wrap=True)


class Items:
    """So many of so many things are done, with the time left. Use it as a context manager."""

    def __init__(
        self, console: Console, what: str, total: int, *, time_of: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.done = printable(what), total, 0
        self._time_of = time_of
        self._started = time_of()
        self._line = Line(console, time_of)

    def __enter__(self) -> Items:
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.close()

    def advance(self, n: int = 1) -> None:
        self.done += n
        left = _left((self._time_of() - self._started) * (self.total - self.done) / self.done)
        self._line.show(self.done / self.total, f"{self.what} {self.done}/{self.total}  {left}")


def round_columns(results: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The columns for `figure_table`: a round's reasoners, and those of the round before."""
    columns = dict(results.get(str(number), {}))
    for reasoner, splits in results.get(str(number - 1), {}).items():
        columns[f"{reasoner}, round {number - 1}"] = splits
    return columns


def _figures(info: Mapping[str, Any]) -> str:
    figures = "  ".join(form.format(info[name]) for name, form in FIGURES.items() if info.get(name) is not None)
    return f"{info['reasoner']} on {printable(info['split'])}  {figures}" if "split" in info else figures


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
