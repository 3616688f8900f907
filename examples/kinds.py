"""Two more kinds of questions (`docs/results/own_kinds.md`): `--task examples/kinds.py:Discount`, or `Letters`."""

import random
import re
from fractions import Fraction
from itertools import islice

from latent_cot.tasks.common import last_result, made, share_of
from latent_cot.tasks.plain import PlainTask
from latent_cot.tools.calculator import written
from latent_cot.types import Example, UsageError, did_you_mean

THINGS = "coat lamp book chair ticket bag phone"
WORDS = """
apple river stone cloud table garden yellow window market silver pocket bridge summer winter letter number doctor
farmer island mirror planet rocket saddle tunnel valley wagon zebra anchor basket candle desert engine fabric guitar
hammer insect jungle kettle ladder magnet needle orange pencil quartz ribbon shadow temple violin walnut button camera
dragon forest helmet ticket music radio pizza cargo menu tofu panda taxi khaki piano
"""


class Kind(PlainTask):
    """`text` makes a question, of the size that a split's name has, and `solved` solves one, or gives None for what is
    none."""

    begins, asks = "", ""
    """What stands in X before and behind the question."""

    def text(self, rng, n):
        raise NotImplementedError

    def solved(self, text):
        raise NotImplementedError

    def example(self, question, answer=None):
        text = question.removeprefix(self.begins).removesuffix(self.asks)
        if (found := self.solved(text)) is None:
            some = self.text(random.Random(0), 3)
            raise UsageError(f"question {question[:80]!r}: write e.g. {some!r}")
        z, y, right = found
        if answer not in (None, right):
            raise UsageError(f"question {question[:80]!r}: it is {right}, not {answer[:80]!r}")
        return Example(self.begins + text + self.asks, y, z, right, text)

    def questions(self, share, split, seed):
        sizes = re.findall(r"\d+", split)
        rng = random.Random(" ".join([share, *sizes, str(seed)]))
        while True:
            text = self.text(rng, *map(int, sizes))
            if share_of(text) == share:
                yield self.example(text)

    def load(self, request):
        split = self.default_splits[0]
        train, validation = (self.questions(share, split, request.seed) for share in ("train", "validation"))
        return made(self, request, train, validation)

    def split(self, name, size=None):
        if name not in self.default_splits:
            raise UsageError(f"{self.name} has no test split {name!r}.{did_you_mean(name, self.default_splits)}")
        return list(islice(self.questions("test", name, 0), 500 if size is None else size))


class Discount(Kind):
    name = "discount"
    description = "what some things cost after a discount, in several forms of words, with the calculator"
    tools = ("calculator",)
    allowed_characters = " ,.0123456789=+-*/"
    step_delimiter = ","
    default_splits = ("one-discount",)
    asks = " Calculation:"
    forms = (
        "A {t} costs {p} dollars. With {d} percent off, what do {n} of them cost?",
        "{n} {t}s at {p} dollars each are reduced by {d} percent. What is paid for all?",
        "Everything is {d} percent cheaper today. What do {n} {t}s cost that were {p} dollars each?",
    )

    def text(self, rng, n=None):
        form, thing = rng.randrange(3), rng.choice(THINGS.split())
        p, d, n = rng.randrange(2, 100), rng.choice(range(5, 100, 5)), rng.randrange(2, 10)
        return self.forms[form].format(t=thing, p=p, d=d, n=n)

    def solved(self, text):
        for form in self.forms:
            pattern = re.sub(r"\\\{(\w)\\\}", lambda m: rf"(?P<{m[1]}>\w+?)", re.escape(form))
            if (found := re.fullmatch(pattern, text)) and all(
                re.fullmatch("[0-9]{1,6}", found[name]) for name in "pdn"
            ):
                p, d, n = (int(found[name]) for name in "pdn")
                if d > 100:
                    return None
                z = f" {p} * {n} =, 100 - {d} =, {p * n} * {100 - d} =, {p * n * (100 - d)} / 100 ="
                price = written(Fraction(p * n * (100 - d), 100))
                return z, f"\nIt is {price} dollars.", price
        return None

    def answer(self, rationale):
        return last_result(rationale)


class Letters(Kind):
    name = "letters"
    description = "what the last letters of some words spell, letter by letter"
    step_delimiter = ","
    default_splits = ("3-words", "4-words")
    begins, asks = "Words: ", ". Their last letters:"

    def text(self, rng, n):
        return ", ".join(rng.sample(WORDS.split(), n))

    def solved(self, text):
        words = text.split(", ")
        if not all(word.isalpha() for word in words):
            return None
        spelled = "".join(word[-1] for word in words)
        return "".join(f" {word} ends in {word[-1]}," for word in words), f" together {spelled}.", spelled

    def answer(self, rationale):
        *steps, rest = rationale.text.split(",")
        return "".join(step.strip()[-1:] for step in steps) if steps and not rest.strip() else None
