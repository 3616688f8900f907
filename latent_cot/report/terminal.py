"""What a run shows while it works: progress with the time left, figures, sampled rationales, accuracies.

On a terminal, or in a notebook, a live bar; elsewhere (a file, a pipe) a plain line now and then. Text that a model
wrote is hostile: it goes through `printable` and is never read as rich markup.
"""

from __future__ import annotations

import math
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import fsum
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from latent_cot.methods.trouble import LOOK_PERFECT, has_one_chain
from latent_cot.report.tables import Cell, Table, escaped, figure_table, page
from latent_cot.run.printable import printable
from latent_cot.types import JOINT

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
    "log_y_before": "log p(Y|X) before {:.2f}",
    "log_y_after": "after {:.2f}",
    "bound": "log p(Y|X) ≈ {:.2f}",
    "bound_error": "± {:.2f}",
    "accuracy": "right {:.0%}",
    "distinct": "distinct {:.0%}",
    "mismatch": "gap {:.2g}",
    "staleness": "{} steps old",
    "trainer_waited": "waited {:.1f} s",
    "questions": "{} questions",
}
"""Figure of a unit -> how it is shown."""

EMPTY = "(empty)"
"""What stands for a rationale without text."""
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
    if not text.plain.strip():
        text.append(EMPTY, style="dim")
    if rationale["truncated"]:
        text.append(" [cut]", style="dim")
    return text


def samples_table(samples: Sequence[Mapping[str, Any]], decode: Callable[[Sequence[int]], str]) -> Table:
    """A few sampled rationales, as a step's `samples` has them: question, chain, log-reward where it is known."""
    counts = [f"  ×{sample['count']}" if sample["count"] > 1 else "" for sample in samples]
    chains = [
        Cell(marked(sample["rationale"], decode).append(n, "dim")) for sample, n in zip(samples, counts, strict=True)
    ]
    return Table(
        {"question": [textwrap.shorten(one["question"], 160) for one in samples], RATIONALE_HEADING: chains},
        {"log R": ["–" if one["log_reward"] is None else f"{one['log_reward']:.1f}" for one in samples]},
    )


@dataclass(frozen=True)
class Progress:
    """How far a loop has got, in units of work."""

    unit: int
    """Units of the present phase that are done."""
    units: int
    """Units that it has."""
    share: float
    """Of the units of all phases, how many are done, 0 to 1."""
    to_do: Mapping[str, int]
    """Kind of phase -> units left."""
    running: tuple[Phase, int, int] | None
    """The unit of work that comes next: its phase, its number in it from 1, and how many there are; None at the end."""

    @classmethod
    def of(cls, loop: Method) -> Progress:
        counts = [loop.units(one) for one in loop.phases]
        place, unit = loop.state.phase, loop.state.unit
        left = [max(0, n) for n in [counts[place] - unit, *counts[place + 1 :]]] if counts[place:] else []
        to_do: Counter[str] = Counter()
        for one, n in zip(loop.phases[place:], left, strict=True):
            to_do[one.name] += n
        following = next((place + k for k, n in enumerate(left) if n), None)
        running = None
        if following is not None:
            number = unit + 1 if following == place else 1
            running = (loop.phases[following], number, counts[following])
        share = (sum(counts[:place]) + unit) / max(1, sum(counts))
        return cls(unit, counts[place] if left else 0, share, to_do, running)


_COST = {"init": 0.7, "start_q": 0.7, "m_step": 1.0, "fit": 20.0}
"""Rough cost of a unit of a phase, relative to an optimiser step of the M-step; of all others `_OTHER_COST`."""
_OTHER_COST = 4.0


def time_left(measured: Mapping[str, Sequence[float]], to_do: Mapping[str, int]) -> float:
    """Seconds that so many units of each kind of phase take: the mean time of those that are done, else by their cost.

    Args:
        measured: kind of phase -> seconds of each of its units that are done; there is at least one.
    """
    per_cost = sum(map(fsum, measured.values())) / sum(
        _COST.get(name, _OTHER_COST) * len(times) for name, times in measured.items()
    )
    means = {name: _COST.get(name, _OTHER_COST) * per_cost for name in to_do} | {
        n: fmean(t) for n, t in measured.items()
    }
    return sum(n * means[name] for name, n in to_do.items())


