"""The subjectivity task: what `latent_cot.types.Task` and `SeedingTask` ask for."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from latent_cot.tasks.common import check_options, drop_seen
from latent_cot.tasks.files import Row, shorten
from latent_cot.tasks.sources import HUB, rows_of
from latent_cot.types import DataRequest, Example, Rationale, TaskData, UsageError, did_you_mean

LABELS = ("objective", "subjective")
"""By their number in the published files."""
OWN_SENTENCES = str(Path(__file__).with_name("sentences.jsonl"))
MAX_CHARACTERS = 2_000

_BEFORE = 'Classify this movie review as objective or subjective: "'
_AFTER = '" This review is'
_OWN_TRAINING, _OWN_VALIDATION, _OWN_TEST = slice(12), slice(12, 16), slice(16, None)


class Subjectivity:
    """Does a sentence about a film tell its plot or an opinion of it? A short reason comes before the label."""

    name = "subjectivity"
    description = "is a sentence objective or subjective? A reason, then the label (section 4.3 of the paper)"
    tools: tuple[str, ...] = ()
    stop: str | None = ","
    allowed_characters: str | None = string.ascii_letters + " '-"
    step_delimiter: str | None = None
    default_splits: tuple[str, ...] = ("test",)

    def load(self, request: DataRequest) -> TaskData:
        """`request.unlabelled` sentences of `request.train_file`, drawn at random with the seed; none is demonstrated.

        Validation sentences are drawn from what is left, of that file and of any that are named after it (separated
        by commas). Without a file there are the task's own few.
        """
        check_options(self.name, request.options, ())
        if request.train_file is None:
            own = self.read(OWN_SENTENCES)
            source, rows, rest = "The task's own sentences", own[_OWN_TRAINING], own[_OWN_VALIDATION]
        else:
            files = [name.strip() for name in request.train_file.split(",")]
            rows, *others = map(self.read, files)
            source, rest = files[0], [example for of_file in (rows, *others) for example in of_file]
        pairs = _draw(rows, request.unlabelled, f"pairs {request.seed}", f"--data.unlabelled: {source}")
        left, _ = drop_seen(rest, pairs)
        where = f"--data.validation: {request.train_file or source}"
        validation = _draw(left, request.validation, f"validation {request.seed}", where)
        subjective = sum(example.answer == "subjective" for example in pairs)
        note = f"{source}: {len(pairs)} of {len(rows)} to train with, {subjective} of them subjective."
        return TaskData((), tuple(pairs), tuple(validation), (note,))

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`, of the task's own few sentences; or all of a file or a data set, by its name, in its order."""
        if name in self.default_splits:
            return self.read(OWN_SENTENCES)[_OWN_TEST][:size]
        if not Path(name).suffix and not name.startswith(HUB):
            raise UsageError(
                f"subjectivity has no test split {name!r}.{did_you_mean(name, self.default_splits)} It is `test`, or a "
                "file of sentences such as test.jsonl, or hub:SetFit/subj?split=test"
            )
        return self.read(name)[:size]

    def read(self, path: str) -> list[Example]:
        """Rows of a file or of a hub's data set with a `text` and a `label`: 0 or `objective`, 1 or `subjective`."""
        return [self._example_of(row) for row in rows_of(path)]

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

    def answer(self, rationale: Rationale) -> str | None:
        """None: the label is not in the rationale, it is picked after it."""
        return None

    def grade(self, example: Example, answer: str | None) -> bool:
        return answer is not None and answer == example.answer

    def _example_of(self, row: Row) -> Example:
        where, fields = row
        text, label = fields.get("text"), fields.get("label")
        if not isinstance(text, str):
            raise UsageError(
                f"{where}: the field 'text' must be a sentence; found: {', '.join(sorted(fields)) or 'none'}"
            )
        numbers = {str(number): name for number, name in enumerate(LABELS)}
        answer = numbers.get(str(label), str(label)) if type(label) in (int, str) else ""
        if answer not in LABELS:
            raise UsageError(f"{where}: the field 'label' must be 0 ({LABELS[0]}) or 1 ({LABELS[1]})")
        try:
            return self.example(text, answer)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _text_of(label: str) -> str:
    return f", so it is {label}"


def _draw(examples: Sequence[Example], number: int, seed: str, where: str) -> list[Example]:
    """So many of the examples, at random, each sentence once; a smaller number gives a beginning of a larger one.

    Raises UsageError if there are too few.
    """
    distinct = list({example.question: example for example in examples}.values())
    if not 0 <= number <= len(distinct):
        raise UsageError(
            f"{where} has {len(distinct)} different sentences for this, not {number}; ask for another number, or name "
            "a larger file"
        )
    return random.Random(seed).sample(distinct, len(distinct))[:number]
