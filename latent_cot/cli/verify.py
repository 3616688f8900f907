"""`latent-cot verify`: does the E-step learn the true posterior?"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text

from latent_cot import tasks
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.config.schema import TRANSFORMERS
from latent_cot.report.tables import Cell, Table
from latent_cot.report.terminal import Items, say
from latent_cot.types import Task, UsageError, did_you_mean

if TYPE_CHECKING:
    from latent_cot.verify.run import Case, Result
    from latent_cot.verify.worlds import Settings

Names = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class VerifyOptions:
    """Check that the E-step learns the true posterior, in worlds small enough to list every rationale.

    Tiny models are trained by the code that `latent-cot em` trains with, and compared with sums over all
    rationales; then again with a mistake put in on purpose, which the comparison must notice. The exit
    status is 1 if anything is not as it should be. What this shows and what not: docs/exactness.md.
    """

    world: Names = ()
    """A world: `plain`, `tool`, `steps`, `constrained`, `xy`, `floor` or `spread`. Repeatable. Default: all of them."""
    objective: Names = ()
    """An objective, as for `em`; or `em`: its own E-step, both losses and all else together. Repeatable. Default:
    all of them."""
    task: str | None = None
    """Instead of the worlds: round 0 and one E-step of `em` on this task, and how far q is from the exact posterior
    before and after, on validation questions whose rationales the task can list (`word_problems`)."""
    preset: str | None = None
    """With `--task`: as for `em`."""
    config: str | None = None
    """With `--task`: a YAML file with other settings, as for `em`."""
    staleness: int = 0
    """How many optimiser steps the q that samples is behind the one that is trained, as where sampling and training run
    side by side."""
    trust_code: Switch = False
    """With `--task`: run the Python files that a task's YAML file names. Only for files whose author you trust."""
    quick: Switch = False
    """Two worlds, both forms of SubTB, no deliberate mistakes: half a minute."""
    json: Switch = False
    """Print the figures as JSON to standard output, and progress to standard error."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0 if all is well, else 1."""
    options = parse(VerifyOptions, argv, "verify")
    import torch

    from latent_cot.verify.worlds import Settings

    if options.task is not None:
        return _verify_task(options)
    if options.preset is not None or options.config is not None:
        raise UsageError("--preset and --config are of a task: give --task too, or leave them out")
    if options.staleness < 0:
        raise UsageError(f"--staleness {options.staleness}: give 0 or more steps")
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it gains
    return _verify(_cases(options), Settings(), options)


def _verify_task(options: VerifyOptions) -> int:
    """Nothing is judged: how near q comes depends on the task and the model."""
    if options.world or options.objective or options.quick or options.staleness:
        flags = "--world, --objective, --staleness and --quick"
        raise UsageError(f"{flags} are of the worlds, and --task is instead of them: leave out one")
    from latent_cot.config.settings import check, load_config, refuse_task_code
    from latent_cot.evaluation.diagnostics import mean_figures
    from latent_cot.run.session import open_session
    from latent_cot.verify.real_model import CheckedEStep

    config = load_config(options.preset, options.config, "em", options.task)
    check(config)
    refuse_task_code(config, trusted=options.trust_code)
    if config.rollout.engine != TRANSFORMERS:
        raise UsageError(f"rollout.engine {config.rollout.engine}: the check samples by {TRANSFORMERS}; leave it out")
    task = tasks.load(config.task, config.data.options)
    if type(task).texts is Task.texts:  # before a model is loaded
        raise UsageError(f"--task {options.task}: {task.name} lists no rationales (`Task.texts`)")
    session = open_session(config)
    console = progress_console(to_stderr=options.json)
    started = time.perf_counter()
    for note in session.notes:
        say(console, note)
    loop = CheckedEStep(config, session.lm, session.task, session.data, {}, session.rules, session.test_rules)
    found: dict[str, list[dict[str, float]]] = {}
    with Items(console, "units", sum(map(loop.units, loop.phases))) as items:
        for phase, info in loop.run():
            items.advance()
            if phase.name.startswith("compare"):
                found.setdefault(phase.name, []).append(dict(info))
    before, after = map(mean_figures, found.values())
    table = Table(
        {"mean over the questions": list(before)},
        {
            "before the E-step": [f"{value:.3f}" for value in before.values()],
            "after": [f"{value:.3f}" for value in after.values()],
        },
        f"{len(loop.chosen)} validation questions, {sum(len(z) for _, z in loop.chosen)} rationales; KL, log Z in nats",
    )
    table.show(console)
    say(console, f"{time.perf_counter() - started:.0f} s")
    if options.json:
        print_json({"questions": [example.asked for example, _ in loop.chosen], **found})
    return 0


