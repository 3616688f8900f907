"""The cost model: how long a pass takes, and what lies in memory. Numbers in, numbers out.

N are the weights of the linear layers, n those of one layer; a product with them takes 2 N FLOP a token, its gradient
with respect to the activations as much again, while the frozen weights need no gradient: 4 N, and 6 for each of
LoRA's own (Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1, has 2 N and 6 N where all is
trained). Attention adds 4 x context x heads x head width a token and layer, three times that with the backward pass.

A step of decoding reads all weights once and each row's keys and values; it takes the larger of the arithmetic and the
reading (Pope et al., "Efficiently scaling transformer inference", MLSys 2023). To every pass its small operations are
added (`hardware.Pass`): on a CPU, and for a small model anywhere, they are most of it.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from latent_cot.planning.hardware import Hardware, Pass
from latent_cot.planning.shape import Shape

SINGLE = 4
"""Bytes of a number in fp32, which adapters, their gradients and AdamW's two moments are in."""
LOGITS = 2 * SINGLE
"""Bytes of a logit over the vocabulary: as it is, and as the loss takes it."""


@dataclass(frozen=True)
class Cost:
    """Seconds of some work, and what they consist of."""

    seconds: float = 0.0
    arithmetic: float = 0.0
    bandwidth: float = 0.0
    """Reading weights and caches, and merging."""
    link: float = 0.0
    """Gathering the layers that other devices hold."""
    overhead: float = 0.0
    """Small operations."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * a for a in astuple(self)))

    @property
    def binds(self) -> str:
        """What takes longest."""
        parts = {name: value for name, value in vars(self).items() if name != "seconds"}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class CostModel:
    """A model with its adapters on one device."""

    shape: Shape
    device: Hardware
    rank: int
    """Of LoRA."""
    checkpointing: bool = False
    """Each layer is run again in the backward pass."""
    shards: int = 1
    """Devices that hold the base model together, each a part of every layer (`model/sharding.py`)."""

    # -- time --------------------------------------------------------------------------------------------

    def merge(self) -> Cost:
        """W + B A of every layer, of one adapter; a sharded model has no merged copies."""
        seconds = self.device.number * self.shape.linear / self.device.merge if self.shards == 1 else 0.0
        return Cost(seconds, bandwidth=seconds)

    def rollout(self, prompts: float, prompt: float, rows: float, steps: float) -> Cost:
        """Sample from a cache: a pass over so many prompts of `prompt` tokens, then `steps` steps with `rows` distinct
        rows on average."""
        device, number, context = self.device, self.device.number, prompt + steps / 2
        first = self._pass(device.decode, prompts * prompt, prompt, 2 * self.shape.linear, 1, 1.0)
        read = number * self.shape.linear + self.cache(rows, context)
        step = self._pass(device.decode, rows, context, 2 * self.shape.linear, 1, 1.0, read / device.read)
        return first + step * steps

    def score(self, tokens: float, context: float, passes: float, answer_rows: float) -> Cost:
        """Log-probabilities of `tokens` tokens in so many passes; the output layer over the whole vocabulary for
        `answer_rows` of them."""
        body = self._pass(self.device.score, tokens, context, 2 * self.shape.linear, passes, 1.0)
        return body + self._logits(self.device.score, answer_rows, 1)

    def update(self, tokens: float, context: float, passes: float, answer_rows: float) -> Cost:
        """The same with the gradient of an adapter."""
        again = 2 if self.checkpointing else 0
        flops = (4 + again) * self.shape.linear + 6 * self.shape.lora_weights(self.rank)
        body = self._pass(self.device.update, tokens, context, flops, passes, 3.0, gathers=2)
        return body + self._logits(self.device.update, answer_rows, 2)

    def _pass(
        self,
        kind: Pass,
        tokens: float,
        context: float,
        flops: float,
        passes: float,
        attends: float,
        read: float = 0.0,
        gathers: int = 1,
    ) -> Cost:
        """`flops` of a token's products; `attends`: those of attention, in forward passes; `read`: seconds; `gathers`:
        how often a pass puts each layer together, where it is sharded."""
        shape, q = self.shape, self.shape.heads * self.shape.head
        arithmetic = tokens * (flops + attends * 4 * shape.layers * context * q) / self.device.flops
        elsewhere = self.device.number * shape.linear * (1 - 1 / self.shards)
        gathered = gathers * passes * elsewhere / self.device.link
        streamed = tokens * shape.activation_bytes(context, self.rank, self.device.number) * kind.byte_seconds
        small = shape.layers * (passes * kind.layer_seconds + streamed)
        return Cost(max(arithmetic, read, gathered) + small, arithmetic, read, gathered, small)

    def _logits(self, kind: Pass, rows: float, directions: int) -> Cost:
        arithmetic = directions * 2 * rows * self.shape.width * self.shape.vocabulary / self.device.flops
        small = rows * self.shape.vocabulary * LOGITS * kind.byte_seconds
        return Cost(arithmetic + small, arithmetic=arithmetic, overhead=small)

    # -- memory ------------------------------------------------------------------------------------------

    def held(self, copies: int, adapters: int) -> dict[str, float]:
        """Bytes that lie in memory all the time."""
        lora, shape = self.shape.lora_weights(self.rank), self.shape
        base = shape.linear / self.shards + shape.weights - shape.linear  # embeddings and output layer are whole
        return {
            "libraries and context": self.device.resident + self.device.kernels,
            "base weights": self.device.number * base,
            "merged copies": copies * self.device.number * shape.linear if self.shards == 1 else 0.0,
            "adapters": adapters * SINGLE * lora,
            "gradient and optimiser": 3 * SINGLE * lora,
        }

    def activations(self, tokens: float, context: float) -> float:
        """Bytes that the backward pass of so many tokens needs."""
        layer = self.shape.activation_bytes(context, self.rank, self.device.number)
        if self.checkpointing:  # the inputs of all layers, and the inside of one
            return tokens * (self.device.number * self.shape.width * self.shape.layers + layer)
        return tokens * layer * self.shape.layers

    def cache(self, rows: float, columns: float) -> float:
        """Bytes of the keys and values of so many rows."""
        return rows * columns * self.device.number * self.shape.cached

    def logits(self, rows: float) -> float:
        """Bytes of the logits over the vocabulary in an update, and of their gradients; without one, few are made at
        once."""
        return 2 * rows * self.shape.vocabulary * LOGITS


def batches(items: float, each: float) -> int:
    """How many batches of at most `each`; at least one."""
    return max(1, math.ceil(items / max(1.0, each)))
