"""`latent-cot compare`: several methods, or variants of one, over seeds and within the same budget, as one table."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from latent_cot import disk, tasks
from latent_cot.api.carry_out import carry_out
from latent_cot.cli.fit import refuse_unwritable
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.config.methods import METHODS, PlannedBudget
from latent_cot.config.schema import tested_splits
from latent_cot.config.settings import check, refuse_task_code
from latent_cot.evaluation.splits import numbers_of
from latent_cot.report.comparison import differing, paired_difference, plan, records, table
from latent_cot.report.comparison.paired_difference import Target
from latent_cot.report.comparison.plan import PlannedRun, Variant
from latent_cot.report.terminal import say
from latent_cot.run import tracking
from latent_cot.run.paths import with_absolute_paths
from latent_cot.run.preflight import Examples, load_examples
from latent_cot.run.resuming import is_run
from latent_cot.run.run_folder import write_text
from latent_cot.types import UsageError

if TYPE_CHECKING:
    from latent_cot.run.session import Session


@dataclass(frozen=True)
class CompareOptions:
    """Train and evaluate methods over seeds; print one table and write it as JSON, Markdown and a plot.

    Each run has a folder, DIR/VARIANT/seedN. Those that were stopped are gone on with, those that are finished are not
    done again. The same budget means that every method that samples may sample as many trajectories
    as EM does, and fine-tuning and rejection sampling may take as many gradient steps: see docs/comparing.md.
    """

    methods: str | None = None
    """Methods, comma-separated (`latent-cot methods` lists them). Default, unless --variants is given: all of them, but
    none that is the same run as another."""
    variants: str | None = None
    """A YAML file of named variants, `name: {method: em, overrides: {...}}`, or a shipped one: `ablations`,
    `data-efficiency`, `decoding`, `few-shot`, `without-lessons`."""
    seeds: str = "0"
    """Seeds, comma-separated."""
    budget: str | None = None
    """`trajectories=5120` for each run that samples, and `gradient-steps=160` for those that fine-tune p and are no
    variant of EM's; `none`: each as it is configured. Default: what EM spends as configured."""
    preset: str | None = None
    """A set of defaults: `cpu` (used if none is given), `paper` or `smoke`."""
    config: str | None = None
    """A YAML file with settings for all runs."""
    task: str | None = None
    """A task's name or file. Default: that of the preset."""
    model: str | None = None
    """A Hugging Face causal LM: hub name or local folder. Default: that of the preset."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting for all runs, `flag=value`, or for one method or variant, `ppo:policy_gradient.kl=0.1`. Repeatable."""
    output_dir: Path | None = None
    """The comparison's folder. Default: runs/compare-TASK."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Send each run's figures to a tracker, such as `tensorboard`, `wandb` or `mlflow`; see docs/tracking.md.
    Repeatable."""
    against: str | None = None
    """A variant: also show by how much each of the others differs from it, question by question, with intervals.
    `em:p`: from its reasoner p; else from that of the same name, where it has one."""
    trust_code: Switch = False
    """Run the Python files that a task's YAML file names (a tool, a grader)."""
    dry_run: Switch = False
    """Show the runs with their budgets and commands, and stop."""
    json: Switch = False
    """Print the comparison as JSON to standard output, and progress to standard error."""


