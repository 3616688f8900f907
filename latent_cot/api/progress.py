"""How far something has got: an HTML bar in a notebook, a line on standard error elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress as RichProgress

from latent_cot.api import show
from latent_cot.report.terminal import Clock, Display, Progress, progress_line

if TYPE_CHECKING:
    from latent_cot.methods.loop import Loop
    from latent_cot.methods.state import Phase

OnUnit = Callable[["Loop", "Phase", Mapping[str, Any]], None]


@contextmanager
def counting(what: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more are done, e.g. of the questions of an evaluation."""
    console = Console(stderr=True)
    if not shown:
        yield lambda n: None
    elif console.is_jupyter:
        card, done = _Card(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            card.show(done / max(1, total), f"{done} of {total} {what}")

        yield advance
        card.clear()
    else:
        with RichProgress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(what, total=total)
            yield lambda n: progress.advance(bar, n)


@contextmanager
def training(*, shown: bool) -> Iterator[OnUnit]:
    """Yields what is called after each unit of a run's work."""
    console = Console(stderr=True)
    if not shown:
        yield lambda loop, phase, info: None
    elif console.is_jupyter:
        yield _NotebookTraining().on_unit
    else:
        with Display(console) as display:
            yield display.on_unit


class _NotebookTraining:
    def __init__(self) -> None:
        self._card, self._clock = _Card(), Clock()
        self._last = time.monotonic()

    def on_unit(self, loop: Loop, phase: Phase, info: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self._clock.measured(phase.name, now - self._last)
        self._last = now
        progress = Progress.of(loop)
        going = progress.done < progress.total
        text = progress_line(phase, info, progress, self._clock) if going else f"{progress.total} units of work done"
        self._card.show(progress.done / progress.total, text)


class _Card:
    """One output of a notebook's cell, which is changed in place."""

    _SECONDS = 0.2
    """At most so often: each change is a message to the browser."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, share: float, text: str) -> None:
        now = time.monotonic()
        if share < 1 and now - self._shown_at < self._SECONDS:
            return
        self._shown_at = now
        bar = f'<progress max="1" value="{share:.4f}" style="width: 16em; vertical-align: middle"></progress>'
        self._put(show.page(f"{bar} {show.escaped(text)}"), text)

    def clear(self) -> None:
        self._put("", "")

    def _put(self, html: str, text: str) -> None:
        from IPython.display import display

        content = {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
