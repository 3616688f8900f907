"""How results look: HTML in a notebook, aligned text elsewhere. Whatever a model or a run folder says is escaped.

Colours are translucent, so that they do on light and dark pages, and of two hues that a colour-blind person can tell
apart: orange for what a reasoner found unlikely, blue for what a tool wrote and for shares. `!important` wins against
the rules that notebooks have for tables.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from latent_cot.run.printable import printable

if TYPE_CHECKING:
    from latent_cot.methods.scored import ScoredRationale, Stop, Token
    from latent_cot.model.lm import Adapter

STYLE = """<style>
.lcot {font-size: 13px; line-height: 1.5; margin: .4em 0}
.lcot table {border-collapse: collapse; margin: .3em 0; font-size: inherit}
.lcot th, .lcot td {padding: .15em .7em; background: none; vertical-align: top; text-align: left !important}
.lcot th {font-weight: 600; border-bottom: 1px solid rgba(128,128,128,.6)}
.lcot td {border-bottom: 1px solid rgba(128,128,128,.2)}
.lcot .n {text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap}
.lcot .chain {font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere}
.lcot .tool {border: 1px solid rgba(0,114,178,.8); border-radius: 3px; background: rgba(0,114,178,.16);
 font-weight: normal}
.lcot .failed {color: #d55e00; font-weight: bold}
.lcot .stop {opacity: .45; font-size: 75%; font-style: normal; vertical-align: super}
.lcot .dim {opacity: .65}
</style>"""

_STEEPNESS = 8.0
"""Nats below zero at which a token's colour is as strong as it gets."""


def escaped(text: object) -> str:
    """Text for HTML, with what could steer a display (control characters, text direction) made visible."""
    return html.escape(printable(str(text), keep_newlines=True))


def figure(value: float | None, form: str = "{:.2f}") -> str:
    """A number with a proper minus sign; a dash for None, and for a number that rounds to 0 no sign."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = form.format(value)
    return text.removeprefix("-") if not text.strip("-0.%") else text.replace("-", "−")


def page(*parts: str) -> str:
    """A fragment of HTML with its style."""
    return f'{STYLE}<div class="lcot">{"".join(parts)}</div>'


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already: a cell that begins with `<td` is taken as it is.

    Args:
        numbers: columns that are set flush right.
    """
    marks = [' class="n"' if i in numbers else "" for i in range(len(headings))]
    head = "".join(f"<th{mark}>{heading}</th>" for mark, heading in zip(marks, headings, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            cell if cell.startswith("<td") else f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bar_cell(share: float, text: str) -> str:
    """A cell with a bar behind its text, which is HTML already."""
    percent = 100 * min(1.0, max(0.0, share))
    fill = f"rgba(0,114,178,.25) {percent:.1f}%, transparent {percent:.1f}%"
    return f'<td class="n" style="background: linear-gradient(90deg, {fill})">{text}</td>'


def accuracy_cell(value: float, low: float, high: float) -> str:
    """An accuracy and its interval in %, as a bar."""
    interval = f'<span class="dim">{100 * low:.0f}–{100 * high:.0f}</span>'
    return bar_cell(value, f"{100 * value:.0f} {interval}")


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need, the first two spaces apart from the next. Cells are made harmless here."""
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


# -- rationales ------------------------------------------------------------------------------------------


def chain_html(scored: ScoredRationale, by: Adapter) -> str:
    """A rationale: the tokens that were chosen, coloured by how unlikely they were to `by`; a tool's in a box; a small
    ⊤ wherever it might have stopped. Hovering shows the numbers."""
    parts: list[str] = []
    stops = {stop.position: stop for stop in scored.stops}
    failed = {call.position: call for call in scored.rationale.calls if call.result is None}
    tools = {call.position: call for call in scored.rationale.calls if call.result is not None}
    for i, token in enumerate(scored.tokens):
        if i in stops:
            parts.append(_stop(stops[i], by, last=False))
        if i in failed:
            parts.append(_failed(failed[i].error))
        if token.chosen:
            parts.append(_token(token, by))
        elif i in tools:
            text = "".join(t.text for t in scored.tokens[i : i + tools[i].n_tokens])
            title = escaped(f"{tools[i].tool}: {tools[i].request.strip()}")
            parts.append(f'<b class="tool" title="{title}">{escaped(text)}</b>')
    n = len(scored.tokens)
    if n in failed:
        parts.append(_failed(failed[n].error))
    parts.append('<span class="dim"> [cut]</span>' if scored.rationale.truncated else _stop(stops[n], by, last=True))
    return f'<span class="chain">{"".join(parts)}</span>'


def chain_text(scored: ScoredRationale) -> str:
    """A rationale in plain text, a tool's result in ‹ ›."""
    parts, calls = [], {call.position: call for call in scored.rationale.calls}
    for i, token in enumerate(scored.tokens):
        if i in calls:
            call = calls[i]
            result = "".join(t.text for t in scored.tokens[i : i + call.n_tokens])
            parts.append("‹✗›" if call.result is None else f"‹{result.strip()}›")
        if token.chosen:
            parts.append(token.text)
    if len(scored.tokens) in calls:
        parts.append("‹✗›")
    return "".join(parts) + (" [cut]" if scored.rationale.truncated else "")


def legend(by: Adapter, *, tools: bool) -> str:
    """What the colours of `chain_html` mean."""
    shades = "".join(
        f'<span style="{_shade(value)}">&nbsp;{figure(value, "{:g}")}&nbsp;</span>' for value in (0.0, -0.1, -1.0, -8.0)
    )
    box = ' · <b class="tool">&nbsp;a tool’s result&nbsp;</b>' if tools else ""
    stop = ' · <i class="stop">⊤</i> may stop here'
    return f'<div class="dim">log {by} of a token, nats: {shades}{box}{stop} · hover for figures</div>'


def _token(token: Token, by: Adapter) -> str:
    value = token.log_q if by == "q" else token.log_p
    title = _both(token.log_q, token.log_p)
    return f'<span style="{_shade(value)}" title="{title}">{escaped(token.text)}</span>'


def _stop(stop: Stop, by: Adapter, *, last: bool) -> str:
    value = stop.log_q if by == "q" else stop.log_p
    title = f"stop: {_both(stop.log_q, stop.log_p)}"
    if stop.log_reward is not None:
        title += f", log R {figure(stop.log_reward)}"
    style = f' style="{_shade(value)}; opacity: 1"' if last else ""
    return f'<i class="stop" title="{title}"{style}>⊤</i>'


def _failed(why: str | None) -> str:
    return f'<span class="failed" title="{escaped(why)}">✗</span>'


def _both(log_q: float | None, log_p: float | None) -> str:
    first = "" if log_q is None else f"log q {figure(log_q)}, "
    return f"{first}log p {figure(log_p)}"


def _shade(log_prob: float | None) -> str:
    strength = 0.0 if log_prob is None else math.sqrt(min(1.0, max(0.0, -log_prob / _STEEPNESS)))
    return f"background: rgba(230,120,0,{0.7 * strength:.2f})"
