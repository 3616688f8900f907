"""Story infilling: the fourth of five sentences, between the first three and the last."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from latent_cot.tasks.files import Row, examples_of, field, read_rows, shorten
from latent_cot.tasks.infilling import metrics
from latent_cot.tasks.plain import SourceTask
from latent_cot.types import Example, Measured, UsageError

SENTENCES = tuple(f"sentence{i}" for i in range(1, 6))
"""The columns of a table of stories, as ROCStories has them."""

CHARACTERS = string.ascii_letters + string.digits + " ,;:'-$%&/()"
"""Of a middle sentence before its full stop. No full stop, exclamation or question mark, for these end a sentence; no
quotation mark, for it may open what the next sentence closes; no newline."""

MIN_WORDS = 4
"""Of a middle sentence, and so of its tokens at least: the presets let no chain be shorter."""

MAX_CHARACTERS = 2_000
"""Of a beginning, a middle or an ending."""


class Infilling(SourceTask):
    """X is the beginning of a story, Z its middle without the full stop, which is the stop and opens Y, the ending."""

    name = "infilling"
    description = "the missing sentence of a story, between its beginning and its ending (section 4.2 of the paper)"
    own = str(Path(__file__).with_name("stories.csv"))
    demonstrated = True
    stop = "."
    allowed_characters = CHARACTERS
    default_splits = ("test",)
    metrics = metrics.METRICS
    samples = 4
    scored = True
    answer_given = True

    def require(self) -> None:
        metrics.require()

    def usable(self, examples: Sequence[Example]) -> list[Example]:
        """Those whose middle a chain can be, and that begin as no earlier one of them does."""
        return super().usable([example for example in examples if can_be_written(example)])

    def read(self, path: str) -> list[Example]:
        """All stories of a CSV, JSON or JSONL file with the columns `sentence1` to `sentence5`."""
        return examples_of(read_rows(path), _of_row)

    def example(self, question: str, answer: str | None = None) -> Example:
        """The beginning of a story is the question, its ending the answer."""
        try:
            return build(question, ending=answer)
        except UsageError as error:
            raise UsageError(
                f"question {shorten(question)}: {error}; a story's beginning is the question, its ending the answer"
            ) from None

    def posterior_prompt(self, example: Example) -> str:
        """As in the paper's code."""
        if example.answer is None:
            raise UsageError(f"question {shorten(example.question)}: its ending is needed too; give it as the answer")
        return f"Beginning: {example.x}\nEnding: {example.answer}\nMiddle:"

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        return metrics.measure(questions)


def build(beginning: str, middle: str | None = None, ending: str | None = None) -> Example:
    """The example of a story's parts. Raises UsageError for a part that is empty or too long."""
    beginning = _part(beginning, "the beginning")
    ending = None if ending is None else _part(ending, "the ending")
    return Example(
        x=beginning,
        y=None if ending is None else f". {ending}",
        z=None if middle is None else f" {_part(middle, 'the middle').removesuffix('.')}",
        answer=ending,
        question=beginning,
    )


def can_be_written(example: Example) -> bool:
    """Can a chain be the middle: one sentence of some words that ends with a full stop?"""
    return example.z is not None and set(example.z) <= set(CHARACTERS) and len(example.z.split()) >= MIN_WORDS


def _of_row(row: Row) -> Example:
    first, second, third, middle, last = (field(row, name, str) for name in SENTENCES)
    return build(f"{first} {second} {third}", middle, last)


def _part(text: str, name: str) -> str:
    """On one line, with single spaces."""
    part = " ".join(text.split())
    if not part:
        raise UsageError(f"{name} is empty")
    if len(part) > MAX_CHARACTERS:
        raise UsageError(f"{name} {shorten(part)} has more than {MAX_CHARACTERS:,} characters; shorten it")
    return part
