"""Rows of a user's JSON, JSONL or CSV file, each with the place to name in an error. The file is not trusted."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latent_cot.types import UsageError

MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_CHARACTERS = 10_000

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`"hw.jsonl:3"` or `"hw.json, item 3"`) and its fields."""


def read_rows(path: str) -> list[Row]:
    """The JSON objects of a file, one JSON list of them or one object a line (the content tells which); or the rows of
    a `.csv` file, whose first line names the fields and whose fields are all text.

    Lines and items are counted from 1; empty lines are skipped. Raises UsageError for a file that is
    absent, empty, not UTF-8, too large (64 MiB, or 10,000 characters in a line of JSON) or not of this form.
    """
    text = read_text(path)
    if path.lower().endswith(".csv"):
        rows, form = list(_records(path, text)), "a line with the fields' names, then one line for each"
    else:
        rows = list(_items(path, text) if text.lstrip().startswith("[") else _lines(path, text))
        form = "one JSON object a line"
    if not rows:
        raise UsageError(f"{path}: the file has no examples; write {form}")
    return rows


def shorten(text: str, limit: int = 80) -> str:
    """`repr(text)`, cut to about `limit` characters, for an error message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def read_text(path: str) -> str:
    """A UTF-8 file of at most 64 MiB. Raises UsageError."""
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise UsageError(f"{path}: a folder; name a .json, .jsonl or .csv file in it")
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB; split the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _items(path: str, text: str) -> Iterator[Row]:
    for number, item in enumerate(_parse(text, path, 1), start=1):
        yield _row(f"{path}, item {number}", item)


def _lines(path: str, text: str) -> Iterator[Row]:
    # Not splitlines: it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise UsageError(f"{path}:{number}: a line of more than {MAX_LINE_CHARACTERS:,} characters; shorten it")
        if line.strip():
            yield _row(f"{path}:{number}", _parse(line, path, number))


class _CsvRow(dict[str, Any]):
    """A row whose fields are all text, for want of anything else."""


def _records(path: str, text: str) -> Iterator[Row]:
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


def _row(where: str, item: Any) -> Row:
    if not isinstance(item, dict):
        raise UsageError(f"{where}: expected a JSON object {{...}}, found {_kind(item)}")
    return where, item


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        raise UsageError(
            f"{where}: not valid JSON: {error.msg} (column {error.colno}); "
            "write one JSON object a line, or one JSON list of objects"
        ) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets nested too deep
        raise UsageError(f"{path}:{first_line}: JSON with a number too long or brackets nested too deep") from None


def _kind(value: Any) -> str:
    """What JSON calls a value's type, for an error message."""
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")


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