def _cases(options: VerifyOptions) -> list[Case]:
    from latent_cot.objectives import OBJECTIVES
    from latent_cot.verify import run as verify
    from latent_cot.verify.faults import FAULTS
    from latent_cot.verify.worlds import WORLDS

    behind = options.staleness
    if behind and verify.BY_EM in options.objective:
        raise UsageError(f"--staleness {behind}: em's own E-step has no such sampler; leave --objective em out")
    trained = tuple(OBJECTIVES) if behind else (*OBJECTIVES, verify.BY_EM)
    named: list[tuple[str, str, Collection[str]]] = [("--world", name, WORLDS) for name in options.world]
    named += [("--objective", name, trained) for name in options.objective]
    for flag, name, known in named:
        if name not in known:
            raise UsageError(f"{flag} {name}: unknown.{did_you_mean(name, known)}")
    worlds, objectives = tuple(WORLDS), trained
    if options.quick:
        worlds, objectives = verify.QUICK_WORLDS, verify.QUICK_OBJECTIVES
    worlds, objectives = options.world or worlds, options.objective or objectives
    cases = [verify.Case(world, objective, None, behind) for world in worlds for objective in objectives]
    if options.quick or options.world or options.objective:
        return cases
    return cases + [verify.Case(fault.world, fault.objective, name, behind) for name, fault in FAULTS.items()]


def _verify(cases: Sequence[Case], settings: Settings, options: VerifyOptions) -> int:
    from latent_cot.verify.run import KL_LIMIT, LOG_Z_LIMIT, TV_LIMIT, run_case

    console = progress_console(to_stderr=options.json)
    started = time.perf_counter()
    with Items(console, "steps", sum(case.steps for case in cases)) as items:
        results = [run_case(case, settings, items.advance) for case in cases]
    seconds = time.perf_counter() - started
    passed = all(result.ok for result in results)

    _table(results).show(console)
    limits = f"limits: KL {KL_LIMIT} nats, TV {TV_LIMIT}, |error of log Z| {LOG_Z_LIMIT} nats"
    say(console, f"{'passed' if passed else 'FAILED'} ({limits}; {seconds:.0f} s)")
    if options.json:
        bounds = {"kl": KL_LIMIT, "total_variation": TV_LIMIT, "log_z_error": LOG_Z_LIMIT}
        found = {"passed": passed, "seconds": seconds, "limits": bounds, "settings": vars(settings)}
        print_json({**found, "results": [result.to_json() for result in results]})
    return 0 if passed else 1


def _table(results: Sequence[Result]) -> Table:
    caption = "largest values over the questions; KL, TV: exact sums over all rationales; KL, log Z in nats"
    if any(not result.learned and not result.case.required for result in results):
        caption += "; above: not within the limits, and not required to be"
    return Table(
        {
            "world × objective": [_name(result.case) for result in results],
            "": [Cell(_verdict(result)) for result in results],
        },
        {
            "rationales": [str(result.rationales) for result in results],
            "KL before": [f"{result.worst('kl_before'):.2f}" for result in results],
            "KL": [f"{result.worst('kl'):.4f}" for result in results],
            "TV": [f"{result.worst('total_variation'):.4f}" for result in results],
            "log Z off": [f"{result.worst('log_z_error'):.4f}" for result in results],
            "steps": [str(result.case.steps) for result in results],
            "s": [f"{result.seconds:.0f}" for result in results],
        },
        caption,
    )


def _name(case: Case) -> str:
    return f"{case.world} × {case.objective}" + (f", broken by {case.fault}" if case.fault else "")


def _verdict(result: Result) -> Text:
    if result.case.fault is not None:
        return Text("detected", style="green") if result.ok else Text("MISSED", style="bold red")
    if result.learned:
        return Text("pass", style="green")
    return Text("FAIL", style="bold red") if result.case.required else Text("above", style="yellow")
