"""Where a run's time goes: `python -m benchmarks.breakdown [--results RUN/results.json] [--json]`.

`latent-cot em --task arithmetic` with few steps and questions, some units of each phase (an optimiser step, a batch of
questions) under torch's profiler; or, with `--workload words`, steps of the E-step of that workload of `estep`. The
time of each operator without what it calls is put under one of a few kinds; what is left of the time is Python's, and
torch's own between operators. Round 0 and `start_q` are of full length: later phases depend on what p and q have
learned. With `--results` the phases are weighted by the seconds that they took in a whole run.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks import estep
from benchmarks.command import Report, add_run_flags, carry_out, positive, rates
from benchmarks.machine import measure
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import load_config
from latent_cot.disk import parse_json, user_text
from latent_cot.run.session import open_session
from latent_cot.types import UsageError

KINDS = {
    "products": "mm bmm addmm baddbmm mv addmv linear mkldnn_linear _linear_pointwise _scaled_dot_product_attention "
    "_scaled_dot_product_flash_attention_for_cpu",
    "element by element": "mul add sub rsub div neg exp log pow sqrt rsqrt silu sigmoid reciprocal cos sin where clamp "
    "maximum minimum eq ne lt le gt ge masked_fill logical_and logical_or logical_not bitwise_and bitwise_not addcmul",
    "softmax, sums": "_softmax _log_softmax sum mean max amax argmax any all logsumexp cumsum sort topk searchsorted "
    "linalg_vector_norm",
    "copies": "copy _to_copy cat stack index index_select index_put _index_put_impl index_add index_copy index_fill "
    "scatter scatter_add gather embedding fill zero clone constant_pad_nd arange slice_scatter nonzero",
    "optimiser": "_fused_adamw _foreach_norm _foreach_mul",
}
"""Kind -> names of torch's operators; that of `aten::add_` is `add`, and that of `aten::silu_backward` `silu`."""
MAX_BYTES = 2**24
"""A results.json is no larger."""
BETWEEN = "between operators"
"""Python; and of torch what is no operator on numbers: autograd, views, allocation."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.breakdown", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--model", default="smollm2-135m", help="hub name, folder, or `tiny`")
    parser.add_argument("--workload", choices=("run", "words"), default="run")
    parser.add_argument("--preset", help="of the run's settings: `smoke`, to see whether it works; default: `cpu`")
    parser.add_argument("--units", type=positive, default=3, help="units of each phase that are profiled, after one")
    parser.add_argument(
        "--results", type=Path, help="results.json of a whole run, whose phases' seconds are the weights"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_run_flags(parser)
    return carry_out(parser, argv, run, show)


def run(arguments: argparse.Namespace, model: str) -> Report:
    """Profile everything."""
    seconds = {} if arguments.results is None else phase_seconds(arguments.results)
    few, words = arguments.units + 1, arguments.workload == "words"
    if words and seconds:
        raise UsageError("--results: is of a whole run; leave --workload words out")
    session = open_session((_words if words else _run)(arguments, model, few))
    machine = measure(session.lm.dtype, session.lm.device)
    loop, last = session.loop(), "e_step" if words else "evaluate"
    if words:
        loop.rules = estep.long_chains(loop.rules)
    if unknown := sorted(seconds.keys() - {one.name for one in loop.phases if loop.units(one) > 1}):
        raise UsageError(f"{arguments.results}: has phases that are not profiled: {', '.join(unknown)}")
    units, spent = Counter[str](), dict[str, Counter[str]]()
    work = loop.run()
    while True:
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            started = time.perf_counter_ns()
            phase, _ = next(work, (None, None))
            taken = time.perf_counter_ns() - started
        if phase is None or units[last] == few:
            break
        units[phase.name] += 1
        if 1 < units[phase.name] <= few:
            spent.setdefault(phase.name, Counter()).update(by_kind(watched, taken))
    phases: dict[str, Any] = {name: {"seconds": of.total() / 1e9, "shares": shares(of)} for name, of in spent.items()}
    report: Report = {"machine": machine.to_json(), "phases": phases}
    if seconds:
        kinds = (*KINDS, BETWEEN)
        whole = {kind: sum(phases[name]["shares"][kind] * of_run for name, of_run in seconds.items()) for kind in kinds}
        report["run"] = {"seconds": seconds, "shares": shares(whole)}
    return report


def _run(arguments: argparse.Namespace, model: str, few: int) -> RunConfig:
    """The main job's, with few units of each phase."""
    config = load_config(arguments.preset, task="arithmetic")
    return replace(
        config,
        model=model,
        seed=arguments.seed,
        e_step=replace(config.e_step, steps=few),
        m_step=replace(config.m_step, steps=few),
        data=replace(config.data, unlabelled=few * config.rollout.batch_size - config.data.demonstrations),
        evaluation=replace(config.evaluation, size=128, diagnostics=4 * few, every_round=False),
    )


