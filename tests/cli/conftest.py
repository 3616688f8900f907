"""A run on the tiny model, made once, and a way to call the command line in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from latent_cot.cli import main
from tests.conftest import ROOT

SMOKE = ["em", "--task", "arithmetic", "--preset", "smoke", "--precision", "fp32"]


@dataclass(frozen=True)
class Called:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Called]


@pytest.fixture(autouse=True)
def _fresh_accelerate(fresh_accelerate: None) -> None:
    """For each test of a command."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls `main` and returns what came of it."""

    def call(*argv: object) -> Called:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        captured = capsys.readouterr()
        return Called(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The folder of a finished run, whose q has read the answers. Do not write into it."""
    return _run(tmp_path_factory.mktemp("default") / "run", tiny_model_dir)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The folder of a finished run with two reasoners, p and a q(Z | X). Do not write into it."""
    return _run(tmp_path_factory.mktemp("finished") / "run", tiny_model_dir, "--q-sees", "question")


def _run(folder: Path, model: Path, *flags: str) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*SMOKE, *flags, "--model", str(model), "--output-dir", str(folder)]) == 0
    return folder


def environment() -> dict[str, str]:
    """For a process of its own: this checkout, few threads, no colours."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def spawn(*argv: object, **arguments: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "latent_cot.cli", *map(str, argv)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **arguments,
    )