def run(argv: Sequence[str]) -> int:
    """The command. Returns 0, or 128 and the number of the signal that stopped it (SIGINT, SIGTERM, SIGHUP)."""
    options = parse(CompareOptions, argv, "compare")
    if options.json and options.dry_run:
        raise UsageError("--json: --dry-run prints commands, no figures; leave one out")
    runs, budget, path, unread = _plan(options)
    target = None if options.against is None else _target(options.against, runs)
    console = progress_console(to_stderr=options.json)
    done = {one.name for one in runs if records.is_finished(one)}
    for note in unread:
        say(console, note, style="bold")
    if options.dry_run:
        for one in runs:
            planned = METHODS[one.config.method].planned(one.config)
            state = "finished" if one.name in done else "begun, goes on" if is_run(one.folder) else "to do"
            cost = f"{planned.trajectories} trajectories, {planned.gradient_steps} gradient steps"
            say(console, f"{one.folder}: {state}; {cost}")
            say(console, f"  {plan.command_of(one, options.preset)}", whole=True)
        return 0
    refuse_unwritable(path)
    if status := _carry_out(options, runs, done, console, budgeted=budget is not None):
        return status
    of_runs = [records.record_of(one, options.preset) for one in runs]
    compared = [] if target is None else paired_difference.differences(of_runs, target)
    rows = table.summarise(of_runs)
    task = tasks.load(runs[0].config.task, runs[0].config.data.options)
    notes = differing.notes(of_runs)
    metrics = task.metrics if task.is_measured else {}
    tables = [table.table_of(rows, metrics)] + ([paired_difference.table_of(compared)] if compared else [])
    found: dict[str, Any] = {
        "command": shlex.join(["latent-cot", "compare", *argv]),
        "task": runs[0].config.task,
        "model": runs[0].config.model,
        "budget": None if budget is None else budget._asdict(),
        "seeds": list(dict.fromkeys(one.config.seed for one in runs)),
        "rows": [asdict(row) for row in rows],
        "runs": of_runs,
        "differences": [one.to_json() for one in compared],
        "notes": notes,
    }
    write_text(path / "comparison.json", records.to_text(found))
    title = f"{Path(found['task']).stem}, {Path(found['model']).name}"
    commands = {f"{one['variant']} seed {one['seed']}": one["command"] for one in of_runs}
    write_text(path / "comparison.md", table.to_markdown(title, tables, metrics, commands, notes))
    numbers = {split: of for split in table.splits_of(rows) if (of := numbers_of(task, split)) is not None}
    try:
        table.save_plot(rows, path / "comparison.svg", title, numbers)
    except ImportError:
        say(console, "No comparison.svg without matplotlib: pip install 'latent-cot[plot]'", style="dim")
    known = {file.parts[-3] for file in path.glob("*/seed*/config.yaml")}
    if others := sorted(known.difference(one.variant for one in runs)):
        say(console, f"The table is without {', '.join(others)}, of which there are runs in {path}: name them too.")
    if options.json:
        print_json(found)
    for shown in [] if options.json else tables:
        shown.show(console)
    for note in notes:
        say(console, note, style="bold")
    if target is not None and not compared:
        say(console, f"--against {options.against}: there is nothing to compare with it; add a method")
    say(console, f"Saved in {path}: {', '.join(sorted(file.name for file in path.glob('comparison.*')))}")
    return 0


def _plan(options: CompareOptions) -> tuple[list[PlannedRun], PlannedBudget | None, Path, list[str]]:
    """The runs, in the order in which they are done, their budget, the comparison's folder, and a sentence on each
    setting that is given for nothing."""
    variants = _variants(options)
    common: list[Mapping[str, Any]] = [{"evaluation": {"every_round": False}}]
    common += [{key: value} for key in ("task", "model") if (value := getattr(options, key)) is not None]
    own: dict[str, list[Mapping[str, Any]]] = {variant.name: [] for variant in variants}
    for text in options.set:
        name, record = plan.parse_setting(text, list(own))
        (common if name is None else own[name]).append(record)
    layers: dict[str, Any] = {"preset": options.preset, "file": options.config}
    base = plan.configure(Variant("em", "em", {}), 0, common, [], None, **layers)
    refuse_task_code(base, trusted=options.trust_code)
    tasks.load(base.task, base.data.options)
    spend = METHODS["em"].planned(base)
    budget = spend if options.budget is None else plan.parse_budget(options.budget, spend)
    path = disk.expanded(options.output_dir or f"runs/compare-{Path(base.task).stem}")
    if is_run(path):
        raise UsageError(f"--output-dir {path}: holds a run; give another folder")
    if not (options.methods or options.variants):
        variants = plan.without_repeated(
            variants, lambda variant: plan.configure(variant, 0, common, own[variant.name], None, **layers)
        )
    # Seed after seed: if it is stopped halfway, every method has been run with the first seeds.
    runs = []
    for seed in _seeds(options.seeds):
        for variant in variants:
            config = plan.configure(variant, seed, common, own[variant.name], budget, **layers)
            config = with_absolute_paths(replace(config, output_dir=str(path / variant.name / f"seed{seed}")))
            try:
                check(config)
                refuse_task_code(config, trusted=options.trust_code)
                if config.task != (task := with_absolute_paths(base).task):
                    raise UsageError(f"its task is {config.task}, but that of the comparison is {task}; give one")
                if not tested_splits(config, tasks.load(config.task, config.data.options)):
                    why = "there are no test splits, and so nothing to compare"
                    raise UsageError(f"{why}; name some, as in --set 'evaluation.splits=[questions.jsonl]'")
            except UsageError as error:
                raise UsageError(f"{variant.name}: {error}") from error
            runs.append(PlannedRun(variant.name, config))
    of_variant = {variant.name: [variant.overrides, *own[variant.name]] for variant in variants}
    return runs, budget, path, plan.unread(runs, common, of_variant)


