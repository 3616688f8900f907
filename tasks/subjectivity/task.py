"""Is a sentence about a film objective or subjective? A reason, then the label."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from latent_cot.tasks.common import check_options, distinct, drop_seen
from latent_cot.tasks.files import Row, examples_of, field, read_rows, shorten, sources
from latent_cot.tasks.plain import draw, source_of_split
from latent_cot.types import DataRequest, Example, Task, TaskData, UsageError

LABELS = ("objective", "subjective")
"""By their number in the published files."""
OWN_SENTENCES = str(Path(__file__).with_name("sentences.jsonl"))
MAX_CHARACTERS = 2_000

_BEFORE = 'Classify this movie review as objective or subjective: "'
_AFTER = '" This review is'
_OWN_TRAINING = slice(12)
_OWN_VALIDATION = slice(12, 16)
_OWN_TEST = slice(16, None)


class Subjectivity(Task):
    """Does a sentence about a film tell its plot or an opinion of it? A short reason comes before the label."""

    name = "subjectivity"
    description = "is a sentence objective or subjective? A reason, then the label (section 4.3 of the paper)"
    stop = ","
    allowed_characters = string.ascii_letters + " '-"
    default_splits = ("test",)

    def load(self, request: DataRequest) -> TaskData:
        """`request.unlabelled` sentences of `request.train_file`, drawn at random with the seed; none is demonstrated.

        Validation sentences are drawn from what is left, of that file and of any that are named after it (separated
        by commas). Without a file there are the task's own few.
        """
        check_options(self.name, request.options, ())
        if request.train_file is None:
            own = self.read(OWN_SENTENCES)
            source = "The task's own sentences"
            rows = own[_OWN_TRAINING]
            rest = own[_OWN_VALIDATION]
        else:
            files = sources(request.train_file)
            rows, *others = map(self.read, files)
            source = files[0]
            rest = [example for of_file in (rows, *others) for example in of_file]
        each = partial(distinct, key=lambda example: example.question)
        pairs = draw(each(rows), request.unlabelled, f"pairs {request.seed}", f"--data.unlabelled: {source}")
        left, _ = drop_seen(rest, pairs)
        where = f"--data.validation: {request.train_file or source}"
        validation = draw(each(left), request.validation, f"validation {request.seed}", where)
        subjective = sum(example.answer == "subjective" for example in pairs)
        note = f"{source}: {len(pairs)} of {len(rows)} to train with, {subjective} of them subjective."
        return TaskData((), tuple(pairs), tuple(validation), (note,))

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`, of the task's own few sentences; or all of a file or a data set, by its name, in its order."""
        source = source_of_split(self, name, OWN_SENTENCES)
        found = self.read(source)
        return (found[_OWN_TEST] if source == OWN_SENTENCES else found)[:size]

    def read(self, path: str) -> list[Example]:
        """Rows of a file or of a hub's data set with a `text` and a `label`: 0 or `objective`, 1 or `subjective`."""
        return examples_of(read_rows(path), self._of_row)

    def example(self, question: str, answer: str | None = None) -> Example:
        """The sentence, or the whole prompt that holds it; the answer is a label."""
        sentence = question.strip().removeprefix(_BEFORE).removesuffix(_AFTER).strip()
        if not sentence or len(sentence) > MAX_CHARACTERS:
            raise UsageError(f"question {shorten(question)}: write a sentence of 1 to {MAX_CHARACTERS} characters")
        if answer is not None and answer not in LABELS:
            raise UsageError(
                f"question {shorten(question)}: the answer is {shorten(answer)}; write {' or '.join(LABELS)}"
            )
        y = None if answer is None else _text_of(answer)
        return Example(f"{_BEFORE}{sentence}{_AFTER}", y, None, answer, sentence)

    def posterior_prompt(self, example: Example) -> str:
        """Says the label first, then ends as X does."""
        if example.answer is None:
            raise UsageError(f"question {shorten(example.question)}: its label is needed to sample from q(Z | X, Y)")
        return f'Why is this movie review {example.answer}? "{example.question}{_AFTER}'

    def seed_prompt(self, example: Example) -> str:
        """The paper's "wishful" prompt: p goes on as if it had found the right label, and gives a reason."""
        return f"{example.x} {example.answer} because it is"

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        return {label: _text_of(label) for label in LABELS}

    def _of_row(self, row: Row) -> Example:
        text = field(row, "text", str)
        label = row[1].get("label")
        numbers = {str(number): name for number, name in enumerate(LABELS)}
        answer = numbers.get(str(label), str(label)) if type(label) in (int, str) else ""
        if answer not in LABELS:
            raise UsageError(f"the field 'label' must be 0 ({LABELS[0]}) or 1 ({LABELS[1]})")
        return self.example(text, answer)


def _text_of(label: str) -> str:
    return f", so it is {label}"
