"""Rows of a user's text, JSON, JSONL, CSV or Parquet file, of a folder of such files, or of a data set on the Hugging
Face hub, each with the place to name in an error. None is trusted.

A data set is written `hub:OWNER/NAME`, with its configuration, split and the column to read as `text` where they
matter: `hub:openai/gsm8k?config=main&split=test`; so is a folder, `rows/?split=test`. Parquet and the hub are read by
`datasets`, row by row: only the rows that are looked at are fetched. Data is read, never run: a data set that brings a
program of its own is refused by `datasets` itself. The other files are read here, those of a folder too: `datasets`
stops at the first bad row of a text file, does not say in which line it is, and makes numbers and nulls of text.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from string import digits
from typing import Any
from urllib.parse import parse_qsl

from latent_cot import disk
from latent_cot.types import CodeError, Example, UsageError, first_line

MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_CHARACTERS = 10_000
MAX_ROWS = 200_000
"""Of a file: a million examples would be read for minutes, and are more than any run draws."""
HUB = "hub:"
MAX_HUB_ROWS = 100_000
"""Rows looked at in a data set of the hub."""

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
"""How the names of files end; others are read as JSON."""
_TEXTS = {".csv", ".tsv", ".json", ".jsonl", ".ndjson"}
"""How those of a folder's files end that are read here."""

MAX_LISTED = 50
"""Lines in one error."""
MIN_ALIKE = 4
"""Bad rows for one reason that are told in one line: so many, or more."""
MAX_NAMED = 4
"""Rows that such a line names."""

_NOT_UTF_8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of such bytes."""

Row = tuple[str, dict[str, Any]]
"""Where the row stands (`"hw.jsonl:3"` or `"hw.json, item 3"`) and its fields; a `BadRow` has none."""


class BadRow(dict[str, Any]):
    """A row that cannot be read. It is kept, so that one error can list all of them: whoever asks for a field of it
    by `field` or `[]` is told the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __missing__(self, _: str) -> Any:
        raise UsageError(self.reason)


class BadValue(UsageError):
    """What is wrong with one row's value.

    Args:
        kind: what is wrong, whichever the value.
        remedy: what to do where that is wrong with most rows.
    """

    def __init__(self, message: str, kind: str, remedy: str) -> None:
        super().__init__(message)
        self.kind, self.remedy = kind, remedy


def read_rows(source: str) -> list[Row]:
    """The rows of a source.

    * A data set of the hub, a `.parquet` file, a folder of these: the first `MAX_HUB_ROWS` rows.
    * Another folder: those of its CSV and JSON files, each as by its own name, sorted by their names.
    * A `.csv` or `.tsv` file: its first line names the fields, which are all text, and shows what divides them.
    * A `.txt` file: each line has the one field `text`.
    * Any other file: one JSON list of objects or one object a line (the content tells which).

    Lines and items are counted from 1; empty lines are skipped. What is not of this form, not UTF-8, or a line of text
    or of JSON of more than 10,000 characters is a `BadRow`. Raises UsageError for a file that is absent, empty or too
    large (64 MiB), for a CSV file whose first line cannot be read, and for a folder of both text and Parquet files.
    """
    name = source.partition("?")[0].lower()
    if source.startswith(HUB) or name.endswith(".parquet") or disk.expanded(source.partition("?")[0]).is_dir():
        return list(_dataset_rows(source))
    text = _read_text(source)
    if name.endswith((".csv", ".tsv")):
        rows = _csv_rows(source, text)
        form = "a line with the fields' names, then one line for each"
    elif name.endswith(".txt"):
        rows, form = _lines(source, text, lambda line: {"text": line}), "one a line"
    else:
        rows, form = _json_rows(source, text), "one JSON object a line"
    found = list(islice(rows, MAX_ROWS + 1))
    if len(found) > MAX_ROWS:
        raise UsageError(f"{source}: more than {MAX_ROWS:,} examples; split the file")
    if not found:
        raise UsageError(f"{source}: the file has no examples; write {form}")
    return found


