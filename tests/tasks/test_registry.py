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
    name, description, default_splits = "mine", "a task", ("a",)
    def load(self, request): ...
    def split(self, name, size=None): ...
    def read(self, path): ...
    def example(self, question, answer=None): ...
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


def mine(code: str) -> str:
    return "from latent_cot.types import Task\n" + code


def test_instance_in_a_file(tmp_path: Path) -> None:
    code = f"class Mine(Task):{MEMBERS}\nclass Other(Mine):\n    name = 'other'\nTASK = Other()"
    task = tasks.load(write(tmp_path, mine(code)))
    assert task.name == "other"
    assert not (task.is_measured or task.has_own_reward)


def test_single_class_in_a_file(tmp_path: Path) -> None:
    code = f"from dataclasses import dataclass\n@dataclass\nclass Mine(Task):{MEMBERS}"
    assert tasks.load(write(tmp_path, mine(code))).name == "mine"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "mine.py: defines no task, and no TASK; write a class that extends latent_cot.types.Task"),
        (f"class A:{MEMBERS}", "mine.py: defines no task, and no TASK"),
        (f"class A(Task):{MEMBERS}\nclass B(Task):{MEMBERS}", "defines A, B"),
        (f"class A(Task):{MEMBERS}    def __init__(self, size): ...", "A() failed: TypeError"),
        (f"class A(Task):{MEMBERS}    def __init__(self): raise SystemExit", "A() failed: SystemExit"),
        ("class A(Task): ...", "A lacks example, load, read, split (see tasks/README.md)"),
        ("TASK = 1", "int is no task; its class has to extend latent_cot.types.Task"),
        (f"class A:{MEMBERS}\nTASK = A()", "A is no task; its class has to extend latent_cot.types.Task"),
        (f"class A(Task):{MEMBERS}".replace("name,", "other,"), "the task lacks name"),
        (f"class A(Task):{MEMBERS}\nTASK = A()\nTASK.tools = 'calculator'", "tools must be a tuple"),
        ("\nx = (", "mine.py:3: SyntaxError"),
        ("def f():\n    return 1 / 0\n\nf()", "mine.py:3: ZeroDivisionError"),
        ("import no_such_module", "mine.py:2: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "mine.py:3: SystemExit"),
    ],
)
def test_file_without_a_good_task(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        tasks.load(write(tmp_path, mine(code)))


def test_absent_file() -> None:
    with pytest.raises(UsageError, match=r"absent\.py: no such task file.*arithmetic"):
        tasks.load("absent.py")


def test_file_that_is_no_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("TASK = 1")
    with pytest.raises(UsageError, match=r"unknown task .*my_task\.py"):
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
