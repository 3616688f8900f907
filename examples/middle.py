"""Which of several numbers is the middle one? Write them in order, without a tool."""

import random
from itertools import islice

from latent_cot.tasks.common import made, share_of
from latent_cot.tasks.plain import PlainTask
from latent_cot.types import Example, UsageError, did_you_mean


class Middle(PlainTask):
    name = "middle"
    description = "the middle one of several numbers: write them in order"
    allowed_characters = " ,0123456789"
    step_delimiter = ","
    default_splits = ("5-numbers", "7-numbers")

    def example(self, question, answer=None):
        question = question.removeprefix("The numbers ").removesuffix(". The middle one is found in order:")
        words = question.split(", ")
        if len(words) % 2 == 0 or not all(word.isdecimal() and len(word) < 10 for word in words):
            raise UsageError(f"question {question[:80]!r}: write an odd number of numbers, e.g. '31, 7, 58'")
        numbers = sorted(map(int, words))
        until = numbers[: len(numbers) // 2 + 1]
        if answer not in (None, str(until[-1])):
            raise UsageError(f"question {question[:80]!r}: it is {until[-1]}, not {answer[:80]!r}")
        return Example(
            x=f"The numbers {question}. The middle one is found in order:",
            z="".join(f" {number}," for number in until),
            y=f" the middle one is {until[-1]}.",
            answer=str(until[-1]),
            question=question,
        )

    def questions(self, share, n, seed):
        rng = random.Random(f"{share} {n} {seed}")
        while True:
            text = ", ".join(map(str, rng.sample(range(10, 100), n)))
            if share_of(text) == share:
                yield self.example(text)

    def load(self, request):
        train, validation = (self.questions(share, 5, request.seed) for share in ("train", "validation"))
        return made(self, request, train, validation)

    def split(self, name, size=None):
        if name not in self.default_splits:
            raise UsageError(f"middle has no test split {name!r}.{did_you_mean(name, self.default_splits)}")
        return list(
            islice(self.questions("test", int(name.removesuffix("-numbers")), 0), 500 if size is None else size)
        )

    def answer(self, rationale):
        steps = rationale.text.split(",")
        return steps[-2].strip() if len(steps) > 1 and not steps[-1].strip() else None
