"""`latent-cot eval`: how often a reasoner is right, how far that carries, and what it does wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from latent_cot import plots, tasks
from latent_cot.cli import reasoners
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.display import RATIONALE_HEADING, accuracy_table, marked, printable
from latent_cot.errors import UsageError
from latent_cot.tasks.common import drop_seen, repeats
from latent_cot.types import Example, Sweep, SweepableTask, Task, TaskData

if TYPE_CHECKING:
    from latent_cot.evaluate import Mistakes
    from latent_cot.lm import Adapter
    from latent_cot.loop import Loop


@dataclass(frozen=True)
class EvalOptions:
    """The share of right answers of a run's reasoners, or of an untrained model, with its 95 % interval.

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
    reasoner: Literal["q", "p"] | None = None
    """The sampler q or the model p. Default: both, where the run has both."""
    votes: int = 1
    """Chains a question; above 1 the majority of their answers decides."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy. Default: 0, or 0.5 with several votes."""
    max_tokens: int | None = None
    """Tokens a chain may choose. Default: the run's `evaluation.max_tokens`."""
    size: int | None = None
    """Only the first questions of each split. Default: all of them."""
    seed: int = 0
    """Seeds the sampling."""
    errors: Switch = False
    """Show what the wrong answers did wrong: each category with its share and an example."""
    plot: Path | None = None
    """Draw the curves into this file: .svg, .pdf or .png. Needs matplotlib, the extra `plot`."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print the figures as JSON to standard output, and progress to standard error."""


@dataclass
class _Split:
    examples: Sequence[Example]
    dropped: int
    """Questions left out because the run was trained on them."""
    repeated: int
    """Questions kept that repeat an earlier one."""


@dataclass
class _Report:
    splits: dict[str, _Split]
    decoding: dict[str, Any]
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Reasoner -> split -> `Accuracy.to_json()`."""
    mistakes: dict[str, dict[str, Mistakes]] = field(default_factory=dict)
    """Reasoner -> split -> those of its wrong answers; empty unless asked for."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(EvalOptions, argv, "eval")
    _check(options)
    source = reasoners.find(options.target, options.task, trusted=options.trust_code)
    if options.reasoner is not None:
        source.require(options.reasoner)
    if options.max_tokens is not None:
        evaluation = replace(source.config.evaluation, max_tokens=options.max_tokens)
        source = replace(source, config=replace(source.config, evaluation=evaluation))
    console = progress_console(to_stderr=options.json)

    # The questions first: a mistyped split need not wait for the model.
    task = tasks.load(source.config.task)
    sweeps = [_sweep(task, pattern) for pattern in options.split]
    if options.plot is not None:
        if not any(sweep.axes for sweep in sweeps):
            raise UsageError(
                f"--plot {options.plot}: nothing to draw; add a --split that names several splits, such as "
                "--split operands=3..10 for arithmetic (the task's README says what it has)"
            )
        plots.check_plot(options.plot)
    data = _training_data(source, task)
    training = reasoners.training_questions(source, data)
    splits = _splits(options, task, sweeps, training)
    curves = [plots.Curve.of(sweep, training) for sweep in sweeps if sweep.axes]
    loop = reasoners.load(source, data, Console(stderr=True))

    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.votes == 1 else 0.5
    decoding = {
        "max_tokens": source.config.evaluation.max_tokens,
        "votes": options.votes,
        "temperature": temperature,
    }
    report = _Report(splits, decoding)
    names = [options.reasoner] if options.reasoner else source.reasoners
    _evaluate(loop, report, names, options, console)

    for name, split in splits.items():
        if split.dropped or split.repeated:
            note = f"{name}: {split.dropped} questions seen in training {'or excluded ' if options.exclude else ''}"
            note += "were dropped"
            note += f"; {split.repeated} repeat an earlier one and were kept" if split.repeated else ""
            console.print(Text(printable(note), style="dim"), soft_wrap=True)
    heading = f"{options.target}: at most {decoding['max_tokens']} tokens, votes {options.votes}, "
    heading += f"temperature {temperature:g}, seed {options.seed}"
    if options.json:
        print_json(
            {
                **source.describe(),
                "seed": options.seed,
                "decoding": decoding,
                "dropped": {name: split.dropped for name, split in splits.items()},
                "results": report.results,
                "curves": [curve.to_json() for curve in curves],
                **({"errors": _errors_json(report)} if options.errors else {}),
            }
        )
    else:
        console.print(Text(printable(heading)), soft_wrap=True)
        _print_accuracies(console, curves, report)
        if options.errors:
            _print_errors(console, loop, report)
    if options.plot is not None:
        plots.save_plot(options.plot, curves, report.results, printable(heading))
        console.print(Text(f"drawn: {printable(str(options.plot))}", style="dim"), soft_wrap=True)
    return 0


