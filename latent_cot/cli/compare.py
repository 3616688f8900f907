"""`latent-cot compare`: several methods, or variants of one, over seeds and within the same budget, as one table."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from latent_cot import tasks
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.cli.run_options import refuse_unwritable, say
from latent_cot.config.methods import METHODS, PlannedBudget
from latent_cot.config.settings import check, from_dict, load_config, to_dict
from latent_cot.evaluation.splits import numbers_of
from latent_cot.report.comparison import paired_difference, plan, records, shared_init, table
from latent_cot.report.comparison.paired_difference import Beside, Target, splits_of
from latent_cot.report.comparison.plan import Run, Variant
from latent_cot.report.comparison.records import Record
from latent_cot.report.comparison.table import Row
from latent_cot.report.terminal import Display, narrow_tables
from latent_cot.run import tracking
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.paths import with_absolute_paths
from latent_cot.run.run_folder import RunFolder, write_text
from latent_cot.types import MeasuredTask, Metric, UsageError, is_answer_given

if TYPE_CHECKING:
    from latent_cot.run.session import Session


@dataclass(frozen=True)
class CompareOptions:
    """Train and evaluate methods over seeds; print one table and write it as JSON, Markdown and a plot.

    Each run has a folder, DIR/VARIANT/seedN. Those that were stopped are gone on with, those that are finished are not
    done again. The same budget means that every method that samples may sample as many trajectories
    as EM does, and supervised fine-tuning may take as many gradient steps: see docs/comparing.md.
    """

    methods: str | None = None
    """Methods, comma-separated (`latent-cot methods` lists them). Default: all of them, unless --variants is given."""
    variants: str | None = None
    """A YAML file of named variants, `name: {method: em, overrides: {...}}`, or a shipped one: `ablations`,
    `data-efficiency`, `decoding`, `few-shot`, `without-lessons`."""
    seeds: str = "0"
    """Seeds, comma-separated."""
    budget: str | None = None
    """`trajectories=5120` (and `gradient-steps=160`) for each run; `none`: each as it is configured. Default: what EM
    spends as configured."""
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
    records: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """The comparison.json of an earlier comparison, of another machine's perhaps: what it has of these runs, with the
    same settings, is taken from there and not done again. Repeatable."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Send each run's figures to a tracker, such as `tensorboard`, `wandb` or `mlflow`; see docs/tracking.md.
    Repeatable."""
    against: str | None = None
    """A variant: also show by how much each of the others differs from it, question by question, with intervals.
    `em:p`: from its reasoner p; else from that of the same name, where it has one."""
    dry_run: Switch = False
    """Show the runs with their budgets and commands, and stop."""
    json: Switch = False
    """Print the comparison as JSON to standard output, and progress to standard error."""


def run(argv: Sequence[str]) -> int:
    """The command. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM."""
    options = parse(CompareOptions, argv, "compare")
    if options.json and options.dry_run:
        raise UsageError("--json: --dry-run prints commands, no figures; leave one out")
    runs, budget, path = _plan(options)
    target = None if options.against is None else _target(options.against, runs)
    console = progress_console(to_stderr=options.json)
    recorded = _recorded(options, runs, console)
    done = dict.fromkeys(recorded, "recorded")
    done |= {one.name: "finished" for one in runs if one.name not in recorded and records.is_finished(one)}
    if options.dry_run:
        for one in runs:
            planned = METHODS[one.config.method].planned(one.config)
            begun = (one.folder / "config.yaml").exists()
            state = done.get(one.name, "begun, goes on" if begun else "to do")
            cost = f"{planned.trajectories} trajectories, {planned.gradient_steps} gradient steps"
            say(console, f"{one.folder}: {state}; {cost}")
            say(console, f"  {plan.command_of(one.config, options.preset)}")
        return 0
    refuse_unwritable(path)
    status = _carry_out(options, runs, done, console)
    if status:
        return status
    of_runs = [recorded.get(one.name) or records.record_of(one, options.preset) for one in runs]
    compared, unknown = ([], []) if target is None else paired_difference.differences(of_runs, target)
    if unknown:
        what = "Which answers are right, or to which questions,"
        say(console, f"{what} is not recorded of {'; '.join(unknown)}: no difference is shown")
    found = _write(options, runs, of_runs, budget, path, console, compared)
    rows = table.summarise(found["runs"])
    if options.json:
        print_json(found)
    else:
        for shown in _tables(rows, _metrics(found["task"]), console.width):
            console.print(shown)
        for shown in _differences(compared, console.width) if compared else ():
            console.print(shown)
    if target is not None and not compared:
        say(console, f"--against {options.against}: there is nothing to compare with it; add a method")
    written = [name for name in ("comparison.json", "comparison.md", "comparison.svg") if (path / name).exists()]
    say(console, f"Saved in {path}: {', '.join(written)}")
    return 0


def _plan(options: CompareOptions) -> tuple[list[Run], PlannedBudget | None, Path]:
    """The runs, in the order in which they are done, their budget, and the comparison's folder."""
    variants = _variants(options)
    names = [variant.name for variant in variants]
    common: dict[str, Any] = {"evaluation": {"every_round": False}}
    common |= {key: value for key in ("task", "model") if (value := getattr(options, key)) is not None}
    own: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for text in options.set:
        name, record = plan.parse_setting(text, names)
        if name is None:
            common = _merged(common, record)
        else:
            own[name].append(record)
    base = from_dict(common, "--set", load_config(options.preset, options.config, "em", common.get("task")))
    _check_task(base.task)
    task = with_absolute_paths(base).task
    spend = METHODS["em"].planned(base)
    budget = spend if options.budget is None else plan.parse_budget(options.budget, spend)
    path = Path(options.output_dir or f"runs/compare-{Path(base.task).stem}").expanduser()
    if (path / "config.yaml").exists():
        raise UsageError(f"--output-dir {path}: holds a run; give another folder")
    runs = []
    # Seed after seed: if it is stopped halfway, every method has been run with the first seeds.
    for seed in _seeds(options.seeds):
        for variant in variants:
            config = plan.configure(
                variant, seed, common, own[variant.name], budget, preset=options.preset, file=options.config
            )
            folder = path / variant.name / f"seed{seed}"
            config = with_absolute_paths(replace(config, output_dir=str(folder)))
            try:
                check(config)
            except UsageError as error:
                raise UsageError(f"{variant.name}: {error}") from error
            if config.task != task:
                raise UsageError(
                    f"{variant.name}: its task is {config.task}, but that of the comparison is {task}; give --task "
                    f"{config.task}, and compare other tasks by themselves"
                )
            if config.evaluation.splits == ():
                raise UsageError(
                    f"{variant.name}: --evaluation.splits is empty, so that there is nothing to compare; name some, "
                    "or leave it out"
                )
            runs.append(Run(variant.name, config))
    return runs, budget, path


