"""CSV files. Of JSON files `arithmetic/test_files.py` tries everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latent_cot.tasks.files import field, read_rows
from latent_cot.types import UsageError


def write(folder: Path, text: str) -> str:
    path = folder / "rows.CSV"
    path.write_bytes(text.encode())
    return str(path)


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffname,text\r\nana,"a ""b"", c"\r\n\r\nben,"two\nlines"\r\n')
    assert read_rows(path) == [
        (f"{path}:2", {"name": "ana", "text": 'a "b", c'}),
        (f"{path}:5", {"name": "ben", "text": "two\nlines"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no examples; write a line with the fields' names"),
        ("name,text\n", "the file has no examples"),
        ("name,text\na,b\na\n", "rows.CSV:3: not 2 fields"),
        ("name,text\na,b,c\n", "rows.CSV:2: not 2 fields"),
        ('name,text\na,"b" c\n', "rows.CSV:2: not valid CSV"),
        ('name,text\na,"b\n', "rows.CSV:2: not valid CSV"),
        (f"name,text\na,{'b' * 200_000}\n", "rows.CSV:2: not valid CSV: field larger than"),
    ],
)
def test_a_bad_csv_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_rows(write(tmp_path, text))
    assert message in str(refused.value)


def test_an_integer_of_a_csv_file(tmp_path: Path) -> None:
    """All that CSV has is text; JSON has integers, and a string is none."""
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n7 + 5, 12\n1 - 2,-1\n1 + 1,two\n")
    rows = read_rows(str(file))
    assert [field(row, "answer", int) for row in rows[:2]] == [12, -1]
    with pytest.raises(UsageError, match=r"rows\.csv:4: the field 'answer' must be an integer"):
        field(rows[2], "answer", int)
    with pytest.raises(UsageError, match="must be an integer without quotes, not a string"):
        field(("x:1", {"answer": "12"}), "answer", int)


def test_half_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "a"}\n{"question": "\\ud800"}\n')
    with pytest.raises(UsageError, match=r"data\.jsonl:2: .*no UTF-8 text"):
        read_rows(str(file))


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "a", "question": "b"}\n')
    with pytest.raises(UsageError, match=r"data\.jsonl:1: not valid JSON: the key 'question' is there twice"):
        read_rows(str(file))


def test_a_million_rows_are_refused_soon(tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text("a\n" * 1_000_000)
    with pytest.raises(UsageError, match=r"data\.txt: more than 200,000 examples; split the file"):
        read_rows(str(file))


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_only_a_regular_file_is_opened(tmp_path: Path, name: str) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="no regular file"):
        read_rows(str(tmp_path / name))
