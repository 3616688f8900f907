"""Where a run's time goes, in its small form: what is counted, not how long it takes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import breakdown
from benchmarks.breakdown import BETWEEN, KINDS

Tree = tuple[str, list[Any]]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(st.sampled_from("abc"), st.just([])),
    lambda inner: st.tuples(st.sampled_from("abc"), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def events_of(tree: Tree, start: int, gap: int) -> tuple[list[tuple[int, int, str]], list[str]]:
    """A call, the calls inside it one behind the other, `gap` ns around each: the events, and who runs at each ns."""
    name, inside = tree
    events, running = list[tuple[int, int, str]](), [name] * gap
    for one in inside:
        own, of_one = events_of(one, start + len(running), gap)
        events += own
        running += of_one + [name] * gap
    running.append(name)
    return [*events, (start, len(running), name)], running


@given(tree=TREES, gap=st.integers(0, 2))
def test_each_nanosecond_is_of_who_runs_then(tree: Tree, gap: int) -> None:
    events, running = events_of(tree, 5, gap)
    found = breakdown.self_times(events)
    assert {name: of for name, of in found.items() if of} == dict(Counter(running))


def test_the_kind_of_an_operator() -> None:
    known = {"aten::addmm_": "products", "aten::silu_backward": "element by element", "aten::copy_": "copies"}
    known |= {"aten::_log_softmax_backward_data": "softmax, sums", "aten::_fused_adamw_": "optimiser"}
    known |= {"aten::view": BETWEEN, "MmBackward0": BETWEEN, "_LoraLinear": BETWEEN, "mm": BETWEEN}
    assert {name: breakdown.kind_of(name) for name in known} == known
    names = [name for names in KINDS.values() for name in names.split()]
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("fresh_accelerate")
def test_phases_are_weighted_by_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"resources": {"phases": {"init": 30.0, "e_step": 10.0}}}))
    arguments = ["--model", "tiny", "--preset", "smoke", "--units", "1", "--json", "--results", str(results)]
    assert breakdown.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"init", "start_q", "e_step", "draw", "evaluate"} <= report["phases"].keys()
    for figures in [*report["phases"].values(), report["run"]]:
        assert list(figures["shares"]) == [*KINDS, BETWEEN]
        assert sum(figures["shares"].values()) == pytest.approx(1)
        assert all(0 <= share < 1 for share in figures["shares"].values())
        assert figures["shares"]["products"] > 0
    init, e_step = (report["phases"][name]["shares"]["products"] for name in ("init", "e_step"))
    assert report["run"]["shares"]["products"] == pytest.approx((3 * init + e_step) / 4)


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_e_step_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--workload", "words", "--units", "1", "--json"]
    assert breakdown.main(arguments) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert phases.keys() == {"e_step"} and sum(phases["e_step"]["shares"].values()) == pytest.approx(1)
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"resources": {"phases": {"e_step": 1.0, "later": 10.0}}}))
    assert breakdown.main([*arguments, "--results", str(results)]) == 2
    assert "--results: is of a whole run" in capsys.readouterr().err
    assert breakdown.main(["--model", "tiny", "--preset", "smoke", "--results", str(results)]) == 2
    assert "has phases that are not profiled: later" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"resources": {}}', '{"resources": {"phases": {"init": "x"}}}', "{"])
def test_what_is_no_record_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    results = tmp_path / "results.json"
    results.write_text(text)
    assert breakdown.main(["--model", "tiny", "--results", str(results)]) == 2
    assert str(results) in capsys.readouterr().err
