"""Rows of text files and of data sets on the hub. JSON, JSONL and CSV are tested with `tasks.files`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latent_cot.tasks.files import hub_parameters, read_rows, read_texts
from latent_cot.types import UsageError


def test_a_text_file_has_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("One. \r\n\n  Two.\nDrei ü\u2028still three".encode())
    assert read_texts(str(path)) == [
        (f"{path}:1", "One."),
        (f"{path}:3", "Two."),
        (f"{path}:4", "Drei ü\u2028still three"),
    ]


def test_a_column_of_other_files(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text('id,text\n1,"Yes, it is."\n')
    assert read_texts(str(table)) == [(f"{table}:2", "Yes, it is.")]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": " Yes. "}\n{"text": 3}\n')
    assert read_rows(str(lines))[1] == (f"{lines}:2", {"text": 3})
    with pytest.raises(UsageError, match=r"a\.jsonl:2: the field 'text' must be"):
        read_texts(str(lines))


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"\n \n", "no examples"), (b"a\n\xff\n", ":2: not UTF-8"), (b"b\n" + b"a" * 10_001, ":2: a line of more")],
)
def test_bad_text_files(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=named) as refused:
        read_rows(str(path))
    assert str(path) in str(refused.value)


def test_how_a_data_set_is_written() -> None:
    assert hub_parameters("hub:a/b") == {"name": "a/b", "split": "train"}
    found = hub_parameters("hub:a/b?split=test&column=body&config=en")
    assert found == {"name": "a/b", "config": "en", "split": "test", "column": "body"}
    for text, named in [("hub:", "name a data set"), ("hub:a/b?splt=x", "'splt'.* Did you mean 'split'")]:
        with pytest.raises(UsageError, match=named):
            hub_parameters(text)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, **settings: Any) -> Any:
        asked.append((arguments, settings))
        rows = [{"body": f" Text {i}. " + "x" * (20_000 * (i == 1)), "n": i} for i in range(5)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = "hub:a/b?split=test&column=body"
    found = read_texts(source, limit=3)
    assert asked == [(("a/b", None), {"split": "test", "streaming": True})]
    assert [where for where, _ in found] == [f"{source}, row {i}" for i in (1, 2, 3)]
    assert found[0][1] == "Text 0."
    assert len(found[1][1]) <= 10_000
    with pytest.raises(UsageError, match=r"row 1: the field 'text' is missing; found: body, n"):
        read_texts("hub:a/b")


@pytest.mark.parametrize("error", [ValueError("no split"), ConnectionError("no\nnetwork"), FileNotFoundError()])
def test_a_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError, match="hub:a/b: cannot be read from the hub: ") as refused:
        read_rows("hub:a/b")
    assert "\n" not in str(refused.value)
