"""How fast an E-step is: `python -m benchmarks.estep [--json]`.

One run measures, on the machine at hand:

* `default`: the E-step of `latent-cot fit --method em-x --task arithmetic`, from the p that it starts with
  (fine-tuned on the demonstrations first, which takes a minute or two and is not timed). Each batch is followed by
  three updates by forward KL, as in a run; `--updates 1` leaves them out;
* `untrained`: the same from the untouched base model, whose chains are long and all different: what an E-step costs
  when nothing is shared. Forward KL learns of questions with a right chain only, of which there are few or none;
* `words`: 8 questions x 16 rationales of 60 to 120 tokens in words, all different, of nearly any token, from the
  untouched base model behind prompts of 60 to 100, with the calculator: `word_problems` with its own questions;
* `paper`: the work of the paper's code: one question, 16 trajectories of 5 to 18 tokens, a state at every token from
  the fifth on, a reward prompt with three demonstrations; and beside it, on the same questions, `plain.py`, which
  goes about it as that code does;
* with `--grpo`: TRL's GRPOTrainer on the same model with the same batch, sampling and update only. Its completions
  have as many tokens as ours have on average; ours is the update by balance alone, one a batch as GRPO's;
* the machine's own rates, and how near each part comes to them.

Times are wall-clock; ratios are of one run, the contestants taking turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import plain
from benchmarks.command import Report, add_run_flags, carry_out, measured, parser_of, positive, rates
from benchmarks.machine import Machine
from benchmarks.meter import Meter
from latent_cot.config.schema import RunConfig, trained_tokens
from latent_cot.config.settings import load_config
from latent_cot.methods import e_step
from latent_cot.methods.forward_kl_steps import ForwardKLSteps
from latent_cot.methods.method import Method
from latent_cot.model import weights
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.chain import ChainRules
from latent_cot.run.session import Session, lora_config

WORKLOADS = ("default", "untrained", "words", "paper")


@dataclass(frozen=True)
class Options:
    """Of one run of the benchmark."""

    model: str
    steps: int
    """Steps of ours that are timed, after one that is not."""
    updates: int | None
    """Of a batch; None: as configured."""
    plain_questions: int
    """Questions that `plain` is timed on, after one that is not."""
    paper_tokens: int
    """Longest rationale of the paper's workload; the tiny model needs more tokens for the same text."""
    grpo: bool
    """Whether TRL's GRPOTrainer is timed, too."""
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0."""
    parser = parser_of("estep", __doc__, WORKLOADS, steps=8)
    parser.add_argument("--updates", type=positive, help="of a batch; default: as in a run, 4 (`paper`: 1)")
    parser.add_argument("--plain-questions", type=positive, default=2, help="questions for the plain re-implementation")
    parser.add_argument("--grpo", action="store_true", help="measure TRL's GRPOTrainer too (needs trl)")
    add_run_flags(parser)
    return carry_out(parser, argv, run, show)


def run(arguments: argparse.Namespace, model: str) -> Report:
    """Measure everything."""
    options = Options(
        model,
        arguments.steps,
        arguments.updates,
        arguments.plain_questions,
        40 if arguments.model == "tiny" else 18,
        arguments.grpo,
        arguments.seed,
    )
    of = partial(configuration, options=options), partial(run_workload, options=options)
    return measured(arguments.workload or WORKLOADS, *of)


def configuration(workload: str, options: Options) -> RunConfig:
    """What is run: the defaults, or the paper's settings."""
    task = "word_problems" if workload == "words" else "arithmetic"
    config = replace(load_config(task=task, method="em-x"), model=options.model, seed=options.seed)
    if options.updates:
        config = replace(config, e_step=replace(config.e_step, updates=options.updates))
    if workload == "default":
        return config
    if workload == "untrained":
        return replace(config, p_init="base")
    if workload == "words":
        data = replace(config.data, demonstrations=2, unlabelled=20, validation=2, options={"form": "words"})
        return replace(
            config,
            p_init="prompt",
            shots=1,
            data=data,
            evaluation=replace(config.evaluation, splits=()),
            rollout=replace(config.rollout, max_tokens=120),
            e_step=replace(config.e_step, questions=8, samples=16),
        )
    return replace(
        config,
        p_init="prompt",
        shots=3,
        data=replace(config.data, options={"operands": "3"}),  # longer chains would not fit
        rollout=replace(config.rollout, granularity="token", min_tokens=5, max_tokens=options.paper_tokens),
        e_step=replace(config.e_step, questions=1, samples=16, objective="subtb", tempered_share=0.0, updates=1),
    )


