"""How a rationale looks: in a notebook coloured token by token, elsewhere as text. Whatever a model says is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from latent_cot.report.tables import Cell, escaped
from latent_cot.report.terminal import EMPTY, marked

if TYPE_CHECKING:
    from latent_cot.methods.scored import ScoredRationale, Stop, Token
    from latent_cot.types import Reasoner

_STEEPNESS = 8.0
"""Nats below zero at which a token's colour is as strong as it gets."""


def figure(value: float | None, form: str = "{:.2f}") -> str:
    """A number with a proper minus sign; a dash for None, and for a number that rounds to 0 no sign."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = form.format(value)
    return text.removeprefix("-") if not text.strip("-0.%") else text.replace("-", "−")


def chain(scored: ScoredRationale, by: Reasoner) -> Cell:
    """A rationale as a cell of a table; in a notebook its tokens are coloured by how unlikely they were to `by`."""

    def decode(ids: Sequence[int]) -> str:  # of the first so many tokens
        return "".join(token.text for token in scored.tokens[: len(ids)])

    return Cell(marked(asdict(scored.rationale), decode), chain_html(scored, by))


def chain_html(scored: ScoredRationale, by: Reasoner) -> str:
    """A rationale: the tokens that were chosen, coloured by how unlikely they were to `by`; a tool's in a box; a small
    ⊤ wherever it might have stopped. Hovering shows the numbers."""
    parts: list[str] = []
    stops = {stop.position: stop for stop in scored.stops}
    failed = [call for call in scored.rationale.calls if call.result is None]
    tools = {call.position: call for call in scored.rationale.calls if call.result is not None}
    for i, token in enumerate(scored.tokens):
        if i in stops:
            parts.append(_stop(stops[i], by, last=False))
        parts += [_failed(call.error) for call in failed if call.position == i]
        if token.chosen:
            parts.append(_token(token, by))
        elif i in tools:
            text = "".join(t.text for t in scored.tokens[i : i + tools[i].n_tokens])
            title = escaped(f"{tools[i].tool}: {tools[i].request.strip()}")
            parts.append(f'<b class="tool" title="{title}">{escaped(text)}</b>')
    n = len(scored.tokens)
    parts += [_failed(call.error) for call in failed if call.position == n]
    if not n:
        parts.append(f'<span class="dim">{EMPTY}</span>')
    parts.append('<span class="dim"> [cut]</span>' if scored.rationale.truncated else _stop(stops[n], by, last=True))
    return f'<span class="chain">{"".join(parts)}</span>'


def legend(by: Reasoner, *, tools: bool) -> str:
    """What the colours of `chain_html` mean."""
    shades = "".join(
        f'<span style="{_shade(value)}">&nbsp;{figure(value, "{:g}")}&nbsp;</span>' for value in (0.0, -0.1, -1.0, -8.0)
    )
    box = ' · <b class="tool">&nbsp;a tool’s result&nbsp;</b>' if tools else ""
    stop = ' · <i class="stop">⊤</i> may stop here'
    return f'<div class="dim">log {by} of a token, nats: {shades}{box}{stop} · hover for figures</div>'


def _token(token: Token, by: Reasoner) -> str:
    value = token.log_q if by == "q" else token.log_p
    title = _both(token.log_q, token.log_p)
    return f'<span style="{_shade(value)}" title="{title}">{escaped(token.text)}</span>'


def _stop(stop: Stop, by: Reasoner, *, last: bool) -> str:
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
