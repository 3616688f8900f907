"""The tasks that the contract is checked on: every built-in one, those in `examples/`, and the one that the
README shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.types import Task

ROOT = Path(__file__).parents[2]
README_EXAMPLE = "the example of tasks/README.md"
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


@pytest.fixture(scope="session", params=[*tasks.names(), README_EXAMPLE, *EXAMPLES])
def task(request: pytest.FixtureRequest, readme_example: Path) -> Task:
    return tasks.load(str(readme_example) if request.param == README_EXAMPLE else request.param)
