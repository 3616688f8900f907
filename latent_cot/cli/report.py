"""`latent-cot report`: what runs did and what their chains look like, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from latent_cot import __version__, disk
from latent_cot.api.run import Run, check_sampling, load
from latent_cot.cli.options import Switch, announce_loading, parse, progress_console
from latent_cot.config.schema import tested_splits
from latent_cot.evaluation.splits import splits_of
from latent_cot.report.terminal import Items, say
from latent_cot.report.web import FORMAT, logs, page
from latent_cot.run.paths import check_writable
from latent_cot.run.run_folder import RunFolder, write_text
from latent_cot.types import Example, Reasoner, TaskData, UsageError

VALIDATION = "validation"
"""Name of the questions kept out of training for tuning, among the splits."""


@dataclass(frozen=True)
class ReportOptions:
    """One HTML file that shows what runs did: settings, curves, accuracies, and their rationales, token by token.

    It needs nothing but a browser. The rationales are sampled from the run's model and scored.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders; several are shown side by side."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file. Default: `report.html` in the first run's folder."""
    questions: int = 6
    """Questions of each split whose rationales are sampled."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """Rationales a question."""
    split: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Test splits to take questions from, or `validation`. Repeatable. Default: validation, and the run's."""
    reasoner: Reasoner | None = None
    """Who writes the rationales: the sampler q or the model p. Default: those that answer test questions, p
    first, and a q that has read their answers."""
    temperature: float = 1.0
    """Sampling temperature. Log-probabilities are those at temperature 1."""
    seed: int = 0
    """Seeds the sampling."""
    no_model: Switch = False
    """Leave the rationales out: what the run has logged is all that is shown, and no model is loaded. A task of your
    own is, to read the figures by."""
    trust_code: Switch = False
    """Run the Python files that a run's configuration names (a task, a tool, a model's)."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(ReportOptions, argv, "report")
    if not options.runs:
        raise UsageError("no run is named; give the --output-dir of one: latent-cot report runs/mine")
    if options.no_model and options.split:
        raise UsageError("--split: with --no-model no question is sampled; leave one out")
    counts = {"questions": options.questions, "samples": options.samples}
    check_sampling("--", options.temperature, options.seed, **counts)
    # First all that is quick to find out: a mistyped folder need not wait for another run's model.
    runs = [_open(target, options) for target in options.runs]
    path = disk.expanded(options.output) if options.output else runs[0].folder("report").path / "report.html"
    check_writable(path, "--output")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {path}: a report is an HTML file; give it a name that ends in .html")
    console = progress_console(to_stderr=False)
    names = _told_apart([one.folder("report") for one in runs])
    # Of each run no longer than it takes.
    shown = [{**_shown(runs.pop(0), options, console), "name": name} for name in names]
    title = ", ".join(record["name"] for record in shown)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    found = {"format": FORMAT, "title": title, "made": made, "version": __version__, "runs": shown}
    write_text(path, page.render(found))
    say(console, f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)", whole=True)
    return 0


def _open(target: str, options: ReportOptions) -> Run:
    asked = load(target, trust_code=options.trust_code)
    asked.folder("report")
    if options.reasoner == "q" and "q" not in asked.adapters:
        asked.source.require("q")
    return asked


def _told_apart(folders: Sequence[RunFolder]) -> list[str]:
    """The name of each run, with as many of the folders above it as tell it apart from the others."""
    parts = [folder.path.absolute().parts for folder in folders]

    def name(folder: RunFolder, own: tuple[str, ...]) -> str:
        least, others = folder.name.count("/") + 1, [other for other in parts if other != own]
        found = (n for n in range(least, len(own)) if all(other[-n:] != own[-n:] for other in others))
        return "/".join(own[-next(found, least) :])

    return [name(folder, own) for folder, own in zip(folders, parts, strict=True)]


def _shown(one: Run, options: ReportOptions, console: Console) -> dict[str, Any]:
    """What the report has of a run."""
    announce_loading(console, one)
    try:
        data = one.training_data()
    except UsageError as error:
        if not options.no_model:
            raise
        say(console, f"Its data cannot be read, and are not described: {error}")
        data = TaskData((), (), ())
    found = logs.collect(one.source, one.folder("report"), one.task, data)
    questions = {} if options.no_model else _questions(one, options, data)
    samples = _samples(one, options, questions, console) if questions else None
    return {**found, "notes": [*found["notes"], *one.notes], "samples": samples}


def _questions(one: Run, options: ReportOptions, data: TaskData) -> dict[str, Sequence[Example]]:
    """The first questions of each split."""
    seen = [*data.demonstrations, *data.unlabelled, *data.validation]
    found: dict[str, Sequence[Example]] = {}
    for name in options.split or (VALIDATION, *tested_splits(one.config, one.task)):
        if name == VALIDATION:
            found[name] = data.validation[: options.questions]
        else:
            splits = splits_of(one.task, [one.task.sweep(name)], size=options.questions, seen=seen)
            found |= {split: of_split.examples for split, of_split in splits.items()}
    return {name: examples for name, examples in found.items() if examples}


def _samples(
    one: Run, options: ReportOptions, questions: Mapping[str, Sequence[Example]], console: Console
) -> dict[str, Any]:
    from latent_cot.report.web.samples import sample

    settings = {name: getattr(options, name) for name in ("samples", "temperature", "seed")}
    loop = one.in_memory()
    reads = one.source.has_q and all(loop.q_reads(example) for of_split in questions.values() for example in of_split)
    both: tuple[Reasoner, ...] = ("p", "q") if reads and "p" in one.reasoners else one.reasoners
    asked = (options.reasoner,) if options.reasoner else tuple(sorted(both))  # p leads
    writers = tuple(dict.fromkeys(loop.sampler_of(reasoner) or reasoner for reasoner in asked))
    total = len(writers) * sum(map(len, questions.values()))
    with Items(console, f"{one.folder('report').path.name}: questions", total) as progress:
        return sample(loop, questions, writers, **settings, has_q=one.source.has_q, on_done=progress.advance)
