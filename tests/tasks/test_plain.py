"""The base class for tasks of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.types import UsageError

TASK = """
from latent_cot.tasks.plain import PlainTask
from latent_cot.types import Example, TaskData


class Echo(PlainTask):
    name, description = "echo", "say it again"
    default_splits = ("all",)

    def example(self, question, answer=None):
        return Example(f"Say {question}:", f" {question}.", answer=answer or question, question=question)

    def load(self, request):
        return TaskData((), (self.example("a"),), ())

    def split(self, name, size=None):
        return [self.example("b")]

    def answer(self, rationale):
        return rationale.text.strip() or None
"""


def test_what_is_left_to_write(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text('{"question": "x"}\n{"question": "y", "answer": "z"}\n')
    task = tasks.load(str(tmp_path / "echo.py"))
    assert task.tools == ()
    first, second = task.read(str(tmp_path / "rows.jsonl"))
    assert (first.answer, second.answer) == ("x", "z")
    assert task.posterior_prompt(second) == "The answer is z. Say y:"
    with pytest.raises(UsageError, match="question 'y': its answer is needed"):
        task.posterior_prompt(replace(second, answer=None))
    assert task.candidates(first) is None
    assert task.grade(first, "x")
    assert not task.grade(first, "X") and not task.grade(first, None)


def test_blank_fields_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(TASK)
    task, rows = tasks.load(str(tmp_path / "echo.py")), tmp_path / "rows.jsonl"
    rows.write_text('{"question": " x ", "answer": " z", "rationale": " "}\n')
    (example,) = task.read(str(rows))
    assert (example.question, example.answer, example.z) == ("x", "z", None)
    for name, other in (("question", "answer"), ("answer", "question")):
        rows.write_text(f'{{"{name}": " ", "{other}": "a"}}\n')
        with pytest.raises(UsageError, match=f"the field '{name}' is empty"):
            task.read(str(rows))


def test_a_row_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text('{"answer": "z"}\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl"):
        tasks.load(str(tmp_path / "echo.py")).read(str(tmp_path / "rows.jsonl"))


def test_rows_may_have_rationales_and_integers_and_errors_say_where(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(
        TASK
        + """
    def read(self, path):
        return super().read(path)


class Strict(Echo):
    def example(self, question, answer=None):
        if question == "bad":
            raise UsageError("no such thing")
        return super().example(question, answer)


TASK = Strict()
"""
    )
    text = (tmp_path / "echo.py").read_text()
    (tmp_path / "echo.py").write_text("from latent_cot.types import UsageError\n" + text)
    task = tasks.load(str(tmp_path / "echo.py"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "x", "answer": 7, "rationale": " x"}\n{"question": "y", "answer": null}\n')
    first, second = task.read(str(rows))
    assert (first.answer, first.z, first.meta) == ("7", " x", {"source": f"{rows}:1"})
    assert (second.answer, second.z) == ("y", None)
    rows.write_text('{"question": "x"}\n{"question": "bad"}\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: no such thing"):
        task.read(str(rows))
