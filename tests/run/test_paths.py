"""The files that a configuration names, in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latent_cot.config.schema import DataConfig, EvaluationConfig, RolloutConfig, RunConfig
from latent_cot.run.paths import refuse_moved, task_digest, with_absolute_paths
from latent_cot.types import UsageError


def test_files_are_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run goes on from another folder; what is no file stays, though a folder may be called `test`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.csv", "task.py", "tool.py", "task.yaml", "words"):
        Path(name).touch()
    Path("test").mkdir()
    Path("3-operands").touch()
    other = {"form": "words", "prompt": "Say, {question}, b.csv?", "tools": "calculator,tool.py:Tool"}
    other |= {"data": "test/?split=test, hub:a/b.csv", "extract": "after:a.jsonl?"}
    config = replace(
        RunConfig(),
        task="task.py",
        data=DataConfig(train_file="a.jsonl, b.csv", options={"tests": "a.jsonl,b.csv, c.csv", **other}),
        rollout=RolloutConfig(tools=("calculator", "tool.py:Tool")),
        evaluation=EvaluationConfig(splits=("b.csv", "test", "3-operands", "hub:owner/name.csv", "missing.csv")),
    )
    found = with_absolute_paths(config)
    here = str(tmp_path)
    assert found.task == f"{here}/task.py"
    assert found.data.train_file == f"{here}/a.jsonl,{here}/b.csv"
    assert found.rollout.tools == ("calculator", f"{here}/tool.py:Tool")
    assert found.evaluation.splits == (f"{here}/b.csv", "test", "3-operands", "hub:owner/name.csv", "missing.csv")
    assert found.data.options == {
        "tests": f"{here}/a.jsonl,{here}/b.csv,c.csv",
        "form": "words",
        "prompt": "Say, {question}, b.csv?",
        "tools": f"calculator,{here}/tool.py:Tool",
        "data": f"{here}/test?split=test,hub:a/b.csv",
        "extract": "after:a.jsonl?",
    }
    assert with_absolute_paths(replace(config, task="task.yaml")).task == f"{here}/task.yaml"
    assert with_absolute_paths(replace(config, task="task.py:Sums")).task == f"{here}/task.py:Sums"
    assert with_absolute_paths(found) == found
    assert with_absolute_paths(RunConfig()) == RunConfig()


def test_a_part_of_a_folder_is_where_the_folder_is(tmp_path: Path) -> None:
    rows, file = tmp_path / "rows", tmp_path / "config.yaml"
    rows.mkdir()
    config = replace(RunConfig(), data=DataConfig(train_file=f"{rows}?split=train"))
    refuse_moved(config, file)
    rows.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"{file}: its `data.train_file` is {rows}, which is not there any more"):
        refuse_moved(config, file)


@pytest.mark.parametrize(
    ("key", "text", "missing"),
    [
        ("data", "{0}/there.jsonl, {0}/gone.jsonl", "gone.jsonl"),
        ("data", "hub:owner/name,{0}/gone?split=train", "gone"),
        ("test", "{0}/gone.csv", "gone.csv"),
        ("tests", "{0}/gone.csv,{0}/there.jsonl", "gone.csv"),
        ("tools", "calculator,{0}/gone.py:Tool", "gone.py"),
        ("grade", "{0}/gone.py:same", "gone.py"),
    ],
)
def test_files_of_options_are_named_where_they_were_moved(tmp_path: Path, key: str, text: str, missing: str) -> None:
    file = tmp_path / "config.yaml"
    (tmp_path / "there.jsonl").touch()
    fine = {"data": f"{tmp_path}/there.jsonl", "test": "0.2", "prompt": "/no/{question}", "grade": "exact"}
    refuse_moved(replace(RunConfig(), data=DataConfig(options=fine)), file)
    config = replace(RunConfig(), data=DataConfig(options=fine | {key: text.format(tmp_path)}))
    with pytest.raises(UsageError) as refused:
        refuse_moved(config, file)
    why = f"its `data.options.{key}` is {tmp_path / missing}, which is not there any more; write there where it is now"
    assert str(refused.value) == f"{file}: {why}"
    if key not in ("tools", "grade"):
        refuse_moved(config, file, data=False)


def test_files_of_a_task_file_are_named_where_they_were_moved(tmp_path: Path) -> None:
    file, task = tmp_path / "config.yaml", tmp_path / "mine.yaml"
    task.write_text("data: rows.csv\ntest: tests.csv\ntools: [calculator, mine.py:Tool]\n")
    config = replace(RunConfig(), task=str(task))
    for key, name in (("tools", "mine.py"), ("data", "rows.csv"), ("test", "tests.csv")):
        with pytest.raises(UsageError) as refused:
            refuse_moved(config, file)
        assert str(refused.value).startswith(f"{task}: its `{key}` is {tmp_path / name}, which is not there any more")
        (tmp_path / name).touch()
    refuse_moved(config, file)
    (tmp_path / "rows.csv").unlink()
    refuse_moved(config, file, data=False)
    refuse_moved(replace(config, data=DataConfig(options={"data": f"{tmp_path}/tests.csv"})), file)  # instead of it


def test_a_tool_of_ones_own_is_a_part_of_the_task(tmp_path: Path) -> None:
    tool = tmp_path / "modulo.py"
    config = replace(RunConfig(), rollout=RolloutConfig(tools=("calculator", f"{tool}:modulo")))
    tool.write_text("a = 1\n")
    before = task_digest(config)
    tool.write_text("a = 2\n")
    assert before is not None and task_digest(config) != before and task_digest(RunConfig()) is None
