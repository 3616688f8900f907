"""CSV files. Of JSON files `arithmetic/test_files.py` tries everything."""

from __future__ import annotations

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
