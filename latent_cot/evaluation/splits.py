"""The test questions that a user names: splits, patterns such as `operands=3..10`, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot.tasks.common import check_answers, drop_seen, repeats
from latent_cot.types import Example, Sweep, Task, UsageError


@dataclass(frozen=True)
class Split:
    """Test questions, less those of training and validation."""

    examples: Sequence[Example]
    dropped: int
    """Questions left out: those of the run's training and validation, and those that the user excludes."""
    repeated: int
    """Questions kept that repeat an earlier one."""


def numbers_of(task: Task, split: str) -> dict[str, int] | None:
    """The numbers that a split's name stands for; None if it stands for none."""
    try:
        points = task.sweep(split).points
    except UsageError:
        return None
    only = next(iter(points.values())) if len(points) == 1 else {}  # the name may be another for the same
    return dict(points.get(split, only)) or None


def splits_of(
    task: Task,
    sweeps: Sequence[Sweep],
    *,
    files: Sequence[str] = (),
    exclude: Sequence[str] = (),
    size: int | None = None,
    seen: Sequence[Example] = (),
) -> dict[str, Split]:
    """Split's name, or file, -> its questions. With neither sweeps nor files: the task's default splits.

    Args:
        exclude: files whose questions are dropped, as those of `seen`, training's and validation's, are.
        size: the first questions of each split only; None: all of them.

    Raises UsageError for an unknown split, a bad file, and where nothing is left.
    """
    named = [name for sweep in sweeps for name in sweep.points] or ([] if files else task.default_splits)
    if not (named or files):
        raise UsageError(f"{task.name} has no test splits of its own; give a file of questions")
    seen = [
        *(() if task.one_question else seen),
        *(example for path in exclude for example in task.read(path)),
    ]
    splits = {}
    for name in [*named, *files]:
        examples = task.read(name) if name in files else _enough_of(task, name, size, seen)
        check_answers(task, name, examples)
        kept, dropped = drop_seen(examples, seen)
        if not kept:
            own = "of training, validation or an excluded file" if exclude else "of training or validation"
            why = f"all of its {dropped} questions are {own}; nothing is left" if dropped else "no questions"
            raise UsageError(f"{name}: {why}")
        kept = kept[:size]
        splits[name] = Split(kept, dropped, repeats(kept))
    return splits


def _enough_of(task: Task, name: str, size: int | None, seen: Sequence[Example]) -> list[Example]:
    """A split's first questions, so many that `size` are left without those that were seen, if it has them: a task of
    the user's own may draw from few questions again and again."""
    wanted, most = size, 10 * ((size or 0) + len(seen))
    while True:
        try:
            examples = task.split(name, wanted)
        except UsageError:
            if wanted == size:
                raise
            return examples  # it has no more
        kept, dropped = drop_seen(examples, seen)
        if size is None or wanted is None or len(kept) >= size or len(examples) < wanted or wanted >= most:
            return examples
        wanted = size + dropped
