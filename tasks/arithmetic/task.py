"""The arithmetic task: a calculator fills in each result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, product

from latent_cot.tasks.arithmetic.examples import build, demonstrate, from_row, parse_question, products_in
from latent_cot.tasks.arithmetic.expression import integer
from latent_cot.tasks.arithmetic.generate import Settings, questions, take
from latent_cot.tasks.arithmetic.mistakes import MISTAKES, classify
from latent_cot.tasks.common import PORTABLE_LAST_RESULT, distinct, drop_seen, last_result, share_of
from latent_cot.tasks.files import examples_of, is_source, read_rows, shorten, sources
from latent_cot.types import DataRequest, Example, Rationale, Sweep, Task, TaskData, UsageError, did_you_mean

SPLIT_SIZE = 500
MAX_POINTS = 100
"""Of one sweep: each is a split of its own."""
_SPLIT_SEED = "test splits, version 1"
_VALIDATION = "validation-"
"""Before a split's name: questions of the same kind, from the share that settings are chosen by."""
_VALIDATION_SEED = "validation splits, version 1"
_SPLIT_DEFAULTS = Settings(operands=(3,), digits=(1,), operators="+-")


class Arithmetic(Task):
    """Sums and differences (products if asked for) of integers; a calculator fills in each result."""

    name = "arithmetic"
    description = "integer arithmetic, step by step with a calculator (section 4.4 of the paper)"
    tools = ("calculator",)
    stop = "."
    allowed_characters = " ,.0123456789=+-*"
    default_splits = (*(f"{n}-operands" for n in (3, 4, 5, 6, 8)), *(f"{n}-digits" for n in (2, 3, 4, 6)))
    mistakes = MISTAKES
    portable = PORTABLE_LAST_RESULT

    def can_be_joined(self, examples: Sequence[Example]) -> bool:
        return not any("*" in example.question for example in examples)

    def is_held_out(self, prompt: str) -> bool:
        try:
            question = parse_question(prompt.rpartition("Question:")[2])
        except UsageError:
            return False
        return share_of(question.text) != "train"

    def load(self, request: DataRequest) -> TaskData:
        """Generated examples, or those of `request.train_file` (comma-separated files) as far as they go.

        Options: `operands`, `digits`, `operators` (see `Settings`). Validation is always generated.
        """
        settings = Settings.parse(request.options)
        if request.train_file is not None:
            return self._load_files(request, settings)
        stream = questions(settings, "train", request.seed)
        demonstrations = take(stream, request.demonstrations, f"demonstrations, {settings}")
        unlabelled = take(stream, request.unlabelled, f"unlabelled, {settings}")
        return TaskData(
            tuple(map(demonstrate, demonstrations)),
            tuple(map(build, unlabelled)),
            self._validation(request, settings, frozenset()),
            (f"Questions generated with {settings} seed={request.seed}; none is in a test split.",),
        )

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"5-operands"` (one digit each), `"3-digits"` (three operands), `"5-operands-2-digits"`, or by options,
        `"operands=5,digits=2"`. `"validation-5-operands"` and the like: questions to choose settings by, which are
        in no test split and in no generated training set. Or all of a file or a data set, by its name, in its order.

        `size` questions, 500 by default; all there are if there are fewer. A longer split begins with the shorter.
        """
        if is_source(name):
            return self.read(name)[:size]
        points = list(self._points(name))
        if len(points) > 1:
            raise UsageError(
                f"{name!r} names {len(points)} splits, from {_name(points[0])} to {_name(points[-1])}; name one of "
                "them here"
            )
        validation = name.startswith(_VALIDATION)
        stream = questions(points[0], *(("validation", _VALIDATION_SEED) if validation else ("test", _SPLIT_SEED)))
        return [build(question) for question in islice(stream, SPLIT_SIZE if size is None else size)]

    def sweep(self, pattern: str) -> Sweep:
        """The splits of `"operands=3..10"`, of `"operands=3,5,8,digits=2"`, of a single split's name, of a file."""
        if is_source(pattern):
            return super().sweep(pattern)
        try:
            points = self._points(pattern)
        except UsageError as error:
            raise UsageError(f"split {pattern!r}: {error}") from None
        share = _VALIDATION if pattern.startswith(_VALIDATION) else ""
        values = {
            share + _name(point): {
                "operands": point.operands[0],
                "digits": point.digits[0],
                **products_in(point.operators),
            }
            for point in points
        }
        varying = (axis for axis in ("operands", "digits") if len({value[axis] for value in values.values()}) > 1)
        return Sweep(pattern, tuple(varying), values)

    def read(self, path: str) -> list[Example]:
        """Examples from JSONL (`question`, `answer`, optional `rationale`) or from a published JSON file."""
        return examples_of(read_rows(path), from_row)

    def example(self, question: str, answer: str | None = None) -> Example:
        """`"6 - 0 - 4"` or the whole `"Question: 6 - 0 - 4 = ? Answer:"`; the answer is computed."""
        expression = parse_question(question)
        if answer is not None and integer(answer) != expression.value:
            raise UsageError(f"question '{expression.text}': the answer is {expression.value}, not {shorten(answer)}")
        return build(expression)

    def posterior_prompt(self, example: Example) -> str:
        """`"Question: 6 - 0 - 4 = ? The answer is 2. Answer:"`: ends like X, so a rationale goes on alike."""
        if example.answer is None:
            raise UsageError(f"question {example.question!r}: its answer is needed to sample from q(Z | X, Y)")
        return f"Question: {example.question} = ? The answer is {example.answer}. Answer:"

    def answer(self, rationale: Rationale) -> str | None:
        """The result of the last call, if the chain ends with it."""
        return last_result(rationale)

    def grade(self, example: Example, answer: str | None) -> bool:
        """Equal as integers: `"-0"` is `"0"` and `"+3"` is `"3"`. What is no integer is wrong."""
        value = integer(answer or "")
        return value is not None and value == integer(example.answer or "")

    def mistake(self, example: Example, rationale: Rationale) -> str:
        """What a wrong chain did wrong first: see `mistakes.classify`."""
        return classify(parse_question(example.question), rationale)

    def _points(self, pattern: str) -> list[Settings]:
        """The settings of each split that a pattern names, by operands, then by digits."""
        settings = _split_settings(pattern.removeprefix(_VALIDATION))
        pairs = list(product(settings.operands, settings.digits))
        if len(pairs) > MAX_POINTS:
            raise UsageError(
                f"{pattern!r} names {len(pairs)} test splits; at most {MAX_POINTS} can be named at once: leave some "
                "out, e.g. operands=4,8,16"
            )
        return [replace(settings, operands=(n,), digits=(digits,)) for n, digits in pairs]

    def _validation(self, request: DataRequest, settings: Settings, exclude: frozenset[str]) -> tuple[Example, ...]:
        stream = questions(settings, "validation", request.seed, exclude)
        return tuple(map(build, take(stream, request.validation, f"validation, {settings}")))

    def _load_files(self, request: DataRequest, settings: Settings) -> TaskData:
        assert request.train_file is not None
        rows = [example for path in sources(request.train_file) for example in self.read(path)]
        # A question may be demonstrated in several ways; the same row twice adds nothing.
        each = distinct(rows, lambda example: (example.question, example.z))
        demonstrations = [example for example in each if example.z is not None]
        pairs, _ = drop_seen([example for example in each if example.z is None], demonstrations)
        repeated = len(rows) - len(demonstrations) - len(pairs)

        shown = tuple(demonstrations[: request.demonstrations])
        unseen = pairs[: request.unlabelled]
        notes = [
            f"{request.train_file}: {len(rows)} examples read; using {len(shown)} of {len(demonstrations)} with a "
            f"rationale and {len(unseen)} of {len(pairs)} without.",
            f"Validation questions are generated with {settings} seed={request.seed}; none is in the file.",
        ]
        if repeated:
            notes.append(f"{repeated} repeated examples were dropped.")
        everything = frozenset(e.question for e in rows)
        return TaskData(shown, tuple(unseen), self._validation(request, settings, everything), tuple(notes))


def _name(split: Settings) -> str:
    """What a split of one operand count and one digit count is called: `"5-operands-2-digits"`; a count that is
    as in the plainest split, 3 operands of one digit, is left out."""
    (n,), (digits,) = split.operands, split.digits
    if split.operators != _SPLIT_DEFAULTS.operators:
        return f"operands={n},digits={digits},operators={split.operators}"
    parts = [f"{n}-operands"] if (n,) != _SPLIT_DEFAULTS.operands or digits == 1 else []
    return "-".join([*parts, f"{digits}-digits"] if digits != 1 else parts)


def _split_settings(name: str) -> Settings:
    """The settings that a split's name, or a pattern of several, stands for."""
    if match := re.fullmatch(r"([0-9]{1,3})-operands?(?:-([0-9]{1,3})-digits?)?|([0-9]{1,3})-digits?", name):
        counts = {"operands": match[1], "digits": match[2] or match[3]}
        return Settings.parse({axis: count for axis, count in counts.items() if count}, _SPLIT_DEFAULTS)
    if "=" not in name:
        raise UsageError(
            f"arithmetic has no test split {name!r}.{did_you_mean(name, Arithmetic.default_splits)} "
            "Any other is named like 10-operands, 5-operands-2-digits or operands=5,digits=2, or is a file such as "
            "mine.jsonl"
        )
    parts = re.split(r",(?=[^,]*=)", name)  # a comma before a further value, as in operands=3,4, does not part
    options = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}
    if len(options) < len(parts):
        raise UsageError(f"test split {name!r}: an option is named twice")
    return Settings.parse(options, _SPLIT_DEFAULTS)
