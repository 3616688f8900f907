"""Rows of text files and of data sets on the hub. JSON, JSONL and CSV are tested with `tasks.files`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latent_cot.tasks import files
from latent_cot.tasks.files import examples_of, field, read_rows
from latent_cot.types import Example, UsageError


def test_a_text_file_has_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("One. \r\n\n  Two.\nDrei ü\u2028still three".encode())
    assert read_rows(str(path)) == [
        (f"{path}:1", {"text": "One. \r"}),
        (f"{path}:3", {"text": "  Two."}),
        (f"{path}:4", {"text": "Drei ü\u2028still three"}),
    ]


def test_a_column_of_other_files(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text('id,text\n1,"Yes, it is."\n')
    assert [(where, row["text"]) for where, row in read_rows(str(table))] == [(f"{table}:2", "Yes, it is.")]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": " Yes. "}\n{"text": 3}\n')
    assert read_rows(str(lines))[1] == (f"{lines}:2", {"text": 3})
    with pytest.raises(UsageError, match=r"a\.jsonl:2: the field 'text' must be"):
        examples_of(read_rows(str(lines)), lambda row: Example(field(row, "text", str)))


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"\n \n", "no examples"), (b"a\n\xff\n", ":2: not UTF-8"), (b"b\n" + b"a" * 10_001, ":2: a line of more")],
)
def test_bad_text_files(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=named) as refused:
        examples_of(read_rows(str(path)), lambda row: Example(field(row, "text", str)))
    assert str(path) in str(refused.value)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, **settings: Any) -> Any:
        asked.append((arguments, settings))
        rows = [{"text": f"Text {i}. " + "x" * (20_000 * (i == 1)), "n": i} for i in range(5)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(files, "MAX_HUB_ROWS", 3)
    found = read_rows("hub:a/b?split=test")
    assert asked == [(("a/b", None), {"split": "test", "streaming": True})]
    assert [where for where, _ in found] == [f"hub:a/b?split=test, row {i}" for i in (1, 2, 3)]
    assert found[0][1] == {"text": "Text 0. ", "n": 0}
    assert len(found[1][1]["text"]) == 10_001, "one more than a text may have, for whoever bounds it"
    (_, (_, fields), _) = read_rows("hub:a/b?config=en&column=n")
    assert asked[-1] == (("a/b", "en"), {"split": "train", "streaming": True})
    assert fields["text"] == fields["n"] == 1
    with pytest.raises(UsageError, match="there is no column 'm'; there are text, n"):
        read_rows("hub:a/b?column=m")
    for source in ("hub:", "hub:a/b?splt=x"):
        with pytest.raises(UsageError, match=r"write it as hub:OWNER/NAME\?config="):
            read_rows(source)


@pytest.mark.parametrize("error", [ValueError("no split"), ConnectionError("no\nnetwork"), FileNotFoundError()])
def test_a_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError, match="hub:a/b: cannot be read from the hub: ") as refused:
        read_rows("hub:a/b")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["file.parquet", "folder", "folder?split=test"])
def test_parquet_files_and_folders(tmp_path: Path, form: str) -> None:
    import datasets

    rows = [{"text": f"Text {i}", "n": i, "of": {"more": [i]}} for i in range(3)]
    (tmp_path / "folder").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "file.parquet")
    (tmp_path / "folder" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder" / "test.jsonl").write_text(json.dumps(rows[2]) + "\n")
    source = f"{tmp_path}/{form}"
    found = read_rows(source)
    assert [fields for _, fields in found] == (rows[2:] if "test" in form else rows)
    places = {"folder": "folder/train.jsonl:1", "folder?split=test": "folder/test.jsonl:1"}
    assert found[0][0] == f"{tmp_path}/{places.get(form, f'{form}, row 1')}"


def test_a_file_is_read_alike_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    """`datasets` took the second half of a row for its question, `NA` for nothing and `007` for 7."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.csv").write_text("question,answer\nAnn has 2 pens, and buys 3 more. How many?,5\nx,NA\ny,007\n")
    named = read_rows(f"{folder}/b.csv")
    assert read_rows(str(folder)) == read_rows(f"{folder}/?split=train") == named
    with pytest.raises(UsageError, match=r"b\.csv:2: its fields are 3, those of the first line 2"):
        examples_of(read_rows(f"{folder}/"), lambda row: Example(field(row, "question", str)))
    assert isinstance(read_rows(f"{folder}/")[1][1], files.CsvRow)
    (folder / "c.jsonl").write_text('{"question": "z"}\n')
    (folder / "a.TSV").write_text("question\tanswer\nw\t1,5\n")
    (folder / "LICENSE").write_text("free")
    places = [Path(where).name for where, _ in read_rows(str(folder))]
    assert places == ["a.TSV:2", "b.csv:2", "b.csv:3", "b.csv:4", "c.jsonl:1"]
    as_text = [row for _, row in read_rows(f"{folder}?column=answer")]
    assert [row["text"] for row in (as_text[0], *as_text[2:4])] == ["1,5", "NA", "007"]
    with pytest.raises(UsageError, match="there is no column 'answer'; there are question"):
        as_text[4]["text"]
    with pytest.raises(UsageError, match=r"rows/\?split=test: there is no split 'test'; there are train"):
        read_rows(f"{folder}/?split=test")


def test_splits_of_a_folder_of_texts(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jsonl").write_text(json.dumps({"text": name}))
    (tmp_path / "test" / "1.csv").write_text("text\nmore\n")
    assert [row["text"] for _, row in read_rows(f"{tmp_path}/")] == ["train"]
    assert [row["text"] for _, row in read_rows(f"{tmp_path}/?split=test")] == ["test", "more"]
    data = "[{split: train, path: test/0.jsonl}, {split: test, path: train/0.jsonl}]"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {data}\n---\n")
    assert [row["text"] for _, row in read_rows(f"{tmp_path}/?split=test")] == ["train"]


def test_folders_whose_rows_would_be_missed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    datasets.Dataset.from_list([{"text": "c"}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"it has text files and Parquet files, such as b\.parquet; name those"):
        read_rows(f"{tmp_path}/")
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UsageError, match=r"b\.jsonl\.gz: a compressed file; unpack it"):
        read_rows(f"{tmp_path}/")
    (tmp_path / "b.jsonl.gz").rename(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "c"}\n{"text": "d"}\n')
    monkeypatch.setattr(files, "MAX_ROWS", 3)
    with pytest.raises(UsageError, match="more than 3 examples; name fewer of its files"):
        read_rows(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("none.parquet", "none.parquet: no such file"),
        ("bad.parquet", "bad.parquet: cannot be read by datasets: "),
        ("empty", "empty: cannot be read by datasets: "),
    ],
)
def test_bad_parquet_files_and_folders(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UsageError) as refused:
        read_rows(str(tmp_path / name))
    assert named in str(refused.value)