def examples_of(
    rows: Iterable[Row], build: Callable[[Row], Example], skipped: list[str] | None = None, *, remedy: str = ""
) -> list[Example]:
    """What `build` makes of each row, with the row's place as its `source`.

    Raises UsageError, one for all rows that cannot be read or that `build` raises it for: a line each with the place
    and the reason, or one for all with the same reason, then their number and the `remedy`, unless it would leave no
    row; CodeError at once. Where `skipped` is given, a line for each is added to it instead.
    """
    examples, bad, total = [], list[tuple[str, UsageError]](), 0
    for where, fields in rows:
        total += 1
        try:
            if isinstance(fields, BadRow):
                raise UsageError(fields.reason)
            example = build((where, fields))
        except CodeError as error:
            raise CodeError(f"{where}: {error}") from error
        except UsageError as error:
            bad.append((where, error))
        else:
            examples.append(replace(example, meta={"source": where, **example.meta}))
    if skipped is not None:
        skipped += [f"{where}: {_reason(where, error)}" for where, error in bad]
    elif bad:
        lines = _by_reason(bad)
        if len(bad) > 1:
            others = f", of which the first {MAX_LISTED} are shown" if len(lines) > MAX_LISTED else ""
            remedy = _remedy_of_most(bad, total) or (remedy if len(bad) < total else "")
            lines = [*lines[:MAX_LISTED], f"{len(bad)} of {total} rows cannot be used{others}{remedy}"]
        raise UsageError("\n".join(lines))
    return examples


def _reason(where: str, error: UsageError) -> str:
    return str(error).removeprefix(f"{where}: ")


def _by_reason(bad: Sequence[tuple[str, UsageError]]) -> list[str]:
    """A line for each row, or one for many of a source with the same reason, where the first of them stands."""
    alike = defaultdict[tuple[str, str], list[int]](list)
    for k, (where, error) in enumerate(bad):
        kind = error.kind if isinstance(error, BadValue) else _reason(where, error)
        alike[where.rstrip(digits), kind].append(k)
    lines: dict[int, str] = {}
    for (source, _), same in alike.items():
        if len(same) < MIN_ALIKE:
            lines |= {k: f"{bad[k][0]}: {_reason(*bad[k])}" for k in same}
        else:
            named = ", ".join(bad[k][0].removeprefix(source) for k in same[:MAX_NAMED])
            others = f" and {len(same) - MAX_NAMED} more" if len(same) > MAX_NAMED else ""
            lines[same[0]] = f"{source}{named}{others}: {_reason(*bad[same[0]])}"
    return [lines[k] for k in sorted(lines)]


def _remedy_of_most(bad: Sequence[tuple[str, UsageError]], total: int) -> str:
    """That of the one thing that is wrong with more than half of all rows, if there is one."""
    kinds = Counter((error.kind, error.remedy) for _, error in bad if isinstance(error, BadValue))
    return next((remedy for (_, remedy), count in kinds.most_common(1) if 2 * count > total), "")


def field(row: Row, name: str, kind: type, required: bool = True) -> Any:
    """The row's field `name`, an exact `kind` (so that `true` is no integer); None if optional and absent, as a blank
    cell of a table is."""
    where, fields = row
    if isinstance(fields, BadRow):
        raise UsageError(f"{where}: {fields.reason}")
    value: Any = fields.get(name)
    if not required and (value is None or (isinstance(fields, CsvRow) and not value.strip())):
        return None
    if name not in fields:
        raise UsageError(f"{where}: the field {name!r} is missing; found: {', '.join(sorted(fields)) or 'none'}")
    if kind is int and isinstance(fields, CsvRow):  # all that CSV has is text
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", value):
            raise UsageError(f"{where}: the field {name!r} must be a whole number like 1000, not {shorten(value)}")
        value = int(value)
    if type(value) is not kind:
        wanted = {int: "an integer without quotes", str: "a string"}.get(kind, kind.__name__)
        raise UsageError(f"{where}: the field {name!r} must be {wanted}, not {kind_of(value)}")
    return value


def sources(text: str) -> list[str]:
    """The files and data sets that a text names, with commas between them; a file's own name may have one, too."""
    return [text] if os.path.isfile(os.path.expanduser(text)) else [name.strip() for name in text.split(",")]


def is_source(split: str) -> bool:
    """Whether a split's name is that of a file, a folder or a data set: `a.jsonl`, `rows/`, `hub:OWNER/NAME`, but
    neither `test` nor `operands=3..10`."""
    name = split.partition("?")[0]
    ending = Path(name).suffix.lower()
    return split.startswith(HUB) or "/" in name or (ending in ENDINGS if "=" in name else ending != "")


def in_full(name: str, folder: Path | None = None) -> str:
    """`FILE`, `FILE.py:NAME` or `FOLDER?split=...` with its whole path, if there is such a file; another name as it is.
    With a `folder` all names but those on the hub are of files there, whether they exist or not."""
    found = re.fullmatch(r"(.*?\.py(?=:|$)|[^?]*)(.*)", name, re.DOTALL)
    if not found or not found[1] or name.startswith(HUB):
        return name
    path = (folder or Path()).absolute() / disk.expanded(found[1])
    return f"{path}{found[2]}" if folder or path.exists() else name


