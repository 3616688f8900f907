"""How near a plan comes to what is measured: `python -m benchmarks.plan [--json]`.

Three pieces of work on this machine, of which other things bind:

* `sure`: an E-step whose sampler is sure of itself (the base model at temperature 0), so that a question's chains are
  all alike: 8 rows are decoded, and small operations and reading the weights bind;
* `untrained`: an E-step of the base model at temperature 1, whose chains are long and all different: 64 rows are
  decoded, and the update keeps the activations of a pass of 1,024 tokens;
* `lessons`: an M-step of 16 rationales of 96 random tokens in micro-batches of 1,024: the backward pass binds, and the
  logits of Y over the whole vocabulary are kept for it.

Each runs in a process of its own, whose peak resident size is measured, between two processes that measure the machine
(`latent_cot.planning.measure`: another model, other sizes); the plan is the mean of what both make of it. What a plan
takes for given is how long texts are, how many prefixes are scored and how much is shared: here, as it was in the steps
that were timed. One thread; times are CPU time of the process, since others may use the cores; wall-clock is beside it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from benchmarks.command import carry_out, parser_of
from benchmarks.machine import Machine, describe
from benchmarks.meter import Meter
from benchmarks.workloads import SAMPLES, EStepWork
from latent_cot.config.schema import RunConfig, trained_tokens
from latent_cot.config.settings import load_config
from latent_cot.methods import likelihood
from latent_cot.model import weights
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.planning import rounds
from latent_cot.planning.cost import Cost, CostModel
from latent_cot.planning.hardware import Hardware
from latent_cot.planning.measure import this_machine
from latent_cot.planning.rounds import Texts
from latent_cot.planning.shape import shape_of
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.scoring import Group
from latent_cot.report.tables import Table
from latent_cot.run.session import peak_memory_bytes

TEMPERATURES = {"sure": 0.0, "untrained": 1.0}
WORKLOADS = (*TEMPERATURES, "lessons")
QUESTIONS = 8
LESSONS, LESSON_TOKENS = 16, 96
TOLERANCE = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0."""
    return carry_out(
        parser_of("plan", __doc__, WORKLOADS, steps=3),
        argv,
        lambda of, model: {"workloads": run(model, of.workload or WORKLOADS, of.steps)},
        show,
    )


def run(model: str, workloads: Sequence[str], steps: int) -> dict[str, Any]:
    """Workload -> its plan beside what it took."""
    before, report = alone(measured_machine), {}
    for workload in workloads:
        found = alone(do, model, workload, steps)
        after = alone(measured_machine)
        report[workload] = compare(model, workload, [before, after], found)
        before = after
    return report


def compare(model: str, workload: str, devices: Sequence[Hardware], found: Mapping[str, Any]) -> dict[str, Any]:
    """A workload's plan, the mean of those with each measurement of the machine, beside what was found."""
    shape, config, texts = shape_of(str(weights.resolve(model))), load_config(), Texts(**found["texts"])
    planned, peak = dict[str, Cost](), 0.0
    for device in devices:
        costs = CostModel(shape, device, config.lora.rank)
        peak += bytes_of(costs, workload, texts, config) / len(devices)
        for name, cost in seconds_of(costs, workload, texts, config).items():
            planned[name] = planned.get(name, Cost()) + cost * (1 / len(devices))
    total = sum(planned.values(), Cost())
    return {
        "machine": {**found["machine"], "measured": [asdict(device) for device in devices]},
        "texts": found["texts"],
        "seconds": compared(total.seconds, sum(found["parts"].values())),
        "memory": compared(peak, found["peak"]),
        "parts": {
            name: {**compared(cost.seconds, found["parts"][name]), "binds": cost.binds}
            for name, cost in planned.items()
        },
        "binds": total.binds,
        "wall_seconds": found["wall_seconds"],
    }


def seconds_of(costs: CostModel, workload: str, texts: Texts, config: RunConfig) -> dict[str, Cost]:
    """Part -> its planned cost."""
    if workload == "lessons":
        return {"update": rounds.m_step(costs, texts, LESSONS, trained_tokens(config))}
    return rounds.e_step(costs, texts, QUESTIONS, SAMPLES, config.max_batch_tokens, trained_tokens(config))


def bytes_of(costs: CostModel, workload: str, texts: Texts, config: RunConfig) -> float:
    """The planned peak."""
    held = sum(costs.held(copies=2, adapters=2).values())
    if workload == "lessons":
        return held + sum(rounds.m_step_memory(costs, texts, LESSONS, trained_tokens(config)).values())
    return held + rounds.e_step_memory(costs, texts, QUESTIONS, SAMPLES, trained_tokens(config))


def compared(planned: float, measured: float) -> dict[str, Any]:
    """Both, and by how much the plan is off."""
    error = planned / measured - 1
    return {"planned": planned, "measured": measured, "error": error, "within": abs(error) <= TOLERANCE}


