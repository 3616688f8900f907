"""Files of runs that are filled in pieces: one record a line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_cot.evaluation.intervals import over_seeds
from latent_cot.run.run_folder import write_text
from latent_cot.types import finite


def load(file: Path) -> list[dict[str, Any]]:
    """The runs in a file; none, if there is no file."""
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    return runs


def save(file: Path, command: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write the runs that a command has made; four significant digits."""
    lines = ",\n".join(json.dumps(finite(rounded(run)), allow_nan=False) for run in runs)
    generated = json.dumps(f"by python -m {command}, one line a run")
    write_text(file, f'{{"generated": {generated}, "runs": [\n{lines}\n]}}\n')


def interval(values: Sequence[float], digits: int) -> str:
    """A mean with its 95 % t-interval, if there is more than one value."""
    mean, *ends = (f"{value:.{digits}f}" for value in (statistics.mean(values), *(over_seeds(values) or ())))
    return f"{mean} ({' to '.join(ends)})" if ends else mean


def rounded(value: Any) -> Any:
    """With four significant digits in each number, as files have them."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
