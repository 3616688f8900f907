"""Each notebook runs from top to bottom, in small: on the tiny model, whose chains mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.notebooks.conftest import NOTEBOOKS, Notebook

# The notebooks' settings, as the preset `smoke` has them.
STEP = {"steps": 2, "batch_size": 4, "warmup": 1}
SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "precision": "fp32",
    "data": {"demonstrations": 4, "unlabelled": 6, "validation": 4},
    "lora": {"rank": 4, "alpha": 8},
    "rollout": {"max_tokens": 100, "batch_size": 8},
    "init_step": {"steps": 2, "batch_size": 4},
    "e_step": {"steps": 2, "questions": 4, "samples": 4, "warmup": 1},
    "m_step": {**STEP, "keep": "all"},
    "evaluation": {"size": 4, "max_tokens": 90, "diagnostics": 4},
}
ARITHMETIC = {**SETTINGS, "evaluation": {**SETTINGS["evaluation"], "splits": ["3-operands", "5-operands"]}}
EUCLID = {**SETTINGS, "evaluation": {**SETTINGS["evaluation"], "splits": ["2-digits"]}}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, run_notebook: Callable[..., Notebook], small_run: Path, tiny_model_dir: Path) -> None:
    model = str(tiny_model_dir)
    small: dict[str, dict[str, Any]] = {
        "1_em_on_arithmetic": {"MODEL": model, "SETTINGS": ARITHMETIC},
        "2_exploring_rationales": {"RUN": str(small_run), "SAMPLES": 3, "QUESTIONS": 2},
        "3_out_of_distribution_lengths": {
            "RUN": str(small_run),
            "SIZE": 2,
            "OPERANDS": "operands=3..4",
            "DIGITS": "digits=1..2",
            "BOTH": "operands=3,4,digits=1,2",
        },
        "4_your_own_task_and_tool": {"MODEL": model, "SETTINGS": EUCLID},
    }
    done = run_notebook(path, **small[path.stem])
    shown = [output for cell in done.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any('class="lcot"' in output.data.get("text/html", "") for output in shown)
    if "SETTINGS" in small[path.stem]:  # it trains: one bar of that, updated in place
        bars = [output.data["text/html"] for output in shown if "<progress" in output.data.get("text/html", "")]
        assert sum("round " in bar for bar in bars) == 1 and len(bars) <= 2  # another may be that of an evaluation


def test_there_are_four() -> None:
    assert len(NOTEBOOKS) == 4
    assert all(path.parent == ROOT / "notebooks" for path in NOTEBOOKS)
