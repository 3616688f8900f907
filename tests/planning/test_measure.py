"""The machine's constants."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from latent_cot.planning import measure
from latent_cot.planning.cost import CostModel
from latent_cot.planning.hardware import GPUS, Pass


def test_what_is_beside_the_products_is_the_line_through_two_sizes() -> None:
    costs = CostModel(measure.SHAPE, GPUS["h100"], 16)
    token = costs.shape.activation_bytes(measure.CONTEXT, 16, 2)
    layers = costs.shape.layers

    def seconds(tokens: int) -> float:
        return 1.0 + layers * (0.002 + tokens * token * 3e-10)

    found = measure._beside(costs, [(n, seconds(n), 1.0) for n in (100, 1000)])
    assert (found.layer_seconds, found.byte_seconds) == pytest.approx((0.002, 3e-10))


def test_noise_makes_nothing_negative() -> None:
    costs = CostModel(measure.SHAPE, GPUS["h100"], 16)
    assert measure._beside(costs, [(100, 0.5, 1.0), (1000, 0.4, 1.0)]) == Pass(0.0, 0.0)


@pytest.mark.parametrize("questions", [1, 4])
def test_activations_are_those_that_the_backward_pass_keeps(questions: int) -> None:
    """In bf16. Padding is not planned: up to a fifth."""
    AcceleratorState._reset_state(reset_partial_state=True)
    lm = measure._Passes(Accelerator(cpu=True, mixed_precision="bf16"), torch.bfloat16).lm
    trees = measure._trees(questions, 8)
    parameters = {weight.untyped_storage().data_ptr() for weight in lm.peft.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with lm.trainable("q") as model, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = lm.hidden(model, trees)
    costs = CostModel(measure.SHAPE, GPUS["h100"], 16)
    planned = costs.activations(sum(map(len, trees)), measure.PROMPT + measure.CHAIN)
    assert planned <= sum(kept.values()) <= 1.2 * planned
    assert hidden.requires_grad


@pytest.mark.slow
def test_this_machine_has_plausible_constants() -> None:
    found = measure.this_machine()
    assert 1e9 < found.flops < 1e16
    assert 1e8 < found.read < 1e14
    assert found.memory > found.resident > 1e8
    for kind in (found.decode, found.score, found.update):
        assert 0 <= kind.layer_seconds < 0.2
        assert 0 <= kind.byte_seconds < 1e-7
    assert found.update.layer_seconds + found.update.byte_seconds > 0
