"""A trial: does every adapted layer compute the same with its adapter (training) and with merged weights (sampling)?

"All linear layers" include some with a forward pass of their own, which PEFT's layer does not know (Llama 4's router
returns two tensors), and some whose weight the model reads without calling them (Jamba's `dt_proj`): their adapter has
no effect where it is trained, and one where it is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from latent_cot.model import lora as lora_layer
from latent_cot.model.architecture import close

LINEAR = (nn.Linear, Conv1D)
"""Layers that PEFT knows."""


@torch.no_grad()
def refuse_misfits(
    adapted: Sequence[tuple[str, Any]], adapter: str, run: Callable[[], Tensor], run_merged: Callable[[], Tensor]
) -> None:
    """Raises ValueError, with the layers' names, for those whose adapter is not what is merged.

    Args:
        adapted: name and PEFT layer; the adapters' weights are as they were in the end.
        adapter: the one that is switched on.
        run: a pass over a few tokens with it.
        run_merged: the same of a copy with it, merged afresh.
    """
    generator = torch.Generator().manual_seed(0)
    odd = [(name, layer) for name, layer in adapted if type(layer.get_base_layer()) not in LINEAR]
    entered: list[str] = []
    wrong: set[str] = set()
    with ExitStack() as stack:
        for name, layer in adapted:
            note = layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
            stack.callback(note.remove)
        for name, layer in odd:
            stack.enter_context(_Shaken([layer], adapter, generator))
            compare = layer.register_forward_hook(partial(_compare, wrong, name, adapter), with_kwargs=True)
            stack.callback(compare.remove)
        try:
            run()
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if not entered:
                raise
            what = _named(entered[-1:], adapted)
            raise ValueError(f"{what}: with an adapter it fails ({error}); name the others") from error
    if wrong:
        what = _named(sorted(wrong), adapted)
        raise ValueError(f"{what}: with an adapter it is another thing than with merged weights; name the others")
    # An expert that no token went to is not called either; but then its weight does not matter.
    silent: dict[str, list[str]] = {}
    for name, _ in adapted:
        if name not in entered:
            silent.setdefault(name.rpartition(".")[2], []).append(name)
    layers = dict(adapted)
    for names in silent.values():
        before = run_merged()
        with _Shaken([layers[name] for name in names], adapter, generator):
            try:
                read = not close(run_merged(), before)
            except AttributeError:  # there is no weight to read: it is packed
                read = True
        if read:
            raise ValueError(f"{_named(names, adapted)}: the model reads its weight past an adapter; name the others")


class _Shaken:
    """Layers whose adapter does something, for a while: of a fresh one, B is zero."""

    def __init__(self, layers: Sequence[Any], adapter: str, generator: torch.Generator) -> None:
        self._weights = [layer.lora_B[adapter].weight for layer in layers]
        self._generator = generator

    def __enter__(self) -> None:
        self._kept = [weight.clone() for weight in self._weights]
        for weight in self._weights:
            weight.copy_(torch.randn(weight.shape, generator=self._generator))

    def __exit__(self, *_: object) -> None:
        for weight, kept in zip(self._weights, self._kept, strict=True):
            weight.copy_(kept)


def _compare(
    wrong: set[str], name: str, adapter: str, layer: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any
) -> None:
    """A forward hook that adds the name of a layer whose output is not that of the merged weight."""
    merged = {"weight": lora_layer.merged_weight(layer, adapter)}
    expected = torch.func.functional_call(layer.get_base_layer(), merged, given, named)
    if not (isinstance(output, Tensor) and isinstance(expected, Tensor) and close(output, expected)):
        wrong.add(name)


def _named(names: Sequence[str], adapted: Sequence[tuple[str, Any]]) -> str:
    """What goes wrong with these layers, and those of the same type, in the words of an error."""
    types = {name: type(layer.get_base_layer()) for name, layer in adapted}
    same = list(names) if types[names[0]] in LINEAR else [name for name in types if types[name] is types[names[0]]]
    others = f" and {len(same) - 1} more" if len(same) > 1 else ""
    return f"{same[0]}{others} ({types[names[0]].__name__}) cannot be trained"
