"""A uniform random number, by a reward of its own."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latent_cot.tasks.common import check_options
from latent_cot.tasks.files import examples_of, field, read_rows, shorten
from latent_cot.tasks.random_numbers import figures
from latent_cot.types import DataRequest, Example, Measured, Task, TaskData, UsageError

MOST_NUMBERS = 10_000
"""Between the bounds: each is scored by itself in tests."""

_BOUNDS = re.compile(rf"(-?[0-9]{{1,{figures.MOST_DIGITS}}})\.\.(-?[0-9]{{1,{figures.MOST_DIGITS}}})")
_PROMPT = "The following is a random integer drawn uniformly between {low} and {high}:"
_PROMPT_PATTERN = re.compile(_PROMPT.format(low=r"(-?[0-9]{1,18})", high=r"(-?[0-9]{1,18})"))


class RandomNumbers(Task):
    """A rationale is a number between two bounds. All are worth the same, and nothing else is worth anything."""

    name = "random_numbers"
    description = "a uniform integer from 0 to 100, by a reward of its own (section 2 of the paper)"
    default_splits = ("0..100",)
    metrics = figures.METRICS
    samples = 100_000
    one_question = True

    def load(self, request: DataRequest) -> TaskData:
        """The one question there is, its bounds the option `numbers` (`"0..100"`). Demonstrations and validation
        examples have a number each: all numbers once in random order, then all once more, and so on. So each number
        comes equally often, or once more where the count is no multiple of how many there are."""
        check_options(self.name, request.options, ("numbers",))
        if request.train_file is not None:
            raise UsageError(
                f"--data.train-file {request.train_file}: random_numbers makes its examples itself; leave it out"
            )
        question = self.example(request.options.get("numbers", self.default_splits[0]))
        low, high = question.meta["low"], question.meta["high"]
        rng = random.Random(f"random numbers {request.seed}")

        def dealt(n: int) -> tuple[Example, ...]:
            numbers: list[int] = []
            while len(numbers) < n:
                numbers += rng.sample(range(low, high + 1), high - low + 1)
            return tuple(replace(question, z=f" {number}") for number in numbers[:n])

        return TaskData(
            demonstrations=dealt(request.demonstrations),
            unlabelled=(question,) * min(1, request.unlabelled),
            validation=dealt(request.validation),
            notes=(
                f"One question, {question.question}; each number is demonstrated equally often, in an order of "
                f"seed={request.seed}.",
            ),
        )

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """The bounds are the name: `"0..100"`. A split is one question."""
        try:
            return [self.example(name)][:size]
        except UsageError as error:
            raise UsageError(
                f"random_numbers has no test split {name!r}; a split is named by its bounds, e.g. "
                f"{self.default_splits[0]} ({error})"
            ) from None

    def read(self, path: str) -> list[Example]:
        """JSONL with the bounds as `question`: `{"question": "0..100"}`."""
        return examples_of(read_rows(path), lambda row: self.example(field(row, "question", str)))

    def example(self, question: str, answer: str | None = None) -> Example:
        """`"0..100"`, or the whole prompt. There is no answer."""
        found = _BOUNDS.fullmatch(question.strip()) or _PROMPT_PATTERN.fullmatch(question.strip())
        if found is None:
            raise UsageError(f"question {shorten(question)}: give the bounds, e.g. 0..100")
        if answer is not None:
            raise UsageError(f"answer {shorten(answer)}: a random number has none; leave it out")
        low, high = int(found[1]), int(found[2])
        if not 0 < high - low < MOST_NUMBERS:
            raise UsageError(
                f"question {shorten(question)}: the second bound must be above the first, by less than {MOST_NUMBERS:,}"
            )
        return Example(_PROMPT.format(low=low, high=high), question=f"{low}..{high}", meta={"low": low, "high": high})

    def log_reward(self, example: Example, text: str) -> float:
        """log 1 of a space and a number between the bounds, log 0 of anything else."""
        number = figures.read(text, example.meta["low"], example.meta["high"])
        return -math.inf if number is None else 0.0

    def texts(self, example: Example) -> Sequence[str]:
        """Each of the numbers."""
        return [f" {number}" for number in range(example.meta["low"], example.meta["high"] + 1)]

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        return figures.measure(questions)
