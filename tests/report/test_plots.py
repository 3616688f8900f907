"""Curves: which points they have, and how they are shown."""

from __future__ import annotations

import builtins
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from latent_cot import tasks
from latent_cot.report.plots import BAR_WIDTH, Curve, check_plot, curve_table, save_plot
from latent_cot.types import Example, Sweep, UsageError

SWEEP = Sweep(
    "bits=4,8,colours=1,2",
    ("bits", "colours"),
    {f"{b}-{c}": {"bits": b, "colours": c, "size": 3} for b in (4, 8) for c in (1, 2)},
)
TRAINING = [
    Example("?", meta={"bits": 4, "colours": 1, "size": 3}),
    Example("?", meta={"bits": 8, "colours": 1, "size": 2}),  # another size
    Example("?", meta={}),
]


def accuracy(correct: int, n: int = 10) -> dict[str, Any]:
    return {"accuracy": correct / n, "correct": correct, "n": n, "interval_95": [0.0, 1.0]}


RESULTS = {
    "q": {"4-1": accuracy(10), "4-2": accuracy(5), "8-1": accuracy(0), "8-2": accuracy(2)},
    "p": {"4-1": accuracy(1), "4-2": accuracy(1), "8-1": accuracy(1), "8-2": accuracy(1)},
}


def rendered(curve: Curve, *, ascii_only: bool = False, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    curve_table(curve, RESULTS, ascii_only=ascii_only).show(console)
    return console.export_text()


def test_points_know_whether_there_were_such_questions_in_training() -> None:
    curve = Curve.of(SWEEP, TRAINING)
    assert curve.trained == {"4-1"}
    assert list(curve.points) == ["4-1", "4-2", "8-1", "8-2"]
    assert curve.to_json()["points"][0] == {"split": "4-1", "bits": 4, "colours": 1, "trained": True}


def test_products_are_no_sums_of_as_many_numbers() -> None:
    task = tasks.load("arithmetic")
    sums, products = task.split("3-operands", 20), task.split("operands=3,operators=*", 20)
    for training, trained in ((sums, [True, False, False]), (products, [True, True])):
        operators = ("+-", "*", "+-*")[-len(trained) :]
        curves = [Curve.of(task.sweep(f"operands=3..4,operators={one}"), training) for one in operators]
        assert [bool(curve.trained) for curve in curves] == trained


@pytest.mark.parametrize(("training", "shaded"), [([(4, 1)], []), ([(4, 1), (4, 2), (8, 1)], [4])])
def test_what_is_shaded_was_trained_in_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: list[tuple[int, int]], shaded: list[int]
) -> None:
    from matplotlib.axes import Axes

    places: list[float] = []
    monkeypatch.setattr(Axes, "axvspan", lambda self, low, high, **_: places.append((low + high) / 2))
    seen = [Example("?", meta={"bits": bits, "colours": colours, "size": 3}) for bits, colours in training]
    save_plot(tmp_path / "curve.svg", [Curve.of(SWEEP, seen)], RESULTS, "title")
    assert places == shaded


def test_a_line_for_each_value_of_the_second_number() -> None:
    assert Curve.of(SWEEP, []).lines() == {"1 colours": ["4-1", "8-1"], "2 colours": ["4-2", "8-2"]}
    assert Curve(("bits",), {"4-1": {"bits": 4}, "8-1": {"bits": 8}}).lines() == {"": ["4-1", "8-1"]}


def test_bars_are_as_long_as_the_accuracy() -> None:
    text = rendered(Curve.of(SWEEP, TRAINING), ascii_only=True)
    rows = [line for line in text.splitlines() if "(0-100)" in line]
    assert [[len(bar) for bar in re.findall("#+", row)] for row in rows] == [
        [BAR_WIDTH, BAR_WIDTH // 10],
        [BAR_WIDTH // 2, BAR_WIDTH // 10],
        [BAR_WIDTH // 10],
        [BAR_WIDTH // 5, BAR_WIDTH // 10],
    ]
    assert ["1*" in row for row in rows] == [True, False, False, False]
    assert " 50.0" in rows[1]


def test_on_a_narrow_terminal_the_reasoners_are_below_each_other() -> None:
    text = rendered(Curve.of(SWEEP, TRAINING), ascii_only=True, width=60)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and max(map(len, text.splitlines())) <= 60
    rows = [line for line in text.splitlines() if "(0-100)" in line]
    assert [re.findall(r"\d+\*?", row)[:2] for row in rows] == [["4", "1*"], ["4", "2"], ["8", "1"], ["8", "2"]] * 2
    assert len(rendered(Curve.of(SWEEP, TRAINING), width=80).splitlines()) < len(text.splitlines())


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_same_figures_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        check_plot(file)
        both = [*TRAINING, Example("?", meta={"bits": 4, "colours": 2, "size": 3})]
        save_plot(file, [Curve.of(SWEEP, both), Curve.of(SWEEP, [])], RESULTS, "mine: $x$ and $")
    first, second = (file.read_bytes() for file in files)
    assert first == second
    if suffix == "svg":
        for text in (b"q, 1 colours", b"p, 2 colours", b"as in training", b"mine: $x$ and $"):
            assert text in first


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_plot(file := tmp_path / "a.svg", [Curve.of(SWEEP, [])], {"_mine_1": RESULTS["q"]}, "")
    assert b"_mine_1, 1 colours" in file.read_bytes()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **settings: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=re.escape("pip install 'latent-cot[plot]'")):
        check_plot(tmp_path / "a.svg")


@pytest.mark.parametrize("name", ["a", "a.gif", "absent/a.svg", "folder.svg"])
def test_bad_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match="--plot"):
        check_plot(tmp_path / name)


def test_no_import_without_need() -> None:
    code = "import sys, latent_cot.report.plots; assert not {'matplotlib', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_splits_that_differ_in_one_number() -> None:
    numbers = {
        "8-operands": {"operands": 8, "digits": 1},
        "3-operands": {"operands": 3, "digits": 1},
        "2-digits": {"operands": 3, "digits": 2},
        "4-operands": {"operands": 4, "digits": 1},
        "other": {},
    }
    curve = Curve.along("operands", numbers)
    assert curve is not None
    assert list(curve.points) == ["3-operands", "4-operands", "8-operands"]
    assert Curve.along("digits", numbers) is None, "two points are no curve"
    assert Curve.along("unknown", numbers) is None
    twice = {**numbers, "validation-3-operands": numbers["3-operands"]}
    assert Curve.along("operands", twice) is None, "test and validation questions are no line"
