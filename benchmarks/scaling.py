"""How an E-step's time and memory grow: `python -m benchmarks.scaling [--json] [--model NAME] [--plot FILE.svg]`.

What is varied, each over a factor of 8 or more, all else the same:

* `trajectories`: of one step (`e_step.collect` and `e_step.balance_step`), in questions of 8;
* `length`: tokens of a rationale, in the same;
* `prefixes`: prefixes of a rationale after which the reward scores Y (`reward.Reward`);
* `prompt`: tokens with which the prompts of 64 chains begin, such as those of demonstrations (`rollout.rollout`);
* `tools`: tool calls in chains of the same number of tokens (`rollout.rollout`).

The rationales of the first three and of `prompt` have a given length, or are up to three tokens shorter, whatever the
model would write: they may stop in their last three tokens only. Memory is the peak resident size of a process that
does nothing else, with micro-batches so small that each size fills them: what grows is what is kept of each
trajectory. Times are wall-clock unless they say otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command import positive, resolve_model
from benchmarks.growth import Growth, measure
from benchmarks.machine import describe
from benchmarks.workloads import SAMPLES, EStepWork
from latent_cot.cli.options import progress_console
from latent_cot.report.plots import check_plot, figure_in
from latent_cot.run.session import peak_memory_bytes
from latent_cot.types import UsageError

SECTIONS = ("trajectories", "length", "prefixes", "prompt", "tools")
MAX_EXPONENT = 1.1
"""Of the time, in trajectories and in prefixes."""
MAX_TOOL_OVERHEAD = 0.1
"""Of the time of a token in chains with tool calls, as a share of that in chains without."""
MEMORY_BATCH_TOKENS = 384
"""`max_batch_tokens` while memory is measured: an update then has no more than one question's rationales in a pass."""


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured."""

    trajectories: Sequence[int]
    tokens: int
    """Of their rationales."""
    length: Sequence[int]
    questions: int
    """While the length is varied."""
    prefixes: Sequence[int]
    """Of each of 8 rationales, which have as many tokens as the largest number."""
    prompt: Sequence[int]
    """Tokens before each of 64 questions."""
    calls: Sequence[int]
    """In each of 16 chains; even numbers, and 0 to compare with."""
    chain: int
    """Tokens of these chains, and of those of `prompt`; a multiple of all `calls`."""
    repeats: int


PLANS = {
    "tiny": Plan(
        trajectories=(16, 32, 64, 128, 256),
        tokens=24,
        length=(8, 16, 32, 64, 128),
        questions=4,
        prefixes=(4, 8, 16, 32, 64),
        prompt=(32, 64, 128, 256),
        calls=(0, 2, 4, 8, 16),
        chain=64,
        repeats=5,
    ),
    "real": Plan(
        trajectories=(8, 16, 32, 64),
        tokens=16,
        length=(8, 16, 32, 64),
        questions=1,
        prefixes=(4, 8, 16, 32),
        prompt=(64, 128, 256, 512, 1024),
        calls=(0, 2, 8, 16),
        chain=32,
        repeats=3,
    ),
}
"""For the tests' tiny model, and for one that takes a thousand times as long."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 after an error that the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="tiny", help="`tiny`, hub name, alias or folder (default: tiny)")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="repeatable; default: all")
    parser.add_argument("--repeats", type=positive, help="measurements of each size; default: 5 with tiny, else 3")
    parser.add_argument("--threads", type=positive, help="torch's threads; default: as many as torch takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figure into a .svg, .pdf or .png file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    plan = PLANS["tiny" if arguments.model == "tiny" else "real"]
    plan = replace(plan, repeats=arguments.repeats or plan.repeats)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        if arguments.plot:
            check_plot(arguments.plot)
        with tempfile.TemporaryDirectory() as scratch:
            model = resolve_model(arguments.model, Path(scratch))
            report = run(model, plan, arguments.section or SECTIONS, arguments.seed)
        report["command"] = " ".join(["python", "-m", "benchmarks.scaling", *(sys.argv[1:] if argv is None else argv)])
        report["model"] = arguments.model
        if arguments.plot:
            save_plot(arguments.plot, report)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        show(report, progress_console(to_stderr=False))
    return 0


# -- measuring -------------------------------------------------------------------------------------------


def run(model: str, plan: Plan, sections: Sequence[str], seed: int, *, memory: bool = True) -> dict[str, Any]:
    """Measure everything; returns the report."""
    rng = random.Random(seed)
    # First, while this process is small: on Linux a new process inherits the peak of the one that started it.
    report: dict[str, Any] = {"memory": memory_growth(model, plan, sections, seed) if memory else {}}
    work = EStepWork(model, seed)
    report["machine"] = describe(work.lm.dtype, work.lm.device)
    growths = time_growth(work, plan, sections, rng)
    targets = [
        target(f"exponent of time in {growth.size}", growth.exponent()[0], MAX_EXPONENT)
        for growth in growths
        if growth.size in ("trajectories", "prefixes")
    ]
    if "tools" in sections:
        report["tools"] = tool_overhead(work, plan, rng)
        worst = max(report["tools"]["overhead"].values())
        targets.append(target("overhead of a token with tool calls", worst, MAX_TOOL_OVERHEAD))
    return {**report, "growth": [growth.to_json() for growth in growths], "targets": targets}


def target(name: str, value: float, limit: float) -> dict[str, Any]:
    """A figure and what it should be at most."""
    return {"name": name, "value": value, "limit": limit, "met": value <= limit}


def step_of(work: EStepWork, plan: Plan, section: str) -> tuple[str, Sequence[int], Callable[[int], float]]:
    """The name, the sizes and the measurement of a section whose time is a power of its size."""
    if section == "trajectories":
        return "E-step", plan.trajectories, lambda size: work.step(size // SAMPLES, plan.tokens)
    if section == "length":
        return "E-step", plan.length, lambda size: work.step(plan.questions, size)
    if section == "prompt":
        return "rollout", plan.prompt, lambda size: work.prompted(size, plan.chain)
    return "reward", plan.prefixes, lambda size: work.reward(size, max(plan.prefixes))


def time_growth(work: EStepWork, plan: Plan, sections: Sequence[str], rng: random.Random) -> list[Growth]:
    """Seconds of the E-step's parts."""
    growths = []
    for section in ("trajectories", "length", "prefixes", "prompt"):
        if section in sections:
            name, sizes, once = step_of(work, plan, section)
            growths.append(Growth(name, section, measure(sizes, once, plan.repeats, rng)))
    return growths


def tool_overhead(work: EStepWork, plan: Plan, rng: random.Random) -> dict[str, Any]:
    """Seconds a token by number of tool calls, and how much more that is than without any.

    The shortest of the times, since a small difference is asked for, and a busy machine only ever adds to a time.
    """
    values = measure(plan.calls, lambda calls: work.chains(calls, plan.chain), max(5, plan.repeats), rng)
    best = {calls: min(values[calls]) for calls in sorted(values)}
    return {
        "tokens": plan.chain + 1,
        "seconds_per_token": {str(calls): value for calls, value in best.items()},
        "values": {str(calls): seconds for calls, seconds in sorted(values.items())},
        "overhead": {str(calls): value / best[0] - 1 for calls, value in best.items() if calls},
    }


def memory_growth(model: str, plan: Plan, sections: Sequence[str], seed: int) -> dict[str, dict[str, int]]:
    """Section -> size -> the peak resident bytes of a process that measured that size once and nothing else."""
    peaks: dict[str, dict[str, int]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for section in sections:
            if section != "tools":
                sizes = sorted(getattr(plan, section))
                peaks[section] = {
                    str(size): processes.submit(
                        peak_bytes, model, plan, section, size, seed, torch.get_num_threads()
                    ).result()
                    for size in (sizes[0], sizes[-1])
                }
    return peaks


def peak_bytes(model: str, plan: Plan, section: str, size: int, seed: int, threads: int) -> int:
    """The peak resident bytes of this process, once it has measured one size of a section."""
    torch.set_num_threads(threads)
    _, _, once = step_of(EStepWork(model, seed, MEMORY_BATCH_TOKENS), plan, section)
    once(size)
    return peak_memory_bytes()


# -- showing ---------------------------------------------------------------------------------------------


def show(report: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    if "machine" in report:
        console.print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    table = Table(title="Time", title_justify="left")
    for heading in ("of", "in", "smallest", "largest", "exponent (95 %)", "last sizes"):
        table.add_column(heading, justify="left" if heading in ("of", "in") else "right")
    for growth in report["growth"]:
        (low, first), (high, last) = (list(growth["medians"].items())[end] for end in (0, -1))
        exponent, (lower, upper) = growth["exponent"], growth["interval_95"]
        table.add_row(
            growth["name"],
            growth["size"],
            f"{int(low):,}: {seconds(first)}",
            f"{int(high):,}: {seconds(last)}",
            f"{exponent:.2f} ({lower:.2f} to {upper:.2f})",
            f"{growth['last_exponent']:.2f}",
        )
    if report["growth"]:
        console.print(table)
    if "tools" in report:
        figures = report["tools"]
        table = Table(title=f"Chains of {figures['tokens']} tokens", title_justify="left")
        for heading in ("tool calls", "a token", "more than without"):
            table.add_column(heading, justify="right")
        for calls, value in figures["seconds_per_token"].items():
            more = figures["overhead"].get(calls)
            table.add_row(calls, seconds(value), "" if more is None else f"{more:+.1%}")
        console.print(table)
    if report["memory"]:
        table = Table(title="Peak memory of a process", title_justify="left")
        for heading in ("in", "smallest", "largest", "for each more"):
            table.add_column(heading, justify="left" if heading == "in" else "right")
        for section, peaks in report["memory"].items():
            cells = [f"{int(size):,}: {peak / 1e6:,.0f} MB" for size, peak in peaks.items()]
            (low, first), (high, last) = peaks.items()
            table.add_row(section, *cells, f"{(last - first) / (int(high) - int(low)) / 1e3:,.1f} kB")
        console.print(table)
    table = Table(title="Targets", title_justify="left")
    for heading in ("figure", "value", "at most", "met"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in report["targets"]:
        table.add_row(row["name"], f"{row['value']:.3g}", f"{row['limit']:.3g}", "yes" if row["met"] else "[red]no[/]")
    console.print(table)


def seconds(value: float) -> str:
    """A time with the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def save_plot(path: Path, report: dict[str, Any]) -> None:
    """A panel for each thing that was varied: medians on logarithmic axes, every measurement as a point.

    Raises UsageError if the file cannot be written.
    """
    panels = list(dict.fromkeys(growth["size"] for growth in report["growth"]))
    panels += ["tool calls"] if "tools" in report else []
    with figure_in(path, 4.2 * len(panels), 3.6) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for growth in report["growth"]:
                if growth["size"] == panel:
                    sizes = [int(size) for size in growth["medians"]]
                    label = f"{growth['name']}: exponent {growth['exponent']:.2f}"
                    (line,) = axes.plot(sizes, list(growth["medians"].values()), label=label)
                    for size, values in growth["values"].items():
                        axes.plot([int(size)] * len(values), values, ".", color=line.get_color(), alpha=0.5)
                    axes.set(xscale="log", yscale="log", ylabel="seconds")
            if panel == "tool calls":
                figures = report["tools"]
                calls = [int(number) for number in figures["seconds_per_token"]]
                axes.plot(calls, list(figures["seconds_per_token"].values()), marker=".", label="a token")
                axes.set(ylabel="seconds", ylim=(0, None))
            axes.set_xlabel(panel)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")


if __name__ == "__main__":
    sys.exit(main())
