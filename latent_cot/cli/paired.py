"""`latent-cot paired`: two reasoners beside each other, question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from latent_cot.cli.options import Switch, parse, print_json, progress_console, say
from latent_cot.evaluation import outcomes
from latent_cot.evaluation.outcomes import RIGHT, Difference
from latent_cot.report.tables import Table
from latent_cot.types import UsageError


@dataclass(frozen=True)
class PairedOptions:
    """The difference of two reasoners on the same test questions: a mean over the questions, its 95 % interval, and on
    how many of them each has more.

    Both have been asked the same questions, so that the difference is surer than two intervals side by side look. Where
    a side has several runs, a question's figure is their mean. The interval is about other questions, not about
    other runs.
    """

    first: tyro.conf.Positional[tuple[Path, ...]]
    """Files that `latent-cot eval --outcomes` has written: one, or one for each seed."""
    against: tuple[Path, ...]
    """Files of what it is compared with, likewise."""
    reasoner: Literal["q", "p"] | None = None
    """Whose outcomes are taken from a file that has those of both."""
    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(PairedOptions, argv, "paired")
    named = {"FILE": options.first, "--against FILE": options.against}
    for flag, files in named.items():
        if not files:
            raise UsageError(f"no file is named as {flag}; make one: latent-cot eval RUN --outcomes FILE")
    sides = [[outcomes.of_reasoner(path, options.reasoner) for path in files] for files in named.values()]
    first, second = ([found for _, found in side] for side in sides)
    found = outcomes.differences(first, second)
    if not found:
        names = f"{options.first[0]}, {options.against[0]}"
        raise UsageError(f"{names}: have no question and figure in common; evaluate both on the same --split")
    console = progress_console(to_stderr=options.json)
    asked = [set(run) for run in (*first, *second)]
    left_out = len(set.union(*asked)) - len(set.intersection(*asked))
    if left_out:
        say(console, f"{left_out} questions are not in all of the files and were left out", style="dim")
    if options.json:
        reasoners = [list(dict.fromkeys(reasoner for reasoner, _ in side)) for side in sides]
        of_sides = {"first": list(map(str, options.first)), "against": list(map(str, options.against))}
        differences = {split: {name: d.to_json() for name, d in figures.items()} for split, figures in found.items()}
        print_json({**of_sides, "reasoners": reasoners, "left_out": left_out, "differences": differences})
    else:
        for what, files, side in zip(("first", "against"), named.values(), sides, strict=True):
            told = ", ".join(f"{reasoner} of {path}" for path, (reasoner, _) in zip(files, side, strict=True))
            say(console, f"{what}: {told}", style="dim")
        table_of(found).show(console)
    return 0


def table_of(found: Mapping[str, Mapping[str, Difference]]) -> Table:
    """A row a split and figure; right answers in %."""
    rows = []
    for split, figures in found.items():
        for name, d in figures.items():
            scale, digits = (100.0, ".1f") if name == RIGHT else (1.0, ".3g")
            between = " (" + " to ".join(f"{scale * x:+{digits}}" for x in d.interval_95) + ")" if d.interval_95 else ""
            figure = f"% {name}" if name == RIGHT else name
            first, second = (f"{scale * x:{digits}}" for x in (d.first, d.second))
            value = f"{scale * d.value:+{digits}}{between}"
            counts = (str(d.higher), str(d.lower), f"{d.p_value:.2g}")
            rows.append((split, figure, str(d.n), first, second, value, *counts))
    headings = ("split", "figure", "questions", "first", "against", "difference (95 %)", "higher", "lower", "p")
    columns = dict(zip(headings, zip(*rows, strict=True), strict=True))
    return Table({name: columns.pop(name) for name in ("split", "figure")}, columns)
