"""Rows from wherever a user's examples are: a text, JSON, JSONL or CSV file, or a data set on the Hugging Face hub.

A data set is written `hub:OWNER/NAME`, with its configuration, split and column where they matter:
`hub:Skylion007/openwebtext?split=train&column=text`. It is streamed: only the rows that are looked at are fetched. Data
is read, never run: a data set that brings a program of its own is refused by `datasets` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from latent_cot.tasks.files import MAX_LINE_CHARACTERS, Row, field, read_rows, read_text
from latent_cot.types import UsageError, did_you_mean

HUB = "hub:"
MAX_HUB_ROWS = 100_000
"""Rows looked at in a data set of the hub."""

_PARAMETERS = ("config", "split", "column")


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, as a user writes it."""

    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    """The column to read, for a reader that wants one."""

    @classmethod
    def parse(cls, source: str) -> HubSource:
        """From `hub:OWNER/NAME?split=train&column=text`. Raises UsageError."""
        name, _, query = source.removeprefix(HUB).partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        for key in parameters:
            if key not in _PARAMETERS:
                raise UsageError(
                    f"{source}: unknown parameter {key!r}.{did_you_mean(key, _PARAMETERS)} Write it as "
                    "hub:OWNER/NAME?config=...&split=...&column=..."
                )
        if not name:
            raise UsageError(f"{source}: name a data set, as in hub:OWNER/NAME")
        return cls(name, **parameters)


def rows_of(source: str, limit: int = MAX_HUB_ROWS) -> list[Row]:
    """The rows of a source, each with the place to name in an error; a line of a `.txt` file has the one field `text`.

    Args:
        limit: rows looked at in a data set of the hub; a file is bounded by its size.

    Raises UsageError, naming file and line, for whatever cannot be read.
    """
    if source.startswith(HUB):
        return list(_hub_rows(source, HubSource.parse(source), limit))
    return list(_text_rows(source)) if source.lower().endswith(".txt") else read_rows(source)


def texts_of(source: str, column: str = "text", limit: int = MAX_HUB_ROWS) -> list[tuple[str, str]]:
    """(place, text) of each row, the text without the white space around it.

    Args:
        column: the field with the text; that of a data set's `column=` goes before.

    Raises UsageError as `rows_of` does, and for a row without that field.
    """
    if source.startswith(HUB):
        column = HubSource.parse(source).column or column
    return [(row[0], field(row, column, str).strip()) for row in rows_of(source, limit)]


def _text_rows(path: str) -> Iterator[Row]:
    """The lines of a file that are not empty."""
    found = False
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise UsageError(f"{path}:{number}: a line of more than {MAX_LINE_CHARACTERS:,} characters; shorten it")
        if line.strip():
            found = True
            yield f"{path}:{number}", {"text": line}
    if not found:
        raise UsageError(f"{path}: the file has no examples; write one a line")


def _hub_rows(source: str, hub: HubSource, limit: int) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows: Any = datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True)
        for number, fields in enumerate(islice(rows, limit), start=1):
            for name, value in fields.items():
                if isinstance(value, str) and len(value) > MAX_LINE_CHARACTERS:
                    fields[name] = value[:MAX_LINE_CHARACTERS]
            yield f"{source}, row {number}", fields
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"{source}: cannot be read from the hub: {reason:.300}") from error
