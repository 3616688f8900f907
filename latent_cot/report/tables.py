"""Tables of figures, made once and shown anywhere: on a terminal, as Markdown, plain text, HTML or a data frame.

Whatever a model, a run folder or a user's file says is made harmless here: it can steer neither terminal nor browser.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from latent_cot.run.printable import printable
from latent_cot.types import Metric, UsageError

if TYPE_CHECKING:
    import pandas as pd

# Colours are translucent, so that they do on light and dark pages, and of two hues that a colour-blind person can tell
# apart: orange for what a reasoner found unlikely, blue for what a tool wrote and for shares. `!important` wins against
# the rules that notebooks have for tables.
_STYLE = resources.files("latent_cot.report") / "tables.css"

NAME_WIDTH = 20
"""Characters of a name that a terminal's line has room for, at least; the rest goes on on the next line."""


@dataclass(frozen=True)
class Cell:
    """What is shown in a place of a table."""

    text: str | Text
    html: str | None = None
    """What a notebook shows instead. It is shown as it is: what it quotes must be escaped."""


Cells = Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """Columns by their headings."""

    names: Mapping[str, Cells]
    """Columns flush left; a long text in them is folded."""
    figures: Mapping[str, Cells] = field(default_factory=dict)
    """Columns flush right."""
    caption: str = ""

    def show(self, console: Console) -> None:
        """Print it, divided into several tables if the console is too narrow for one."""
        for part in self.parts(console.width):
            console.print(part)

    def parts(self, width: int) -> Iterator[rich_table.Table]:
        """The table, or several with some of the figures each, so that none has to be cut to be at most so wide."""
        # with the padding and a line
        sizes = [3 + max(map(cell_len, column)) for column in zip(*self._lines(), strict=True)]
        left = used = 1 + sum(min(size, NAME_WIDTH + 3) for size in sizes[: len(self.names)])
        parts: list[list[str]] = [[]]
        for heading, size in zip(self.figures, sizes[len(self.names) :], strict=True):
            if parts[-1] and used + size > width:
                parts.append([])
                used = left
            parts[-1].append(heading)
            used += size
        for part in parts:
            caption = Text(self.caption) if self.caption and part is parts[-1] else None
            table = rich_table.Table(caption=caption, caption_justify="left")
            for heading in self.names:
                table.add_column(Text(printable(heading)), overflow="fold")
            for heading in part:
                table.add_column(Text(printable(heading)), justify="right", no_wrap=True)
            for row in zip(*self.names.values(), *(self.figures[heading] for heading in part), strict=True):
                table.add_row(*map(_text, row))
            yield table

    def _lines(self) -> list[list[str]]:
        """The headings and the rows, as text."""
        columns = {**self.names, **self.figures}
        rows = zip(*columns.values(), strict=True)
        return [list(map(printable, columns)), *([_text(cell).plain for cell in row] for row in rows)]

    def markdown(self) -> str:
        head, *rows = self._lines()
        lines = ([cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def text(self) -> str:
        """Columns as wide as they need, two spaces apart."""
        cells = self._lines()
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        padded = (
            [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in cells
        )
        lines = map("  ".join, padded)
        return "\n".join(line.rstrip() for line in lines)

    def html(self) -> str:
        """The table, without its style: see `page`."""
        marks = [""] * len(self.names) + [' class="n"'] * len(self.figures)

        def line(tag: str, cells: Iterable[str]) -> str:
            shown = (f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
            return f"<tr>{''.join(shown)}</tr>"

        head = line("th", map(escaped, (*self.names, *self.figures)))
        rows = zip(*self.names.values(), *self.figures.values(), strict=True)
        body = "".join(line("td", map(_html, row)) for row in rows)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _text(cell: str | Cell) -> Text:
    text = cell.text if isinstance(cell, Cell) else cell
    return text if isinstance(text, Text) else Text(printable(text))


def _html(cell: str | Cell) -> str:
    return cell.html if isinstance(cell, Cell) and cell.html is not None else escaped(_text(cell).plain)


# -- HTML --------------------------------------------------------------------------------------------------


def escaped(text: object) -> str:
    """Text for HTML, with what could steer a display (control characters, text direction) made visible."""
    return html.escape(printable(str(text), keep_newlines=True))


def page(*parts: str) -> str:
    """A fragment of HTML with its style."""
    return f'<style>\n{_STYLE.read_text(encoding="utf-8")}</style><div class="lcot">{"".join(parts)}</div>'


def bar(share: float, text: str) -> Cell:
    """A text that has a bar behind it in a notebook."""
    percent = 100 * min(1.0, max(0.0, share))
    fill = f"rgba(0,114,178,.25) {percent:.1f}%, transparent {percent:.1f}%"
    return Cell(text, f'<div style="background: linear-gradient(90deg, {fill})">{escaped(text)}</div>')


# -- figures -----------------------------------------------------------------------------------------------

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Heading -> split -> `Accuracy.to_json()`, or metric -> `Figure.to_json()`."""


def figure_table(columns: Figures, metrics: Mapping[str, Metric]) -> Table:
    """A row a split, or a split and metric, with the 95 % interval of each figure.

    Args:
        metrics: those of a task without right answers, in the order in which they are shown; else empty.
    """
    splits = list(dict.fromkeys(split for column in columns.values() for split in column))
    if not metrics:
        cells = {name: [accuracy_cell(column.get(split)) for split in splits] for name, column in columns.items()}
        return Table({"% right (95 % interval)": splits}, cells)
    rows = [(s, m) for s in splits for m in metrics if any(m in column.get(s, {}) for column in columns.values())]
    found = {
        heading: [metric_text(column.get(split, {}).get(name), metrics[name]) for split, name in rows]
        for heading, column in columns.items()
    }
    return Table({"split": [s for s, _ in rows], "metric (95 % interval)": [m for _, m in rows]}, found)


def accuracy_cell(accuracy: Mapping[str, Any] | None) -> str | Cell:
    """An accuracy with its interval, in a notebook as a bar."""
    return bar(accuracy["accuracy"], accuracy_text(accuracy)) if accuracy and accuracy["n"] else "-"


def accuracy_text(accuracy: Mapping[str, Any]) -> str:
    """`95.3 (94-96)`, in %."""
    low, high = accuracy["interval_95"]
    return f"{100 * accuracy['accuracy']:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def metric_text(figure: Mapping[str, Any] | None, metric: Metric) -> str:
    """`0.71 (0.69 to 0.73)`, in the metric's own format."""
    if figure is None or figure["value"] is None:
        return "-"
    value, *bounds = map(metric.format.format, (figure["value"], *(figure["interval_95"] or ())))
    return f"{value} ({' to '.join(bounds)})" if bounds else value


def data_frame(records: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A row a record. `columns`: which, in this order; None: all of them.

    Raises UsageError without pandas.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UsageError("data frames need pandas: pip install 'latent-cot[notebook]'") from None
    return pd.DataFrame(list(records), columns=None if columns is None else list(columns))