def _words(arguments: argparse.Namespace, model: str, few: int) -> RunConfig:
    """That of long, different chains in words; only its E-step is looked at."""
    config = estep.configuration("words", estep.Options(model, few, 1, 0, 0, grpo=False, seed=arguments.seed))
    return replace(
        config,
        rounds=1,
        e_step=replace(config.e_step, steps=few),
        evaluation=replace(config.evaluation, diagnostics=0, every_round=False),
    )


def phase_seconds(path: Path) -> dict[str, float]:
    """Phase -> its seconds in the run whose `results.json` this is. Raises UsageError."""
    found = parse_json(user_text(str(path), MAX_BYTES), str(path))
    try:
        return {str(name): float(seconds) for name, seconds in found["resources"]["phases"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is no results.json with the seconds of phases") from error


def by_kind(watched: profile, taken: int) -> Counter[str]:
    """Kind -> its part of the time that was taken while `watched` was on, ns."""
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = [
        (event.start_ns(), event.duration_ns(), event.name())
        for event in watched.profiler.kineto_results.events()
        if event.duration_ns() > 0
    ]
    found = Counter[str]()
    for name, own in self_times(events).items():
        found[kind_of(name)] += own
    found[BETWEEN] += taken - found.total()
    return found


def self_times(events: Iterable[tuple[int, int, str]]) -> Counter[str]:
    """Name -> ns in events of this name, without the events inside them. Of each the start and the duration are given,
    in ns; two of them are apart, or one is inside the other."""
    found, inside = Counter[str](), list[tuple[int, str]]()
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while inside and inside[-1][0] <= start:
            inside.pop()
        if inside:
            found[inside[-1][1]] -= duration
        found[name] += duration
        inside.append((start + duration, name))
    return found


def kind_of(name: str) -> str:
    """The kind of an operator or of what else torch's profiler names."""
    family, _, operator = name.rpartition("::")
    operator = re.sub(r"_backward(_data)?$|_$", "", operator)
    kinds = (kind for kind, names in KINDS.items() if operator in names.split())
    return next(kinds, BETWEEN) if family in ("aten", "mkldnn") else BETWEEN


def shares(times: Mapping[str, float]) -> dict[str, float]:
    """Each kind's share of all."""
    return {kind: times.get(kind, 0) / sum(times.values()) for kind in (*KINDS, BETWEEN)}


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    console.print(rates(report["machine"]))
    table = Table("phase", *(["s of the run"] if "run" in report else []), *KINDS, BETWEEN)
    for name, figures in report["phases"].items():
        of_run = [f"{report['run']['seconds'].get(name, 0):.0f}"] if "run" in report else []
        table.add_row(name, *of_run, *(f"{share:.0%}" for share in figures["shares"].values()))
    if "run" in report:
        total = sum(report["run"]["seconds"].values())
        table.add_row("all", f"{total:.0f}", *(f"{share:.0%}" for share in report["run"]["shares"].values()))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
