"""What a task is unless it says otherwise: base classes for those who want one. None of the toolkit asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from latent_cot.tasks.files import field, read_rows
from latent_cot.types import Example, Rationale, UsageError


class PlainTask:
    """A task whose answer is read off the rationale and is right if it is the gold answer to the letter.

    What is left to write: `name`, `description`, `default_splits`, `example`, `load`, `split` and `answer`
    (`latent_cot.types.Task` says what each of them is). Without a tool and a `step_delimiter` there are no steps: a run
    then needs `--rollout.granularity token`.
    """

    tools: tuple[str, ...] = ()
    stop: str | None = None
    allowed_characters: str | None = None
    step_delimiter: str | None = None

    @abstractmethod
    def example(self, question: str, answer: str | None = None) -> Example:
        """An example from what a user types."""

    def read(self, path: str) -> list[Example]:
        """From rows with a `question`, an `answer` (text or an integer) if `example` wants one, and perhaps a
        `rationale`."""
        found = []
        for row in read_rows(path):
            where, fields = row
            answer = fields.get("answer")
            if type(answer) is int:
                answer = str(answer)
            elif answer is not None:
                answer = field(row, "answer", str)
            question, rationale = field(row, "question", str), field(row, "rationale", str, required=False)
            try:
                example = self.example(question, answer)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
            example = example if rationale is None else replace(example, z=rationale)
            found.append(replace(example, meta={"source": where, **example.meta}))
        return found

    def posterior_prompt(self, example: Example) -> str:
        """The answer in plain words, then X."""
        return f"The answer is {example.answer}. {example.x}"

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        """None: the answer is read off the rationale."""
        return None

    def grade(self, example: Example, answer: str | None) -> bool:
        return answer is not None and answer == example.answer


class PlainMeasuredTask(PlainTask):
    """A task that has figures of its rationales instead of right answers, and no answer for q to see.

    What is left to write, beside `metrics`, `samples`, `scored` and `measure` (`latent_cot.types.MeasuredTask`):
    `name`, `description`, `default_splits`, `example`, `load` and `split`.
    """

    answer_given: bool = False

    def posterior_prompt(self, example: Example) -> str:
        """X: there is no answer to add."""
        return example.x

    def answer(self, rationale: Rationale) -> str | None:
        """None: a rationale is not right or wrong."""
        return None

    def grade(self, example: Example, answer: str | None) -> bool:
        """False: no answer is right."""
        return False
