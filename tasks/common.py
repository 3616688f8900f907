"""What several tasks share: keeping training and test questions apart, and checking options."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData, UsageError, did_you_mean

Share = Literal["train", "validation", "test"]
_SHARES: tuple[Share, ...] = ("test", "test", "validation", "train", "train", "train", "train", "train")


def share_of(question: str) -> Share:
    """The one share that a question belongs to: test 1/4, validation 1/8, train 5/8 of all questions.

    A hash of the text decides, so that a generator which draws from one share only can never meet the
    questions of another, whatever its seed and however many it draws. The same on every machine.
    """
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return _SHARES[int.from_bytes(digest, "big") % len(_SHARES)]


def shuffled(n: int, rng: random.Random) -> Iterator[int]:
    """The integers 0 <= i < n in random order, each once; memory grows with what is drawn, not with n.

    A Fisher-Yates shuffle that stores only the places that differ from the identity.
    """
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        here = moved.pop(i, i)
        if j == i:
            yield here
        else:
            there = moved.get(j, j)
            moved[j] = here
            yield there


_THOUSANDS = re.compile(r"(?<![\w.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")


def words(text: str) -> tuple[str, ...]:
    """What tells two questions apart, whatever their spaces, capitals and ordinary punctuation: words, numbers, and all
    other signs, such as operators and brackets, or the `!` of a factorial and of `!=`. `3,884` is 3884, and `did n't`
    didn't. What cannot be seen (a zero-width space, a soft hyphen) is nothing; each minus sign and dash is a hyphen."""
    text = unicodedata.normalize("NFC", text).casefold()
    if not text.isascii():
        kinds = {character: unicodedata.category(character) for character in set(text)}
        text = text.translate(
            {ord(c): "" if kind == "Cf" else "-" for c, kind in kinds.items() if kind in ("Cf", "Pd")}
        )
        text = text.replace("\N{MINUS SIGN}", "-")
    plain = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    plain = re.sub(r"\s+(?=n['’]t\b)", "", plain)
    found = re.findall(r"""(?<![\w.])\.[0-9]+|\w+|[^\w\s.,;:?!'"’‘“”]|(?<=[0-9)])!|!(?==)""", plain)
    return tuple(found or text.split())


def drop_seen(test: list[Example], training: Iterable[Example]) -> tuple[list[Example], int]:
    """`test` without the questions that occur in `training`, by their `words`, and the number of rows dropped. What is
    the same question may be said by `asked` in an example's `meta`.

    Rows that repeat each other within `test` are kept: `repeats` counts them.
    """
    seen = {words(example.meta.get("asked", example.asked)) for example in training}
    kept = [example for example in test if words(example.meta.get("asked", example.asked)) not in seen]
    return kept, len(test) - len(kept)


def repeats(examples: Iterable[Example]) -> int:
    """Number of rows whose question occurred in an earlier row, by its `words`."""
    keys = [words(example.meta.get("asked", example.asked)) for example in examples]
    return len(keys) - len(set(keys))


def distinct(examples: Iterable[Example], key: Callable[[Example], Hashable]) -> list[Example]:
    """The first of the examples that have a key in common, in order."""
    firsts: dict[Hashable, Example] = {}
    for example in examples:
        firsts.setdefault(key(example), example)
    return list(firsts.values())


def distinct_n(texts: Iterable[tuple[Sequence[str], int]], n: int) -> float:
    """Different n-grams of words as a share of all of them (distinct-n); NaN if there is none.

    Args:
        texts: each as (its words, how often it was sampled).
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for words, count in texts:
        for start in range(len(words) - n + 1):
            grams[tuple(words[start : start + n])] += count
    return len(grams) / grams.total() if grams else math.nan


def made(
    task: Task,
    request: DataRequest,
    train: Iterable[Example],
    validation: Iterable[Example],
    options: Iterable[str] = (),
) -> TaskData:
    """The data of a task that makes its own questions: the first of each share. Raises UsageError for a file, and for
    an option that is none of the task's `options`."""
    check_options(task.name, request.options, options)
    if request.train_file is not None:
        raise UsageError(f"--data.train-file: {task.name} makes its own questions; leave it out")
    train = iter(train)  # a list, too, is gone through once
    return TaskData(
        demonstrations=tuple(islice(train, request.demonstrations)),
        unlabelled=tuple(replace(example, z=None) for example in islice(train, request.unlabelled)),
        validation=tuple(islice(validation, request.validation)),
    )


PORTABLE_LAST_RESULT = """\
def answer(text: str, result: str | None) -> str | None:
    return None if result is None else result.strip()
"""
"""`Task.portable` of a task whose answer is this:"""


def last_result(rationale: Rationale) -> str | None:
    """The result of the last call, if the chain ends with it.

    A chain that goes on after its last result was cut within a step and arrives nowhere: None.
    """
    last = rationale.calls[-1] if rationale.calls else None
    if last is None or last.result is None or last.position + last.n_tokens != len(rationale.tokens):
        return None
    return last.result.strip()


def fingerprint(examples: Iterable[Example]) -> str:
    """A digest of questions and answers in their order: where it is the same, so are the questions."""
    return digest([example.asked, example.answer] for example in examples)


def training_digest(data: TaskData) -> str:
    """A digest of training and validation examples, in their order: where it is the same, so are they."""
    parts = (data.demonstrations, data.unlabelled, data.validation)
    return digest([n, e.x, e.y, e.z, e.answer] for n, part in enumerate(parts) for e in part)


def digest(rows: Iterable[object]) -> str:
    """A short hash of JSON values in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode())
    return found.hexdigest()[:16]


def check_answers(task: Task, split: str, examples: Sequence[Example]) -> None:
    """Raises UsageError for a test question whose right answer is not known, where answers are right or wrong."""
    if task.is_measured:
        return
    unknown = [example for example in examples if example.answer is None]
    if unknown:
        raise UsageError(
            f"{split}: {len(unknown)} of {len(examples)} questions have no answer to compare with, the first is "
            f"{name_of(unknown[0])}; add the answers, or leave them out"
        )


def name_of(example: Example) -> str:
    """What an example is called in an error: where it comes from, if that is known, and its question."""
    source = example.meta.get("source")
    return f"{source}: {example.asked!r}" if source else repr(example.asked)


def check_options(task: str, options: Mapping[str, str], known: Iterable[str]) -> None:
    """Raises UsageError for an option that the task does not have."""
    known = tuple(known)
    for name in options:
        if name not in known:
            remedy = did_you_mean(name, known) if known else " It has none: leave it out."
            raise UsageError(f"--data.options {name}: task {task!r} has no option {name!r}.{remedy}")