def _no_such_file(name: str) -> UsageError:
    begins = "" if disk.expanded(name).is_absolute() else f", which begins in {Path().absolute()}"
    return UsageError(f"{name}: no such file; check the path{begins}")


def shorten(text: str, limit: int = 80) -> str:
    """`repr(text)`, cut to about `limit` characters, for an error message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _dataset_rows(source: str) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, query = source.removeprefix(HUB).partition("?")
    given = dict(parse_qsl(query))
    on_hub = source.startswith(HUB)
    if not name or not given.keys() <= {"config", "split", "column"}:
        raise UsageError(f"{source}: write it as hub:OWNER/NAME?config=...&split=...&column=...")
    config = given.get("config")
    split = given.get("split", "train")
    column = given.get("column")
    path = disk.expanded(name)
    if not on_hub and not path.exists():
        raise _no_such_file(name)
    try:
        if not on_hub and path.is_dir() and (files := _text_files(source, path, config, split)):
            yield from _folder_rows(source, files, column)
            return
        if on_hub or path.is_dir():
            rows: Any = datasets.load_dataset(name if on_hub else str(path), config, split=split, streaming=True)
        else:
            rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, fields in enumerate(islice(rows, MAX_HUB_ROWS), start=1):
            if column is not None and column not in fields:
                raise UsageError(f"{source}: there is no column {column!r}; there are {', '.join(fields)}")
            # One more: whoever bounds a text's length will see that it is longer.
            short = {k: v[: MAX_LINE_CHARACTERS + 1] if isinstance(v, str) else v for k, v in fields.items()}
            if column is not None:
                short["text"] = short[column]
            yield f"{source}, row {number}", short
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        place = "from the hub" if on_hub else "by datasets"
        raise UsageError(f"{source}: cannot be read {place}: {first_line(error)}") from error


def _text_files(source: str, folder: Path, config: str | None, split: str) -> list[str]:
    """The CSV and JSON files of a folder's split, sorted; none where it has no such file in any split.

    Raises UsageError for a folder that has Parquet files too, or another split only, and what `datasets` raises.
    """
    found = _files_by_split(folder, config)
    every = [Path(file) for files in found.values() for file in files]
    if not any(file.suffix.lower() in _TEXTS for file in every):
        return []
    if binary := next((file for file in every if file.suffix.lower() == ".parquet"), None):
        raise UsageError(f"{source}: it has text files and Parquet files, such as {binary.name}; name those to read")
    if split not in found:
        raise UsageError(f"{source}: there is no split {split!r}; there are {', '.join(found)}")
    named = source.partition("?")[0]
    paths = (os.path.join(named, os.path.relpath(file, folder.resolve())) for file in set(found[split]))
    # One that is compressed is among them, to be refused: left out, nobody would miss its rows.
    return sorted(file for file in paths if _TEXTS & {ending.lower() for ending in Path(file).suffixes})


def _files_by_split(folder: Path, config: str | None) -> Mapping[str, Sequence[str]]:
    """The whole paths of a folder's files, as `datasets` finds them: as its README says, else by their names."""
    from datasets import load_dataset_builder
    from datasets.data_files import get_data_patterns, resolve_pattern

    readme = folder / "README.md"
    text = disk.read(readme, MAX_FILE_BYTES).decode(errors="replace") if readme.is_file() else ""
    told = text.startswith("---") and re.search("^configs:", text.partition("\n---")[0], re.MULTILINE)
    if config is not None or told or (folder / ".huggingface.yaml").is_file():
        found: Mapping[str, Sequence[str]] = load_dataset_builder(str(folder), config).config.data_files or {}
        return {str(split): files for split, files in found.items()}
    base, by_name = folder.resolve().as_posix(), defaultdict[str, list[str]](list)
    for split, patterns in get_data_patterns(base).items():
        for pattern in patterns:
            with suppress(FileNotFoundError):  # nothing is called so
                by_name[str(split)] += resolve_pattern(pattern, base)
    return by_name


def _folder_rows(source: str, files: Sequence[str], column: str | None) -> Iterator[Row]:
    """Those of each file, with the column to read as `text`."""
    total = 0
    for file in files:
        rows = read_rows(file)
        if (total := total + len(rows)) > MAX_ROWS:
            raise UsageError(f"{source}: more than {MAX_ROWS:,} examples; name fewer of its files")
        for where, fields in rows:
            if column is None or isinstance(fields, BadRow):
                yield where, fields
            elif column not in fields:
                yield where, BadRow(f"there is no column {column!r}; there are {', '.join(fields)}")
            else:
                fields["text"] = fields[column]
                yield where, fields