def alone(run: Callable[..., Any], *arguments: Any) -> Any:
    """What a new process returns that does this and nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *arguments).result()


def measured_machine() -> Hardware:
    torch.set_num_threads(1)
    return this_machine(time.process_time)


# -- in a process of its own -------------------------------------------------------------------------------


def do(model: str, workload: str, steps: int) -> dict[str, Any]:
    """Do a step that does not count, and so many that do; returns medians over these, in seconds and bytes."""
    torch.set_num_threads(1)
    work = EStepWork(model, seed=0)
    step = lessons(work) if workload == "lessons" else sampling(work, TEMPERATURES[workload])
    step()
    parts: dict[str, list[float]] = {}
    texts, wall = [], []
    for _ in range(steps):
        meter = Meter(work.lm, Machine(1.0, 1.0, {}), time.process_time)  # its limits are not read
        started = time.perf_counter()
        with meter.on():
            texts.append(step())
        wall.append(time.perf_counter() - started)
        for name, part in meter.parts.items():
            parts.setdefault(name, []).append(part.seconds)
    return {
        "texts": {name: statistics.mean(getattr(one, name) for one in texts) for name in vars(texts[0])},
        "parts": {name: statistics.median(of) for name, of in parts.items() if name not in ("buffer", "other")},
        "wall_seconds": statistics.median(wall),
        "peak": peak_memory_bytes(),
        "machine": describe(work.lm.dtype, work.lm.device),
    }


def sampling(work: EStepWork, temperature: float) -> Callable[[], Texts]:
    """A step of an E-step at a temperature, with the default settings."""
    rules, floor = work.session.rules, work.session.config.e_step.reward_floor

    def step() -> Texts:
        first = work.rng.randrange(len(work.queries) - QUESTIONS)
        return texts_of(work.learn(work.queries[first : first + QUESTIONS], rules, temperature, floor))

    return step


def texts_of(batches: Sequence[Trajectories]) -> Texts:
    """What a plan has to know of a step's rationales."""
    chains = [(z, n) for batch in batches for z, n in zip(batch.rationales, batch.counts, strict=True)]
    total = sum(n for _, n in chains)
    tokens = sum(n * len(z) for z, n in chains)
    run = sum(len({z.tokens[:i] for z in batch.rationales for i in range(1, len(z) + 1)}) for batch in batches)
    scored = sum(
        len({z.tokens[:i] for z in batch.rationales for i, state in enumerate(z.states) if state}) for batch in batches
    )
    return Texts(
        prompt=statistics.mean(len(batch.query.policy_prompt) for batch in batches),
        chain=tokens / total,
        longest=max(len(z) for z, _ in chains),
        answer=statistics.mean(len(batch.query.answer) for batch in batches),
        states=scored / total * tokens / run,
        distinct=run / tokens,
    )


def lessons(work: EStepWork) -> Callable[[], Texts]:
    """A step of an M-step on random rationales of equal length."""
    optimiser = AdapterOptimiser(work.lm.parameters("p"), Schedule(0.0, 10**6, 0, "constant"), 1.0)

    def step() -> Texts:
        groups = [
            Group(query.model_prompt, [work.rationale(1, LESSON_TOKENS)], query.answer)
            for query in work.queries[:LESSONS]
        ]
        likelihood.likelihood_step(
            work.lm, "p", groups, work.session.rules, optimiser, 0, max_tokens=trained_tokens(work.session.config)
        )
        prompt = statistics.mean(len(group.prompt) for group in groups)
        answer = statistics.mean(len(group.answer) for group in groups)
        return Texts(prompt, LESSON_TOKENS, LESSON_TOKENS, answer, 1, 1.0)

    return step


# -- showing ---------------------------------------------------------------------------------------------


def show(report: dict[str, Any], console: Console) -> None:
    """A row for each workload's time, parts and memory."""
    rows = []
    for name, figures in report["workloads"].items():
        rows.append((name, "all", figures["seconds"], 1.0, "s", figures["binds"]))
        rows += [(name, part, of, 1.0, "s", of["binds"]) for part, of in figures["parts"].items()]
        rows.append((name, "peak memory", figures["memory"], 1e9, "GB", ""))
    Table(
        {"workload": [row[0] for row in rows], "of": [row[1] for row in rows], "binds": [row[5] for row in rows]},
        {
            "planned": [f"{row[2]['planned'] / row[3]:.2f} {row[4]}" for row in rows],
            "measured": [f"{row[2]['measured'] / row[3]:.2f} {row[4]}" for row in rows],
            "error": [f"{row[2]['error']:+.0%}" for row in rows],
        },
    ).show(console)


if __name__ == "__main__":
    sys.exit(main())
