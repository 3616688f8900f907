"""A base model that does not fit one device: its layers' weights are divided among the processes (FSDP2).

`accelerate launch --config_file examples/fsdp.yaml` asks for it. A layer's weights are put together when it runs and
dropped behind it, in the forward and in the backward pass. All else is whole in each process:

* the adapters: megabytes, against gigabytes of frozen weights. So their gradients are summed, and they are saved,
  loaded and resumed, as without sharding, by any number of processes;
* the embeddings and the output layer, whose rows are taken outside of a forward pass (`LanguageModel.logits`). FSDP too
  would have them whole from the forward pass to the end of the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from latent_cot.types import UsageError


@dataclass(frozen=True)
class Reasoner:
    """The sharded base model with this adapter switched on: what stands for a merged copy, of which there are none."""

    adapter: Any
    config: PretrainedConfig
    trained: bool = False
    """With gradients."""


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for it. Accelerate itself listens to it on GPUs only, so its environment is read."""
    return accelerator.num_processes > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(base: PreTrainedModel, accelerator: Accelerator) -> None:
    """Divide the weights of a model's layers, which are still on the CPU, among the processes, a layer at a time."""
    plugin, device = FullyShardedDataParallelPlugin(), accelerator.device
    if plugin.fsdp_version != 2:
        raise UsageError(f"accelerate's fsdp_version is {plugin.fsdp_version}; give 2, as examples/fsdp.yaml does")
    names = plugin.transformer_cls_names_to_wrap or base._no_split_modules or ()
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        what = f"the layers of a {type(base).__name__} cannot be found to divide its weights by them"
        raise UsageError(f"--model: {what}; name their class as accelerate's fsdp_transformer_layer_cls_to_wrap")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (accelerator.num_processes,)),
        "reshard_after_forward": True,  # else a pass without gradients would leave them whole
        "offload_policy": plugin.cpu_offload,
    }
    inside = {module for layer in layers for module in layer.modules()}
    for layer in reversed(layers):  # one within another comes first
        _place(layer.modules(), device, received=plugin.cpu_ram_efficient_loading)
        fully_shard(layer, **options)
    outside = [module for module in base.modules() if module not in inside]
    _place(outside, device, received=plugin.cpu_ram_efficient_loading)
    if plugin.cpu_ram_efficient_loading:
        base.tie_weights()
    whole = {weight for weight in base.parameters() if not isinstance(weight, DTensor)}
    fully_shard(base.base_model, ignored_params=whole, **options)  # the root, which prefetches the layers


def whole(weight: Tensor) -> Tensor:
    """A weight that may be divided. All processes have to ask for it."""
    return cast("Tensor", weight.full_tensor()) if isinstance(weight, DTensor) else weight


def _place(modules: Iterable[nn.Module], device: torch.device, *, received: bool) -> None:
    """Put what these modules hold themselves on the device; `received` from the main process, the only one to have
    read it (fsdp_cpu_ram_efficient_loading)."""
    for module in modules:
        if any(weight.is_meta for weight in module.parameters(recurse=False)):
            module.to_empty(device=device, recurse=False)
        module._apply(lambda held: held.to(device), recurse=False)
        for held in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if received else ():
            distributed.broadcast(held.data, 0)
