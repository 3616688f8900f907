"""A run whose training data or base model have changed since: what would mistake them says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import latent_cot as lc
from tests.cli.conftest import SMOKE, Called, Cli
from tests.tiny import build_tiny_model

OTHER_DATA = "The training data are not those that this run was trained on"
OTHER_MODEL = "The base model is not the one that this run was trained with"
FEW = ["--data.demonstrations", 0, "--data.unlabelled", 6, "--data.validation", 2, "--p-init", "base"]
SMALL = ["--questions", 1, "-n", 2]


def said(called: Called) -> str:
    """All that was said, on one line."""
    assert called.status == 0, called.err
    return " ".join((called.out + called.err).split())


def write_rows(file: Path, first: int) -> Path:
    """Nine sums, in the form of `qa`."""
    rows = [
        {"question": f"{k} + 1", "rationale": f" So the answer is {k + 1}.", "answer": k + 1}
        for k in range(first, first + 9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_other_training_data_are_told(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    """The task's file names others than when the run was trained: `--data` no longer drops what it has learned from."""
    mine, run = tmp_path / "mine.yaml", tmp_path / "run"
    old = write_rows(tmp_path / "old.jsonl", 0)
    write_rows(tmp_path / "new.jsonl", 50)
    write_rows(tmp_path / "tests.jsonl", 90)
    text = "data: old.jsonl\ntest: tests.jsonl\n"
    mine.write_text(text)
    settings = ["--task", mine, "--model", tiny_model_dir, "--output-dir", run, *FEW]
    tokens = ["--rollout.granularity", "token", "--rounds", 1, "--rollout.max-tokens", 4, "--evaluation.max-tokens", 4]
    assert cli("em", "--preset", "smoke", "--precision", "fp32", *settings, *tokens).status == 0
    asked = ["eval", run, "--data", old, "--reasoner", "p", "--max-tokens", 4]
    as_it_was = cli(*asked, "--json")
    assert (as_it_was.json["notes"], as_it_was.json["dropped"]) == ([], {str(old): 7})
    assert OTHER_DATA not in said(cli("report", run, *SMALL)) + said(cli("export", run, tmp_path / "before"))
    assert "No question of these\nsplits was in the training data." in (tmp_path / "before/README.md").read_text()

    mine.write_text(text.replace("old", "new"))
    changed = cli(*asked, "--json")
    assert changed.json["dropped"] == {str(old): 0}
    (note,) = changed.json["notes"]
    assert note.startswith(OTHER_DATA) and str(mine) in note
    assert said(changed).count(OTHER_DATA) == 2, "in the JSON and to standard error"
    assert OTHER_DATA in said(cli(*asked))
    assert OTHER_DATA in said(cli("report", run, "--no-model"))
    assert OTHER_DATA in (run / "report.html").read_text()
    assert said(cli("report", run, *SMALL)).count(OTHER_DATA) == 1
    assert OTHER_DATA not in said(cli("sample", run, "--question", "1 + 1", "-n", 1)), "no prompt shows any"
    exported = cli("export", run, tmp_path / "after", "--json")
    assert exported.json["notes"] == [note]
    card = (tmp_path / "after/README.md").read_text()
    assert "in the training data" not in card and "demonstrated rationale" not in card and "Files:" not in card
    assert "What it was trained on is not described here: the data have changed since." in card
    settings_of = json.loads((tmp_path / "after/latent_cot.json").read_text())
    assert settings_of["unlabelled"] is None and settings_of["other_data"]

    shutil.rmtree(run / "checkpoints")  # then the results know
    assert cli(*asked, "--json").json["notes"] == [note]
    (run / "results.json").unlink()
    assert cli(*asked, "--json").json["notes"] == []


