"""Base classes of tasks whose examples are in files. A task need have none of them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from itertools import combinations

from latent_cot.tasks.common import check_options, distinct, share_of, words
from latent_cot.tasks.files import Row, examples_of, field, is_source, read_rows, sources
from latent_cot.types import DataRequest, Example, Task, TaskData, UsageError, did_you_mean


class PlainTask(Task):
    """A task that reads examples from rows with a `question`, an `answer` (text or an integer) if `example` wants one,
    and perhaps a `rationale`.

    What is left to write: `name`, `description`, `default_splits`, `example`, `load`, `split` and `answer`
    (`latent_cot.types.Task` says what each of them is). Without a tool and a `step_delimiter` there are no steps: a run
    then needs `--rollout.granularity token`.
    """

    def read(self, path: str) -> list[Example]:
        return examples_of(read_rows(path), self._of_row)

    def _of_row(self, row: Row) -> Example:
        question, answer = field(row, "question", str).strip(), row[1].get("answer")
        answer = str(answer) if type(answer) is int else field(row, "answer", str, required=False)
        for name, text in (("question", question), ("answer", answer)):
            if text is not None and not text.strip():
                raise UsageError(f"the field {name!r} is empty; write it, or take the row out")
        example = self.example(question, answer and answer.strip())
        rationale = field(row, "rationale", str, required=False)
        if not rationale or not rationale.strip():
            return example
        # To most models a word behind a space is another one: a chain begins with it, behind the question.
        return replace(example, z=rationale if rationale[0].isspace() else f" {rationale}")


class SourceTask(Task):
    """A task whose examples are those of a user's file or data set of the hub, or the task's own few. A hash of the
    question puts each into the share of training, of validation or of tests for good.

    What is left to write: `own`, `name`, `description`, `default_splits` (the first is that of the task's own few),
    `example`, `read`, and what its answers or figures are.
    """

    own: str
    """The file of the task's own few."""
    demonstrated: bool = False
    """Whether its examples have rationales, so that some can be demonstrations."""

    def usable(self, examples: Sequence[Example]) -> list[Example]:
        """The examples that can be trained and tested with: the first of each question."""
        return distinct(examples, lambda example: example.question)

    def share(self, source: str, share: str) -> list[Example]:
        """The usable examples of a source in a share, in their order. Raises UsageError."""
        return [example for example in self.usable(self.read(source)) if share_of(example.question) == share]

    def load(self, request: DataRequest) -> TaskData:
        """Examples of the training and validation shares of `request.train_file`, or of the task's own few.

        Raises UsageError for a bad source, and for one with too few examples.
        """
        check_options(self.name, request.options, ())
        source = request.train_file or self.own
        read = [example for name in sources(source) for example in self.read(name)]
        usable = self.usable(read)
        shares = {one: [e for e in usable if share_of(e.question) == one] for one in ("train", "validation", "test")}
        n = request.demonstrations if self.demonstrated else 0
        flags = "--data.demonstrations and --data.unlabelled" if self.demonstrated else "--data.unlabelled"
        train = draw(shares["train"], n + request.unlabelled, f"train {request.seed}", f"{flags}: {source}")
        validation = draw(
            shares["validation"], request.validation, f"validation {request.seed}", f"--data.validation: {source}"
        )
        sizes = ", ".join(f"{len(examples)} for {one}" for one, examples in shares.items())
        note = f"{source}: {sizes}; {len(read) - len(usable)} left out (the task's README says why)."
        unlabelled = tuple(replace(example, z=None) for example in train[n:])
        return TaskData(tuple(train[:n]), unlabelled, tuple(validation), (note,))

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """The test share of the task's own few, or of a source, by its name."""
        found = self.share(source_of_split(self, name, self.own), "test")[:size]
        if not found:
            raise UsageError(f"{name}: no example of it is one for tests; give a larger file, or eval --data {name}")
        return found


def source_of_split(task: Task, name: str, own: str) -> str:
    """The source that a split's name stands for: `own`, or the file or data set that is named. Raises UsageError."""
    if name in task.default_splits:
        return own
    if is_source(name):
        return name
    hint = did_you_mean(name, task.default_splits)
    what = f"splits along a number, such as {name!r}." if "=" in name else f"test split {name!r}.{hint}"
    raise UsageError(
        f"{task.name} has no {what} It is "
        f"`{task.default_splits[0]}`, or a file such as mine.jsonl, or a data set such as hub:OWNER/NAME?split=test"
    )


def draw(examples: Sequence[Example], number: int, seed: str, where: str) -> list[Example]:
    """So many of the examples, at random; a smaller number gives a beginning of a larger one.

    Raises UsageError if there are too few, naming `where`.
    """
    if not 0 <= number <= len(examples):
        raise UsageError(
            f"{where} has {len(examples)} different examples for this, not {number}; ask for another number, or name a "
            "larger file with --data.train-file"
        )
    return random.Random(seed).sample(examples, len(examples))[:number]


def prompt_words(example: Example) -> tuple[str, ...]:
    """The `words` of X. An example's `meta` may say by `asked` what is the same where the prompts are not."""
    return words(example.meta.get("asked", example.x))


def drawn_data(
    source: str,
    rows: Sequence[Example],
    tested: Set[tuple[str, ...]],
    request: DataRequest,
    grade: Callable[[Example, str | None], bool],
    *,
    fewer: bool = False,
) -> TaskData:
    """Demonstrations drawn at random from the questions with a rationale, pairs and validation questions from the
    others, with notes on what was dropped: questions with `prompt_words` in `tested`, or with several answers.

    Args:
        grade: the task's, which says when two answers are the same.
        fewer: if there are fewer than `request` asks for, take as many as there are, a fifth of them for validation.

    Raises UsageError, unless `fewer`, if there are not enough, and where no rationale of several can be used.
    """
    usable, dropped = _usable(rows, tested, grade)
    short: tuple[str, ...] = ()
    solved = [example for example in usable if example.z is not None]
    unusable = [(reason, example) for example in usable if (reason := example.meta.get("unusable"))]
    first = {reason: example.meta["source"] for reason, example in reversed(unusable) if "source" in example.meta}
    if unusable and not solved and request.demonstrations:
        why, n = Counter(reason for reason, _ in unusable).most_common(1)[0]
        where = f" (the first: {first[why]})" if why in first else ""
        none = f"none of {len(unusable)} rationales can be used, {n} of them dropped {why}{where}"
        raise UsageError(f"{source}: {none}; mend them, or give --data.demonstrations 0")
    if fewer:
        validation = min(request.validation, len(usable) // 5)
        shown = min(request.demonstrations, len(solved), len(usable) - validation)
        rest = min(request.unlabelled, len(usable) - validation - shown)
        asked = request
        request = replace(request, demonstrations=shown, unlabelled=rest, validation=validation)
        if request != asked:
            held_out_too = f", {validation} for validation" if asked.validation else ""
            short = (f"Fewer than asked for: {shown} demonstrations, {rest} pairs{held_out_too}.",)
    where = f"--data.demonstrations: {source}, with a rationale,"
    demonstrations = draw(solved, request.demonstrations, f"demonstrations {request.seed}", where)
    chosen = {example.x for example in demonstrations}
    drawn = draw(
        [example for example in usable if example.x not in chosen],
        request.unlabelled + request.validation,
        f"pairs {request.seed}",
        f"--data.unlabelled and --data.validation: {source}",
    )
    pairs, held_out = drawn[: request.unlabelled], drawn[request.unlabelled :]
    notes = (
        f"{source}: {len(usable)} questions of {len(rows)} rows, {len(solved)} of them with a rationale.",
        *(f"{n} rows dropped: {reason}." for reason, n in dropped.items()),
        *(
            f"{n} rationales dropped: {reason}{f' (the first: {first[reason]})' if reason in first else ''}."
            for reason, n in Counter(reason for reason, _ in unusable).most_common()
        ),
        *short,
    )
    return TaskData(tuple(demonstrations), tuple(replace(one, z=None) for one in pairs), tuple(held_out), notes)


def _usable(
    rows: Iterable[Example], tested: Set[tuple[str, ...]], grade: Callable[[Example, str | None], bool]
) -> tuple[list[Example], Counter[str]]:
    """One example of each question that is not tested, with a rationale if there is one; why others were dropped."""
    usable = list[Example]()
    dropped = Counter[str]()
    groups = defaultdict[tuple[str, ...], list[Example]](list)
    for example in rows:
        groups[prompt_words(example)].append(example)
    for key, same in groups.items():
        if key in tested:
            dropped["in a test file"] += len(same)
        elif not _agree(same, grade):
            dropped["with different answers to one question"] += len(same)
        else:
            usable.append(next((example for example in same if example.z is not None), same[0]))
            dropped["repeated"] += len(same) - 1
    return usable, +dropped


def _agree(same: Iterable[Example], grade: Callable[[Example, str | None], bool]) -> bool:
    """Whether one question's answers are all the same. Of two numbers one may be the other, rounded: either way round
    is tried. What an answer `means`, where its letter does not say, has no grade."""
    different = distinct(same, lambda example: example.meta.get("means", example.answer))
    pairs = combinations(different, 2)
    return all("means" not in a.meta and (grade(a, b.answer) or grade(b, a.answer)) for a, b in pairs)
