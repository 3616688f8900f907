"""Does the E-step of a task's preset come apart, with q(Z | X)? Its first steps from many seeds and numbers of
demonstrations.

    python -m benchmarks.stability docs/results/stability.json --demonstrations 5 10 50 --seeds 20

A run is round 0 and 20 steps of the E-step. Of each are kept: the share of right chains at every step, and how near
q was to the posterior before and after. Runs that the file has already are not done again: it can be filled in pieces.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import latent_cot as lc
from benchmarks import records

STEPS = 20
SETTLED = 10
"""Steps after which the share of right chains is watched."""
WINDOW = 3
"""Steps over which a share is averaged: one step has 64 chains of 8 questions."""
FIGURES = ("elbo", "ess", "bound", "log_z", "variance", "cut")


def measure(demonstrations: int, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {
            "data": {"demonstrations": demonstrations},
            "e_step": {"steps": STEPS},
            "evaluation": {"splits": (), "every_round": False},
        }
        config = lc.configure(task="arithmetic", method="gflownet", seed=seed, **own)
        run = lc.train(config, output_dir=f"{folder}/run", progress=False, **settings)
        events, posterior = run.events, run.results["posterior"]["1"]
        right = events[events["kind"] == "e_step"]["accuracy"].tolist()
    named = {"model": settings["model"]} if "model" in settings else {}
    figures = {when: {name: means[name] for name in FIGURES} for when, means in posterior.items()}
    return {"demonstrations": demonstrations, "seed": seed, "right": right, **named, **figures}


def lowest(right: Sequence[float], window: int = WINDOW) -> float:
    """The lowest share of right chains after step `SETTLED`, of its start: below 0.5 the E-step has come apart."""
    smooth = [statistics.mean(right[k : k + window]) for k in range(len(right) - window + 1)]
    return min(smooth[SETTLED:]) / smooth[0] if smooth[0] else float("inf")


def table(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows of Markdown: for each number of demonstrations what came apart, and mean rises with 95 % t-intervals."""
    rows = [
        f"| demonstrations | seeds | came apart | lowest share right of {WINDOW} steps, of its start | runs with a "
        "single step below half | rise of the ELBO | rise of the bound | rise of the effective sample size |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by_size: dict[int, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_size.setdefault(run["demonstrations"], []).append(run)
    for size, of_size in sorted(by_size.items()):
        low = [lowest(run["right"]) for run in of_size]
        changes = ([run["after"][name] - run["before"][name] for run in of_size] for name in ("elbo", "bound", "ess"))
        rises = [records.interval(change, 3) for change in changes]
        apart = sum(share < 0.5 for share in low)
        single = sum(lowest(run["right"], window=1) < 0.5 for run in of_size)
        rows.append(f"| {size} | {len(of_size)} | {apart} | {min(low):.2f} | {single} | {' | '.join(rises)} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON file that keeps the runs")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[5, 10, 50])
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 0 on")
    parser.add_argument("--model", help="as in `latent-cot em`")
    options = parser.parse_args(argv)
    runs = records.load(options.file)
    if others := [run for run in runs if run.get("model") != options.model]:
        parser.error(f"{options.file}: has runs of {others[0].get('model', 'the default model')}; give another file")
    done = {(run["demonstrations"], run["seed"]) for run in runs}
    settings = {"model": options.model} if options.model else {}
    for seed in range(options.seeds):
        for size in options.demonstrations:
            if (size, seed) not in done:
                runs.append(measure(size, seed, settings))
                records.save(options.file, "benchmarks.stability", runs)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
