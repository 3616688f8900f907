"""What the Python interface leaves alone, and what happens around it: generators, folders, other runs."""

from __future__ import annotations

import copy
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latent_cot as lc
from latent_cot.run.run_folder import Checkpoint, RunFolder
from tests.conftest import ROOT

QUESTION = "6 - 0 - 4 - 8"


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002


@pytest.fixture
def expected() -> tuple[float, float, float]:
    """What is drawn next from the global generators, where nothing touches them."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    first = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    return first


def test_sampling_leaves_the_global_generators_alone(run: lc.Run, expected: tuple[float, ...]) -> None:
    lc.load(run.path or "").sample(QUESTION, n=1)
    assert drawn() == expected


def test_training_leaves_the_global_generators_alone(
    tmp_path: Path, settings: dict[str, Any], expected: tuple[float, ...]
) -> None:
    stopped = lc.train(lc.configure("smoke"), output_dir=tmp_path / "run", callbacks=[lambda _: True], **settings)
    lc.resume(stopped, callbacks=[lambda _: True], progress=False)
    with pytest.raises(lc.UsageError, match="holds a run"):
        lc.train(lc.configure("smoke"), output_dir=tmp_path / "run", **settings)
    assert drawn() == expected


def test_a_run_of_another_version_is_sampled(run: lc.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint's state may have other parts: one figure of it is needed."""
    folder = Path(shutil.copytree(run.path or "", tmp_path / "run"))
    asked, latest = lc.load(folder), RunFolder.latest

    def of_another_version(self: RunFolder) -> Checkpoint | None:
        found = latest(self)
        assert found is not None
        return replace(found, state={**found.state, "loop": {"m_steps": 1, "more": []}})

    monkeypatch.setattr(RunFolder, "latest", of_another_version)
    assert asked.sample(QUESTION, n=2, reasoner="p") == run.sample(QUESTION, n=2, reasoner="p")


def test_the_working_directory_may_change(run: lc.Run, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.path is not None
    monkeypatch.chdir(run.path.parent)
    asked = lc.load(run.path.name)
    monkeypatch.chdir(tiny_model_dir.parent)
    base = lc.load(tiny_model_dir.name, task="arithmetic")
    monkeypatch.chdir(Path("/"))
    assert repr(asked).startswith("<run: em on arithmetic") and asked.status == "finished"
    assert asked.path == run.path and asked.source.describe()["run"] == "run"
    assert asked.results["accuracy"] and len(asked.events) and list(asked.rationales())
    assert asked.sample(QUESTION, n=1) and base.sample(QUESTION, n=1)


def test_looking_at_a_run_loads_no_torch(run: lc.Run) -> None:
    code = (
        f"import sys, latent_cot as lc; run = lc.load({str(run.path)!r}); run.results.to_pandas(); len(run.events); "
        "len(list(run.rationales())); lc.Reasoner; print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_all_of_it_can_be_pickled_and_copied(run: lc.Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    for copied in (pickle.loads(pickle.dumps(run.results)), copy.deepcopy(run.results)):  # noqa: S301
        assert copied == run.results and repr(copied) == repr(run.results)
    again = pickle.loads(pickle.dumps(run))  # noqa: S301
    assert (again.path, again.config) == (run.path, run.config)
    task = tmp_path / "mine.py"
    task.write_text(
        "from latent_cot.tasks.arithmetic import Arithmetic\n"
        "class Mine(Arithmetic):\n"
        "    def grade(self, example, answer):\n"
        "        return super().grade(example, answer)\n"
    )
    base = lc.load(settings["model"], task=task, trust_code=True)
    found = base.evaluate("3-operands", size=2, max_tokens=4, progress=False)
    lc.tasks.load(str(task))
    other = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert other.figures == found.figures and other.answers().equals(found.answers())
    assert copy.deepcopy(found).figures == found.figures
    assert type(other.task) is type(base.task)
    assert pickle.loads(pickle.dumps(base)).config == base.config  # noqa: S301
