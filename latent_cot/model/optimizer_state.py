"""An optimiser's state in two files, without pickle: its tensors, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latent_cot.types import UsageError

TENSORS = "optimizer.safetensors"
NUMBERS = "optimizer.json"


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write `optimizer.safetensors` (tensor `"3.exp_avg"`: that of parameter 3) and `optimizer.json`.

    The JSON holds the parameter groups' settings and the state that is no tensor. Raises TypeError for
    settings that JSON cannot hold, such as a learning rate in a tensor.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{key}"] = value
    record = {"optimizer": type(optimizer).__name__, "groups": state["param_groups"], "numbers": numbers}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    save_file(tensors, folder / TENSORS)
    (folder / NUMBERS).write_text(text, encoding="ascii")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `save_optimizer` wrote, bit for bit, into an optimiser over the same parameters.

    Raises UsageError if the files are damaged or another optimiser's; `optimizer` is then unchanged.
    """
    try:
        record = json.loads((folder / NUMBERS).read_bytes())
        tensors = load_file(folder / TENSORS)
        saved: dict[int, dict[str, Any]] = {}
        for name, value in {**record["numbers"], **tensors}.items():
            index, key = name.split(".", 1)
            saved.setdefault(int(index), {})[key] = value
        own = optimizer.state_dict()["param_groups"]
        for difference in _differences(optimizer, own, record, saved):
            raise UsageError(
                f"{folder}: the state of another optimiser ({difference}); resume with the model and the "
                "--lora settings of the run"
            )
        groups = [{**mine, **group} for mine, group in zip(own, record["groups"], strict=True)]
        for mine, group in zip(own, groups, strict=True):  # JSON has no tuples; AdamW's betas are one
            group.update({key: tuple(group[key]) for key, value in mine.items() if isinstance(value, tuple)})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder / NUMBERS} and {TENSORS}: cannot be read ({error}); they are damaged: restore them, or "
            "start the run again"
        ) from error
    optimizer.load_state_dict({"state": saved, "param_groups": groups})


def _differences(
    optimizer: torch.optim.Optimizer,
    own: list[dict[str, Any]],
    record: dict[str, Any],
    saved: dict[int, dict[str, Any]],
) -> Iterator[str]:
    """What keeps the saved state from fitting the optimiser."""
    if record["optimizer"] != type(optimizer).__name__:
        yield f"{record['optimizer']}, not {type(optimizer).__name__}"
    if [group["params"] for group in record["groups"]] != [group["params"] for group in own]:
        yield "its parameter groups have other sizes"
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in saved.items():
        if not 0 <= index < len(parameters):
            yield f"it has a parameter {index}"
            return
        shape = parameters[index].shape
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != shape:
                yield f"{key} of parameter {index} has shape {tuple(value.shape)}, not {tuple(shape)}"