def _print_accuracies(console: Console, curves: Sequence[plots.Curve], report: _Report) -> None:
    """The curves, and a table of the splits that are on none."""
    drawn = {point.split for curve in curves for point in curve.points}
    others = {
        reasoner: {name: figures for name, figures in splits.items() if name not in drawn}
        for reasoner, splits in report.results.items()
    }
    if any(others.values()):
        console.print(accuracy_table(others))
    for curve in curves:
        console.print(plots.curve_table(curve, report.results, ascii_only=console.options.ascii_only))


def _print_errors(console: Console, loop: Loop, report: _Report) -> None:
    """A table a reasoner, over all splits: categories by frequency, each with its first example."""
    from latent_cot.evaluate import Mistakes

    for reasoner, splits in report.mistakes.items():
        pooled = Mistakes(loop.task)
        for of_split in splits.values():
            pooled.merge(of_split)
        n = sum(len(report.splits[name].examples) for name in splits)
        console.print(Text(f"{reasoner}: {pooled.counts.total()} of {n} answers are wrong"), soft_wrap=True)
        if not pooled.counts:
            continue
        table = Table()
        table.add_column("mistake", no_wrap=True)
        table.add_column("n", justify="right")
        table.add_column("%", justify="right")
        table.add_column("e.g. the question", overflow="fold")
        table.add_column(RATIONALE_HEADING, overflow="fold")
        for row in pooled.to_json():
            _, chain = pooled.first[row["category"]]
            table.add_row(
                Text(printable(row["category"])),
                str(row["count"]),
                f"{100 * row['share']:.0f}",
                Text(printable(row["example"]["question"])),
                marked(asdict(chain), loop.test_rules.codec.decode),
            )
        console.print(table)


def _errors_json(report: _Report) -> dict[str, dict[str, Any]]:
    """Reasoner -> split -> categories."""
    return {
        reasoner: {name: mistakes.to_json() for name, mistakes in splits.items()}
        for reasoner, splits in report.mistakes.items()
    }


def _check(options: EvalOptions) -> None:
    for name in ("votes", "size", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        raise UsageError(f"--temperature is {options.temperature}; it must be a finite number, not negative")
    if options.votes > 1 and options.temperature == 0:
        raise UsageError(f"--votes {options.votes}: at --temperature 0 all chains of a question are the same; raise it")


def _training_data(source: reasoners.Source, task: Task) -> TaskData:
    from latent_cot.session import data_request

    return TaskData((), (), ()) if source.folder is None else task.load(data_request(source.config))


def _sweep(task: Task, pattern: str) -> Sweep:
    """The splits that the user means; a task without numbers of its own knows single ones only."""
    return task.sweep(pattern) if isinstance(task, SweepableTask) else Sweep(pattern, (), {pattern: {}})


def _splits(
    options: EvalOptions, task: Task, sweeps: Sequence[Sweep], training: Sequence[Example]
) -> dict[str, _Split]:
    named = [name for sweep in sweeps for name in sweep.points] or ([] if options.data else task.default_splits)
    found = {name: task.split(name, options.size) for name in named}
    found |= {path: task.read(path) for path in options.data}
    seen = [*training, *(example for path in options.exclude for example in task.read(path))]
    splits = {}
    for name, examples in found.items():
        kept, dropped = drop_seen(examples, seen)
        if not kept:
            raise UsageError(f"{name}: all of its {dropped} questions were seen in training; nothing is left")
        kept = kept[: options.size]
        splits[name] = _Split(kept, dropped, repeats(kept))
    return splits


def _evaluate(loop: Loop, report: _Report, names: Sequence[Adapter], options: EvalOptions, console: Console) -> None:
    import torch

    from latent_cot.evaluate import Accuracy, Mistakes, answer_questions

    total = len(names) * sum(len(split.examples) for split in report.splits.values())
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("questions", total=total)
        for name in names:
            of_reasoner = report.results.setdefault(name, {})
            for split_name, split in report.splits.items():
                right, mistakes = 0, Mistakes(loop.task)
                for outcome in answer_questions(
                    loop.lm,
                    name,
                    loop.task,
                    split.examples,
                    loop.test_rules,
                    prefix=loop.model_prefix if name == "p" else "",
                    votes=report.decoding["votes"],
                    temperature=report.decoding["temperature"],
                    batch_size=loop.config.evaluation.batch_size,
                    generator=torch.Generator().manual_seed(options.seed),
                ):
                    right += outcome.correct
                    if options.errors and not outcome.correct:
                        mistakes.add(outcome)
                    progress.advance(bar)
                of_reasoner[split_name] = Accuracy(right, len(split.examples)).to_json()
                if options.errors:
                    report.mistakes.setdefault(name, {})[split_name] = mistakes
