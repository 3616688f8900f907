"""`latent-cot eval`: how often a reasoner is right, how far that carries, and what it does wrong; or the figures of its
rationales, for a task that has no right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latent_cot import tasks
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.config.settings import check_temperature
from latent_cot.evaluation import outcomes
from latent_cot.evaluation.splits import Split, splits_of, sweep_of
from latent_cot.report import plots
from latent_cot.report.terminal import RATIONALE_HEADING, Items, accuracy_table, marked, metrics_table
from latent_cot.run import reasoners
from latent_cot.run.paths import check_writable
from latent_cot.run.printable import printable
from latent_cot.types import DrawingTask, Measured, MeasuredTask, Task, UsageError

if TYPE_CHECKING:
    from latent_cot.config.schema import EvaluationConfig
    from latent_cot.evaluation.evaluate import Mistakes
    from latent_cot.methods.loop import Loop
    from latent_cot.model.lm import Adapter


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
    reasoner: Literal["q", "p"] | None = None
    """The sampler q or the model p. Default: both, where the run has both."""
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
    plot: Path | None = None
    """Draw the curves, or the task's own picture of the rationales, into this file: .svg, .pdf or .png. Needs
    matplotlib, the extra `plot`."""
    outcomes: Path | None = None
    """Write what became of each question into this file, a JSON object a line: its figures, the answer given, the
    rationales. `latent-cot paired` compares two such files."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print the figures as JSON to standard output, and progress to standard error."""


