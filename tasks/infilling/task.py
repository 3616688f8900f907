"""The infilling task: what `latent_cot.types.Task` and `MeasuredTask` ask for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from latent_cot.tasks.common import check_options
from latent_cot.tasks.files import shorten
from latent_cot.tasks.infilling import metrics, stories
from latent_cot.tasks.plain import PlainMeasuredTask
from latent_cot.types import DataRequest, Example, Measured, Metric, TaskData, UsageError, did_you_mean

OWN_STORIES = str(Path(__file__).with_name("stories.csv"))


class Infilling(PlainMeasuredTask):
    """The fourth of five sentences, between the first three and the last."""

    name = "infilling"
    description = "the missing sentence of a story, between its beginning and its ending (section 4.2 of the paper)"
    stop: str | None = "."
    allowed_characters: str | None = stories.CHARACTERS
    default_splits: tuple[str, ...] = ("test",)
    metrics: Mapping[str, Metric] = metrics.METRICS
    samples: int = 4
    scored: bool = True
    answer_given: bool = True

    def load(self, request: DataRequest) -> TaskData:
        """Stories of the training and validation shares of `request.train_file`, or of the task's own few.

        Raises UsageError for a bad file, for one with too few stories, and at once rather than after the training if a
        package is missing that `measure` needs.
        """
        metrics.require()
        check_options(self.name, request.options, ())
        source = request.train_file or OWN_STORIES
        shares = stories.shares_of(source)
        train = _draw(
            shares.train,
            request.demonstrations + request.unlabelled,
            f"train {request.seed}",
            f"--data.demonstrations and --data.unlabelled: {source}",
        )
        validation = _draw(
            shares.validation, request.validation, f"validation {request.seed}", f"--data.validation: {source}"
        )
        demonstrations, pairs = train[: request.demonstrations], train[request.demonstrations :]
        note = (
            f"{source}: {len(shares.train)} stories to train with, {len(shares.validation)} for validation and "
            f"{len(shares.test)} for tests; {shares.left_out} left out (the task's README says why)."
        )
        return TaskData(
            tuple(demonstrations), tuple(replace(example, z=None) for example in pairs), tuple(validation), (note,)
        )

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`, of the task's own few stories; or the test share of a file, by the file's name."""
        if name not in self.default_splits and not Path(name).suffix:
            raise UsageError(
                f"infilling has no test split {name!r}.{did_you_mean(name, self.default_splits)} It is `test`, or a "
                "file of stories such as stories.csv"
            )
        found = stories.shares_of(OWN_STORIES if name in self.default_splits else name).test[:size]
        if not found:
            raise UsageError(f"{name}: none of its stories is one for tests; give a larger file, or eval --data {name}")
        return found

    def read(self, path: str) -> list[Example]:
        """All stories of a file, whichever share they are in."""
        return stories.read(path)

    def example(self, question: str, answer: str | None = None) -> Example:
        """The beginning of a story is the question, its ending the answer."""
        try:
            return stories.build(question, ending=answer)
        except UsageError as error:
            raise UsageError(
                f"question {shorten(question)}: {error}; a story's beginning is the question, its ending the answer"
            ) from None

    def posterior_prompt(self, example: Example) -> str:
        """As in the paper's code."""
        if example.answer is None:
            raise UsageError(f"question {shorten(example.question)}: its ending is needed too; give it as the answer")
        return f"Beginning: {example.x}\nEnding: {example.answer}\nMiddle:"

    def grade(self, example: Example, answer: str | None) -> bool:
        """The ending itself only."""
        return answer is not None and answer == example.answer

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        return metrics.measure(questions)


def _draw(examples: Sequence[Example], number: int, seed: str, where: str) -> list[Example]:
    """So many of the examples, at random; a smaller number gives a beginning of a larger one.

    Raises UsageError if there are too few.
    """
    if not 0 <= number <= len(examples):
        raise UsageError(
            f"{where} has {len(examples)} stories for this, not {number}; ask for another number, or name a larger "
            "file with --data.train-file"
        )
    return random.Random(seed).sample(examples, len(examples))[:number]
