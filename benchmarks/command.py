"""What the commands that time steps have in common."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import Machine, measure
from latent_cot.config.schema import RunConfig
from latent_cot.run.session import Session, open_session, peak_memory_bytes
from latent_cot.types import UsageError, finite

Report = dict[str, Any]


def rates(machine: dict[str, Any]) -> str:
    """A machine, as JSON has it, in a line."""
    words = ", ".join(f"{key} {value}" for key, value in machine["description"].items())
    return f"{words}: {machine['matmul_flops'] / 1e9:.0f} GFLOP/s, reading {machine['read_bytes'] / 1e9:.1f} GB/s"


def parser_of(module: str, about: str | None, workloads: Sequence[str], *, steps: int) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.MODULE`, which times so many `steps` of some workloads; `about` is its docstring."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=(about or "").split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="hub name, folder, or `tiny`")
    parser.add_argument("--workload", action="append", choices=workloads, help="repeatable; default: all")
    parser.add_argument("--steps", type=positive, default=steps, help="steps that are timed, after one that is not")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def positive(text: str) -> int:
    """An argument that is a positive integer. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Of those that take place in this process."""
    parser.add_argument("--threads", type=positive, help="torch's threads; default: as many as torch takes")
    parser.add_argument("--seed", type=int, default=0)


def carry_out(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, str], Report],
    show: Callable[[Report, Console], None],
) -> int:
    """The command: `run` makes the report from the flags and the model's name. Returns 0, or 2."""
    arguments = parser.parse_args(argv)
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            report = run(arguments, resolve_model(arguments.model, Path(scratch)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)])
    report = {"command": command, "model": arguments.model, **report}
    if arguments.json:
        print(json.dumps(finite(report), indent=1, allow_nan=False))
    else:
        show(report, Console())
    return 0


def resolve_model(name: str, scratch: Path) -> str:
    """A model's name, or the folder of the tests' tiny one, built in `scratch`."""
    if name != "tiny":
        return name
    from tests.tiny import build_tiny_model

    return str(build_tiny_model(scratch / "tiny"))


def measured(
    workloads: Sequence[str],
    configuration: Callable[[str], RunConfig],
    run_workload: Callable[[Session, Machine, str], Report],
) -> Report:
    """Each workload in a session of its own, with the machine's rates just before it; beside them the peak of memory
    of all together."""
    report: Report = {}
    for workload in workloads:
        session = open_session(configuration(workload))
        machine = measure(session.lm.dtype, session.lm.device)
        report[workload] = {"machine": machine.to_json(), **run_workload(session, machine, workload)}
    report["peak_memory_bytes"] = peak_memory_bytes()
    return report
