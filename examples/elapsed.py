"""How many minutes lie between two times of a day? Hours and minutes apart, with the calculator."""

import random
import re
from itertools import islice

from latent_cot.tasks.common import last_result, made, share_of, shuffled
from latent_cot.tasks.plain import PlainTask
from latent_cot.types import Example, UsageError, did_you_mean

DAY = 24 * 60
ASKED = re.compile(r"From (\d\d?):(\d\d) to (\d\d?):(\d\d)")


class Elapsed(PlainTask):
    name = "elapsed"
    description = "minutes between two times of a day"
    tools = ("calculator",)
    allowed_characters = " ,.0123456789=+-*/"
    step_delimiter = ","
    default_splits = ("same-day",)

    def example(self, question, answer=None):
        question = question.removesuffix(", how many minutes is it? Answer:")
        found = ASKED.fullmatch(question)
        if not found:
            raise UsageError(f"question {question[:80]!r}: write e.g. 'From 9:35 to 13:10'")
        h, m, hh, mm = map(int, found.groups())
        if not (h * 60 + m < hh * 60 + mm < DAY and max(m, mm) < 60):
            raise UsageError(f"question {question!r}: write two times of one day, the earlier one first")
        hours, rest = hh - h, mm - m
        total = 60 * hours + rest
        steps = [f"{hh} - {h} =", f"{hours} * 60 =", f"{60 * hours} + {mm} =", f"{60 * hours + mm} - {m} ="]
        if answer not in (None, str(total)):
            raise UsageError(f"question {question!r}: it is {total}, not {answer[:80]!r}")
        return Example(
            x=f"{question}, how many minutes is it? Answer:",
            z=" " + ", ".join(steps),
            y=f"\nIt is {total} minutes.",
            answer=str(total),
            question=question,
        )

    def questions(self, share, seed):
        for number in shuffled(DAY * DAY, random.Random(f"{share} {seed}")):
            start, end = divmod(number, DAY)
            text = f"From {start // 60}:{start % 60:02d} to {end // 60}:{end % 60:02d}"
            if start < end and share_of(text) == share:
                yield self.example(text)

    def load(self, request):
        train, validation = (self.questions(share, request.seed) for share in ("train", "validation"))
        return made(self, request, train, validation)

    def split(self, name, size=None):
        if name not in self.default_splits:
            raise UsageError(f"elapsed has no test split {name!r}.{did_you_mean(name, self.default_splits)}")
        return list(islice(self.questions("test", 0), 500 if size is None else size))

    def answer(self, rationale):
        return last_result(rationale)
