"""The scaling benchmark: what it varies is what it says, and its figures are well formed. No times are judged."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.growth import Growth, measure
from benchmarks.scaling import SECTIONS, Plan
from benchmarks.workloads import EStepWork

SMALL = Plan(
    trajectories=(8, 16),
    tokens=5,
    length=(2, 4, 6),
    questions=1,
    prefixes=(1, 2, 4),
    prompt=(16, 32, 64),
    calls=(0, 2, 4),
    chain=8,
    repeats=2,
)


@pytest.fixture(scope="module")
def work(tiny_model_dir: Path) -> EStepWork:
    return EStepWork(str(tiny_model_dir), seed=0)


def test_the_exponent_of_a_power_law() -> None:
    growth = Growth("x", "n", {n: [3 * n**1.5, 3 * n**1.5] for n in (1, 10, 100)})
    exponent, (low, high) = growth.exponent()
    assert exponent == pytest.approx(1.5)
    assert (low, high) == pytest.approx((1.5, 1.5))
    assert growth.last() == pytest.approx(1.5)


def test_the_interval_covers_the_exponent_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        growth = Growth("x", "n", {n: [n * math.exp(rng.gauss(0, 0.2)) for _ in range(3)] for n in (8, 16, 32, 64)})
        _, (low, high) = growth.exponent()
        covered += low <= 1 <= high
    assert 0.92 < covered / 400 < 0.98


def test_a_fixed_cost_shows_at_the_last_sizes() -> None:
    growth = Growth("x", "n", {n: [50 + n**2] for n in (1, 4, 16, 64)})
    assert growth.exponent()[0] < 1.1
    assert growth.last() > 1.8


def test_sizes_are_measured_in_mixed_order_after_one_run_that_does_not_count() -> None:
    order: list[int] = []

    def run(size: int) -> float:
        order.append(size)
        return float(len(order))

    values = measure((1, 2, 3), run, 20, random.Random(0))
    assert order[0] == 1
    assert 1.0 not in values[1]
    assert [len(values[size]) for size in (1, 2, 3)] == [20, 20, 20]
    assert order[1:] != sorted(order[1:])


@pytest.mark.parametrize("calls", [2, 4, 8])
def test_chains_with_tool_calls_are_as_long_as_those_without(work: EStepWork, calls: int) -> None:
    chains = work.sample_chains(calls, 16)
    assert {len(chain) for chain in chains} == {len(chain) for chain in work.sample_chains(0, 16)} == {17}
    assert {sum(call.result is not None for call in chain.calls) for chain in chains} == {calls}
    if calls < 8:  # else each result has one token
        assert len({chain.calls[0].n_tokens for chain in chains}) > 1


@pytest.mark.parametrize(("prefixes", "tokens"), [(1, 8), (3, 8), (8, 8)])
def test_rationales_have_so_many_states(work: EStepWork, prefixes: int, tokens: int) -> None:
    rationale = work.rationale(prefixes, tokens)
    assert sum(rationale.states) == prefixes
    assert rationale.states[-1]
    assert len(rationale.states) == len(rationale) + 1 == tokens + 1


def test_the_report_is_json_with_finite_figures(tiny_model_dir: Path) -> None:
    report = scaling.run(str(tiny_model_dir), SMALL, SECTIONS, seed=0, memory=False)
    report = json.loads(json.dumps(report, allow_nan=False))
    assert {growth["size"] for growth in report["growth"]} == {"trajectories", "length", "prefixes", "prompt"}
    for growth in report["growth"]:
        assert all(median > 0 for median in growth["medians"].values())
        assert growth["interval_95"][0] <= growth["exponent"] <= growth["interval_95"][1]
    assert set(report["tools"]["overhead"]) == {"2", "4"}
    assert len(report["targets"]) == 3
    assert all(isinstance(row["met"], bool) for row in report["targets"])


@pytest.mark.slow  # new processes import torch
def test_memory_is_that_of_one_process_for_each_size(tiny_model_dir: Path) -> None:
    peaks = scaling.memory_growth(str(tiny_model_dir), SMALL, ["tools", "prefixes"], seed=0)
    assert list(peaks) == ["prefixes"]
    assert set(peaks["prefixes"]) == {"1", "4"}
    assert all(peak > 10_000_000 for peak in peaks["prefixes"].values())


def test_the_command(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scaling.PLANS, "real", SMALL)
    monkeypatch.setattr(scaling, "memory_growth", lambda *_: {"prefixes": {"4": 10**8, "32": 2 * 10**8}})
    command = ["--model", str(tiny_model_dir), "--section", "prefixes", "--section", "tools"]
    assert scaling.main([*command, "--json", "--plot", str(tmp_path / "growth.svg")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["command"].startswith("python -m benchmarks.scaling --model")
    assert "<svg" in (tmp_path / "growth.svg").read_text(encoding="utf-8")
    assert scaling.main(command) == 0
    shown = capsys.readouterr().out
    assert "exponent" in shown and "tool calls" in shown and "Peak memory" in shown


def test_a_figure_that_cannot_be_drawn_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--plot", "growth.txt"]) == 2
    assert "--plot growth.txt" in capsys.readouterr().err