def _first_examples(runs: Sequence[PlannedRun], *, budgeted: bool) -> dict[str, Examples]:
    """Those of each variant's first run, by its name. Raises UsageError where it cannot learn from them, or has none:
    its turn may come hours later; or where they are fewer than a budget was made for."""
    found = {}
    for one in {one.variant: one for one in reversed(runs)}.values():
        from latent_cot.methods.method import method_class  # here: torch takes seconds, and there may be nothing to do

        try:
            found[one.name] = examples = load_examples(one.config)
            there = {part: len(getattr(examples.data, part)) for part in ("demonstrations", "unlabelled")}
            lacking = {part: n for part, n in there.items() if n < getattr(one.config.data, part)}
            if budgeted and lacking:
                what = ", ".join(f"{n} of {getattr(one.config.data, part)} {part}" for part, n in lacking.items())
                remedy = " ".join(f"--set data.{part}={n}" for part, n in lacking.items())
                raise UsageError(
                    f"there are {what}, and the budget is counted by them: give {remedy}, or --budget none"
                )
            method_class(one.config.method).check(one.config, examples.task, examples.data)
        except UsageError as error:
            raise UsageError(f"{one.variant}: {error}") from error
    return found


def _target(text: str, runs: Sequence[PlannedRun]) -> Target:
    """The row that --against names. Raises UsageError if there is none, or rows have no right answers."""
    task = tasks.load(runs[0].config.task, runs[0].config.data.options)
    if task.is_measured:
        raise UsageError(f"--against: {task.name} has figures instead of right answers; leave it out")
    reasoners = {one.variant: METHODS[one.config.method].reasoners(one.config, task.answer_given) for one in runs}
    return paired_difference.parse_target(text, reasoners)


def _variants(options: CompareOptions) -> list[Variant]:
    named = [name.strip() for name in (options.methods or "").split(",") if name.strip()]
    variants = plan.methods(named or ([] if options.variants else list(METHODS)))
    variants += plan.read_variants(options.variants) if options.variants else []
    for variant in variants:
        if [other.name for other in variants].count(variant.name) > 1:
            raise UsageError(f"{variant.name}: is compared twice; name it once")
    return variants


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) <= 10]
    if len(set(seeds)) < len(parts) or max(seeds) >= 2**32:
        raise UsageError(f"--seeds {text}: write them as 0,1,2, each once, below {2**32}")
    return seeds


def _carry_out(
    options: CompareOptions, runs: Sequence[PlannedRun], done: Collection[str], console: Console, *, budgeted: bool
) -> int:
    """Do what is left to do. Returns 0, or the status of a signal."""
    tracking.check(options.track)
    loaded: Session | None = None
    examples = _first_examples([one for one in runs if one.name not in done], budgeted=budgeted)
    for number, one in enumerate(runs, 1):
        title = f"{one.name} ({number} of {len(runs)})"
        if one.name in done:
            say(console, f"{title}: finished already", style="dim")
            continue
        there = is_run(one.folder)
        say(console, f"{title}: {'going on' if there else 'begins'}", style="bold")
        own = examples.pop(one.name, None)
        carried = carry_out(
            one.config, one.folder, console, resume=there, examples=own, loaded=loaded, track=options.track
        )
        if carried.results is None or carried.signal is not None:  # it may come while the run is finished
            say(console, f"Stopped in {title}; everything is saved. The same command goes on.")
            return 128 + (carried.signal or signal.SIGINT)
        loaded = carried.session
    return 0
