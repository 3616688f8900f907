"""The diffs of `docs/extending.md` apply to this checkout, and what they add runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NEW_FILES = {"objectives/detailed.py": "def detailed_balance", "rationales/distinct.py": "def distinct_rollout"}
"""File of `latent_cot` -> what tells the page's block that goes into it."""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the page's changes."""
    folder = tmp_path_factory.mktemp("changed")
    for name in ("latent_cot", "tasks", "tools"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for name, mark in NEW_FILES.items():
        (code,) = (block for block in blocks if mark in block)
        (folder / "latent_cot" / name).write_text(code, encoding="utf-8")
    for diff in DIFFS:
        command = ["git", "apply", "--unidiff-zero", "-"]
        done = subprocess.run(command, input=diff, cwd=folder, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


def test_each_example_touches_at_most_two_files() -> None:
    assert len(DIFFS) == 2
    assert all(1 <= diff.count("\n+++ ") <= 2 for diff in DIFFS)


@pytest.mark.slow
def test_the_new_objective_and_the_new_sampler_train(changed: Path, tiny_model_dir: Path) -> None:
    program = (
        "import latent_cot.objectives as o, latent_cot.rationales.distinct as d\n"
        "drawn, rollout = [], d.rollout\n"
        "d.rollout = lambda *a, n, **k: drawn.append(n) or rollout(*a, n=n, **k)\n"
        "from latent_cot.cli import main\n"
        f"status = main('em --task arithmetic --preset smoke --precision fp32 --model {tiny_model_dir.as_posix()} "
        "--output-dir run --e-step.objective detailed-balance --e-step.samples 3'.split())\n"
        "assert status == 0 and 6 in drawn, (status, drawn)\n"
        "assert o.OBJECTIVES['detailed-balance'].loss.__module__ == 'latent_cot.objectives.detailed'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=changed, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (changed / "run" / "results.json").is_file()