@dataclass
class _Report:
    splits: dict[str, Split]
    decoding: dict[str, Any]
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Reasoner -> split -> `Accuracy.to_json()`, or metric -> `Figure.to_json()`."""
    measured: dict[str, Sequence[Measured]] = field(default_factory=dict)
    """`"q on test"` -> the rationales that the figures of a task without right answers are made of."""
    mistakes: dict[str, dict[str, Mistakes]] = field(default_factory=dict)
    """Reasoner -> split -> those of its wrong answers; empty unless asked for."""
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    """What became of each question, for `outcomes.write`; empty unless asked for."""


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
    if options.outcomes is not None:
        check_writable(options.outcomes, "--outcomes")
    console = progress_console(to_stderr=options.json)

    # The questions first: a mistyped split need not wait for the model.
    task = tasks.load(source.config.task)
    _check_for_task(options, task)
    sweeps = [sweep_of(task, pattern) for pattern in options.split]
    if options.plot is not None:
        if not _draws(task) and not any(sweep.axes for sweep in sweeps):
            raise UsageError(
                f"--plot {options.plot}: nothing to draw; add a --split that names several splits, such as "
                "--split operands=3..10 for arithmetic (the task's README says what it has)"
            )
        plots.check_plot(options.plot)
    data = reasoners.training_data(source, task)
    training = reasoners.training_questions(source, data)
    splits = splits_of(task, sweeps, files=options.data, exclude=options.exclude, size=options.size, training=training)
    curves = [plots.Curve.of(sweep, training) for sweep in sweeps if sweep.axes]
    loop = reasoners.load(source, data, Console(stderr=True))
    if not source.finished:
        note = f"{options.target}: not finished; what its newest checkpoint has is tested"
        console.print(Text(printable(note), style="dim"), soft_wrap=True)

    decoding = _decoding(options, source.config.evaluation, task)
    report = _Report(splits, decoding)
    names = [options.reasoner] if options.reasoner else source.reasoners
    _evaluate(loop, report, names, options, console)

    for name, split in splits.items():
        if split.dropped or split.repeated:
            note = f"{name}: {split.dropped} questions seen in training {'or excluded ' if options.exclude else ''}"
            note += "were dropped"
            note += f"; {split.repeated} repeat an earlier one and were kept" if split.repeated else ""
            console.print(Text(printable(note), style="dim"), soft_wrap=True)
    chains = f"samples {decoding['samples']}" if "samples" in decoding else f"votes {options.votes}"
    heading = f"{options.target}: at most {decoding['max_tokens']} tokens, {chains}, "
    heading += f"temperature {decoding['temperature']:g}, seed {options.seed}"
    if options.json:
        print_json(
            {
                **source.describe(),
                "finished": source.finished,
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
        if isinstance(task, MeasuredTask):
            console.print(metrics_table(report.results, task.metrics))
        else:
            _print_accuracies(console, curves, report)
        if options.errors:
            _print_errors(console, loop, report)
    if options.outcomes is not None:
        outcomes.write(options.outcomes, report.outcomes)
        console.print(Text(f"written: {printable(str(options.outcomes))}", style="dim"), soft_wrap=True)
    if options.plot is not None:
        if _draws(task):
            with plots.figure_in(options.plot, 8.0, 2.6 * len(report.measured)) as figure:
                task.draw(figure, report.measured)
        else:
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
        ascii_only = console.options.ascii_only
        console.print(plots.curve_table(curve, report.results, console.width, ascii_only=ascii_only))


def _print_errors(console: Console, loop: Loop, report: _Report) -> None:
    """A table a reasoner, over all splits: categories by frequency, each with its first example."""
    from latent_cot.evaluation.evaluate import Mistakes

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
    for name in ("votes", "size", "max_tokens", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    check_temperature(options.temperature)
    if options.votes > 1 and options.temperature == 0:
        raise UsageError(f"--votes {options.votes}: at --temperature 0 all chains of a question are the same; raise it")


def _draws(task: Task) -> TypeGuard[DrawingTask]:
    """A task with right answers may have a method `draw` that means something else."""
    return isinstance(task, MeasuredTask) and isinstance(task, DrawingTask)


def _check_for_task(options: EvalOptions, task: Task) -> None:
    if not isinstance(task, MeasuredTask):
        if options.samples is not None:
            raise UsageError(f"--samples: the task {task.name} has right answers; it has chains that vote: use --votes")
        return
    curve = options.plot is not None and not _draws(task)
    for flag, given in (("votes", options.votes > 1), ("errors", options.errors), ("plot", curve)):
        if given:
            raise UsageError(f"--{flag}: the task {task.name} has no right answers, only figures; leave it out")


def _decoding(options: EvalOptions, configured: EvaluationConfig, task: Task) -> dict[str, Any]:
    if isinstance(task, MeasuredTask):
        temperature = configured.temperature if options.temperature is None else options.temperature
        samples = options.samples or configured.samples or task.samples
        return {"max_tokens": configured.max_tokens, "samples": samples, "temperature": temperature}
    usual = 0.0 if options.votes == 1 else 0.5
    temperature = usual if options.temperature is None else options.temperature
    return {"max_tokens": configured.max_tokens, "votes": options.votes, "temperature": temperature}


def _evaluate(loop: Loop, report: _Report, names: Sequence[Adapter], options: EvalOptions, console: Console) -> None:
    import torch

    from latent_cot.evaluation.evaluate import Accuracy, Mistakes, answer_questions
    from latent_cot.evaluation.measure import figure_of, measure

    total = len(names) * sum(len(split.examples) for split in report.splits.values())
    with Items(console, "questions", total) as progress:
        for name in names:
            of_reasoner = report.results.setdefault(name, {})
            for split_name, split in report.splits.items():
                if isinstance(loop.task, MeasuredTask):
                    measured = _measured(loop, name, split, report.decoding, options.seed)
                    report.measured[f"{name} on {split_name}"] = measured
                    found = measure(loop.task, measured)
                    n = len(split.examples)
                    of_reasoner[split_name] = {
                        metric: figure_of(values, n).to_json() for metric, values in found.items()
                    }
                    if options.outcomes is not None:
                        report.outcomes += outcomes.of_measured(name, split_name, measured, found)
                    progress.advance(n)
                    continue
                right, mistakes = 0, Mistakes(loop.task)
                for outcome in answer_questions(
                    loop.lm,
                    loop.sampler_of(name),
                    loop.task,
                    split.examples,
                    loop.test_rules,
                    judge=loop.judge_of(name),
                    prefix=loop.model_prefix if loop.sampler_of(name) != "q" else "",
                    votes=report.decoding["votes"],
                    temperature=report.decoding["temperature"],
                    batch_size=loop.test_batch_size,
                    generator=torch.Generator().manual_seed(options.seed),
                ):
                    right += outcome.correct
                    if options.outcomes is not None:
                        report.outcomes.append(outcomes.of_answered(name, split_name, outcome))
                    if options.errors and not outcome.correct:
                        mistakes.add(outcome)
                    progress.advance()
                of_reasoner[split_name] = Accuracy(right, len(split.examples)).to_json()
                if options.errors:
                    report.mistakes.setdefault(name, {})[split_name] = mistakes


def _measured(
    loop: Loop, reasoner: Adapter, split: Split, decoding: Mapping[str, Any], seed: int
) -> Sequence[Measured]:
    n, temperature = decoding["samples"], decoding["temperature"]
    return loop.sample_tests(reasoner, split.examples, seed=seed, n=n, temperature=temperature)