_NO_TEXT = {
    b"PK": ("a spreadsheet or an archive", "export it as CSV"),
    b"\x1f\x8b": ("a compressed file", "unpack it"),
    b"\xff\xfe": ("UTF-16 text", "save the file as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save the file as UTF-8"),
}
"""How a file begins that is no text in UTF-8 -> what it is, and what to do."""


def _read_text(path: str) -> str:
    """A file of at most 64 MiB, its bytes that are not UTF-8 as surrogates. Raises UsageError."""
    try:
        data = disk.read(disk.expanded(path), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{path}: cannot be read: {error}") from None
    for begins, (what, remedy) in _NO_TEXT.items():
        if data.startswith(begins):
            raise UsageError(f"{path}: {what}; {remedy}")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _checked(text: str, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What `parse` makes of a line, or why it cannot."""
    if len(text) > MAX_LINE_CHARACTERS:
        return BadRow(f"a line of more than {MAX_LINE_CHARACTERS:,} characters; shorten it")
    if _NOT_UTF_8.search(text):
        return BadRow("not UTF-8 text; save the file as UTF-8")
    try:
        return parse(text)
    except UsageError as error:
        return BadRow(str(error))


def _lines(path: str, text: str, parse: Callable[[str], dict[str, Any]]) -> Iterator[Row]:
    """A row for each line that is not empty."""
    # Not splitlines: it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _checked(line, parse)


def _json_rows(path: str, text: str) -> Iterator[Row]:
    if not text.lstrip().startswith("["):
        yield from _lines(path, text, lambda line: _object(_parse(line)))
        return
    if bad := _NOT_UTF_8.search(text):
        raise UsageError(f"{path}:{text.count(chr(10), 0, bad.start()) + 1}: not UTF-8 text; save the file as UTF-8")
    for number, item in enumerate(_parse(text, path, 1), start=1):
        yield f"{path}, item {number}", _object(item)


class CsvRow(dict[str, Any]):
    """A row whose fields are all text, for want of anything else."""


def _csv_rows(path: str, text: str) -> Iterator[Row]:
    lines, before = list(io.StringIO(text, newline="")), 0
    first = next(filter(str.strip, lines), "")
    tabs = path.lower().endswith(".tsv") and ("\t" in first or not re.search("[,;]", first))
    delimiter = "\t" if tabs else max(",;\t", key=first.count)  # spreadsheets write each of them
    spaced = f"{delimiter} " in first
    reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=spaced)
    names: list[str] = []
    while True:
        begins = before + reader.line_num + 1  # a field may have several lines
        where = f"{path}:{begins}"
        try:
            values = next(reader, None)
        except csv.Error as error:  # a quote that is not closed takes all lines behind it: on with the next
            if not names:
                why = f"not valid CSV: {error}; look at the quotes of this line, which names the columns"
                raise UsageError(f"{where}: {why}") from None
            rest = (lines[k] for k in range(begins, len(lines)))
            before, reader = begins, csv.reader(rest, strict=True, delimiter=delimiter, skipinitialspace=spaced)
            yield where, BadRow(f"not valid CSV: {error}; look at the quotes from here on")
            continue
        if values is None:
            return
        if not any(map(str.strip, values)):
            continue
        if not names:
            names = [name.strip() for name in values]
            if _NOT_UTF_8.search("".join(names)):
                raise UsageError(f"{where}: not UTF-8 text; save the file as UTF-8")
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise UsageError(f"{where}: two columns are called {repeated[0]!r}; rename one")
        elif _NOT_UTF_8.search("".join(values)):
            yield where, BadRow("not UTF-8 text; save the file as UTF-8")
        elif len(values) != len(names):
            quotes = f"put text with {delimiter!r} in it into quotes, and no space between {delimiter!r} and a quote"
            yield where, BadRow(f"its fields are {len(values)}, those of the first line {len(names)}; {quotes}")
        else:
            yield where, CsvRow(zip(names, values, strict=True))


def _parse(text: str, path: str = "", line: int | None = None) -> Any:
    try:
        return disk.parse_json(text, path, line)
    except UsageError as error:
        form = "write one JSON object a line, or one JSON list of objects"
        raise UsageError(f"{str(error).removeprefix(': ')}; {form}") from None


def _object(item: Any) -> dict[str, Any]:
    return item if isinstance(item, dict) else BadRow(f"expected a JSON object {{...}}, found {kind_of(item)}")


def kind_of(value: Any) -> str:
    """What JSON calls a value's type, for an error message."""
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")
