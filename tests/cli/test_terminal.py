"""What is shown: hostile text made harmless, tools' results marked, the time that is left."""

from __future__ import annotations

import errno
import io
import unicodedata
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from latent_cot.methods.state import Phase
from latent_cot.report.tables import Table, bar, figure_table
from latent_cot.report.terminal import (
    Display,
    Items,
    Line,
    _figures,
    filled,
    marked,
    round_columns,
    samples_table,
    time_left,
    waiting,
    warn,
)
from latent_cot.run.printable import printable
from latent_cot.types import JOINT


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def rationale(text: str, calls: Sequence[dict[str, Any]] = (), cut: bool = False) -> dict[str, Any]:
    return {"tokens": list(map(ord, text)), "text": text, "calls": list(calls), "truncated": cut}


def rendered(table: Table) -> str:
    stream = io.StringIO()
    table.show(Console(file=stream, width=120, force_terminal=False))
    return stream.getvalue()


@given(st.text())
def test_nothing_printed_can_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(c).startswith("C") or c in "\u2028\u2029" for c in shown)
    shown.encode()  # no lone surrogates


def test_ordinary_text_is_left_alone() -> None:
    assert printable("6 − 0 = 6, ünïcode [bold]") == "6 − 0 = 6, ünïcode [bold]"
    assert printable("a\nb", keep_newlines=True) == "a\nb"
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"


def test_a_tools_result_is_set_off_and_a_failed_call_flagged() -> None:
    result = {"position": 7, "n_tokens": 2, "result": " 6"}
    failed = {"position": 15, "n_tokens": 0, "result": None}
    text = marked(rationale(" 6 - 0= 6, 5 5=", [result, failed], cut=True), decode)
    assert text.plain == " 6 - 0=‹6›, 5 5=‹✗› [cut]"
    styled = [text.plain[span.start : span.end] for span in text.spans]
    assert styled == ["‹6›", "‹✗›", " [cut]"]


def test_markup_in_a_models_text_is_text() -> None:
    sample = {"question": "[red]q", "rationale": rationale("[link=x]a\x1b[0m"), "log_reward": -1.0, "count": 2}
    shown = rendered(samples_table([sample], decode))
    assert "[red]q" in shown
    assert "[link=x]a\\x1b[0m" in shown
    assert "×2" in shown and "-1.0" in shown
    assert "–" in rendered(samples_table([{**sample, "log_reward": None}], decode))


def test_accuracies_stand_beside_those_of_the_round_before() -> None:
    def figures(correct: int) -> dict[str, Any]:
        return {"3-operands": {"accuracy": correct / 4, "n": 4, "interval_95": [0.0, 1.0]}}

    results = {"0": {"p": figures(1)}, "1": {"q": figures(2), "p": figures(3) | {"new": figures(4)["3-operands"]}}}
    columns = round_columns(results, 1)
    assert list(columns) == ["p", "q", "p, round 0"]
    shown = rendered(figure_table(columns, {}))
    (row,) = [line for line in shown.splitlines() if "3-operands" in line]
    assert row.index("75.0") < row.index("50.0") < row.index("25.0")
    (new,) = [line for line in shown.splitlines() if "new" in line]
    assert new.count("-") >= 2  # not measured for q, nor in round 0


def test_the_time_left_is_that_of_what_was_measured() -> None:
    assert time_left({"e_step": [2.0, 4.0]}, {"e_step": 3}) == pytest.approx(9)
    assert time_left({"e_step": [2.0, 4.0], "m_step": [0.5]}, {"e_step": 1, "m_step": 4}) == pytest.approx(5)


def test_phases_not_measured_yet_are_estimated_from_the_others() -> None:
    left = time_left({"m_step": [1.0]}, {"e_step": 2, "something-new": 1})
    assert left > 3  # an E-step unit costs more than an M-step unit


