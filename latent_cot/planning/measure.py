"""The machine at hand, measured in some seconds: rates of large products and of reading, and what a layer takes beside.

The latter is that of a random model of 8 layers, 640 wide, run as in training at two sizes of each kind of pass.
Nothing is fitted to a run: `python -m benchmarks.plan` compares what is planned for another model, at other sizes, with
what it takes.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from latent_cot import disk
from latent_cot.config.schema import LoraSettings
from latent_cot.model.lm import LanguageModel
from latent_cot.model.packed import pack_linear
from latent_cot.model.tree import TokenTree
from latent_cot.planning.cost import CostModel
from latent_cot.planning.hardware import CONTEXT_BYTES, Hardware, Pass
from latent_cot.planning.shape import gated
from latent_cot.run.session import lora_config, new_accelerator, peak_memory_bytes

SHAPE = gated(layers=8, width=640, inner=1728, heads=10, kv_heads=2, vocabulary=1024, tied=False)
PROMPT, CHAIN = 16, 32
"""Tokens."""
CONTEXT = PROMPT + CHAIN / 2
"""What a token attends to, on average."""
ROWS = (4, 48)
"""Of a step of decoding."""
TREES = ((1, 4), (4, 8))
"""(questions, chains of each) in a pass over trees."""
KERNELS = 1024 * 2**19
"""Bytes: oneDNN keeps a thousand products in bf16, of half a megabyte (`model/tree.py`). A long run has them all."""

Clock = Callable[[], float]


def this_machine(clock: Clock = time.perf_counter, precision: str = "auto") -> Hardware:
    """Measure the device that a run would use, with torch's threads, in the `precision` of its setting. `clock`:
    `time.process_time` where others use the same cores."""
    resident = float(peak_memory_bytes())
    accelerator, dtype, _ = new_accelerator(precision)
    device = accelerator.device

    def seconds(run: Callable[[], object]) -> float:
        """The median of five runs, after one that does not count."""
        times = []
        for _ in range(6):
            started = clock()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times.append(clock() - started)
        return statistics.median(times[1:])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        flops, read = _rates(device, dtype, seconds)
        passes = _Passes(accelerator, dtype)
        merge = dtype.itemsize * SHAPE.linear / seconds(passes.merge)
        if device.type != "cuda":  # its memory is the machine's
            memory = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _allowed())
        else:
            memory, resident = torch.cuda.mem_get_info(device)[1], CONTEXT_BYTES
        kernels = KERNELS if device.type == "cpu" and dtype is torch.bfloat16 else 0
        nothing = Pass(0.0, 0.0)
        bare = Hardware(flops, read, merge, memory, resident, kernels, nothing, nothing, nothing, number=dtype.itemsize)
        ideal = CostModel(SHAPE, bare, LoraSettings().rank)
        decoding = [(n, seconds(passes.decoding(n)), ideal.rollout(0, PROMPT, n, 1).seconds) for n in ROWS]
        scoring, updating = [], []
        for trees in (_trees(*size) for size in TREES):
            n = sum(map(len, trees))
            scoring.append((n, seconds(partial(passes.score, trees)), ideal.score(n, CONTEXT, 1, 0).seconds))
            updating.append((n, seconds(partial(passes.update, trees)), ideal.update(n, CONTEXT, 1, 0).seconds))
    decode, score, update = (_beside(ideal, found) for found in (decoding, scoring, updating))
    return replace(bare, decode=decode, score=score, update=update)


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux tells of a control group, in its second and its first version."""


def _allowed() -> float:
    """Bytes that a container's control group leaves its processes; infinity where nothing says so."""
    for file in _LIMITS:
        with suppress(OSError, ValueError), disk.opened(file) as opened:  # there may be none, and it may be "max"
            return float(int(opened.read(64)))
    return math.inf


def _rates(device: torch.device, dtype: torch.dtype, seconds: Callable[..., float]) -> tuple[float, float]:
    """FLOP/s of a product of large matrices, and bytes a second of weights that a product with few rows reads."""
    layers = [nn.Linear(2048, 2048, bias=False).to(device, dtype).requires_grad_(False) for _ in range(24)]
    packed: list[Any] = [pack_linear(layer) or layer for layer in layers]  # as a merged copy has them
    square, few = layers[0].weight, torch.randn(8, 2048).to(device, dtype)
    flops = 2 * square.shape[0] ** 3 / seconds(lambda: square @ square)
    return flops, len(packed) * square.nbytes / seconds(lambda: [layer(few) for layer in packed])


def _beside(ideal: CostModel, found: Sequence[tuple[int, float, float]]) -> Pass:
    """What a layer takes beside products and reading, from (tokens, seconds, seconds of products and reading) of a
    small and a large pass: the line through both."""
    layers = ideal.shape.layers
    (few, small), (many, large) = [(n, (seconds - products) / layers) for n, seconds, products in found]
    slope = max(0.0, (large - small) / (many - few))
    token = ideal.shape.activation_bytes(CONTEXT, ideal.rank, ideal.device.number)
    return Pass(max(0.0, small - few * slope), slope / token)


class _Passes:
    """A random model of `SHAPE`, and the passes that are timed."""

    def __init__(self, accelerator: Accelerator, dtype: torch.dtype) -> None:
        config = LlamaConfig(  # its layers are those of `gated`
            vocab_size=SHAPE.vocabulary,
            hidden_size=SHAPE.width,
            intermediate_size=SHAPE.inner,
            num_hidden_layers=SHAPE.layers,
            num_attention_heads=SHAPE.heads,
            num_key_value_heads=SHAPE.kv_heads,
        )
        model = cast("Any", LlamaForCausalLM(config)).to(dtype)
        tokenizer = cast("Any", None)  # no text is read
        self.lm = LanguageModel(model, tokenizer, lora_config(LoraSettings()), accelerator)

    def merge(self) -> None:
        self.lm.copy_adapter("p", "q")  # so that it is another
        self.lm.merged("q")

    def decoding(self, rows: int) -> Callable[[], None]:
        """A step of decoding, each behind the last."""
        model, device = self.lm.merged("q"), self.lm.device
        cache = self.lm.new_cache(model)

        def feed(columns: int) -> None:
            start = cache.get_seq_length()
            ids = torch.randint(SHAPE.vocabulary, (rows, columns), device=device)
            mask = torch.ones(rows, start + columns, dtype=torch.long, device=device)
            positions = torch.arange(start, start + columns, device=device).expand(rows, -1)
            with torch.no_grad():
                self.lm.decode_step(model, ids, mask, positions, cache)

        feed(PROMPT)
        return lambda: feed(1)

    def score(self, trees: Sequence[TokenTree]) -> None:
        with torch.no_grad():
            self.lm.hidden(self.lm.merged("q"), trees)

    def update(self, trees: Sequence[TokenTree]) -> None:
        with self.lm.trainable("q") as model:
            self.lm.hidden(model, trees).float().sum().backward()


def _trees(questions: int, chains: int) -> list[TokenTree]:
    """Chains of random tokens, which share their question's prompt."""
    trees = [TokenTree() for _ in range(questions)]
    for tree in trees:
        root = tree.extend(-1, torch.randint(SHAPE.vocabulary, (PROMPT,)).tolist())[-1]
        for chain in torch.randint(SHAPE.vocabulary, (chains, CHAIN)).tolist():
            tree.extend(root, chain)
    return trees
