"""An export from beginning to end: what `latent-cot export` and `Run.export` have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from latent_cot.config.methods import shows_demonstrations
from latent_cot.config.schema import tested_splits
from latent_cot.run import reasoners
from latent_cot.run.export import folder
from latent_cot.run.export.description import Base, describe
from latent_cot.run.paths import refuse_moved
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import Reasoner, Task, UsageError


@dataclass(frozen=True)
class Exported:
    """What was written."""

    reasoner: Reasoner
    base: str
    """The base model's name."""
    notes: list[str]
    """Sentences on what has changed since the run was trained: its training data, its base model."""
    left_to_write: list[str]
    """The tools that the card's program lacks."""


def export(
    source: reasoners.Source,
    of_run: RunFolder,
    task: Task,
    target: Path,
    *,
    reasoner: Reasoner | None,
    merge: bool,
    force: bool,
    while_loading: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Exported:
    """Write a run's reasoner into `target`, see `folder.build`.

    Args:
        reasoner: None: q, where it answers questions.
        merge: the base model's weights with the adapter's in them, instead of the adapter alone.
        force: replace what an earlier export has left there.
        while_loading: entered while the model is loaded: it may tell the user.

    Raises UsageError.
    """
    reasoner = reasoner or source.reasoners[0]
    source.require(reasoner)
    folder.refuse_unless_free(target, of_run.path, force=force)
    refuse_moved(source.config, of_run.path / "config.yaml")
    base = Base.of(source.config.model)
    with while_loading():
        data = reasoners.training_data(source, task)
        other_data = reasoners.other_data(source, data)
        if other_data is not None and shows_demonstrations(source.config):
            raise UsageError(f"{of_run.given}: the prompt shows examples. {other_data}")
        loop = reasoners.load(source, data)
    other_model = reasoners.other_model(source, loop.lm)
    other_precision = reasoners.other_precision(source, loop.lm)
    splits = tested_splits(source.config, task)
    if not splits:
        raise UsageError(f"{of_run.given}: {task.name} has no test split whose questions the card could show")
    examples = task.split(splits[0])
    other = {"data": other_data, "model": other_model, "precision": other_precision}
    description = describe(
        loop, reasoner, of_run, examples, **{f"other_{what}": note is not None for what, note in other.items()}
    )
    folder.build(loop, reasoner, base, description, target, merge=merge)
    notes = [note for note in (reasoners.other_task(source), *other.values()) if note is not None]
    missing = [tool["name"] for tool in description["tools"] if tool["is_left_to_write"]]
    return Exported(reasoner, base.name, notes, missing)
