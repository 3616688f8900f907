"""What a device may lack, without such a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.model.lm import LanguageModel
from latent_cot.model.tree import TokenTree
from latent_cot.run.session import new_accelerator
from tests.loops import CONFIG, FIT, make, of_method
from tests.worlds import language_model


class WithoutFloat64(torch.Tensor):
    """A tensor, and all that is made of it, until it is on the CPU: Apple's GPUs have no float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "double" or any(one is torch.float64 for one in (*args, *kwargs.values())):
            raise TypeError("Cannot convert a tensor to float64: the device doesn't support it.")
        found = super().__torch_function__(func, types, args, kwargs)
        return found.as_subclass(torch.Tensor) if func.__name__ == "cpu" else found


@pytest.fixture
def lm(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    lm = language_model(tiny_model("llama"), perturb=False)
    hidden = lm.hidden
    monkeypatch.setattr(lm, "hidden", lambda *arguments: hidden(*arguments).as_subclass(WithoutFloat64))
    return lm


@pytest.mark.parametrize("method", ["em", "forward-kl", "grpo"])
def test_a_device_without_float64(lm: LanguageModel, method: Any) -> None:
    """A round, its diagnoses and weights included."""
    fit = dataclasses.replace(FIT, samples=3, weighted=method != "grpo")
    policy = dataclasses.replace(CONFIG.policy_gradient, fine_tune=True)
    config = dataclasses.replace(of_method(method), rounds=1, m_step=fit, policy_gradient=policy, safeguard=True)
    phases = {phase.name for phase, _ in make(lm, config).run()}
    assert "m_step" in phases
    tree = TokenTree()
    tree.extend(-1, [5, 6])
    with pytest.raises(TypeError, match="float64"):
        lm.hidden(lm.merged("q"), [tree]).double()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_launchers_gradient_accumulation_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator, _, _ = new_accelerator("fp32")
    weight = torch.ones((), requires_grad=True)
    accelerator.backward(3 * weight)
    assert weight.grad == 3
