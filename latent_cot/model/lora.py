"""The LoRA layer as one differentiable function.

PEFT's layer is several: a cast, a dropout, two products, a scaling, a sum, each with a pass over memory and a
node in the backward graph; on a CPU they took a third of the time of an update. The numbers are the same.
A layer whose base is not a plain linear one, or that drops out, stays PEFT's. DoRA and biases need no thought here:
`LanguageModel` has refused them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def fuse(layer: LoraLinear) -> None:
    """Let a PEFT layer take the short way whenever it may."""
    plain = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = layer.active_adapters
        adapter = active[0]
        if (
            args
            or kwargs
            or len(active) != 1
            or layer.disable_adapters
            or not _is_plain(layer)
            or getattr(layer.lora_dropout[adapter], "p", 0.0) > 0
        ):
            return plain(x, *args, **kwargs)
        base = layer.get_base_layer()
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        weight = cast("Tensor", base.weight)
        flat = x.to(weight.dtype).flatten(0, -2)
        output = cast("Tensor", _LoraLinear.apply(flat, weight, base.bias, a, b, layer.scaling[adapter]))
        return output.view(*x.shape[:-1], -1)  # not in the function: nobody may then write into what it returns

    layer.forward = forward  # type: ignore[method-assign]


@torch.no_grad()
def merged_weight(layer: Any, adapter: str) -> Tensor:
    """W + s B A of a PEFT layer, in the type of W."""
    weight: Tensor = layer.get_base_layer().weight
    if not _is_plain(layer) or weight.dtype == torch.float32:
        delta: Tensor = layer.get_delta_weight(adapter)
        return (weight.to(delta.dtype) + delta).to(weight.dtype)
    # One product that is rounded once, rather than one in fp32 (ten times the time) and two passes over memory.
    a, b = (factor[adapter].weight.to(weight.dtype) for factor in (layer.lora_A, layer.lora_B))
    return torch.addmm(weight, b, a, alpha=layer.scaling[adapter])


def _is_plain(layer: Any) -> bool:
    """Whether the base is W and a bias, and nothing else: no quantised layer, and no GPT-2's Conv1D."""
    return type(layer.get_base_layer()) is nn.Linear


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + s (x Aᵀ) Bᵀ for x (n, in), W (out, in), A (r, in), B (out, r); W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # all is of the weight's type already
            low = x @ low_a.T
            y = nn.functional.linear(x, weight, bias).addmm_(low, low_b.T, alpha=scaling)
        ctx.save_for_backward(x, low, weight, low_a, low_b)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        (g,) = gradients
        back = (g @ b).mul_(ctx.scaling)  # (n, r)
        grad_x = (g @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        grad_a = (back.T @ x).to(ctx.dtypes[0])
        grad_b = (g.T @ low).mul_(ctx.scaling).to(ctx.dtypes[1])
        return grad_x, None, None, grad_a, grad_b, None
