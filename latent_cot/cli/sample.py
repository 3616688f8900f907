"""`latent-cot sample`: rationales for a question, or for a file of them, and what the reasoner and the reward make of
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from latent_cot.api.rationales import Rationales, row
from latent_cot.api.run import Run, check_sampling, load
from latent_cot.cli.options import Switch, announce_loading, parse, print_json, progress_console
from latent_cot.report.terminal import say
from latent_cot.run.json_lines import JsonLines
from latent_cot.tasks.files import examples_of, read_rows
from latent_cot.types import Example, Reasoner, Task, UsageError

if TYPE_CHECKING:
    from latent_cot.methods.scored import ScoredRationale


@dataclass(frozen=True)
class SampleOptions:
    """Sample rationales for a question, the best by log-reward first; or, with --data and --output, for all questions
    of a file.
    """

    target: tyro.conf.Positional[str]
    """A run folder, or a base model (hub name or folder)."""
    question: str | None = None
    """The question, e.g. `"6 - 0 - 4 - 8"`."""
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Instead: a file of questions: `.txt` with one a line, without answers; or in the task's format, as `eval --data`
    has it. Repeatable."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """With --data: the file that gets a JSON line for each distinct rationale, question by question. It is replaced if
    there is one."""
    answer: str | None = None
    """Its answer, where the task cannot work it out: for the log-reward, for right or wrong, and for a q that sees
    it."""
    task: str | None = None
    """A task's name or file. Default: the run's; `arithmetic` for a base model."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many to sample, for each question."""
    reasoner: Reasoner | None = None
    """The sampler q or the model p. Default: q if it answers test questions, else p."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy. The log-probability shown is that at temperature 1."""
    seed: int = 0
    """Seeds the sampling."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print JSON to standard output."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(SampleOptions, argv, "sample")
    _check(options)
    asked = load(options.target, task=options.task, trust_code=options.trust_code)
    console = progress_console(to_stderr=options.json)
    if options.output is not None:
        return _write(options, options.output, asked, console)
    announce_loading(console, asked)
    reasoner: Reasoner = options.reasoner or asked.reasoners[0]
    found = asked.sample(
        options.question or "",
        reasoner=reasoner,
        answer=options.answer,
        **_settings(options),
    )
    writer = found.reasoner or reasoner
    best = _best_first(found, writer)
    if options.json:
        head = {**_head(options, asked, reasoner, writer), "question": found.question, "gold": found.example.answer}
        samples = [
            {**row(z), "log_prob": z.log_prob(writer), "calls": [asdict(call) for call in z.rationale.calls]}
            for z in best
        ]
        weights = {"ess": found.ess, "bound": found.bound, "bound_error": found.bound_error}
        print_json({**head, **weights, "samples": samples})
        return 0
    say(console, found.title)
    replace(found, items=tuple(best)).table().show(console)
    reward = asked.in_memory().reward.name
    weight = f"its count × R / {writer}, as a share of all"
    has_read = asked.config.q_sees == "question-and-answer" and asked.source.has_q
    names = "log q (q has read Y), log p" if has_read else "log q, log p"
    say(console, f"{names}: of Z given X; log R: {reward}; in nats; weight: {weight}", style="dim")
    return 0


def _check(options: SampleOptions) -> None:
    """Raises UsageError for options that do not go together."""
    check_sampling("--", n=options.n, temperature=options.temperature, seed=options.seed)
    if bool(options.data) == (options.question is not None):
        raise UsageError("give --question TEXT, or --data FILE and --output FILE.jsonl for a file of questions")
    if options.data and options.output is None:
        raise UsageError(f"--data {options.data[0]}: add --output FILE.jsonl, the file for the rationales")
    if options.output is not None and not options.data:
        raise UsageError(f"--output {options.output}: is for the questions of --data FILE; with --question, use --json")
    if options.data and options.answer is not None:
        raise UsageError("--answer: is that of --question; with --data, put the answers into the file")


def _best_first(found: Rationales, writer: Reasoner) -> list[ScoredRationale]:
    return sorted(found, key=lambda z: (z.log_reward or 0.0, z.log_prob(writer)), reverse=True)


def _head(options: SampleOptions, asked: Run, reasoner: Reasoner, writer: Reasoner) -> dict[str, Any]:
    """What `--json` begins with."""
    who = {"reasoner": reasoner, "writer": writer}
    return {**asked.source.describe(), "notes": asked.notes, **who, **_settings(options)}


def _settings(options: SampleOptions) -> dict[str, Any]:
    return {"n": options.n, "temperature": options.temperature, "seed": options.seed}


def _questions(task: Task, path: str) -> list[Example]:
    if not path.lower().endswith(".txt"):
        return task.read(path)
    return examples_of(read_rows(path), lambda row: task.example(row[1]["text"]))


def _write(options: SampleOptions, output: Path, asked: Run, console: Console) -> int:
    """The rationales of files of questions go to a file. What is in it when the command is stopped are those of the
    first questions, in whole lines."""
    written = JsonLines(output, "--output", options.data)
    examples = [example for path in options.data for example in _questions(asked.task, path)]
    announce_loading(console, asked)
    reasoner: Reasoner = options.reasoner or asked.reasoners[0]
    writer, sampling = reasoner, _settings(options)
    for found in asked.sample_each(examples, reasoner=reasoner, **sampling, progress=True):
        writer = found.reasoner or reasoner
        about = {"question": found.question, "gold": found.example.answer}
        written.add({**about, **row(z)} for z in _best_first(found, writer))
    if options.json:
        counts = {"questions": len(examples), "rationales": written.lines}
        print_json({**_head(options, asked, reasoner, writer), "output": str(written.path), **counts})
    else:
        say(console, f"written: {written.path} ({len(examples):,} questions, {written.lines:,} rationales)", whole=True)
    return 0
