"""`latent-cot export`: a run's reasoner as an adapter or a model that plain transformers loads, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from latent_cot import disk
from latent_cot.api.run import load
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.report.terminal import say, waiting
from latent_cot.run.printable import printable
from latent_cot.types import Reasoner


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
    reasoner: Reasoner | None = None
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
    of_run = asked.folder("adapter to export")
    if options.reasoner is not None:
        asked.source.require(options.reasoner)
    target = disk.expanded(options.target)
    console = progress_console(to_stderr=options.json)

    from latent_cot.run.export.whole import export  # here: it takes seconds

    done = export(
        asked.source,
        of_run,
        asked.task,
        target,
        reasoner=options.reasoner,
        merge=options.merge,
        force=options.force,
        while_loading=lambda: waiting(console, f"Loading {printable(asked.config.model)}"),
    )
    for note in done.notes:
        say(console, note)
    say(console, f"{done.reasoner} is in {target}, as {'a model' if options.merge else 'an adapter of ' + done.base}.")
    if done.left_to_write:
        why = "the tool has no `portable` form (docs/exporting.md)"
        say(console, f"The card's program lacks {', '.join(done.left_to_write)}: {why}")
    say(console, f"How to use it, and what it can do: {target / 'README.md'}")
    if options.json:
        print_json(
            {
                "folder": str(target),
                "reasoner": done.reasoner,
                "merged": options.merge,
                "base_model": done.base,
                "notes": done.notes,
                "left_to_write": done.left_to_write,
            }
        )
    return 0
