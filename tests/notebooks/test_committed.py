"""The notebooks as they are committed: complete, from a real run, tidy, and without a trace of whose machine it was."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import ROOT
from tests.notebooks.conftest import NOTEBOOKS, Notebook

ALLOWED = {"latent_cot", "matplotlib", "pandas"}
STANDARD = {"math", "random", "re", "itertools"}
MACHINE = re.compile(r"/(?:home|root|Users|work|tmp|var|usr|opt|mnt)/|[A-Z]:\\\\|file://")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Notebook:
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook: Notebook) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_of(cell: Any) -> str:
    """A cell's Python, that of a file it writes included."""
    magic, _, rest = cell.source.partition("\n")
    return rest if magic.startswith("%%writefile") else str(cell.source)


def test_the_outputs_are_those_of_one_run_from_top_to_bottom(notebook: Notebook) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) // 2


def test_nothing_went_wrong(notebook: Notebook) -> None:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            assert "Traceback" not in json.dumps(output)


def test_there_are_pictures(notebook: Notebook) -> None:
    kinds = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert "text/html" in kinds
    if "matplotlib" in "".join(cell.source for cell in code_cells(notebook)):
        assert "image/png" in kinds


def test_no_path_of_a_machine(notebook: Notebook) -> None:
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", ()):
            data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
            texts += [output.get("text", ""), json.dumps(data)]
        for text in texts:
            assert not MACHINE.search(text), MACHINE.search(text)


def test_the_pattern_finds_a_path() -> None:
    assert all(MACHINE.search(text) for text in ("in /home/me/x", "/tmp/a", json.dumps("C:\\Users"), "/work/run"))
    assert not MACHINE.search("runs/mine and 1/2")


def test_the_model_is_a_real_one(notebook: Notebook) -> None:
    (parameters,) = (cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", ()))
    assert (
        'MODEL = "smollm2-135m"' in parameters.source
        or 'RUN = "runs/arithmetic-smollm2-135m-seed0"' in parameters.source
    )


def test_it_imports_the_package_and_little_else(notebook: Notebook) -> None:
    found = set()
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(source_of(cell))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    assert "latent_cot" in found
    assert found <= ALLOWED | STANDARD


def test_it_is_small(notebook: Notebook) -> None:
    assert len(nbformat.writes(notebook)) < 1_500_000


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_likes_them(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "notebooks"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_ruff_likes_the_files_that_they_write(tmp_path: Path) -> None:
    """It leaves cells with such a magic out."""
    written = 0
    for path in NOTEBOOKS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            if not cell.source.startswith("%%writefile"):
                continue
            (tmp_path / "file.py").write_text(source_of(cell) + "\n")
            written += 1
            for command in (["check", "--ignore", "D,FA"], ["format", "--check"]):
                done = subprocess.run(
                    [sys.executable, "-m", "ruff", *command, "--config", "pyproject.toml", tmp_path / "file.py"],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout
    assert written == 1
