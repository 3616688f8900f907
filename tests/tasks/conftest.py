"""The tasks that the contract is checked on: every built-in one, those in `examples/`, the one that the README shows,
and the notebook's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.types import Task

ROOT = Path(__file__).parents[2]
README_EXAMPLE = "the example of tasks/README.md"
NOTEBOOK = ROOT / "notebooks" / "4_your_own_task_and_tool.ipynb"
KINDS = ("kinds.py:Discount", "kinds.py:Letters")
EXAMPLES = [str(ROOT / "examples" / name) for name in ("elapsed.py", "middle.py", *KINDS)]


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of the published arithmetic files, which are no part of this repository."""
    folder = ROOT / ".." / "shared" / "data" / "arithmetic"
    if not folder.is_dir():
        pytest.skip("the published arithmetic files are not here")
    return folder


@pytest.fixture(scope="session")
def readme_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`parity.py` as the README prints it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "tasks" / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    path = tmp_path_factory.mktemp("readme") / "parity.py"
    path.write_text(blocks[0])
    return path


@pytest.fixture(scope="session")
def notebook_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`euclid.py` as the notebook writes it."""
    sources = ("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    (written,) = (source for source in sources if source.startswith("%%writefile"))
    magic, _, text = written.partition("\n")
    path = tmp_path_factory.mktemp("notebook") / magic.split()[1]
    path.write_text(text)
    return path


@pytest.fixture(scope="session", params=[*tasks.names(), README_EXAMPLE, NOTEBOOK.stem, *EXAMPLES])
def task(request: pytest.FixtureRequest, readme_example: Path, notebook_task: Path) -> Task:
    written = {README_EXAMPLE: readme_example, NOTEBOOK.stem: notebook_task}
    return tasks.load(str(written.get(request.param, request.param)))