def long_chains(rules: ChainRules) -> ChainRules:
    """Of the workload `words`: no chain stops before its 60th token."""
    return replace(rules, min_tokens=60)


def run_workload(session: Session, machine: Machine, workload: str, options: Options) -> Report:
    """Ours, and in the paper's workload the plain way, and GRPO if asked for."""
    loop = cast("ForwardKLSteps", session.loop())
    if workload == "words":  # not in the configuration: the demonstrations are shorter
        loop.rules = long_chains(loop.rules)
    for phase, _ in loop.run():
        if phase.name != "init" or loop.state.unit >= loop.units(phase):
            break
    loop.lm.copy_adapter("p", "q")
    c = loop.config.e_step
    optimiser = AdapterOptimiser(loop.lm.parameters("q"), Schedule(0.0, 10**6, 0, "constant"), c.max_grad_norm)
    meter = Meter(loop.lm, machine)
    buffer = ReplayBuffer()
    plain_seconds = plain.Seconds()
    n_plain = min(options.plain_questions, options.steps) if workload == "paper" else 0
    warm_up = one_step(loop, buffer, optimiser, 0)
    if n_plain:
        plain_step(loop, warm_up, 0)
    before = loop.state.budget.gradient_steps
    seconds: list[float] = []
    taken: list[Trajectories] = []
    for step in range(1, options.steps + 1):
        with meter.on():
            started = time.perf_counter()
            batches = one_step(loop, buffer, optimiser, step)
            seconds.append(time.perf_counter() - started)
        taken += batches
        if step <= n_plain:
            taken_by_plain = plain_step(loop, batches, step)
            for part, spent in vars(taken_by_plain).items():
                setattr(plain_seconds, part, getattr(plain_seconds, part) + spent)
    trajectories = c.questions * c.samples * options.steps
    tokens = sum(n * len(z) for batch in taken for z, n in zip(batch.rationales, batch.counts, strict=True))
    report: dict[str, Any] = {
        "questions": c.questions,
        "samples": c.samples,
        "steps": options.steps,
        "trajectories_per_second": trajectories / sum(seconds),
        "seconds_per_step": {"mean": statistics.mean(seconds), "median": statistics.median(seconds)},
        "distinct_per_step": sum(len(batch.rationales) for batch in taken) / options.steps,
        "tokens_per_trajectory": tokens / trajectories,
        "updates_per_step": 1 + (loop.state.budget.gradient_steps - before) / options.steps,
        "parts": {name: part.to_json() for name, part in meter.parts.items()},
    }
    if n_plain:
        rate = c.samples * n_plain / plain_seconds.total
        report["plain"] = {"trajectories_per_second": rate, "seconds": vars(plain_seconds)}
        report["times_plain"] = c.samples * n_plain / sum(seconds[:n_plain]) / rate  # on the same questions
    if options.grpo and workload != "paper":

        def take_step(step: int) -> float:
            own = Meter(loop.lm, machine)
            with own.on():
                one_step(loop, buffer, optimiser, options.steps + step, forward_kl=False)
            return sum(own.parts[part].seconds for part in ("merge", "rollout", "update"))

        report["grpo"] = compare_with_grpo(loop, take_step, options, round(report["tokens_per_trajectory"]))
    return report


def plain_step(loop: Method, batches: Sequence[Trajectories], seed: int) -> plain.Seconds:
    """The plain way on the same questions, and what it took. It leaves q as it is."""
    result = plain.e_step(
        loop.lm,
        [batch.query for batch in batches],
        loop.rules,
        samples=loop.config.e_step.samples,
        demonstrations=len(loop.rules.codec.encode_prompt(loop.model_prefix)),
        generator=torch.Generator().manual_seed(seed),
    )
    for weight in loop.lm.parameters("q").values():
        weight.grad = None
    return result.seconds


