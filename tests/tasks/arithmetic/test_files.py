"""Reading examples: good files of both forms, and every way in which a file can be bad."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_cot import tasks
from latent_cot.tasks import files
from latent_cot.tasks.arithmetic.expression import parse, rationale
from latent_cot.tasks.common import drop_seen, repeats
from latent_cot.types import DataRequest, Example, UsageError

TASK = tasks.load("arithmetic")
GOOD = '{"question": "12 + 7 - 5", "answer": 14, "rationale": "12 + 7 =, 19 - 5 ="}'


def write(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_blank_rationale_is_none(tmp_path: Path) -> None:
    """A table has no other way to leave it out."""
    (example,) = TASK.read(write(tmp_path, "question,answer,rationale\n6 - 0 - 4,2,\n", "data.csv"))
    assert (example.answer, example.z) == ("2", None)


def test_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path, f'\ufeff{GOOD}\r\n\n{{"question": "40 - 8 × 3 = ?", "answer": 16, "id": 7}}\n')
    first, second = TASK.read(path)
    assert first == Example(
        x="Question: 12 + 7 - 5 = ? Answer:",
        y=". The answer is 14.",
        z=" 12 + 7 =, 19 - 5 =",
        answer="14",
        question="12 + 7 - 5",
        meta={"operands": 3, "digits": 2, "operators": "+-", "source": f"{path}:1"},
    )
    assert (second.question, second.answer, second.z) == ("40 - 8 * 3", "16", None)
    assert second.meta["source"] == f"{path}:3"


def test_content_tells_the_form_not_the_name(tmp_path: Path) -> None:
    rows = [{"str_query": "Question: 6 - 0 - 4 = ? Answer:", "num_sol": 2, "str_rationale": None}]
    listed = TASK.read(write(tmp_path, json.dumps(rows, indent=4), "published.jsonl"))
    lines = TASK.read(write(tmp_path, json.dumps(rows[0]), "lines.json"))
    assert [e.question for e in listed] == [e.question for e in lines] == ["6 - 0 - 4"]
    assert listed[0].meta["source"].endswith("published.jsonl, item 1")


def row(**fields: object) -> str:
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.jsonl: the file has no examples"),
        (" \n\n", "the file has no examples"),
        ("[]", "the file has no examples"),
        (f"{GOOD}\n{{'question': 1}}", "data.jsonl:2: not valid JSON"),
        (f"{GOOD}\n\n{GOOD[:-1]}", "data.jsonl:3: not valid JSON"),
        (f"[{GOOD},\n{GOOD}", "data.jsonl:2: not valid JSON"),
        ("{\n}", "data.jsonl:1: not valid JSON"),
        (f"{GOOD}\n3", "data.jsonl:2: expected a JSON object {...}, found an integer"),
        (f"[{GOOD}, null]", "data.jsonl, item 2: expected a JSON object {...}, found null"),
        ("[" * 100_000, "brackets are nested too deep"),
        ('{"question": "1 + 1", "answer": ' + "2" * 9000 + "}", "data.jsonl:1: not valid JSON: a number of more than"),
        (f"{GOOD}\n" + "[" + " " * 20_000, "data.jsonl:2: a line of more than 10,000 characters"),
        (GOOD.encode() + b"\n\xff\xfe", "data.jsonl:2: not UTF-8 text"),
        (row(answer=2), "data.jsonl:1: the field 'question' is missing; found: answer"),
        (row(question="1 + 1"), "data.jsonl:1: the field 'answer' is missing; found: question"),
        (row(str_query="1 + 1"), "the field 'num_sol' is missing"),
        ("{}", "the field 'question' is missing; found: none"),
        (row(question="1 + 1", answer=True), "'answer' must be an integer without quotes, not a boolean"),
        (row(question="1 + 1", answer="2"), "'answer' must be an integer without quotes, not a string"),
        (row(question="1 + 1", answer=2.0), "not a decimal number"),
        (row(question="1 + 1", answer=None), "not null"),
        (row(question=["1 + 1"], answer=2), "'question' must be a string, not a list"),
        (row(question="1 + 1", answer=2, rationale={}), "'rationale' must be a string, not an object"),
        (row(question="1 + 1", answer=3), "answer is 3, but 1 + 1 = 2"),
        (row(question="1 + x", answer=3), "question '1 + x': expected an integer at 'x'; write it like"),
        (row(question="", answer=3), "question '': there is no expression"),
        (row(question="3", answer=3), "a question has at least two operands"),
        (row(question="1" * 13 + " + 1", answer=3), "13 digits; at most 12"),
        (row(question="9" * 12 + " + 9 - 1", answer=3), "more than 12 digits, too many for the calculator"),
        (row(question=" + ".join("1" * 65), answer=65), "65 operands; at most 64"),
        (row(question="1 + " * 2000 + "1", answer=2001), "too long"),
        (row(question="6 - 0 - 4", answer=2, rationale="6 - 0 ="), "rationale '6 - 0 =': it stops early"),
        (row(question="6 - 0 - 4", answer=2, rationale=""), "or leave it out"),
        (row(question="1 + 1", answer=2, rational="1 + 1 ="), "'rational'; did you mean 'rationale'?"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        TASK.read(write(tmp_path, content))
    assert len(str(raised.value)) < 600  # it does not print the file


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl: no such file"):
        TASK.read(str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="cannot be read"):
        TASK.read(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        TASK.read("a\0b")


def test_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        TASK.read(write(tmp_path, b" " * (2**20 + 1)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.binary(max_size=80) | st.text(alphabet='{}[]":, question1+answer2\n', max_size=80).map(str.encode))
def test_any_bytes_give_examples_or_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    message = path
    try:
        TASK.read(path)
    except UsageError as error:
        message = str(error)
    assert message.startswith(path)


def test_training_file(tmp_path: Path) -> None:
    other_order = '{"question": "12 + 7 - 5", "answer": 14, "rationale": "7 - 5 =, 12 + 2 ="}'
    bare = '{"question": "12 + 7 - 5", "answer": 14}'  # demonstrated: no pair as well
    pairs = [row(question=f"{i} + 1 + 1", answer=i + 2) for i in range(4)]
    one = write(tmp_path, "\n".join([bare, GOOD, GOOD, other_order, *pairs, pairs[0]]), "one.jsonl")
    two = write(tmp_path, row(question="9 - 9 - 9", answer=-9), "two.jsonl")
    request = DataRequest(train_file=f"{one}, {two}", validation=100)
    data = TASK.load(request)
    assert [e.z for e in data.demonstrations] == [" 12 + 7 =, 19 - 5 =", " 7 - 5 =, 12 + 2 ="]
    assert [e.question for e in data.unlabelled] == [*(f"{i} + 1 + 1" for i in range(4)), "9 - 9 - 9"]
    assert len(data.validation) == 100
    notes = " ".join(data.notes)
    assert "10 examples read; using 2 of 2 with a rationale and 5 of 5 without" in notes
    assert "3 repeated examples were dropped" in notes

    few = TASK.load(DataRequest(train_file=one, demonstrations=1, unlabelled=2, validation=0))
    assert (len(few.demonstrations), len(few.unlabelled), len(few.validation)) == (1, 2, 0)
    assert "using 1 of 2 with a rationale and 2 of 4 without" in few.notes[0]


def test_training_file_is_kept_out_of_validation(tmp_path: Path) -> None:
    options = {"operands": "2"}
    before = TASK.load(DataRequest(demonstrations=0, unlabelled=0, validation=10, options=options)).validation
    content = "\n".join(row(question=e.question, answer=int(e.answer or "")) for e in before)
    path = write(tmp_path, content)
    after = TASK.load(DataRequest(train_file=path, validation=10, options=options)).validation
    assert drop_seen(list(after), before) == (list(after), 0)


# The published files


def test_published_forms_are_the_same_demonstrations(published: Path) -> None:
    name = "1digit_34_op+-_train_50.json"
    written, tool = (TASK.read(str(published / form / name)) for form in ("arithmetic", "arithmetic_with_tool"))
    assert {e.question: e.z for e in written} == {e.question: e.z for e in tool}
    assert all(e.z == rationale(parse(e.question).steps()) for e in tool)
    assert len(tool) == 50


@pytest.mark.parametrize(
    ("kind", "distinct", "seen"), [("34", 488, 500), ("3", 474, 115), ("4", 499, 56), ("5", 500, 0)]
)
def test_published_test_questions_in_training(published: Path, kind: str, distinct: int, seen: int) -> None:
    folder = published / "arithmetic_with_tool"
    names = [str(folder / f"1digit_34_op+-_{part}.json") for part in ("train_50", "hw")]
    data = TASK.load(DataRequest(train_file=",".join(names)))
    assert (len(data.demonstrations), len(data.unlabelled)) == (50, 1000)
    test = TASK.read(str(folder / f"1digit_{kind}_op+-_test.json"))
    assert len(test) == 500
    assert repeats(test) == 500 - distinct
    kept, dropped = drop_seen(test, (*data.demonstrations, *data.unlabelled))
    assert dropped == seen
    assert len(kept) == 500 - seen
