"""The files that a configuration names, in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latent_cot.config.schema import DataConfig, EvaluationConfig, RolloutConfig, RunConfig
from latent_cot.run.paths import refuse_moved, with_absolute_paths
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
