"""What is special about the subjectivity task: its labels, its files, its prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latent_cot.tasks.common import drop_seen
from latent_cot.tasks.subjectivity import TASK
from latent_cot.types import DataRequest, UsageError
from tests.conftest import ROOT

ROWS = [{"text": f"sentence number {i} .", "label": i % 2} for i in range(20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def published() -> Path:
    folder = ROOT / ".." / "shared" / "data" / "subj"
    if not folder.is_dir():
        pytest.skip("the SUBJ files are not here")
    return folder


def test_prompts() -> None:
    example = TASK.example("a good film .", "subjective")
    assert example.x == 'Classify this movie review as objective or subjective: "a good film ." This review is'
    assert example.y == ", so it is subjective"
    assert TASK.seed_prompt(example) == f"{example.x} subjective because it is"
    assert TASK.posterior_prompt(example) == 'Why is this movie review subjective? "a good film ." This review is'
    assert TASK.example(example.x, "subjective") == example
    with pytest.raises(UsageError, match="label is needed"):
        TASK.posterior_prompt(TASK.example("a good film ."))


def test_the_label_begins_with_the_stop() -> None:
    """So that whoever may write the label next may stop there."""
    candidates = TASK.candidates(TASK.example("a good film ."))
    assert candidates is not None
    assert list(candidates) == ["objective", "subjective"]
    assert all(text.startswith(TASK.stop or "") for text in candidates.values())


@pytest.mark.parametrize("question", ["", "  ", "x" * 3000])
def test_what_is_no_sentence_is_refused(question: str) -> None:
    with pytest.raises(UsageError, match="write a sentence"):
        TASK.example(question)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(UsageError, match="objective or subjective"):
        TASK.example("a good film .", "good")


def test_own_sentences() -> None:
    request = DataRequest(demonstrations=5, unlabelled=12, validation=4)
    data, test = TASK.load(request), TASK.split("test")
    assert data.demonstrations == ()
    assert (len(data.unlabelled), len(data.validation), len(test)) == (12, 4, 8)
    assert drop_seen(test, (*data.unlabelled, *data.validation))[1] == 0
    for part in (data.unlabelled, data.validation, test):
        assert sum(example.answer == "subjective" for example in part) == len(part) / 2
    with pytest.raises(UsageError, match=r"--data\.unlabelled.*12 different examples for this, not 13"):
        TASK.load(DataRequest(unlabelled=13))


def test_a_file_gives_training_and_validation_sentences(file: Path) -> None:
    request = DataRequest(unlabelled=6, validation=14, train_file=str(file), seed=1)
    data = TASK.load(request)
    assert {e.question for e in (*data.unlabelled, *data.validation)} == {row["text"] for row in ROWS}
    assert TASK.load(request) == data
    assert (
        TASK.load(DataRequest(unlabelled=8, validation=2, train_file=str(file), seed=1)).unlabelled[:6]
        == data.unlabelled
    )
    assert (
        TASK.load(DataRequest(unlabelled=6, validation=14, train_file=str(file), seed=2)).unlabelled != data.unlabelled
    )
    with pytest.raises(UsageError, match=r"--data\.validation.*14 different"):
        TASK.load(DataRequest(unlabelled=6, validation=15, train_file=str(file)))


def test_validation_sentences_may_come_from_further_files(file: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("text,label\nsentence number 3 .,subjective\nanother one .,0\n")
    data = TASK.load(DataRequest(unlabelled=2, validation=19, train_file=f"{few}, {file}"))
    assert {e.question: e.answer for e in data.unlabelled} == {
        "sentence number 3 .": "subjective",
        "another one .": "objective",
    }
    assert "sentence number 3 ." not in {e.question for e in data.validation}


def test_a_file_is_a_split(file: Path) -> None:
    assert [e.question for e in TASK.split(str(file), 3)] == [row["text"] for row in ROWS[:3]]
    assert len(TASK.split(str(file))) == len(ROWS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": 1}', "the field 'text' is missing"),
        ('{"text": 3, "label": 1}', "'text' must be a string"),
        ('{"text": "a film ."}', "'label' must be 0"),
        ('{"text": "a film .", "label": 2}', "'label' must be 0"),
        ('{"text": "a film .", "label": true}', "'label' must be 0"),
        ('{"text": "a film .", "label": [1]}', "'label' must be 0"),
        ('{"text": " ", "label": 1}', "write a sentence"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a film .", "label": 0}\n' + line + "\n")
    with pytest.raises(UsageError, match=message) as error:
        TASK.read(str(path))
    assert f"{path}:2" in str(error.value)


def test_published_files(published: Path) -> None:
    """The figures of the README."""
    sizes = {name: len(TASK.read(str(published / name))) for name in ("train.10.jsonl", "train.jsonl", "test.jsonl")}
    assert sizes == {"train.10.jsonl": 10, "train.jsonl": 8000, "test.jsonl": 2000}
    files = f"{published / 'train.10.jsonl'},{published / 'train.jsonl'}"
    data = TASK.load(DataRequest(unlabelled=10, validation=200, train_file=files))
    assert sum(example.answer == "subjective" for example in data.unlabelled) == 3
    assert drop_seen(TASK.split(str(published / "test.jsonl")), (*data.unlabelled, *data.validation))[1] == 0