class Line:
    """What is being done, with a bar and a clock that ticks, on a terminal or in the output of a notebook's cell;
    elsewhere a line now and then. Use it as a context manager."""

    _SECONDS = 0.2
    """In a notebook at most so often: each change is a message to the browser."""

    def __init__(self, console: Console, time_of: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._time_of = time_of
        self._begun = self._shown_at = self._since = time_of()
        self._running, self._detail = "", ""
        self._share: float | None = None
        self._left: float | None = None
        self._card: Any = None
        live = console.is_terminal and not console.is_jupyter
        # Twice a second, so that a clock of whole seconds never seems to stand still.
        self._live = (
            Live(console=console, get_renderable=self._shown, refresh_per_second=2, transient=True) if live else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def wait(self, what: str) -> None:
        """Say at once what is being done that has no parts, such as loading a model."""
        self._run(what, None, None, "")
        if self._live is None:
            self._print(None, f"{what} ...", always=True)

    def show(
        self, share: float, done: str, running: str = "", *, left: float, detail: str = "", always: bool = False
    ) -> None:
        """Show how far it has got.

        Args:
            share: how much is done, 0 to 1.
            done: what has just been done: a line of its own where nothing can be changed in place.
            running: what is being done now, which takes the clock on a terminal; empty: the same as `done`.
            left: how long the rest takes, seconds.
            detail: figures of what is done.
            always: show it though the last one was shown only just now.
        """
        self._run(running or done, share, left, detail)
        if self._live is None:
            self._print(share, f"{done}  {_clock(left)} left" + (f"  {detail}" if detail else ""), always=always)

    def _run(self, running: str, share: float | None, left: float | None, detail: str) -> None:
        if running != self._running:
            self._since = self._time_of()
        self._running, self._share, self._left, self._detail = running, share, left, detail
        if self._live:
            self._live.start()
            self._live.refresh()

    def _shown(self) -> Group:
        """What stands on a terminal at this moment."""
        gone = self._time_of() - self._since
        first = f"{self._running}  {_clock(gone)}"
        if self._share is not None and self._left is not None:
            first += f"  ({self._share:.0%} done, {_clock(max(0.0, self._left - gone))} left)"
        detail = [Text(self._detail, style="dim")] if self._detail else []
        bar = [] if self._share is None else [ProgressBar(total=1.0, completed=self._share)]
        return Group(Text(first, no_wrap=True, overflow="ellipsis"), *detail, *bar)

    def _print(self, share: float | None, text: str, *, always: bool) -> None:
        now, in_notebook = self._time_of(), self.console.is_jupyter
        last = in_notebook and share == 1  # what stays in the cell
        if always or last or now - self._shown_at >= (self._SECONDS if in_notebook else LINE_SECONDS):
            self._shown_at = now
            if not in_notebook:
                say(self.console, text, whole=True)
            elif not self.console.quiet:
                self._put(share, text)

    def _put(self, share: float | None, text: str) -> None:
        from IPython.display import display

        value = "" if share is None else f' value="{share:.4f}"'
        bar = f'<progress max="1"{value} style="width: 16em; vertical-align: middle"></progress>'
        content = {"text/html": page(f"{bar} {escaped(text)}"), "text/plain": text}
        if self._card is None:
            self._card = display(content, raw=True, display_id=True)
        else:
            self._card.update(content, raw=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """Say what is being done while it is done."""
    with Line(console) as line:
        line.wait(what)
        yield


class Display(Line):
    """Shows a run; `on_start` and `on_unit` are what `run_loop` calls.

    A run outlives its display: it goes on where nobody reads (a closed pipe, of which rich makes a SystemExit) and
    where the disk of its output is full.
    """

    def __init__(self, console: Console, time_of: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, time_of)
        self._closed = False
        self._last_unit = self._begun
        self._measured: dict[str, list[float]] = {}

    def loading(self, model: str) -> Callable[[], None]:
        """Say that a run's model is being loaded: on a terminal at once, elsewhere when what is returned is called, so
        that a log has it only if all was in order until then."""
        say = partial(self.wait, f"Loading {printable(model)}")
        if self._live:
            self._guarded(say)
        return lambda: self._guarded(say)

    def on_start(self, loop: Method) -> None:
        """Say what is being done first."""
        self._last_unit = self._time_of()
        if self._live and (running := Progress.of(loop).running):
            self._guarded(lambda: self._run(_place(loop, *running), None, None, ""))

    def on_unit(self, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        """Take note of a unit of work, just finished."""
        self._guarded(lambda: self._show(loop, phase, info))

    def _guarded(self, show: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            show()
        except (OSError, SystemExit):
            self._closed = True

    def _show(self, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        now = self._time_of()
        self._measured.setdefault(phase.name, []).append(now - self._last_unit)
        self._last_unit = now

        progress = Progress.of(loop)
        is_done = progress.unit == progress.units
        done = _place(loop, phase, progress.unit, progress.units)
        figures = _figures(info, loop.reward.name)
        running = _place(loop, *progress.running) if progress.running else "the end"
        self.show(
            progress.share,
            f"{done}  {progress.share:.0%}" if self._live is None else done,
            running,
            left=time_left(self._measured, progress.to_do),
            # On a terminal it stands below what is running, of which these are not the figures.
            detail=f"{_name(phase)} {progress.unit}: {figures}" if self._live and figures else figures,
            always=is_done or progress.unit == 1,
        )
        if text := info.get("warning"):
            warn(self.console, text)
        if text := info.get("note"):
            self._say(f"  {text}")
        if self.console.is_jupyter:  # tables would fill the cell: the run that is returned shows them
            return
        if info.get("samples") and progress.unit % SAMPLES_EVERY == 1:
            self.console.print(f"Sampled in round {phase.round}, {_name(phase)} {progress.unit}:")
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
            own_reward = loop.task.has_own_reward
            for when, figures in found.items():
                names = ("variance", "ess", "elbo", "bound", "bound_error", "accuracy")
                one_chain = {"one_chain": has_one_chain(figures, own_reward=own_reward)}
                shown = _figures({name: figures.get(name) for name in names} | one_chain, loop.reward.name)
                whole = re.sub("(?<! ) (?! )", "\N{NO-BREAK SPACE}", shown)  # a figure and its name on one line
                self._say(f"  q {when} its training, on {figures['n']} validation questions: {whole}")
        elif phase.name == "validate":
            self._show_bound(loop, phase)

    def _show_bound(self, loop: Method, phase: Phase) -> None:
        """What both steps of the round have made of log p(Y | X), and of the bound on it."""
        results, number = loop.state.results(), str(phase.round)
        found = results["log_y"].get(number, {})
        shown = ", ".join(f"{value:.2f} {when} its training" for when, value in found.items())
        self._say(f"  p on the validation questions: log p(Y|X) ≈ {shown}")
        of_q, of_p = results["posterior"].get(number, {}), results["elbo"].get(number, {})
        known = of_p and {"before", "after"} <= of_q.keys()
        if known and loop.reward.name == JOINT and loop.config.m_step.target == "joint":
            steps = [f"{of_q['before']['elbo']:.2f}, after the E-step {of_q['after']['elbo']:.2f}"]
            steps += [f"with other samples of q {of_p['before']:.2f}, after the M-step {of_p['after']:.2f}"]
            self._say(f"  The bound on it (ELBO) in round {number}: {'; '.join(steps)}")

    def _say(self, text: str) -> None:
        whole = filled(text, self.console).replace("\N{NO-BREAK SPACE}", " ")
        self.console.print(Text(whole), soft_wrap=True)


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
        self.show(self.done / self.total, f"{self.what} {self.done}/{self.total}", left=left)


def round_columns(results: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The columns for `figure_table`: a round's reasoners, p first, and those of the round before."""
    columns = dict(sorted(results.get(str(number), {}).items()))
    for reasoner, splits in sorted(results.get(str(number - 1), {}).items()):
        columns[f"{reasoner}, round {number - 1}"] = splits
    return columns


def filled(text: str, console: Console) -> str:
    """A sentence in lines that end between words, on a terminal; elsewhere one line. A longer word stays whole."""
    if not console.is_terminal or console.is_jupyter:
        return text
    lines = textwrap.wrap(text, console.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def warn(console: Console, text: str) -> None:
    """Say what is wrong, in red, and in words for those who do not see the colour."""
    say(console, f"warning: {text}", "bold red")


def _name(phase: Phase) -> str:
    return NAMES.get(phase.name, phase.name)


def _place(loop: Method, phase: Phase, unit: int, units: int) -> str:
    return f"round {phase.round}/{loop.phases[-1].round}  {_name(phase)} {unit}/{units}"


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _figures(info: Mapping[str, Any], log_reward: str) -> str:
    """`log_reward`: `Reward.name`."""
    collapsed = LOOK_PERFECT if info.get("one_chain") else ()
    hidden = (*collapsed, *(("distinct",) if "mass" in info else ()))  # of validation questions it is no share
    figures = "  ".join(
        form.format(info[name]) for name, form in FIGURES.items() if _is_known(info.get(name)) and name not in hidden
    )
    figures = figures.replace("  ± ", " ± ")
    if log_reward != JOINT:  # the weights of another reward add up to something else
        figures = figures.replace("log p(Y|X) ≈", "log Z(X) ≈")
    if collapsed:
        figures = f"one chain a question  {figures}"
    return f"{info['reasoner']} on {printable(info['split'])}  {figures}" if "split" in info else figures


def say(console: Console, text: str, style: str = "", *, whole: bool = False) -> None:
    """A sentence, in lines that end between words, or a command to copy, which stays `whole`. As with `Display`, a run
    outlives it, where nobody reads or the disk of its output is full."""
    text = printable(text)
    try:
        console.print(Text(text if whole else filled(text, console), style=style), soft_wrap=True)
    except (OSError, SystemExit):
        console.quiet = True
