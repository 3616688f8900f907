"""Linear layers whose weight is stored as the CPU's matrix product wants it.

For a few rows, as in decoding, oneDNN spends as long on rearranging a weight as on reading it for the product
(measured at eight rows, bf16: a third of the time of a decoding step). A merged copy of the model keeps its weight
for many steps, so it is rearranged once, by the operators that `torch.compile` uses for the same purpose.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU in bf16. The same numbers as `nn.Linear`."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.bias = like.bias
        self.pack(like.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        """Torch cannot copy a packed weight, and need not: `pack` puts another in its place."""
        return copy.copy(self)

    def pack(self, weight: Tensor) -> None:
        """Take over a weight (out, in)."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) for x (..., in), without gradients."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output


def pack_linear(layer: nn.Module) -> PackedLinear | None:
    """The packed form of a plain linear layer on a CPU in bf16, if this torch has it and its numbers are right."""
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.bfloat16:
        return None
    x = torch.ones(2, 1, layer.in_features, dtype=layer.weight.dtype)
    try:
        with torch.no_grad():
            packed = PackedLinear(layer)
            expected = layer(x)
            right = bool((packed(x) - expected).abs().max() <= 0.02 * expected.abs().max())
    except (AttributeError, NotImplementedError, RuntimeError):  # operators that are not of torch's public interface
        return None
    return packed if right else None
