"""The flags that benchmarks of steps have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser_of(module: str, about: str | None, workloads: Sequence[str], *, steps: int) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.MODULE`, which times so many `steps` of some workloads; `about` is its docstring."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=(about or "").split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="hub name, folder, or `tiny`")
    parser.add_argument("--workload", action="append", choices=workloads, help="repeatable; default: all")
    parser.add_argument("--steps", type=int, default=steps, help="steps that are timed, after one that is not")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Of those that take place in this process."""
    parser.add_argument("--threads", type=int, help="torch's threads; default: as many as torch takes")
    parser.add_argument("--seed", type=int, default=0)