def test_a_table_in_its_other_forms() -> None:
    table = Table({"who": ["q", "\x1b[31m<b>"]}, {"right": [bar(0.5, "50"), "-"]})
    assert table.markdown().splitlines() == ["| who | right |", "| --- | --- |", "| q | 50 |", "| \\x1b[31m<b> | - |"]
    assert Table({"a|b": ["1"]}).markdown().splitlines()[0] == "| a\\|b |"
    assert Table({"who": ["数学", "q"]}, {"right": ["1", "2"]}).text().splitlines() == [
        "who   right",
        "数学  1",
        "q     2",
    ]
    assert table.text().splitlines() == ["who          right", "q            50", "\\x1b[31m<b>  -"]
    html = table.html()
    assert "<td>\\x1b[31m&lt;b&gt;</td>" in html and '<td class="n">-</td>' in html
    assert "transparent 50.0%" in html


def test_wide_tables_are_divided_not_cut() -> None:
    names = {"method": ["em, p", "rejection, p"]}
    columns = {f"{k}-operands": ["95.3 ± 1.2 (94-96)", "100.0 ± 0.0 (100-100)"] for k in range(3, 9)}
    console = Console(width=80, file=io.StringIO(), record=True)
    tables = list(Table(names, columns, "% right").parts(80))
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert len(tables) > 1 and "…" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("100.0 ± 0.0 (100-100)") == len(columns) and text.count("rejection, p") == len(tables)
    assert text.count("% right") == 1
    assert len(list(Table(names, columns).parts(400))) == 1
    (narrow,) = Table(names, {}, "nothing").parts(80)
    assert narrow.row_count == 2


@pytest.mark.parametrize("split", ["3-operands", "/somewhere/with/a/long/name/that/has/no/end/questions.jsonl"])
def test_a_long_name_on_a_narrow_terminal_is_not_cut(split: str) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    figures = {"questions": "500", "first": "87.5", "difference (95 %)": "+37.5 (+12.5 to +62.5)", "p": "0.001"}
    Table({"split": [split]}, {name: [text] for name, text in figures.items()}).show(console)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(name in text and value in text for name, value in figures.items())
    assert split[:20] in text and split[-8:] in text
    assert text.count("┏") <= 3, "a long name does not leave each column a table of its own"


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    console, now = Console(width=80, file=io.StringIO(), record=True), [0.0]
    with Items(console, "questions", 100, time_of=lambda: now[0]) as items:
        for seconds in (1, 1, 60, 1, 120):
            now[0] += seconds
            items.advance(10)
    assert console.export_text() == "questions 30/100  0:02:25 left\nquestions 50/100  0:03:03 left\n"
    terminal = Console(width=80, file=io.StringIO(), force_terminal=True)
    with Items(terminal, "questions", 3) as items:
        items.advance(3)
    assert items.done == 3


def test_a_line_that_is_changed_in_place_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown: list[dict[str, str]] = []
    updated: list[dict[str, str]] = []

    class Handle:
        def update(self, content: dict[str, str], *, raw: bool) -> None:
            updated.append(content)

    def show(content: dict[str, str], **_: Any) -> Handle:
        shown.append(content)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    for quiet in (True, False):
        now = [0.0]
        console = Console(file=io.StringIO(), force_jupyter=True, quiet=quiet)
        with Items(console, "<b>questions", 4, time_of=lambda now=now: now[0]) as items:  # type: ignore[misc]  # a default
            for seconds in (1.0, 0.01, 1.0, 0.01):  # the last one stays in the cell, however soon it comes
                now[0] += seconds
                items.advance()
        assert len(shown) == (0 if quiet else 1)
    assert len(updated) == 2, "not at once again"
    assert 'value="0.2500"' in shown[0]["text/html"] and "&lt;b&gt;questions 1/4" in shown[0]["text/html"]
    assert updated[-1]["text/plain"] == "<b>questions 4/4  0:00:00 left"