def test_another_task_is_told(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Its prompts and grades, wherever its files lie; not another name of the same rows. And what else a task asks of a
    model that this one does not have."""
    folder, run = tmp_path / "tasks", tmp_path / "run"
    folder.mkdir()
    mine = folder / "mine.yaml"
    write_rows(folder / "rows.jsonl", 0)
    write_rows(folder / "tests.jsonl", 90)
    text = "data: rows.jsonl\ntest: tests.jsonl\ngrade: mine.py:same\nstop: </think>\nopening: <think>\n"
    (folder / "mine.py").write_text("def same(right, answer):\n    return right == answer\n")
    mine.write_text(text)
    settings = ["--task", mine, "--model", tiny_model_dir, "--output-dir", run, "--trust-code", *FEW]
    few = ["--rounds", 1, "--rollout.max-tokens", 4, "--evaluation.max-tokens", 4, "--rollout.granularity", "token"]
    trained = said(cli("em", "--preset", "smoke", "--precision", "fp32", *settings, *few))
    assert "The stop '</think>' is several tokens to this model: a rationale ends with <|endoftext|> instead" in trained
    assert "has no chat template: the opening '<think>' is left out" in trained

    asked = ["eval", run, "--size", 2, "--reasoner", "p", "--max-tokens", 4, "--trust-code", "--json"]
    before = cli(*asked)
    assert before.status == 0, before.err
    assert before.json["notes"] == []
    for changed in (text + "chat: false\n", text.replace("same", "other")):
        mine.write_text(changed)
        (folder / "mine.py").write_text("def same(right, answer):\n    return True\n\n\nother = same\n")
        (note,) = cli(*asked).json["notes"]
        assert note.startswith("The task's files have changed since the run began") and str(mine) in note


def test_a_prompt_with_other_examples_is_told_and_not_exported(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file, mine = tmp_path / "run", tmp_path / "train.jsonl", tmp_path / "mine.yaml"
    write_rows(file, 0)
    tests = write_rows(tmp_path / "tests.jsonl", 90)
    mine.write_text("data: train.jsonl\ntest: tests.jsonl\nrationale: rationale\n")
    few_shot = ["fit", "--method", "few-shot", "--preset", "smoke", "--precision", "fp32", "--task", mine]
    sizes = ["--data.demonstrations", 4, "--data.unlabelled", 0, "--data.validation", 2]
    fitted = cli(*few_shot, *sizes, "--model", tiny_model_dir, "--output-dir", run)
    assert fitted.status == 0, fitted.err
    write_rows(file, 50)
    sampled = cli("sample", run, "--question", "1 + 1", "-n", 1, "--json")
    (note,) = sampled.json["notes"]
    assert note.startswith(OTHER_DATA) and str(mine) in note
    refused = cli("export", run, tmp_path / "exported")
    assert refused.status == 2 and not (tmp_path / "exported").exists()
    assert "the prompt shows examples" in refused.err and f"restore them ({mine})" in refused.err

    asked = lc.load(run)
    asked.sample("1 + 1", 1)
    asked.evaluate(files=tests, size=1, progress=False)
    assert asked.notes == [note]
    assert capsys.readouterr().err.count(OTHER_DATA) == 1


def test_another_base_model_is_told(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model_dir, model)
    assert cli(*SMOKE, "--model", model, "--output-dir", run, *FEW, "--rounds", 0).status == 0
    commands = [
        ["eval", run, "--split", "3-operands", "--size", 1, "--max-tokens", 4],
        ["sample", run, "--question", "1 + 1", "-n", 1],
        ["report", run, *SMALL],
        ["export", run, tmp_path / "exported", "--force"],
    ]
    config = run / "config.yaml"
    for precision in ("fp32", "bf16"):  # one that it was not trained in is no other model
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"precision": precision}))
        assert OTHER_MODEL not in said(cli(*commands[0]))
    build_tiny_model(model, seed=1)
    assert said(cli(*commands[1])).count(OTHER_MODEL) == 1, "in bf16"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"precision": "fp32"}))
    for command in commands:
        assert said(cli(*command)).count(OTHER_MODEL) == 1, command
    assert OTHER_MODEL in (run / "report.html").read_text()
    assert "They are not those that it was trained and tested with" in (tmp_path / "exported/README.md").read_text()
    (note,) = cli(*commands[0], "--json").json["notes"]
    assert note.startswith(OTHER_MODEL) and str(model) in note


def test_a_checkpoint_of_an_earlier_version_tells_another_base_model_in_the_same_precision(
    tmp_path: Path, cli: Cli, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latent_cot.run.run_folder import RunFolder

    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model_dir, model)
    save = RunFolder.save
    with monkeypatch.context() as patch:
        without = lambda self, state, write: save(self, {k: v for k, v in state.items() if k != "weights"}, write)  # noqa: E731
        patch.setattr(RunFolder, "save", without)
        assert cli(*SMOKE, "--model", model, "--output-dir", run, *FEW, "--rounds", 0).status == 0
    command = ["sample", run, "--question", "1 + 1", "-n", 1]
    assert OTHER_MODEL not in said(cli(*command))
    build_tiny_model(model, seed=1)
    assert OTHER_MODEL in said(cli(*command))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("precision: fp32", "precision: bf16"))
    assert OTHER_MODEL not in said(cli(*command)), "which of the two it is cannot be told"
