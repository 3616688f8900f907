"""Packed linear layers, fused LoRA layers and the merged copy, against the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from latent_cot.model import lora
from latent_cot.model.lm import LanguageModel
from latent_cot.model.packed import pack_linear
from tests.worlds import language_model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 40), (0, 1)])
def test_a_packed_layer_gives_the_same_numbers(bias: bool, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    packed = pack_linear(layer)
    if packed is None:
        pytest.skip("this CPU has no bf16, or this torch not the operators")
    other = nn.Linear(48, 80, bias=False, dtype=torch.bfloat16)
    x = torch.randn(*shape, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), atol=0.02, rtol=0.02)
        packed.pack(other.weight)
        layer.weight.copy_(other.weight)
        torch.testing.assert_close(packed(x), layer(x), atol=0.02, rtol=0.02)


def test_a_copy_of_a_packed_layer_is_independent_of_it() -> None:
    layer, other = (nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(2))
    packed = pack_linear(layer)
    if packed is None:
        pytest.skip("this CPU has no bf16, or this torch not the operators")
    copied, x = copy.deepcopy(packed), torch.randn(2, 1, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = packed(x)
        assert torch.equal(copied(x), expected)
        copied.pack(other.weight)
        assert torch.equal(packed(x), expected)
        assert not torch.equal(copied(x), expected)


def test_only_plain_bf16_layers_are_packed() -> None:
    class Own(nn.Linear):
        pass

    assert pack_linear(nn.Linear(8, 8)) is None
    assert pack_linear(Own(8, 8, dtype=torch.bfloat16)) is None
    assert pack_linear(nn.LayerNorm(8, dtype=torch.bfloat16)) is None


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def a_layer(lm: LanguageModel) -> LoraLinear:
    return next(module for module in lm.peft.modules() if isinstance(module, LoraLinear))


def test_a_fused_layer_is_pefts(lm: LanguageModel) -> None:
    """Its output and the gradients of input, A and B."""
    fused = a_layer(lm)
    plain = copy.deepcopy(fused)
    plain.forward = LoraLinear.forward.__get__(plain)  # type: ignore[method-assign]
    x = torch.randn(2, 7, int(fused.in_features or 0), generator=torch.Generator().manual_seed(0))
    with lm.trainable("q"):
        plain.set_adapter("q")
        outputs, gradients = [], []
        for layer in (fused, plain):
            a, b = layer.lora_A["q"].weight, layer.lora_B["q"].weight
            own = x.clone().requires_grad_()
            y = layer(own)
            y.sin().sum().backward()
            outputs.append(y.detach())
            gradients.append([own.grad, a.grad, b.grad])
    assert float(outputs[0].abs().sum()) > 0
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None and float(ours.abs().sum()) > 0
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_fused_gradient_is_the_numerical_one() -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (5, 4), (5,), (2, 4), (5, 2)]
    x, weight, bias, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    frozen = weight.detach(), bias.detach()
    assert torch.autograd.gradcheck(lambda x, a, b: lora._LoraLinear.apply(x, *frozen, a, b, 1.5), (x, a, b))


def test_dropout_takes_the_long_way(lm: LanguageModel) -> None:
    layer = a_layer(lm)
    layer.lora_dropout["q"] = nn.Dropout(0.5)
    x = torch.randn(4, int(layer.in_features or 0))
    for dropout in (False, True):  # for fine-tuning only, not where log q is computed
        with lm.trainable("q", dropout=dropout):
            torch.manual_seed(0)
            first = layer(x)
            torch.manual_seed(1)
            assert torch.equal(first, layer(x)) != dropout


def test_weights_merged_in_bf16_are_those_merged_in_fp32(lm: LanguageModel) -> None:
    layer = a_layer(lm)
    exact = lora.merged_weight(layer, "q")
    layer.get_base_layer().to(torch.bfloat16)
    base = cast("torch.Tensor", layer.get_base_layer().weight)
    merged = lora.merged_weight(layer, "q")
    assert merged.dtype == torch.bfloat16
    assert not torch.equal(merged, base)
    torch.testing.assert_close(merged.float(), exact, atol=2e-3, rtol=1e-2)