def one_step(
    loop: ForwardKLSteps, buffer: ReplayBuffer, optimiser: AdapterOptimiser, step: int, *, forward_kl: bool = True
) -> list[Trajectories]:
    """Collect, update and, if `forward_kl`, learn by forward KL, as the E-step does, on questions of the step's own."""
    c = loop.config.e_step
    first = (step * c.questions) % max(1, len(loop.questions) - c.questions + 1)
    chosen = range(len(loop.questions))[first : first + c.questions]
    queries = [loop.query(loop.questions[i]) for i in chosen]
    batches = e_step.collect(
        loop.lm,
        queries,
        [e_step.Behaviour(tempered_share=0.0)] * len(queries),
        loop.rules,
        buffer,
        loop.reward,
        samples=c.samples,
        generator=torch.Generator().manual_seed(step),
    )
    if forward_kl and c.updates > 1:
        assert not c.tempered_share, "all samples are q's own, at temperature 1"
        own = [[z for z, n in zip(t.rationales, t.sampled, strict=True) for _ in range(n)] for t in batches]
        loop.remember(chosen, batches, own, loop.marks(batches))
    e_step.balance_step(
        loop.lm,
        batches,
        loop.rules,
        optimiser,
        step,
        objective=c.objective,
        reward_temperature=c.reward_temperatures[0],
        reward_floor=c.reward_floor,
        huber_delta=c.huber_delta,
        max_tokens=trained_tokens(loop.config),
    )
    if forward_kl:
        loop.further_steps(optimiser, step)
    return batches


def compare_with_grpo(loop: Method, take_step: Callable[[int], float], options: Options, tokens: int) -> Any:
    """TRL's GRPOTrainer on the same model, batch and group size, with completions of so many tokens, its steps and ours
    taking turns.

    `take_step` runs one of our steps and returns the seconds of its sampling and update, merging the weights included.
    """
    from benchmarks.grpo import grpo_step_seconds

    c = loop.config.e_step
    own: list[float] = []
    figures = grpo_step_seconds(
        weights.resolve(options.model),
        [example.x for example in loop.questions],
        lora_config(loop.config.lora),
        completion_tokens=tokens,
        dtype=loop.lm.dtype,
        samples=c.samples,
        questions=c.questions,
        steps=max(2, options.steps // 2),
        between=lambda step: own.append(take_step(step)),
    )
    figures["tokens"], figures["ours_seconds"] = tokens, own
    figures["times_grpo"] = figures["seconds_per_step"] / statistics.median(own)
    return figures


def show(report: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    for workload in WORKLOADS:
        if workload not in report:
            continue
        figures = report[workload]
        console.print(rates(figures["machine"]))
        rate, updates = figures["trajectories_per_second"], figures["updates_per_step"]
        table = Table(
            title=f"{workload}: {rate:.2f} trajectories a second, {updates:.1f} updates a batch", title_justify="left"
        )
        for heading in ("part", "s a step", "tokens a step", "limit, s", "of the limit", "binds"):
            table.add_column(heading, justify="left" if heading in ("part", "binds") else "right")
        for name, part in figures["parts"].items():
            n = figures["steps"]
            row = [name, f"{part['seconds'] / n:.3f}"]
            if part["tokens"]:
                row += [f"{part['tokens'] / n:.0f}", f"{part['limit_seconds'] / n:.3f}"]
                row += [f"{part['share_of_limit']:.0%}", part["binds"]]
            table.add_row(*row)
        console.print(table)
        console.print(
            f"{figures['questions']} x {figures['samples']} trajectories a step, "
            f"{figures['distinct_per_step']:.1f} of them distinct, {figures['tokens_per_trajectory']:.1f} tokens each"
        )
        if "plain" in figures:
            rate = figures["plain"]["trajectories_per_second"]
            console.print(
                f"plain: {rate:.3f} trajectories a second; ours is {figures['times_plain']:.1f} times as fast"
            )
        if "grpo" in figures:
            console.print(
                "TRL's GRPOTrainer, sampling and update: ours, with one update, is "
                f"{figures['grpo']['times_grpo']:.1f} times as fast"
            )
    console.print(f"peak memory of all together {report['peak_memory_bytes'] / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
