"""`latent-cot eval`: how often a reasoner is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from latent_cot import tasks
from latent_cot.cli import reasoners
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.display import accuracy_table, printable
from latent_cot.errors import UsageError
from latent_cot.tasks.common import drop_seen, repeats
from latent_cot.types import Example, Task, TaskData

if TYPE_CHECKING:
    from latent_cot.em import EM
    from latent_cot.lm import Adapter


@dataclass(frozen=True)
class EvalOptions:
    """The share of right answers of a run's reasoners, or of an untrained model, with its 95 % interval.

    Questions that the run was trained on are dropped, and counted.
    """

    target: tyro.conf.Positional[str]
    """A run folder, or a base model (hub name or folder)."""
    task: str | None = None
    """A task's name or file. Default: the run's; `arithmetic` for a base model."""
    split: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A test split, such as `5-operands`; several: --split A --split B. Default: the task's own."""
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A file of test questions, in the task's format. Repeatable."""
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
    data = _training_data(source, task)
    splits = _splits(options, task, reasoners.training_questions(source, data))
    em = reasoners.load(source, data, Console(stderr=True))

    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.votes == 1 else 0.5
    decoding = {
        "max_tokens": source.config.evaluation.max_tokens,
        "votes": options.votes,
        "temperature": temperature,
    }
    report = _Report(splits, decoding)
    _evaluate(em, report, [options.reasoner] if options.reasoner else source.reasoners, options.seed, console)

    for name, split in splits.items():
        if split.dropped or split.repeated:
            note = f"{name}: {split.dropped} questions seen in training were dropped"
            note += f"; {split.repeated} repeat an earlier one and were kept" if split.repeated else ""
            console.print(Text(printable(note), style="dim"), soft_wrap=True)
    if options.json:
        print_json(
            {
                **source.describe(),
                "seed": options.seed,
                "decoding": decoding,
                "dropped": {name: split.dropped for name, split in splits.items()},
                "results": report.results,
            }
        )
    else:
        heading = f"{options.target}: at most {decoding['max_tokens']} tokens, votes {options.votes}, "
        heading += f"temperature {temperature:g}, seed {options.seed}"
        console.print(Text(printable(heading)), soft_wrap=True)
        console.print(accuracy_table(report.results))
    return 0


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


def _splits(options: EvalOptions, task: Task, training: Sequence[Example]) -> dict[str, _Split]:
    named = options.split or (() if options.data else task.default_splits)
    found = {name: task.split(name, options.size) for name in named}
    found |= {path: task.read(path)[: options.size] for path in options.data}
    splits = {}
    for name, examples in found.items():
        kept, dropped = drop_seen(examples, training)
        if not kept:
            raise UsageError(f"{name}: all of its {dropped} questions were seen in training; nothing is left")
        splits[name] = _Split(kept, dropped, repeats(kept))
    return splits


def _evaluate(em: EM, report: _Report, names: Sequence[Adapter], seed: int, console: Console) -> None:
    import torch

    from latent_cot.evaluate import Accuracy, answer_questions

    total = len(names) * sum(len(split.examples) for split in report.splits.values())
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("questions", total=total)
        for name in names:
            of_reasoner = report.results.setdefault(name, {})
            for split_name, split in report.splits.items():
                right = 0
                for outcome in answer_questions(
                    em.lm,
                    name,
                    em.task,
                    split.examples,
                    em.test_rules,
                    prefix=em.model_prefix if name == "p" else "",
                    votes=report.decoding["votes"],
                    temperature=report.decoding["temperature"],
                    batch_size=em.config.evaluation.batch_size,
                    generator=torch.Generator().manual_seed(seed),
                ):
                    right += outcome.correct
                    progress.advance(bar)
                of_reasoner[split_name] = Accuracy(right, len(split.examples)).to_json()