def on_screen(line: Line, width: int = 80) -> str:
    """What stands on a terminal at this moment."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(line._shown())
    return console.export_text()


class Loop:
    """As far as a display looks at a method: two phases, of 2 and of 3 units."""

    phases = (Phase(1, "e_step"), Phase(1, "m_step"))
    reward = SimpleNamespace(name=JOINT)

    def __init__(self) -> None:
        self.state = SimpleNamespace(phase=0, unit=0)

    def units(self, phase: Phase) -> int:
        return {"e_step": 2, "m_step": 3}[phase.name]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_unit_that_is_running_has_a_clock_that_ticks(width: int) -> None:
    now, loop = [0.0], Loop()
    terminal = Console(width=width, file=io.StringIO(), force_terminal=True)
    with Display(terminal, time_of=lambda: now[0]) as display:
        on_load = display.loading("smollm2-135m")
        now[0] += 4
        on_load()
        assert "Loading smollm2-135m  0:00:04" in on_screen(display, width)
        display.on_start(loop)  # type: ignore[arg-type]
        assert "E-step 1/2  0:00:00" in on_screen(display, width)
        loop.state.unit = 1
        now[0] += 60
        display.on_unit(loop, loop.phases[0], {"loss": 0.5, "variance": 2.0})  # type: ignore[arg-type]
        for seconds, clock, left in ((0, "0:00:00", "0:01:45"), (15, "0:00:15", "0:01:30")):
            now[0] += seconds
            text = on_screen(display, width)
            assert f"E-step 2/2  {clock}" in text and f"{left} left" in text, "what runs, and not what is done"
            assert "E-step 1: loss 0.5  Var 2" in text, "the figures of what is done"
        loop.state.unit = 2
        display.on_unit(loop, loop.phases[0], {})  # type: ignore[arg-type]
        assert "M-step 1/3  0:00:00" in on_screen(display, width), "the next phase's first"
        assert "…" not in on_screen(display, width)


def test_loading_is_said_at_once_where_there_is_no_terminal() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    with waiting(console, "Loading smollm2-135m"):
        assert console.export_text() == "Loading smollm2-135m ...\n"


def test_a_number_of_chains_is_not_shown_as_a_share() -> None:
    assert _figures({"ess": 0.5, "distinct": 0.25}, JOINT) == "ESS 50%  distinct 25%"
    assert _figures({"ess": 0.5, "distinct": 16.0, "mass": 0.9}, JOINT) == "ESS 50%"


def test_only_the_weights_of_the_plain_reward_add_up_to_a_probability() -> None:
    info = {"bound": -2.0, "bound_error": 0.5, "log_y_before": -3.0}
    assert _figures(info, JOINT) == "log p(Y|X) before -3.00  log p(Y|X) ≈ -2.00 ± 0.50"
    assert _figures(info, "another") == "log p(Y|X) before -3.00  log Z(X) ≈ -2.00 ± 0.50"


def test_a_collapse_is_no_variance_of_0() -> None:
    loop, console = Loop(), Console(width=80, file=io.StringIO(), record=True)
    loop.state.unit = 1
    info = {"loss": 0.0, "variance": 0.0, "ess": 1.0, "one_chain": True, "warning": "q has collapsed: " + "do so " * 30}
    Display(console).on_unit(loop, loop.phases[0], info)  # type: ignore[arg-type]
    text = console.export_text(clear=False)
    assert (
        "Var" not in text
        and "ESS" not in text
        and "one chain a question" in text
        and "warning: q has collapsed" in text
    )
    assert "color: #800000" in console.export_html(), "in red"


def test_a_note_of_a_unit_of_work_is_shown() -> None:
    loop, console = Loop(), Console(width=80, file=io.StringIO(), record=True)
    Display(console).on_unit(loop, loop.phases[0], {"note": "p stays as it is"})  # type: ignore[arg-type]
    assert "  p stays as it is" in console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_words_stay_whole_on_a_terminal(width: int) -> None:
    text = "a sentence of many words " * 12 + "/a/path/that/is/long" * 6 + " and its end"
    terminal = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    warn(terminal, text)
    stream = terminal.file
    assert isinstance(stream, io.StringIO)
    lines = stream.getvalue().splitlines()
    assert [word for line in lines for word in line.split()] == ["warning:", *text.split()]
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert filled(text, Console(width=width, file=io.StringIO())) == text, "a file has no edge"


def test_an_empty_rationale_is_seen() -> None:
    assert marked(rationale(""), decode).plain == "(empty)"
    assert marked(rationale("", cut=True), decode).plain == "(empty) [cut]"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), SystemExit(1)])
def test_a_run_outlives_its_display(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    """A closed pipe, of which rich makes a SystemExit, and a full disk are no reason to lose a run."""
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise failure

    display = Display(Console(file=io.StringIO()))
    monkeypatch.setattr(Display, "_show", fail)
    for _ in range(2):
        display.on_unit(None, Phase(0, "init"), {})  # type: ignore[arg-type]
    assert len(calls) == 1
