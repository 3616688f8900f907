"""The notebooks of the repository, and what they need to run in small."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import latent_cot as lc
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Notebook = Any  # nbformat has no types

SMOKE: dict[str, Any] = {"rollout": {"max_tokens": 90}, "evaluation": {"size": 4, "max_tokens": 90}}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A finished run of the arithmetic task on the tiny model. Do not write into it."""
    folder = tmp_path_factory.mktemp("notebooks") / "run"
    config = lc.configure(
        "smoke", model=str(tiny_model_dir), precision="fp32", output_dir=folder, q_sees="question", **SMOKE
    )
    lc.train(config, progress=False)
    return folder


@pytest.fixture
def run_notebook(tmp_path: Path) -> Callable[..., Notebook]:
    """Runs a notebook from top to bottom in a fresh folder, with other values for some of its parameters."""

    def run(path: Path, **parameters: Any) -> Notebook:
        notebook = nbformat.read(path, as_version=4)
        place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        values = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(values))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute(env=environment)
        return notebook

    return run