def _check_task(name: str) -> None:
    """Raises UsageError if there is no such task, or several are named."""
    if "," in name and not Path(name).expanduser().is_file():  # a comma may be part of a file's name
        raise UsageError(f"--task {name}: a comparison is of one; give one task, and compare others by themselves")
    tasks.load(name)


def _target(text: str, runs: Sequence[Run]) -> Target:
    """The row that --against names. Raises UsageError if there is none, or rows have no right answers."""
    task = tasks.load(runs[0].config.task)
    if isinstance(task, MeasuredTask):
        raise UsageError(f"--against: {task.name} has figures instead of right answers; leave it out")
    answer_given = is_answer_given(task)
    reasoners = {one.variant: METHODS[one.config.method].reasoners(one.config, answer_given) for one in runs}
    return paired_difference.parse_target(text, reasoners)


def _variants(options: CompareOptions) -> list[Variant]:
    named = [name.strip() for name in (options.methods or "").split(",") if name.strip()]
    if not named and options.variants is None:
        named = list(METHODS)
    variants = plan.methods(named)
    if options.variants is not None:
        variants += plan.read_variants(options.variants)
    for variant in variants:
        if [other.name for other in variants].count(variant.name) > 1:
            raise UsageError(f"{variant.name}: is compared twice; name it once")
    return variants


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    if len(set(seeds)) < len(parts):
        raise UsageError(f"--seeds {text}: write them as 0,1,2, each once")
    return seeds


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(a)
    for key, value in b.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _recorded(options: CompareOptions, runs: Sequence[Run], console: Console) -> dict[str, Record]:
    """The runs that the user's records have; says where they have a run with other settings only."""
    earlier = records.read_records(options.records)
    found: dict[str, Record] = {}
    for one in runs:
        record, other = records.find_record(one, earlier)
        if record is not None:
            # Presets may have changed since: the command that means these settings now.
            found[one.name] = {**record, "command": plan.command_of(one.config, options.preset)}
        elif other:
            say(console, f"{one.name}: recorded with other settings ({other}), so it is done again")
    return found


