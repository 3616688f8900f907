from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.types import DataRequest, Rationale, UsageError

ROOT = Path(__file__).parents[2]

MEMBERS = """
    name, description, tools, stop = "mine", "a task", (), None
    allowed_characters, step_delimiter, default_splits = None, None, ("a",)
    def load(self, request): ...
    def split(self, name, size=None): ...
    def read(self, path): ...
    def example(self, question, answer=None): ...
    def posterior_prompt(self, example): ...
    def candidates(self, example): ...
    def answer(self, rationale): ...
    def grade(self, example, answer): ...
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=folder
    )


def test_names_and_loads_each() -> None:
    assert "arithmetic" in tasks.names()
    assert [tasks.load(name).name for name in tasks.names()] == tasks.names()


def test_discovery_imports_no_task_and_no_model_library() -> None:
    code = (
        "import sys; from latent_cot import tasks; tasks.names();"
        "assert 'latent_cot.tasks.arithmetic' not in sys.modules; tasks.load('arithmetic');"
        "assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    )
    done = python(code, ROOT)
    assert done.returncode == 0, done.stderr


def test_refuses_to_be_imported_as_plain_tasks() -> None:
    done = python("import tasks", ROOT)
    assert done.returncode == 1
    assert "import latent_cot.tasks" in done.stderr.splitlines()[-1]


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'arithmetic'"):
        tasks.load("arithmetics")


def test_instance_in_a_file(tmp_path: Path) -> None:
    task = tasks.load(write(tmp_path, f"class Mine:{MEMBERS}\nclass Other(Mine):\n    name = 'other'\nTASK = Other()"))
    assert task.name == "other"


def test_single_class_in_a_file(tmp_path: Path) -> None:
    imports = "from dataclasses import dataclass\nfrom latent_cot.types import Task\n"
    code = f"{imports}@dataclass\nclass Mine:{MEMBERS}"
    assert tasks.load(write(tmp_path, code)).name == "mine"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "mine.py: found no task; end the file with 'TASK = YourTask()'"),
        (f"class A:{MEMBERS}\nclass B:{MEMBERS}", "found A, B"),
        (f"class A:{MEMBERS}    def __init__(self, size): ...", "A() failed: TypeError"),
        (f"class A:{MEMBERS}\nTASK = A", "mine.py: TASK: a class, not an instance; write 'TASK = A()'"),
        ("TASK = 1", "not a task, it lacks name, description"),
        (f"class A:{MEMBERS}\nTASK = A()\nTASK.tools = 'calculator'", "tools must be a tuple"),
        ("\n\nx = (", "mine.py:3: SyntaxError"),
        ("def f():\n    return 1 / 0\n\nf()", "mine.py:2: ZeroDivisionError"),
        ("\nimport no_such_module", "mine.py:2: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "mine.py:2: SystemExit"),
    ],
)
def test_file_without_a_good_task(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        tasks.load(write(tmp_path, code))


def test_absent_file() -> None:
    with pytest.raises(UsageError, match=r"absent\.py: no such file.*arithmetic"):
        tasks.load("absent.py")


def test_file_that_is_no_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("TASK = 1")
    with pytest.raises(UsageError, match=r"ends with \.py"):
        tasks.load(str(path))


def test_readme_example_reads_answers(readme_example: Path) -> None:
    task = tasks.load(str(readme_example))

    def chain(text: str) -> Rationale:
        return Rationale(tokens=(), policy_mask=(), states=(True,), text=text)

    assert task.answer(chain(" 1, 1, 0,")) == "0"
    assert task.answer(chain(" 1, 1, 0")) is None
    assert task.answer(chain("")) is None
    demonstration = task.load(DataRequest(demonstrations=1, unlabelled=0, validation=0)).demonstrations[0]
    assert demonstration.z is not None
    assert task.answer(chain(demonstration.z)) == demonstration.answer
