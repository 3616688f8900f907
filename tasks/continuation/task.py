"""The continuation task: what `latent_cot.types.Task` and `MeasuredTask` ask for.

X is the beginning of a text, Z the next sentence without its full stop, and Y the full stop, which is also the stop:
the reward is p(Z . | X), tempered by `e_step.final_reward_temperature`. Sampling in proportion to p(Z . | X)^(1/T) is
not what sampling each token at temperature T does: a likely sentence may begin with an unlikely word.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from latent_cot.tasks import embeddings, sources
from latent_cot.tasks.common import check_options
from latent_cot.tasks.continuation import metrics, prompts
from latent_cot.tasks.plain import PlainMeasuredTask
from latent_cot.types import DataRequest, Example, Measured, Metric, TaskData, UsageError, did_you_mean

ABBREVIATIONS = frozenset(
    ("Mr", "Mrs", "Ms", "Dr", "St", "Sen", "Rep", "Gov", "Gen", "Prof", "Jr", "Sr", "Inc", "Ltd", "Co", "Corp", "No")
)


class Continuation(PlainMeasuredTask):
    """The next sentence of a text."""

    name = "continuation"
    description = "the next sentence of a text, likely and diverse (section 4.1 of the paper)"
    stop: str | None = "."
    # No full stop, question or exclamation mark inside: they end a sentence. No quotation mark, bracket, newline or
    # slash (a URL's), as in the paper's list of tokens.
    allowed_characters: str | None = string.ascii_letters + string.digits + " ,'-"
    default_splits: tuple[str, ...] = ("test",)
    metrics: Mapping[str, Metric] = metrics.METRICS
    samples: int = 10
    scored: bool = True

    def allows(self, piece: str) -> bool:
        """Not what makes a full stop likely that ends no sentence: a single capital (`U.`), an abbreviation (`Mr.`)."""
        word = piece.strip()
        return not (len(word) == 1 and word.isupper() and word not in "AI") and word not in ABBREVIATIONS

    def load(self, request: DataRequest) -> TaskData:
        """Prompts of `request.train_file`, a file or a data set of the hub, or the task's own few.

        Raises UsageError for a bad source, for one with too few prompts, and at once, rather than after the training,
        if the embeddings that `measure` needs are not installed.
        """
        embeddings.require()
        check_options(self.name, request.options, ())
        source, seed = request.train_file or prompts.OWN, request.seed
        found = prompts.read(source)
        train, held_out = prompts.share(found, "train"), prompts.share(found, "validation")
        pairs = prompts.draw(train, request.unlabelled, f"train {seed}", f"--data.unlabelled: {source}")
        validation = prompts.draw(held_out, request.validation, f"validation {seed}", f"--data.validation: {source}")
        note = f"{source}: {len(train)} prompts to train with, {len(held_out)} for validation, the others for tests."
        return TaskData((), tuple(pairs), tuple(validation), (note,))

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`, of the task's own few prompts; or the test share of a source, by its name."""
        if name not in self.default_splits and not (Path(name).suffix or name.startswith(sources.HUB)):
            raise UsageError(
                f"continuation has no test split {name!r}.{did_you_mean(name, self.default_splits)} It is `test`, or a "
                "file of prompts such as prompts.txt"
            )
        found = prompts.share(prompts.read(prompts.OWN if name in self.default_splits else name), "test")[:size]
        if not found:
            raise UsageError(f"{name}: none of its prompts is one for tests; give a larger file, or eval --data {name}")
        return found

    def read(self, path: str) -> list[Example]:
        """All prompts of a file, whichever share they are in."""
        return prompts.read(path)

    def example(self, question: str, answer: str | None = None) -> Example:
        """The question is the prompt; there is no answer to give."""
        return prompts.build(question)

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        return metrics.measure(questions)


TASK = Continuation()
