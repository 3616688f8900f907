"""CSV files. Of JSON files `arithmetic/test_files.py` tries everything."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from latent_cot.tasks.files import Row, examples_of, field, is_source, read_rows
from latent_cot.types import Example, UsageError


def write(folder: Path, text: str) -> str:
    path = folder / "rows.CSV"
    path.write_bytes(text.encode())
    return str(path)


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffname,text\r\nana,"a ""b"", c"\r\n \r\nben,"two\nlines"\r\n')
    assert read_rows(path) == [
        (f"{path}:2", {"name": "ana", "text": 'a "b", c'}),
        (f"{path}:4", {"name": "ben", "text": "two\nlines"}),
    ]


def _example(row: Row) -> Example:
    return Example(row[1]["name"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no examples; write a line with the fields' names"),
        ("name,text\n", "the file has no examples"),
        ("name,text\na,b\na\n", "rows.CSV:3: its fields are 1, those of the first line 2"),
        ("name,text,name\na,b,c\n", "rows.CSV:1: two columns are called 'name'"),
        ("name,text\na,b,c\n", "rows.CSV:2: its fields are 3, those of the first line 2"),
        ('name,text\na,"b" c\n', "rows.CSV:2: not valid CSV"),
        ('name,text\na,"b\n', "rows.CSV:2: not valid CSV"),
        (f"name,text\na,{'b' * 200_000}\n", "rows.CSV:2: not valid CSV: field larger than"),
        ('name,"te"xt\na,b\nc,d\n', "rows.CSV:1: not valid CSV: ',' expected after '\"'; look at the quotes"),
        ('\n"name,text\na,b\n', "rows.CSV:2: not valid CSV"),
    ],
)
def test_a_bad_csv_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        examples_of(read_rows(write(tmp_path, text)), _example)
    assert message in str(refused.value)


def test_a_space_behind_each_comma_is_none_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path, 'name, text\nana, "a, b"\nben,  c \n')
    assert [row for _, row in read_rows(path)] == [{"name": "ana", "text": "a, b"}, {"name": "ben", "text": "c "}]
    path = write(tmp_path, "name,text\nana, 1 + 2 =\n")
    assert [row for _, row in read_rows(path)] == [{"name": "ana", "text": " 1 + 2 ="}], "as a chain begins"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04", "a spreadsheet or an archive; export it as CSV"),
        (b"\x1f\x8b\x08", "a compressed file; unpack it"),
        ("name,text".encode("utf-16"), "UTF-16 text; save the file as UTF-8"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_rows(str(tmp_path / "rows.csv"))


def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path: Path) -> None:
    skipped: list[str] = []
    path = write(tmp_path, 'name,text\na,b\nc,"d\ne,f\ng,"h"\ni,j\n')
    examples = examples_of(read_rows(path), _example, skipped)
    assert [example.x for example in examples] == ["a", "e", "g", "i"]
    assert len(skipped) == 1 and skipped[0].startswith(f"{path}:3: not valid CSV")
    names = [f"n{k}" for k in range(20_000)]
    start = time.process_time()
    bad: list[str] = []
    examples_of(read_rows(write(tmp_path, "name,text\n" + "".join(f'{name},"b" c\n' for name in names))), _example, bad)
    assert len(bad) == 20_000 and time.process_time() - start < 30


def test_a_blank_cell_is_no_field(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "name,rationale\na,\nb,  \nc,d\n"))
    assert [field(row, "rationale", str, required=False) for row in rows] == [None, None, "d"]
    assert field(rows[0], "rationale", str) == ""


def test_a_file_that_is_not_there_is_told_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "rows.parquet"):
        with pytest.raises(UsageError, match=f"{name}: no such file; check the path, which begins in {tmp_path}$"):
            read_rows(name)


def test_an_integer_of_a_csv_file(tmp_path: Path) -> None:
    """All that CSV has is text; JSON has integers, and a string is none."""
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n7 + 5, 12\n1 - 2,-1\n1 + 1,two\n")
    rows = read_rows(str(file))
    assert [field(row, "answer", int) for row in rows[:2]] == [12, -1]
    with pytest.raises(
        UsageError, match=r"rows\.csv:4: the field 'answer' must be a whole number like 1000, not 'two'"
    ):
        field(rows[2], "answer", int)
    with pytest.raises(UsageError, match="must be an integer without quotes, not a string"):
        field(("x:1", {"answer": "12"}), "answer", int)


def test_a_bad_first_line_is_not_left_out(tmp_path: Path) -> None:
    """The second line named the columns, and its row was lost."""
    with pytest.raises(UsageError, match=r"rows\.CSV:1: .*, which names the columns"):
        read_rows(write(tmp_path, 'name,"text" \na,b\n"c",d\n'))


def test_blank_lines_and_tabs_do_not_hide_what_divides_columns(tmp_path: Path) -> None:
    path = write(tmp_path, " \r\n\nname;text\na;1,5\n")
    assert read_rows(path) == [(f"{path}:4", {"name": "a", "text": "1,5"})]
    table = tmp_path / "rows.tsv"
    table.write_text("name, first, last\ttext\nann, b, c\td\n")
    assert read_rows(str(table)) == [(f"{table}:2", {"name, first, last": "ann, b, c", "text": "d"})]
    table.write_text("text\none, two\n")
    assert read_rows(str(table)) == [(f"{table}:2", {"text": "one, two"})]
    table.write_text("name,text\na,b\n")  # which is CSV by another name
    assert read_rows(str(table)) == [(f"{table}:2", {"name": "a", "text": "b"})]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_what_divides_the_columns_of_a_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path, delimiter.join(("name", "text")) + f"\na{delimiter}1,5\n")
    assert read_rows(path) == [(f"{path}:2", {"name": "a", "text": "1,5"})]


def test_every_bad_row_is_in_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'name,text\na,b\na\nc,\xff\n"a" b,c\nd,e\n')
    with pytest.raises(UsageError) as refused:
        examples_of(read_rows(str(path)), _example)
    first, second, third, count = str(refused.value).splitlines()
    assert first.startswith(f"{path}:3: its fields are ")
    assert second == f"{path}:4: not UTF-8 text; save the file as UTF-8"
    assert third.startswith(f"{path}:5: not valid CSV")
    assert count == "3 of 5 rows cannot be used"
    skipped: list[str] = []
    assert [example.x for example in examples_of(read_rows(str(path)), _example, skipped)] == ["a", "d"]
    assert skipped == [first, second, third]
    monkeypatch.setattr("latent_cot.tasks.files.MAX_LISTED", 2)
    with pytest.raises(UsageError, match="3 of 5 rows cannot be used, of which the first 2 are shown") as refused:
        examples_of(read_rows(str(path)), _example)
    assert third not in str(refused.value)


def test_rows_with_one_reason_are_one_line(tmp_path: Path) -> None:
    """It was the same line fifty times. A few are still told one by one, in the file's order."""

    def build(row: Row) -> Example:
        return Example(field(row, "text", str))

    lines = ["null", '{"x": 1}', "3", "3", *['{"x": 2}'] * 60, "[]", '{"text": "a"}']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError) as refused:
        examples_of(read_rows(str(path)), build, remedy="; leave them out")
    assert str(refused.value).replace(str(path), "").splitlines() == [
        ":1: expected a JSON object {...}, found null",
        ":2, 5, 6, 7 and 57 more: the field 'text' is missing; found: x",
        ":3: expected a JSON object {...}, found an integer",
        ":4: expected a JSON object {...}, found an integer",
        ":65: expected a JSON object {...}, found a list",
        "65 of 66 rows cannot be used; leave them out",
    ]
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UsageError, match=r"65 of 65 rows cannot be used$"):  # it would leave none
        examples_of(read_rows(str(path)), build, remedy="; leave them out")
    skipped: list[str] = []
    examples_of(read_rows(str(path)), build, skipped)
    assert len(skipped) == 65 and skipped[4].startswith(f"{path}:5: the field")


def test_nobody_takes_a_bad_row_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n")
    (row,) = read_rows(str(path))
    with pytest.raises(UsageError, match="not valid JSON"):
        row[1]["name"]
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: not valid JSON"):
        field(row, "name", str, required=False)


def test_half_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"name": "a"}\n{"name": "\\ud800"}\n')
    with pytest.raises(UsageError, match=r"data\.jsonl:2: .*no UTF-8 text"):
        examples_of(read_rows(str(file)), _example)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "a", "question": "b"}\n')
    with pytest.raises(UsageError, match=r"data\.jsonl:1: not valid JSON: the key 'question' is there twice"):
        examples_of(read_rows(str(file)), _example)


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


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("a.jsonl", "a.b", "rows/", "rows/?split=test", "a.parquet?split=test", "../a")),
        *((name, True) for name in ("hub:owner/name", "hub:owner/name?split=test", "k=3.jsonl", "k=3/rows")),
        *((name, False) for name in ("test", "3-operands", "operands=3..5", "operands=3..x", "k=1.5", "rows")),
    ],
)
def test_which_names_are_of_sources(name: str, is_one: bool) -> None:
    assert is_source(name) is is_one
