"""Optimisation steps of TRL's GRPOTrainer on the work of an E-step: sampling and update, without a reward's cost.

What is made equal to an E-step: the model, its precision, the LoRA settings, the prompts, completions a step and a
prompt, and the tokens of a completion. `GRPOTrainer` has no calculator that writes into a completion, so each of its
completions has, by `min_new_tokens` = `max_completion_length`, as many tokens as ours have on average, tools' results
included (each of those costs us a decoding step too). This favours TRL: none of its rows waits for a longer one.

What GRPO does not have to do: a reward (here a trivial function), a reference model (`beta` 0).

The settings are what TRL's documentation ("Speeding up training", its `GRPOConfig`) and that of transformers ("CPU")
recommend for this case; none that was tried besides is faster:

* `use_cpu`, and `bf16` where the hardware has it: both on, and the base weights in bf16 too.
* `gradient_checkpointing` off: TRL's default is on, which saves memory and costs a second forward pass.
* generation for the whole step at once (`steps_per_generation` = `gradient_accumulation_steps`), one iteration, so that
  no second pass for old log-probabilities is needed.
* transformers' key-value cache, and its `sdpa` attention.
* not vLLM and Liger kernels, which are for GPUs.

Tried on a CPU with one thread (SmolLM2-135M, 64 completions of 26 tokens). Passes of 8, 16, 32 and 64 completions,
taking turns in one process: no difference beyond the noise. In single runs, which on a busy machine differ by a fifth
and more: a static cache and no bf16 autocast, no gain; weights in fp32, slower. Transformers' continuous batching, on
the tests' tiny model: many times slower.
"""

from __future__ import annotations

import importlib
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.stopwatch import WARMUP, StopWatch
from latent_cot.model.weights import quiet_transformers

_PASS_SIZE = 16
"""Completions of a forward and backward pass: the speed hardly depends on it, and a small one saves memory."""


def grpo_step_seconds(
    model_folder: str | Path,
    prompts: Sequence[str],
    lora: LoraConfig,
    *,
    completion_tokens: int,
    dtype: torch.dtype,
    samples: int,
    questions: int,
    steps: int,
    between: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Seconds of each of `steps` optimiser steps, after one that is not counted; loading is not counted either.

    Args:
        model_folder: the base model, a local folder.
        prompts: one for each question; step after step takes the next `questions` of them, from the start again if
            there are too few.
        lora: of the adapter that is trained.
        completion_tokens: exactly as many in each completion.
        dtype: of the base model's weights; bfloat16 also turns on bf16 autocast.
        samples: completions a prompt, GRPO's group size.
        questions: prompts a step.
        between: called before each counted step, outside the time taken, with the number of the step: room for
            another contestant, so that both meet the same machine.

    Returns what was measured and with what, fit for JSON: `seconds_per_step` is the median of `seconds`;
    `generation_seconds` is the part of each step that is sampling; `completion_tokens` has the fewest and the most new
    tokens of all generations.
    """
    trl: Any = importlib.import_module("trl")  # heavy, and not installed with the package

    size = questions * samples
    pass_size = math.gcd(size, _PASS_SIZE)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers(), warnings.catch_warnings():
        # TRL's own field has a name that transformers deprecates.
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing`", FutureWarning)
        settings: dict[str, Any] = {
            "output_dir": scratch,
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": dtype is torch.bfloat16,
            "per_device_train_batch_size": pass_size,
            "gradient_accumulation_steps": size // pass_size,
            "num_generations": samples,
            "max_completion_length": completion_tokens,
            "generation_kwargs": {"min_new_tokens": completion_tokens},
            "temperature": 1.0,
            "beta": 0.0,
            "num_iterations": 1,
            "gradient_checkpointing": False,
            "max_steps": WARMUP + steps,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "shuffle_dataset": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
        watch = _StopWatch(between)
        trainer = trl.GRPOTrainer(
            model=model,
            args=trl.GRPOConfig(**settings),
            reward_funcs=_reward,
            train_dataset=_dataset(prompts, questions * (WARMUP + steps)),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is the caller's
        trainer.model.generate = watch.generating(trainer.model.generate)
        trainer.train()
    return {
        "seconds_per_step": statistics.median(watch.seconds),
        "seconds": watch.seconds,
        "generation_seconds": watch.generation_seconds,
        "trajectories_per_second": size / statistics.median(watch.seconds),
        "completions_per_step": size,
        "samples": samples,
        "completion_tokens": watch.completion_tokens,
        "pass_size": pass_size,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("trl", "transformers", "peft", "accelerate", "torch")},
    }


class _StopWatch(StopWatch):
    """Times the sampling of each step too."""

    def __init__(self, between: Callable[[int], None] | None) -> None:
        super().__init__(between)
        self.generation_seconds: list[float] = []
        self.completion_tokens: list[int] = []
        """Fewest and most new tokens of all generations."""
        self._generating = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._generating = 0.0
        super().on_step_begin(*args, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step > WARMUP:
            self.generation_seconds.append(self._generating)

    def generating(self, generate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`generate`, timed."""

        def timed(*args: Any, **kwargs: Any) -> torch.Tensor:
            started = time.perf_counter()
            output = generate(*args, **kwargs)
            self._generating += time.perf_counter() - started
            new = output.shape[1] - kwargs["input_ids"].shape[1]
            known = [*self.completion_tokens, new]
            self.completion_tokens = [min(known), max(known)]
            return output

        return timed


def _reward(completions: Sequence[str], **_: Any) -> list[float]:
    """Costs nothing, and differs between completions, so that advantages and gradients are not nil."""
    return [float(sum(map(ord, completion)) % 7) for completion in completions]


def _dataset(prompts: Sequence[str], rows: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [prompts[i % len(prompts)] for i in range(rows)]})
