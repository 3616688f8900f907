"""`latent-cot export`: a run's reasoner as an adapter or a model that plain transformers loads, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latent_cot import disk
from latent_cot.api.run import load
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.report.terminal import say, waiting
from latent_cot.run import reasoners
from latent_cot.run.paths import refuse_moved
from latent_cot.run.printable import printable
from latent_cot.types import UsageError


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's reasoner into a folder that works without this package: weights, tokenizer, settings, model card.

    The weights are a PEFT adapter, or with --merge a whole model. The model card has a program that writes chains,
    calls the tools and gives the answers; see docs/exporting.md.
    """

    run: tyro.conf.Positional[Path]
    """A run folder, finished or not."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder to write: a new or an empty one."""
    reasoner: Literal["q", "p"] | None = None
    """The sampler q or the model p. Default: q, where it answers questions."""
    merge: Switch = False
    """The base model's weights with the adapter's in them, instead of the adapter alone."""
    force: Switch = False
    """Replace what an earlier export has left in the folder."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print what was written as JSON to standard output."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(ExportOptions, argv, "export")
    asked = load(options.run, trust_code=options.trust_code)
    source, of_run = asked.source, asked.folder("adapter to export")
    reasoner = options.reasoner or source.reasoners[0]
    source.require(reasoner)
    target = disk.expanded(options.target)
    console = progress_console(to_stderr=options.json)

    from latent_cot.run.export import folder
    from latent_cot.run.export.description import Base, describe

    folder.refuse_unless_free(target, of_run.path, force=options.force)
    refuse_moved(source.config, of_run.path / "config.yaml")
    base = Base.of(source.config.model)
    task = asked.task
    with waiting(console, f"Loading {printable(source.config.model)}"):
        data = reasoners.training_data(source, task)
        other_data = reasoners.other_data(source, data)
        if other_data is not None and reasoners.shows_data(source):
            raise UsageError(f"{options.run}: the prompt shows examples. {other_data}")
        loop = reasoners.load(source, data)
    other_model = reasoners.other_model(source, loop.lm)
    splits = source.config.evaluation.splits or task.default_splits
    if not splits:
        raise UsageError(f"{options.run}: {task.name} has no test split whose questions the card could show")
    examples = task.split(splits[0])
    other = {"other_data": other_data is not None, "other_model": other_model is not None}
    description = describe(loop, reasoner, of_run, examples, **other)
    folder.build(loop, reasoner, base, description, target, merge=options.merge)
    notes = [note for note in (other_data, other_model) if note is not None]
    for note in notes:
        say(console, note)
    say(console, f"{reasoner} is in {target}, as {'a model' if options.merge else 'an adapter of ' + base.name}.")
    if missing := [tool["name"] for tool in description["tools"] if tool["is_left_to_write"]]:
        why = "the tool has no `portable` form (docs/exporting.md)"
        say(console, f"The card's program lacks {', '.join(missing)}: {why}")
    say(console, f"How to use it, and what it can do: {target / 'README.md'}")
    if options.json:
        print_json(
            {
                "folder": str(target),
                "reasoner": reasoner,
                "merged": options.merge,
                "base_model": base.name,
                "notes": notes,
            }
        )
    return 0