def _carry_out(options: CompareOptions, runs: Sequence[Run], done: Mapping[str, str], console: Console) -> int:
    """Do what is left to do. Returns 0, or the status of a signal."""
    from latent_cot.run.session import Stopped, open_session, run_loop

    tracking.check(options.track)
    session: Session | None = None
    with stop_signals() as stopped_by:
        for number, one in enumerate(runs, 1):
            title = f"{one.name} ({number} of {len(runs)})"
            if one.name in done:
                say(console, f"{title}: {done[one.name]} already", style="dim")
                continue
            there = (one.folder / "config.yaml").exists()
            say(console, f"{title}: {'going on' if there else 'begins'}", style="bold")
            session = open_session(one.config, console=Console(stderr=True), loaded=session)
            folder = RunFolder.open(one.folder) if there else RunFolder.create(one.folder, to_dict(one.config))
            for note in session.notes:
                say(console, note, style="dim")
            try:
                tracker = tracking.Tracking(options.track, folder, to_dict(one.config), warn=partial(say, console))
                with folder.lock(), Display(console) as display, tracker:
                    run_loop(
                        session,
                        folder,
                        resume=there,
                        round_zero=shared_init.folder_of(one),
                        on_unit=tracking.both(display.on_unit, tracker.on_unit),
                        should_stop=lambda: stopped_by() is not None,
                    )
            except Stopped:
                say(console, f"Stopped in {title}; everything is saved. The same command goes on.")
                return 128 + (stopped_by() or signal.SIGINT)
    return 0


def _write(
    options: CompareOptions,
    runs: Sequence[Run],
    of_runs: Sequence[Record],
    budget: PlannedBudget | None,
    path: Path,
    console: Console,
    compared: Sequence[Beside],
) -> dict[str, Any]:
    """comparison.json, .md and .svg; returns the content of the first."""
    rows = table.summarise(of_runs)
    first = runs[0].config
    found = {
        "command": _command(options),
        "task": first.task,
        "model": first.model,
        "budget": None if budget is None else budget._asdict(),
        "seeds": list(dict.fromkeys(one.config.seed for one in runs)),
        "rows": table.to_json(rows),
        "runs": list(of_runs),
        "differences": [
            {**vars(one), "splits": {split: difference.to_json() for split, difference in one.splits.items()}}
            for one in compared
        ],
    }
    title = f"{Path(first.task).stem}, {Path(first.model).name}"
    commands = {f"{one['variant']} seed {one['seed']}": one["command"] for one in of_runs}
    write_text(path / "comparison.json", records.to_text(found))
    metrics = _metrics(first.task)
    differences = paired_difference.to_markdown(compared) if compared else None
    write_text(path / "comparison.md", table.to_markdown(rows, title, commands, metrics, differences))
    try:
        table.save_plot(rows, path / "comparison.svg", title, metrics, _numbers(first.task, table.splits_of(rows)))
    except ImportError:
        (path / "comparison.svg").unlink(missing_ok=True)  # an earlier one is of other runs
        say(console, "No comparison.svg without matplotlib: pip install 'latent-cot[plot]'", style="dim")
    return found


def _command(options: CompareOptions) -> str:
    """What the user asked for, without what only says where and how to report."""
    words = ["latent-cot", "compare"]
    for name in ("preset", "config", "task", "model", "methods", "variants", "seeds", "budget", "against"):
        value = getattr(options, name)
        words += [f"--{name}", value] if value is not None else []
    for setting in options.set:
        words += ["--set", setting]
    return shlex.join(words)


def _metrics(task: str) -> Mapping[str, Metric]:
    """What a task has instead of right answers; nothing for one that has these."""
    found = tasks.load(task)
    return found.metrics if isinstance(found, MeasuredTask) else {}


def _numbers(task: str, splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """The numbers of the splits that are named by some."""
    loaded = tasks.load(task)
    return {split: found for split in splits if (found := numbers_of(loaded, split)) is not None}


def _tables(rows: Sequence[Row], metrics: Mapping[str, Metric], width: int) -> Iterator[Table]:
    costs = zip(*map(table.cost_cells, rows), strict=True)
    columns = {**table.columns_of(rows, metrics), **dict(zip(table.COST_COLUMNS, costs, strict=True))}
    return narrow_tables({"method, reasoner": [row.name for row in rows]}, columns, table.heading(rows), width)


def _differences(found: Sequence[Beside], width: int) -> Iterator[Table]:
    columns = {
        split: [paired_difference.difference_text(one.splits.get(split)) for one in found] for split in splits_of(found)
    }
    names = {"method, reasoner": [one.name for one in found], "less that of": [one.less for one in found]}
    return narrow_tables(names, columns, paired_difference.HEADING, width)
