"""`latent-cot eval`: how often a reasoner is right, how far that carries, and what it does wrong; or the figures of its
rationales, for a task that has no right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from latent_cot import disk
from latent_cot.api.run import Run, check_for_task, check_sampling, load
from latent_cot.cli.options import Switch, announce_loading, parse, print_json, progress_console
from latent_cot.report import plots
from latent_cot.report.tables import Cell, Table, figure_table
from latent_cot.report.terminal import RATIONALE_HEADING, marked, say
from latent_cot.run.json_lines import JsonLines
from latent_cot.types import Reasoner, Task, UsageError

if TYPE_CHECKING:
    from latent_cot.api.results import Evaluation


SAMPLING = ("votes", "size", "max_tokens", "samples", "temperature")
"""Options that `Run.evaluate` has too."""


@dataclass(frozen=True)
class EvalOptions:
    """The share of right answers of a run's reasoners, or of an untrained model, with its 95 % interval. A task without
    right answers has figures of the rationales instead: `latent-cot tasks` lists them.

    Questions that the run was trained on are dropped, and counted. A split that names several values, such as
    operands=3..10, is shown as a curve.
    """

    target: tyro.conf.Positional[str]
    """A run folder, or a base model (hub name or folder)."""
    task: str | None = None
    """A task's name or file. Default: the run's; `arithmetic` for a base model."""
    split: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A test split, such as `5-operands`, or several of them along a number: `operands=3..10`,
    `operands=5,digits=2..4`. Repeatable. Default: the task's own."""
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A file of test questions, in the task's format. Repeatable."""
    exclude: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A file whose questions are dropped like those the run was trained on. Repeatable."""
    reasoner: Reasoner | None = None
    """The sampler q or the model p. Default: both, where both answer test questions."""
    votes: int = 1
    """Chains a question; above 1 the majority of their answers decides."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy. Default: 0, or 0.5 with several votes; for figures of rationales, that of the
    run."""
    samples: int | None = None
    """Rationales a question, for a task that has figures of them instead of right answers. Default: the run's, or as
    many as the task likes."""
    max_tokens: int | None = None
    """Tokens a chain may choose. Default: the run's `evaluation.max_tokens`."""
    size: int | None = None
    """Only the first questions of each split. Default: all of them."""
    seed: int = 0
    """Seeds the sampling."""
    errors: Switch = False
    """Show what the wrong answers did wrong: each category with its share and an example."""
    answers: Path | None = None
    """Write a JSON line for each question that a reasoner was asked into this file, which is replaced if there is one:
    the answer given, whether it is right, the chain, the mistake; or the figures and the rationales of the question."""
    plot: Path | None = None
    """Draw the curves into this file: .svg, .pdf or .png. Needs matplotlib, the extra `plot`."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print the figures as JSON to standard output, and progress to standard error."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(EvalOptions, argv, "eval")
    options = replace(options, plot=options.plot and disk.expanded(options.plot))
    check_sampling("--", seed=options.seed, **{name: getattr(options, name) for name in SAMPLING})
    asked = load(options.target, task=options.task, trust_code=options.trust_code)
    task, console = asked.task, progress_console(to_stderr=options.json)
    announce_loading(console, asked)
    _check_for_task(options, task)
    inputs = (*options.data, *options.exclude)
    answers = None if options.answers is None else JsonLines(options.answers, "--answers", inputs)
    if not asked.source.finished:
        say(console, f"{options.target}: not finished; what its newest checkpoint has is tested", style="dim")
    found = asked.evaluate(
        options.split,
        files=options.data,
        reasoner=options.reasoner,
        exclude=options.exclude,
        seed=options.seed,
        **{name: getattr(options, name) for name in SAMPLING},
    )
    for name, split in found.splits.items():
        if split.dropped or split.repeated:
            own = "of training, validation or an excluded file" if options.exclude else "of training or validation"
            kept = f"; {split.repeated} repeat an earlier one and were kept" if split.repeated else ""
            say(console, f"{name}: {split.dropped} questions {own} were dropped{kept}", style="dim")
    if answers is not None:  # before anything is printed: standard output may be closed
        answers.add(found.records())
    *chains, temperature = (f"{name.replace('_', ' ')} {value:g}" for name, value in found.decoding.items())
    heading = f"{options.target}: {', '.join(chains)}, {temperature}, seed {options.seed}"
    if options.plot is not None:
        plots.save_plot(options.plot, found.curves, found.figures, heading)
    if options.json:
        record = {
            **asked.source.describe(),
            "finished": asked.source.finished,
            "seed": options.seed,
            "decoding": found.decoding,
            "notes": asked.notes,
            "dropped": {name: split.dropped for name, split in found.splits.items()},
            "repeated": {name: split.repeated for name, split in found.splits.items()},
            "results": found.figures,
            "curves": [curve.to_json() for curve in found.curves],
        }
        if options.errors:
            record["errors"] = {
                reasoner: {split: found.all_mistakes_of(reasoner, split).to_json() for split in splits}
                for reasoner, splits in found.outcomes.items()
            }
        print_json(record)
    else:
        say(console, heading)
        _print_figures(console, found)
        if options.errors:
            _print_errors(console, asked, found)
    if answers is not None:
        say(console, f"written: {answers.path} ({answers.lines:,} lines)", style="dim", whole=True)
    if options.plot is not None:
        say(console, f"drawn: {options.plot}", style="dim")
    return 0


def _print_figures(console: Console, found: Evaluation) -> None:
    """The curves, and a table of the splits that are on none."""
    shown = dict(sorted(found.figures.items()))  # p first
    drawn = {} if found.metrics else {split for curve in found.curves for split in curve.points}
    others = {
        reasoner: {name: figures for name, figures in splits.items() if name not in drawn}
        for reasoner, splits in shown.items()
    }
    if any(others.values()):
        figure_table(others, found.metrics).show(console)
    for curve in [] if found.metrics else found.curves:
        plots.curve_table(curve, shown, ascii_only=console.options.ascii_only).show(console)


def _print_errors(console: Console, asked: Run, found: Evaluation) -> None:
    """A table a reasoner, over all splits: categories by frequency, each with its first example."""
    decode = asked.in_memory().test_rules.codec.decode
    n = sum(len(split.examples) for split in found.splits.values())
    for reasoner in sorted(found.outcomes):  # p first
        pooled = found.all_mistakes_of(reasoner)
        say(console, f"{reasoner}: {pooled.counts.total()} of {n} answers are wrong")
        rows = pooled.to_json()
        chains = [pooled.first[row["category"]].chain for row in rows]
        if rows:
            Table(
                {
                    "mistake": [row["category"] for row in rows],
                    "e.g. the question": [row["example"]["question"] for row in rows],
                    RATIONALE_HEADING: [Cell(marked(asdict(chain), decode)) for chain in chains],
                },
                {"n": [str(row["count"]) for row in rows], "%": [f"{100 * row['share']:.0f}" for row in rows]},
            ).show(console)


def _check_for_task(options: EvalOptions, task: Task) -> None:
    check_for_task(task, "--", votes=options.votes, samples=options.samples)
    for flag, given in (("errors", options.errors), ("plot", options.plot is not None)):
        if given and task.is_measured:
            raise UsageError(f"--{flag}: the task {task.name} has no right answers, only figures; leave it out")
    if options.plot is not None:
        if not any(task.sweep(pattern).axes for pattern in options.split):
            raise UsageError(
                f"--plot {options.plot}: nothing to draw; add a --split of several, such as operands=3..10"
            )
        plots.check_plot(options.plot)
