"""How fast the M-step is: `python -m benchmarks.finetune [--json]`.

What is timed is fine-tuning on a task's demonstrations, which the M-step does in the same way with what q has written:

* `arithmetic`: the main job's, 16 rationales a step, varied as it varies them;
* `words`: `word_problems` in words, with the task's own questions: longer texts, not varied.

Each step beside the time that its arithmetic takes at the rate of large products, and with `--sft` beside TRL's
SFTTrainer on the same model, LoRA, precision, batches and token ids, steps taking turns. Wall-clock times of one run.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from benchmarks.command import Report, add_run_flags, carry_out, measured, parser_of, rates
from benchmarks.machine import Machine
from benchmarks.meter import Meter
from benchmarks.stopwatch import StopWatch
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import load_config
from latent_cot.methods import likelihood
from latent_cot.model import weights
from latent_cot.model.weights import quiet_transformers
from latent_cot.rationales.scoring import Group
from latent_cot.run.session import Session, lora_config

WORKLOADS = ("arithmetic", "words")
BATCH_SIZE = 16
"""Rationales a step: the M-step's default."""


@dataclass(frozen=True)
class Options:
    """Of one run of the benchmark."""

    model: str
    steps: int
    """Steps that are timed, after one that is not."""
    sft: bool
    """TRL's SFTTrainer too."""
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0."""
    parser = parser_of("finetune", __doc__, WORKLOADS, steps=8)
    parser.add_argument("--sft", action="store_true", help="measure TRL's SFTTrainer too (needs trl)")
    add_run_flags(parser)
    return carry_out(parser, argv, run, show)


def run(arguments: argparse.Namespace, model: str) -> Report:
    """Measure everything."""
    options = Options(model, arguments.steps, arguments.sft, arguments.seed)
    of = partial(configuration, options=options), partial(run_workload, options=options)
    return measured(arguments.workload or WORKLOADS, *of)


def configuration(workload: str, options: Options) -> RunConfig:
    """The task's own settings, with as many steps on demonstrations as are timed, and one before."""
    task = "word_problems" if workload == "words" else workload
    config = load_config(task=task)
    steps = replace(config.init_step, steps=options.steps + 1, batch_size=BATCH_SIZE)
    config = replace(config, model=options.model, seed=options.seed, init_step=steps)
    if workload == "words":
        own = replace(config.data, demonstrations=20, unlabelled=2, validation=2, options={"form": "words"})
        config = replace(config, data=own, rollout=replace(config.rollout, max_tokens=200))
    return config


def run_workload(session: Session, machine: Machine, _: str, options: Options) -> Report:
    """Our steps, and SFTTrainer's if asked for."""
    with mock.patch.object(likelihood, "likelihood_step", _Recorded()) as recorded:
        list(_steps(session))
    meter, steps = Meter(session.lm, machine), _steps(session)
    seconds: list[float] = []
    next(steps)

    def take_step(_: int) -> None:
        started = time.perf_counter()
        with meter.on():
            next(steps)
        seconds.append(time.perf_counter() - started)

    timed = [group for batch in recorded.batches[1:] for group in batch]
    report: dict[str, Any] = {
        "steps": options.steps,
        "rationales": BATCH_SIZE,
        "tokens_per_step": sum(map(len, map(_tokens, timed))) / options.steps,
    }
    if options.sft:
        report["sft"] = sft_step_seconds(session, recorded.batches, between=take_step)
        report["sft"]["times_sft"] = report["sft"]["seconds_per_step"] / statistics.median(seconds)
    else:
        for step in range(options.steps):
            take_step(step)
    report |= {"seconds_per_step": statistics.median(seconds), "seconds": seconds}
    return {**report, "update": meter.parts["update"].to_json()}


class _Recorded:
    """In place of `likelihood.likelihood_step`: keeps what it is given, and learns nothing."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Group]] = []

    def __call__(self, lm: Any, adapter: Any, groups: Sequence[Group], *_: Any, **__: Any) -> likelihood.LikelihoodInfo:
        self.batches.append(groups)
        return likelihood.LikelihoodInfo(0.0, 0.0)


def _steps(session: Session) -> Iterator[None]:
    """One optimiser step on demonstrations after the other."""
    loop = session.loop()
    for phase, _ in loop.run():
        if phase.name != "init":
            return
        yield
        if loop.state.unit >= loop.units(phase):
            return


def _tokens(group: Group) -> list[int]:
    (rationale,) = group.rationales
    return [*group.prompt, *rationale.tokens, *group.answer]


def _learned(group: Group) -> list[int]:
    """1 for each token that is learned, 0 for the others."""
    (rationale,) = group.rationales
    return [0] * len(group.prompt) + [int(own) for own in rationale.policy_mask] + [1] * len(group.answer)


def sft_step_seconds(
    session: Session, batches: Sequence[Sequence[Group]], *, between: Callable[[int], None]
) -> dict[str, Any]:
    """Seconds of each optimiser step of TRL's SFTTrainer on these batches, after a first that is not counted.

    Equal to ours: model, precision, LoRA, token ids, which of them are learned, rationales a step. Settings as in
    `benchmarks/grpo.py`; one forward and backward pass a step. `between` runs before each counted step.
    """
    config, dtype = session.config, session.lm.dtype
    trl: Any = importlib.import_module("trl")  # heavy, and not installed with the package
    from datasets import Dataset

    groups = [group for batch in batches for group in batch]
    rows = {"input_ids": [_tokens(group) for group in groups], "completion_mask": [_learned(group) for group in groups]}
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers(), warnings.catch_warnings():
        # TRL's own field has a name that transformers deprecates.
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing`", FutureWarning)
        watch = StopWatch(between)
        trainer = trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(weights.resolve(config.model), dtype=dtype),
            args=trl.SFTConfig(
                output_dir=scratch,
                use_cpu=not torch.accelerator.is_available(),
                bf16=dtype is torch.bfloat16,
                per_device_train_batch_size=len(batches[0]),
                max_steps=len(batches),
                max_length=None,
                completion_only_loss=True,
                gradient_checkpointing=False,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                train_sampling_strategy="sequential",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=config.seed,
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(weights.resolve(config.model)),
            peft_config=lora_config(config.lora),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is the caller's
        trainer.train()
    return {
        "seconds_per_step": statistics.median(watch.seconds),
        "seconds": watch.seconds,
        "versions": {name: version(name) for name in ("trl", "transformers", "peft", "accelerate", "torch")},
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table()
    for heading in ("workload", "tokens a step", "s a step", "update, s", "limit, s", "of the limit", "SFTTrainer, s"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for workload in WORKLOADS:
        if workload not in report:
            continue
        figures = report[workload]
        console.print(f"{workload}: {rates(figures['machine'])}")
        part, n = figures["update"], figures["steps"]
        row = [workload, f"{figures['tokens_per_step']:.0f}", f"{figures['seconds_per_step']:.3f}"]
        row += [f"{part['seconds'] / n:.3f}", f"{part['limit_seconds'] / n:.3f}", f"{part['share_of_limit']:.0%}"]
        if "sft" in figures:
            row.append(f"{figures['sft']['seconds_per_step']:.3f}: {figures['sft']['times_sft']:.1f} times")
        table.add_row(*row)
    console.print(table)
    console.print(f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
