"""Five-sentence stories as examples: from a file, and from what a user types."""

from __future__ import annotations

import string
from typing import NamedTuple

from latent_cot.tasks import files
from latent_cot.tasks.common import share_of
from latent_cot.types import Example, UsageError

SENTENCES = tuple(f"sentence{i}" for i in range(1, 6))
"""The columns of a table of stories, as ROCStories has them."""

CHARACTERS = string.ascii_letters + string.digits + " ,;:'-$%&/()"
"""Of a middle sentence before its full stop. No full stop, exclamation or question mark, for these end a sentence; no
quotation mark, for it may open what the next sentence closes; no newline."""

MIN_WORDS = 4
"""Of a middle sentence, and so of its tokens at least: the presets let no chain be shorter."""

MAX_CHARACTERS = 2_000
"""Of a beginning, a middle or an ending."""


class Shares(NamedTuple):
    """The stories of a file, each in one share for good, in the file's order."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    left_out: int
    """Stories whose middle no chain can be, and those that begin as an earlier one does."""


def shares_of(path: str) -> Shares:
    """A hash of a story's beginning decides on its share. Raises UsageError naming file and row."""
    found = read(path)
    usable: dict[str, Example] = {}
    for example in filter(can_be_written, found):
        usable.setdefault(example.question, example)
    train, validation, test = (
        [example for question, example in usable.items() if share_of(question) == share]
        for share in ("train", "validation", "test")
    )
    return Shares(train, validation, test, len(found) - len(usable))


def read(path: str) -> list[Example]:
    """Every story of a CSV, JSON or JSONL file with the columns `sentence1` to `sentence5`.

    Raises UsageError naming file and row.
    """
    examples = []
    for row in files.read_rows(path):
        first, second, third, middle, last = (files.field(row, name, str) for name in SENTENCES)
        try:
            examples.append(build(f"{first} {second} {third}", middle, last, row[0]))
        except UsageError as error:
            raise UsageError(f"{row[0]}: {error}") from None
    return examples


def build(beginning: str, middle: str | None = None, ending: str | None = None, source: str | None = None) -> Example:
    """The example of a story's parts. The stop, which is the middle's full stop, opens Y.

    Raises UsageError for a part that is empty or too long.
    """
    beginning = _part(beginning, "the beginning")
    ending = None if ending is None else _part(ending, "the ending")
    return Example(
        x=beginning,
        y=None if ending is None else f". {ending}",
        z=None if middle is None else f" {_part(middle, 'the middle').removesuffix('.')}",
        answer=ending,
        question=beginning,
        meta={} if source is None else {"source": source},
    )


def can_be_written(example: Example) -> bool:
    """Can a chain be the middle: one sentence of some words that ends with a full stop?"""
    return example.z is not None and set(example.z) <= set(CHARACTERS) and len(example.z.split()) >= MIN_WORDS


def _part(text: str, name: str) -> str:
    """On one line, with single spaces."""
    part = " ".join(text.split())
    if not part:
        raise UsageError(f"{name} is empty")
    if len(part) > MAX_CHARACTERS:
        raise UsageError(
            f"{name} {files.shorten(part)} has more than {MAX_CHARACTERS:,} characters; shorten it, or leave it out"
        )
    return part
