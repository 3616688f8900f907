"""Rows of a user's text, JSON, JSONL or CSV file, or of a data set on the Hugging Face hub, each with the place to name
in an error. Neither is trusted.

A data set is written `hub:OWNER/NAME`, with its configuration, split and the column to read as `text` where they
matter: `hub:openai/gsm8k?config=main&split=test`. It is streamed: only the rows that are looked at are fetched. Data is
read, never run: a data set that brings a program of its own is refused by `datasets` itself.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from latent_cot import disk
from latent_cot.types import Example, UsageError, first_line

MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_CHARACTERS = 10_000
MAX_ROWS = 200_000
"""Of a file: a million examples would be read for minutes, and are more than any run draws."""
HUB = "hub:"
MAX_HUB_ROWS = 100_000
"""Rows looked at in a data set of the hub."""

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`"hw.jsonl:3"` or `"hw.json, item 3"`) and its fields."""


def read_rows(source: str) -> list[Row]:
    """The rows of a source.

    * A data set of the hub: its first `MAX_HUB_ROWS` rows.
    * A `.csv` file: its first line names the fields, which are all text.
    * A `.txt` file: each line has the one field `text`.
    * Any other file: one JSON list of objects or one object a line (the content tells which).

    Lines and items are counted from 1; empty lines are skipped. Raises UsageError for a file that is
    absent, empty, not UTF-8, too large (64 MiB, or 10,000 characters in a line of JSON or text) or not of this form.
    """
    if source.startswith(HUB):
        return list(_hub_rows(source))
    text = _read_text(source)
    if source.lower().endswith(".csv"):
        rows, form = _csv_rows(source, text), "a line with the fields' names, then one line for each"
    elif source.lower().endswith(".txt"):
        rows, form = ((f"{source}:{n}", {"text": line}) for n, line in _lines(source, text)), "one a line"
    else:
        rows, form = _json_rows(source, text), "one JSON object a line"
    found = list(islice(rows, MAX_ROWS + 1))
    if len(found) > MAX_ROWS:
        raise UsageError(f"{source}: more than {MAX_ROWS:,} examples; split the file")
    if not found:
        raise UsageError(f"{source}: the file has no examples; write {form}")
    return found


def examples_of(rows: Iterable[Row], build: Callable[[Row], Example]) -> list[Example]:
    """What `build` makes of each row, with the row's place as its `source`. A UsageError of `build` says the place."""
    examples = []
    for row in rows:
        where, _ = row
        try:
            example = build(row)
        except UsageError as error:
            raise UsageError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
        examples.append(replace(example, meta={"source": where, **example.meta}))
    return examples


def field(row: Row, name: str, kind: type, required: bool = True) -> Any:
    """The row's field `name`, an exact `kind` (so that `true` is no integer); None if optional and absent."""
    where, fields = row
    if name not in fields or (fields[name] is None and not required):
        if required:
            raise UsageError(f"{where}: the field {name!r} is missing; found: {', '.join(sorted(fields)) or 'none'}")
        return None
    value = fields[name]
    if kind is int and isinstance(fields, _CsvRow) and re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", value):
        value = int(value)  # all that CSV has is text
    if type(value) is not kind:
        wanted = {int: "an integer without quotes", str: "a string"}.get(kind, kind.__name__)
        raise UsageError(f"{where}: the field {name!r} must be {wanted}, not {_kind(value)}")
    return value


def shorten(text: str, limit: int = 80) -> str:
    """`repr(text)`, cut to about `limit` characters, for an error message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _hub_rows(source: str) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, query = source.removeprefix(HUB).partition("?")
    given = dict(parse_qsl(query))
    if not name or not given.keys() <= {"config", "split", "column"}:
        raise UsageError(f"{source}: write it as hub:OWNER/NAME?config=...&split=...&column=...")
    try:
        rows: Any = datasets.load_dataset(name, given.get("config"), split=given.get("split", "train"), streaming=True)
        for number, fields in enumerate(islice(rows, MAX_HUB_ROWS), start=1):
            short = {key: v[:MAX_LINE_CHARACTERS] if isinstance(v, str) else v for key, v in fields.items()}
            if "column" in given:
                short["text"] = short.get(given["column"])
            yield f"{source}, row {number}", short
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{source}: cannot be read from the hub: {first_line(error)}") from error


def _read_text(path: str) -> str:
    """A UTF-8 file of at most 64 MiB. Raises UsageError."""
    try:
        data = disk.read(disk.expanded(path), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{path}: cannot be read: {error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _lines(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not empty."""
    # Not splitlines: it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise UsageError(f"{path}:{number}: a line of more than {MAX_LINE_CHARACTERS:,} characters; shorten it")
        if line.strip():
            yield number, line


def _json_rows(path: str, text: str) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        items = ((f"{path}, item {n}", item) for n, item in enumerate(_parse(text, path, 1), start=1))
    else:
        items = ((f"{path}:{n}", _parse(line, path, n)) for n, line in _lines(path, text))
    for where, item in items:
        if not isinstance(item, dict):
            raise UsageError(f"{where}: expected a JSON object {{...}}, found {_kind(item)}")
        yield where, item


class _CsvRow(dict[str, Any]):
    """A row whose fields are all text, for want of anything else."""


def _csv_rows(path: str, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if None in fields or None in fields.values():  # DictReader's sign of too many, and of too few
                names = len(reader.fieldnames or ())
                raise UsageError(
                    f"{where}: not {names} fields, as the first line has; put text with a comma into quotes"
                )
            yield where, _CsvRow(fields)
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.reader.line_num}: not valid CSV: {error}") from None


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return disk.parse_json(text, path, first_line)
    except UsageError as error:
        raise UsageError(f"{error}; write one JSON object a line, or one JSON list of objects") from None


def _kind(value: Any) -> str:
    """What JSON calls a value's type, for an error message."""
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")
