"""Sums in words with a numeric answer: a calculator fills in each result."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from latent_cot.tasks.common import PORTABLE_LAST_RESULT, check_options, last_result
from latent_cot.tasks.files import Row, examples_of, field, read_rows, shorten, sources
from latent_cot.tasks.plain import drawn_data, prompt_words, source_of_split
from latent_cot.tasks.word_problems import working
from latent_cot.tasks.word_problems.mistakes import MISTAKES, classify
from latent_cot.tools.calculator import written
from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData, UsageError, did_you_mean

FORMS = ("equations", "words")
OWN_QUESTIONS = str(Path(__file__).with_name("questions.jsonl"))
MAX_CHARACTERS = 2_000

_N_OWN_TRAINING = 48
"""Of the task's own questions; the others, which are of other patterns, are the test split."""


class WordProblems(Task):
    """A sum in words; the rationale is equations or, in the other form, free text with equations in it."""

    name = "word_problems"
    description = "sums in words, step by step with a calculator"
    tools = ("calculator",)
    stop = "\n"
    default_splits = ("test",)
    mistakes = MISTAKES
    portable = PORTABLE_LAST_RESULT

    def __init__(self, form: str = FORMS[0]) -> None:
        self.form = form
        self.allowed_characters = " ,.0123456789=+-*/" if form == "equations" else None

    def configured(self, options: Mapping[str, str]) -> WordProblems:
        """In the form that the option `form` names. Raises UsageError."""
        check_options(self.name, options, ("form", "tests"))
        form = options.get("form", FORMS[0])
        if form not in FORMS:
            raise UsageError(f"--data.options form {form}: it is {' or '.join(FORMS)}.{did_you_mean(form, FORMS)}")
        return WordProblems(form)

    def load(self, request: DataRequest) -> TaskData:
        """Questions of `request.train_file` (comma-separated files), or the task's own, drawn at random with the seed.

        Options: `form`; `tests`, comma-separated files whose questions are dropped here.
        """
        task = self.configured(request.options)
        tests = request.options.get("tests", "").split(",")
        source = request.train_file or OWN_QUESTIONS
        end = None if request.train_file else _N_OWN_TRAINING
        rows = [example for name in sources(source) for example in task.read(name)][:end]
        tested = {prompt_words(example) for name in tests if name.strip() for example in task.split(name.strip())}
        return drawn_data(source, rows, tested, request, self.grade)

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`, of the task's own questions; or all of a file or a data set, by its name, in its order."""
        source = source_of_split(self, name, OWN_QUESTIONS)
        found = self.read(source)
        return (found[_N_OWN_TRAINING:] if source == OWN_QUESTIONS else found)[:size]

    def read(self, path: str) -> list[Example]:
        """Rows with a `question`, an `answer`, and perhaps an `equation` or a `rationale`; or in the form of GSM8K."""
        return examples_of(read_rows(path), self._of_row)

    def example(self, question: str, answer: str | None = None) -> Example:
        """The question, or the whole prompt that holds it; the answer is a number."""
        bare = " ".join(question.split()).removeprefix("Question:").removesuffix("Answer:").strip()
        if len(bare) > MAX_CHARACTERS or not (re.search("[0-9]", bare) or working.numbers_in(bare)):
            raise UsageError(
                f"question {shorten(question)}: write one with a number in it, of up to {MAX_CHARACTERS:,} characters"
            )
        value = None if answer is None else working.number(answer)
        if answer is not None and value is None:
            raise UsageError(f"the answer {shorten(answer)} is no number; write it like 72, -3.5, $1,000 or 3/4")
        text = None if value is None else written(value)
        y = None if text is None else f"\nThe answer is {text}."
        return Example(f"Question: {bare} Answer:", y, None, text, bare)

    def posterior_prompt(self, example: Example) -> str:
        """`"Question: ... The answer is 72. Answer:"`: ends like X, so a rationale goes on alike."""
        if example.answer is None:
            raise UsageError(f"question {shorten(example.question)}: its answer is needed to sample from q(Z | X, Y)")
        return f"Question: {example.question} The answer is {example.answer}. Answer:"

    def allows(self, piece: str) -> bool:
        """No line break but the stop: a rationale is one line."""
        return "\n" not in piece

    def texts(self, example: Example) -> list[str] | None:
        """All equations of one and two steps over the two numbers of a question, and the first step's result; those of
        more steps have next to no probability. None for another number of numbers, and for the form `words`."""
        numbers = working.written_numbers(example.question)
        if self.form != "equations" or len(numbers) != 2:
            return None
        return working.equations(numbers)

    def answer(self, rationale: Rationale) -> str | None:
        """The result of the last call, if the chain ends with it."""
        return last_result(rationale)

    def grade(self, example: Example, answer: str | None) -> bool:
        """Equal as numbers, but for rounding (`working.near`): `"0.50"` is `"1/2"`. What is no number is wrong. Where a
        row's equation is more exact than its answer, either is right."""
        value, right, stated = (
            working.number(one or "") for one in (answer, example.answer, example.meta.get("stated"))
        )
        if value is None:
            return False
        # What the row states stands for its own answer only, not for one of another chain that is compared with this.
        also = right is not None and working.near(right, stated) and working.near(value, stated)
        return working.near(value, right) or also

    def mistake(self, example: Example, rationale: Rationale) -> str | None:
        """What a wrong chain did wrong first: see `mistakes.classify`."""
        return classify(example, rationale)

    def _of_row(self, row: Row) -> Example:
        given = row[1].get("answer")
        if type(given) is float and math.isfinite(given):
            text = f"{Decimal(repr(given)):f}"  # str writes 1e-05
        else:
            text = str(given) if type(given) is int else field(row, "answer", str)
        solution, annotated, answer = text.rpartition("####")
        example = self.example(field(row, "question", str), answer)
        rationale, equation = (field(row, name, str, required=False) for name in ("rationale", "equation"))
        if not (rationale or equation or annotated):
            return example
        try:
            if rationale:
                pieces = working.of_written(rationale)
            else:
                pieces = working.of_equation(equation) if equation else working.of_annotated(solution)
            right = working.number(answer)
            z, value = working.linearise(pieces, right, self.form == "words")
            if right is not None and working.number(value) != right and any(map(working.is_rounded, pieces)):
                raise working.Unusable("its numbers are rounded")
        except working.Unusable as why:
            if rationale:
                raise UsageError(f"rationale {shorten(rationale)}: {why}; correct it, or leave it out") from None
            return replace(example, meta={"unusable": str(why)})
        # The value may be exact, such as 5/6, where the row's answer is cut.
        exact = self.example(example.question, value)
        return replace(exact, z=z, meta={} if exact.answer == example.answer else {"stated": example.answer})
