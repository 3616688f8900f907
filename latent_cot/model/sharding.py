"""A base model that does not fit one device: its layers' weights are divided among the processes (FSDP2).

`accelerate launch --config_file examples/fsdp.yaml` asks for it. A layer's weights are put together when it runs, and
dropped behind it, in the forward and in the backward pass. All else is whole in each process:

* the adapters: megabytes, against gigabytes of frozen weights. So their gradients are summed, and they are saved,
  loaded and resumed, as without sharding, by any number of processes;
* the embeddings and the output layer, whose rows are taken outside of a forward pass (`LanguageModel.logits`). FSDP's
  own way with them, as part of the root, would have them whole from the forward to the end of the backward pass.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from latent_cot.types import UsageError


@dataclass(frozen=True)
class ShardedModel:
    """Stands for the sharded base model with this adapter switched on, as each pass of it will find it."""

    adapter: Any
    config: PretrainedConfig
    trained: bool
    """With gradients."""


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for it. Accelerate itself does what its environment says on GPUs only."""
    return accelerator.num_processes > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(base: PreTrainedModel, accelerator: Accelerator) -> None:
    """Put a model that is on the CPU on the device: of each layer's weights this process's part, and all else.

    Raises UsageError for settings of accelerate's that cannot be followed, or where the layers cannot be found.
    """
    plugin, device = FullyShardedDataParallelPlugin(), accelerator.device
    if plugin.fsdp_version != 2:
        raise UsageError(f"accelerate's fsdp_version is {plugin.fsdp_version}; give 2, as examples/fsdp.yaml does")
    if plugin.cpu_ram_efficient_loading:  # all but one process may then hold anything
        raise UsageError("accelerate's fsdp_cpu_ram_efficient_loading is true; give false: each process reads all")
    names = plugin.transformer_cls_names_to_wrap or base._no_split_modules or ()
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        what = f"the decoder layers of a {type(base).__name__}, to divide their weights, cannot be found"
        raise UsageError(f"--model: {what}; name their class in accelerate's fsdp_transformer_layer_cls_to_wrap")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (accelerator.num_processes,), mesh_dim_names=("fsdp",)),  # PEFT reads it
        "reshard_after_forward": True,  # else a pass without gradients would leave all layers whole
    }
    inside = {module for layer in layers for module in layer.modules()}
    for layer in reversed(layers):  # one within another comes first
        fully_shard(layer, **options)  # which puts it on the device: there is never more than one whole
    for module in base.modules():
        if module not in inside:
            module._apply(lambda held: held.to(device), recurse=False)
    # The root, which has the layers' weights put together ahead, has none itself that a hook could miss.
    warnings.filterwarnings("ignore", message=rf"FSDP2-wrapped module \(FSDP{type(base.base_model).__name__}\)")
    others = {weight for weight in base.parameters() if not isinstance(weight, DTensor)}
    fully_shard(base.base_model, ignored_params=others, **options)


def whole(weight: Tensor) -> Tensor:
    """A weight that may be divided: all processes have to ask for it."""
    if not isinstance(weight, DTensor):
        return weight
    full: Tensor = weight.full_tensor()
    return full
