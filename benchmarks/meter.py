"""Counts the arithmetic that a part of the engine needs, and the time it takes.

A language model needs, for a token, two operations for each weight of its linear layers; the head as many for each
row it is applied to; the gradient of the activations as much again; a LoRA layer its own. Attention's own products
are left out: at these lengths they are a few per cent, and leaving them out makes the limit harder to reach, not
easier. Neither the arithmetic of padding is counted nor that of what trajectories share, which is computed once.

In decoding, a step reads all weights once, whatever the number of rows, and the cache of keys and values, padding
included: its limit is the larger of the time of the arithmetic and the time of reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.machine import Machine, synchronise
from latent_cot.methods import e_step, forward_kl_steps, likelihood
from latent_cot.methods.forward_kl_steps import ForwardKLSteps
from latent_cot.model.kv_cache import KVCache, SlotLayer
from latent_cot.model.lm import LanguageModel
from latent_cot.model.tree import TokenTree, flatten
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.reward import Reward


@dataclass
class Part:
    """One part of the E-step: its time, and the work it did in that time."""

    seconds: float = 0.0
    tokens: int = 0
    """That the model ran on."""
    flops: float = 0.0
    compute_seconds: float = 0.0
    """Time the arithmetic would take at the machine's rate."""
    memory_seconds: float = 0.0
    """Time that reading weights and cache would take, of the steps of decoding."""
    limit_seconds: float = 0.0
    """The larger of the two, step by step."""

    def to_json(self) -> dict[str, Any]:
        share = self.limit_seconds / self.seconds if self.seconds else float("nan")
        binds = "memory" if self.memory_seconds > self.compute_seconds else "compute"
        return {**vars(self), "share_of_limit": share, "binds": binds if self.tokens else None}


TRAINED = ("update", "forward KL")
"""Parts with a backward pass."""


@dataclass
class Meter:
    """Times the parts of `latent_cot.methods.e_step`, and M-steps, while it is switched on."""

    lm: LanguageModel
    machine: Machine
    clock: Callable[[], float] = time.perf_counter
    """`time.process_time` where others use the same cores."""
    parts: dict[str, Part] = field(default_factory=dict)
    _part: str = "other"

    def __post_init__(self) -> None:
        self.weights = linear_weights(self.lm)
        self.lora_weights = sum(weight.numel() for weight in self.lm.parameters("q").values())
        self.weight_bytes = self.weights * next(self.lm.peft.get_base_model().parameters()).element_size()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Time everything that happens in the block."""
        with ExitStack() as stack:
            for owner, name, part in (
                (e_step, "rollout", "rollout"),
                (Reward, "score", "reward"),
                (e_step, "balance_step", "update"),
                (ForwardKLSteps, "remember", "remember"),
                (forward_kl_steps, "forward_kl_step", "forward KL"),
                (likelihood, "likelihood_step", "update"),
                (ReplayBuffer, "add", "buffer"),
                (ReplayBuffer, "sample", "buffer"),
                (LanguageModel, "merged", "merge"),
            ):
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name), part)))
            for name, counted in (("hidden", self._hidden), ("decode_step", self._decode), ("logits", self._logits)):
                original = getattr(LanguageModel, name)
                stack.enter_context(mock.patch.object(LanguageModel, name, _counting(original, counted)))
            yield

    def _timed(self, run: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._part = self._part, part
            synchronise(self.lm.device)
            started = self.clock()
            try:
                return run(*args, **kwargs)
            finally:
                synchronise(self.lm.device)
                taken = self.clock() - started
                self.parts.setdefault(part, Part()).seconds += taken
                if outer != "other":  # a part within a part is not counted twice
                    self.parts.setdefault(outer, Part()).seconds -= taken
                self._part = outer

        return timed

    # -- counting --------------------------------------------------------------------------------------

    def _hidden(self, _: LanguageModel, model: nn.Module, trees: Sequence[TokenTree]) -> None:
        tokens = len(flatten(trees).rows.unique())  # the trees' common beginning is there once
        if self._part in TRAINED:
            self._add(tokens, tokens * (4 * self.weights + 6 * self.lora_weights))
        else:
            self._add(tokens, tokens * 2 * self.weights)

    def _logits(self, lm: LanguageModel, hidden: torch.Tensor, ids: torch.Tensor | None = None) -> None:
        vocabulary, width = lm._base_head.weight.shape
        columns = vocabulary if ids is None else len(ids)
        passes = 2 if self._part in TRAINED else 1
        self._add(0, passes * 2 * hidden.shape[0] * width * columns)

    def _decode(
        self,
        _: LanguageModel,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: KVCache,
    ) -> None:
        tokens = int(attention_mask[:, -input_ids.shape[1] :].sum())
        layers = [layer for layer in cache.layers if isinstance(layer, SlotLayer)]
        layers += [layer.beginning for layer in layers if layer.beginning is not None]  # read once for all rows
        cells = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in layers if layer.is_initialized)
        self._add(tokens, tokens * 2 * self.weights, self.weight_bytes + cells)

    def _add(self, tokens: int, flops: float, read: float = 0.0) -> None:
        part = self.parts.setdefault(self._part, Part())
        compute, memory = flops / self.machine.matmul_flops, read / self.machine.read_bytes
        part.tokens += tokens
        part.flops += flops
        part.compute_seconds += compute
        part.memory_seconds += memory
        part.limit_seconds += max(compute, memory)


def linear_weights(lm: LanguageModel) -> int:
    """Weights of the model's linear layers, without its head and its embeddings."""
    base: Any = lm.peft.get_base_model()
    head = base.get_output_embeddings()
    found = 0
    for name, module in base.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and module is not head and "lora_" not in name:
            found += module.weight.numel()
    return found


def _counting(original: Callable[..., Any], count: Callable[..., None]) -> Callable[..., Any]:
    def counting(*args: Any, **kwargs: Any) -> Any:
        count(*args, **kwargs)
        return original(*args, **kwargs)

    return counting
