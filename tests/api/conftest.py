"""A finished run, for all tests of the Python interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import latent_cot as lc


@pytest.fixture(scope="session")
def settings(tiny_model_dir: Path) -> dict[str, Any]:
    """Its runs have two reasoners."""
    return {"model": str(tiny_model_dir), "precision": "fp32", "q_sees": "question", "progress": False}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> lc.Run:
    """A finished run. Do not write into its folder."""
    folder = tmp_path_factory.mktemp("api") / "run"
    return lc.train(lc.configure("smoke"), output_dir=folder, **settings)
