"""One base model in memory, two LoRA adapters on it: the model `p` and the policy `q`.

The algorithm needs two things of a language model: hidden states at the nodes of token trees, and
logits from them, over the actions of a rationale or over the whole vocabulary. Everything that depends on
the architecture is here.
"""

from __future__ import annotations

import copy
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from latent_cot import disk
from latent_cot.model import architecture, trial
from latent_cot.model import lora as lora_layer
from latent_cot.model.architecture import Capabilities, close, features_of, run_trees, some_tokens
from latent_cot.model.engine import Completion, Engine, Request
from latent_cot.model.kv_cache import KVCache
from latent_cot.model.limits import limits_of
from latent_cot.model.packed import PackedLinear, pack_linear
from latent_cot.model.processes import Processes
from latent_cot.model.sharding import ShardedModel, is_sharded, shard, whole
from latent_cot.model.tree import TokenTree
from latent_cot.types import Reasoner, UsageError, first_line

ADAPTERS: tuple[Reasoner, Reasoner] = ("p", "q")
AdapterName = Reasoner | Literal["prior", "kept"]
"""The reasoners' adapters and, in a run that has them, what one once was: q before its first training, as a
prior, and p or q before its present one, to go back to."""

_SCALING = ("lora_alpha", "use_rslora", "use_dora", "lora_bias", "alpha_pattern", "rank_pattern")
"""Settings of LoRA by which the same weights are another change of the model."""
_FEW = 0.25
"""Of the vocabulary: the output layer's rows of so few tokens are copied before the product; else all logits are made,
and some taken, unless there are so many that it is the larger copy."""


class LanguageModel:
    """A causal LM with adapters `p` and `q`.

    Args:
        base: any Hugging Face causal LM.
        tokenizer: its tokenizer.
        lora: rank, targets and so on of both adapters. Freshly made, both equal the base model.
        accelerator: owns device and precision.
        gradient_checkpointing: keep only each layer's input for the backward pass and run the layer again there:
            less memory, a third more time.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lora: LoraConfig,
        accelerator: Accelerator | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        if lora.use_dora or lora.lora_bias:
            raise ValueError("a merged copy of an adapter with DoRA or biases would be another model; leave them out")
        self.accelerator = accelerator or Accelerator(cpu=True)
        self.processes = Processes(self.accelerator)
        self.device: torch.device = self.accelerator.device
        self.tokenizer = tokenizer
        base.requires_grad_(False).eval()
        self.sharded = is_sharded(self.accelerator)
        """The base model's weights are divided among the processes, and there are no merged copies."""
        if self.sharded:
            shard(base, self.accelerator)
        else:
            base.to(self.device)
        try:
            self.capabilities = Capabilities.of(base)
        except (MemoryError, torch.OutOfMemoryError):  # the architecture is not to blame
            raise
        except Exception as error:  # each architecture has its own
            raise _no_cache(base, first_line(error)) from error
        self.limit = min(limits_of(base), key=lambda limit: limit.tokens, default=None)
        """How many tokens a text may have, and why; None: as many as it likes."""
        self.positions: int | None = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        """How many tokens the texts of its training had at most, where its configuration says so."""
        self._refuse_without_cache(base)
        self.capabilities = replace(self.capabilities, cascade=self._cascades(base))
        self._base_head = base.get_output_embeddings()
        # Copied before PEFT wraps the layers; all weights are the base model's own until they are known to be adapted.
        copied = () if self.sharded else ADAPTERS
        self._copies: dict[AdapterName, PreTrainedModel] = {
            name: _copy_sharing(base, base.parameters()) for name in copied
        }
        self._fresh: set[AdapterName] = set()
        self.engine: Engine | None = None
        """What samples in place of the merged copies, if anything does (`sampling_by`)."""
        self._at_engine: set[AdapterName] = set()
        targets = lora.target_modules  # PEFT changes it
        named = () if targets is None or isinstance(targets, str) else sorted(targets)
        there = sorted({name.rpartition(".")[2] for name, one in base.named_modules() if isinstance(one, trial.LINEAR)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right itself
            self.peft: PeftModel = get_peft_model(base, lora, adapter_name="p")
            self.peft.add_adapter("q", copy.deepcopy(lora))
        self.peft.eval()
        self._base = cast("PreTrainedModel", self.peft.get_base_model())
        if isinstance(self._base.get_output_embeddings(), LoraLayer):
            raise ValueError("the output layer cannot be adapted; leave it out")
        # Found once: going through all modules takes longer than the optimiser's step.
        modules = self._base.named_modules()
        self._adapted: list[tuple[str, Any]] = [(name, one) for name, one in modules if isinstance(one, LoraLayer)]
        adapted = [f".{name}" for name, _ in self._adapted]
        if unknown := [name for name in named if not any(one.endswith(f".{name}") for one in adapted)]:
            raise ValueError(f"no layer is called {unknown[0]}; there are {', '.join(there)}")
        for name, layer in self._adapted:
            of_base = layer.get_base_layer()
            linear = isinstance(getattr(of_base, "weight", None), Tensor) and not isinstance(of_base, nn.Embedding)
            if ".base_layer" in name or not linear:
                raise ValueError(f"{name} is a {type(of_base).__name__}, which is no linear layer; name those that are")
            if self.sharded and layer.out_features != getattr(of_base, "out_features", layer.out_features):
                raise UsageError("PEFT takes a part of a sharded weight for all of it; upgrade it, to 0.21 or later")
            if isinstance(layer, LoraLinear):
                lora_layer.fuse(layer)
        self._weights: dict[AdapterName, dict[str, nn.Parameter]] = {name: self._weights_of(name) for name in ADAPTERS}
        self._active: tuple[AdapterName, bool] | None = None
        """The adapter that is switched on, and whether it requires gradients."""
        self._checkpointed = _checkpoint_layers(self._base) if gradient_checkpointing else []
        for model in self._copies.values():
            for name, _ in self._adapted:
                own: Any = model.get_submodule(name)
                if (packed := pack_linear(own)) is not None:
                    model.set_submodule(name, packed)
                else:
                    own.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=False)
        if self.sharded:
            self.processes.empty_pass = self._empty_pass
        else:
            self._refuse_misfits()

    @property
    def base_config(self) -> PretrainedConfig:
        """Of the base model."""
        return self._base.config

    # -- adapters ------------------------------------------------------------------------------------

    def _make_room(self, name: AdapterName) -> None:
        """For one more adapter, which is never trained: a copy of another as it is at some time."""
        if name in self._weights:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.add_adapter(name, copy.deepcopy(self.peft.peft_config["q"]))
        self._weights[name] = self._weights_of(name)
        for weight in self._weights[name].values():
            weight.requires_grad_(False)
        self.peft.eval()  # its dropout is new, and in training mode
        self._active = None  # PEFT has switched on the gradients of an adapter

    def _changed(self, *adapters: AdapterName) -> None:
        """Copies of these, merged or at the engine, are out of date."""
        self._fresh.difference_update(adapters)
        self._at_engine.difference_update(adapters)

    def _weights_of(self, adapter: AdapterName) -> dict[str, nn.Parameter]:
        weights = self.peft.named_parameters()
        return {name: weight for name, weight in weights if _is_of(name, adapter)}

    def parameters(self, adapter: AdapterName) -> dict[str, nn.Parameter]:
        """The adapter's own weights by name."""
        self._make_room(adapter)
        return dict(self._weights[adapter])

    @property
    def dtype(self) -> torch.dtype:
        """That of the base model's weights."""
        return next(self.peft.get_base_model().parameters()).dtype

    @torch.no_grad()
    def base_digest(self, *, rounded: bool = False) -> str:
        """A short hash of the base model: of all its shapes and types, and of a few values of each weight.

        Args:
            rounded: of the values as bfloat16 has them, so that it is the same in every precision.
        """
        found = hashlib.sha256()
        for name, weight in self._base.named_parameters():
            if "lora_" not in name:
                some = whole(weight).flatten()[:: max(1, weight.numel() // 64)]
                some = some.to(torch.bfloat16) if rounded else some
                values = some.float().cpu().tolist()
                found.update(f"{name} {tuple(weight.shape)} {some.dtype} {values}".encode())
        return found.hexdigest()[:16]

    def is_finite(self, adapter: AdapterName) -> bool:
        """Whether all of an adapter's weights are numbers."""
        return all(bool(weight.isfinite().all()) for weight in self.parameters(adapter).values())

    @torch.no_grad()
    def copy_adapter(self, source: AdapterName, target: AdapterName) -> None:
        """Make `target` equal to `source`."""
        weights = self.parameters(source)
        for name, weight in self.parameters(target).items():
            weight.copy_(weights[_renamed(name, target, source)])
        self._changed(target)

    @torch.no_grad()
    def swap_adapters(self, one: AdapterName, other: AdapterName) -> None:
        """Make each what the other is."""
        weights = self.parameters(one)
        for name, weight in self.parameters(other).items():
            twin = weights[_renamed(name, other, one)]
            was = weight.clone()
            weight.copy_(twin)
            twin.copy_(was)
        self._changed(one, other)

    @torch.no_grad()
    def interpolate(self, adapter: AdapterName, share: float) -> None:
        """Move the model that `adapter` makes to (1 − share) base + share adapted, exactly: its change of the base
        model's weights, B A, is scaled.

        Fine-tuned weights averaged with those they began from keep more of what the first could do outside of the
        training distribution (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
        """
        for name, weight in self.parameters(adapter).items():
            if "lora_B" in name:
                weight.mul_(share)
        self._changed(adapter)

    @torch.no_grad()
    def reset_adapter(self, adapter: AdapterName, seed: int) -> None:
        """Make `adapter` a fresh LoRA adapter, equal to the base model: A random, B zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in sorted(self.parameters(adapter).items()):
            if "lora_B" in name:
                weight.zero_()
            else:
                bound = 1 / weight.shape[-1] ** 0.5  # peft's own kaiming_uniform(a=√5)
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
        self._changed(adapter)

    def save_adapter(self, adapter: AdapterName, folder: Path) -> None:
        """Write it in PEFT's own format (`PeftModel.from_pretrained(base, folder)` loads it)."""
        self._make_room(adapter)
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
        disk.write(folder / "adapter_model.safetensors", save(tensors))  # its own writer shuts others out
        config = copy.deepcopy(self.peft.peft_config[adapter])
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def load_adapter(self, adapter: AdapterName, folder: Path) -> None:
        """Read an adapter of this base model. Raises UsageError if it is another's, or cut short."""
        self._make_room(adapter)
        file = folder / "adapter_model.safetensors"
        try:
            state = load(disk.read(file, disk.MAX_BYTES))
            settings = folder / "adapter_config.json"
            saved = disk.parse_json(disk.read(settings, disk.MAX_BYTES), str(settings))
        except FileNotFoundError as error:
            raise UsageError(f"{file}: no such file; {folder} holds no adapter") from error
        except OSError as error:
            raise UsageError(
                f"{error.filename or file}: cannot be read ({error.strerror}); make it readable"
            ) from error
        except SafetensorError as error:
            raise UsageError(f"{file}: cannot be read ({error}); the file is damaged or was cut short") from error
        own = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        shapes, theirs = ({(name, tuple(w.shape)) for name, w in one.items()} for one in (own, state))
        if shapes != theirs:
            wrong = min(shapes ^ theirs)
            difference = f"of another model, or of other LoRA settings (first: {wrong[0]} of shape {wrong[1]})"
            raise UsageError(f"{file}: an adapter {difference}; give the --model and --lora settings of its training")
        if not isinstance(saved, dict):
            raise UsageError(f"{settings}: no JSON object; the file is damaged")
        config = self.peft.peft_config[adapter]
        for name in _SCALING:
            if (there := saved.get(name, getattr(config, name))) != getattr(config, name):
                trained = f"{name.replace('lora_alpha', '--lora.alpha')} {there}, not {getattr(config, name)}"
                raise UsageError(f"{settings}: it was trained with {trained}; give the --lora settings of its training")
        set_peft_model_state_dict(self.peft, state, adapter_name=adapter)
        self._changed(adapter)

    # -- models to run -------------------------------------------------------------------------------

    @contextmanager
    def trainable(self, adapter: AdapterName, *, dropout: bool = False) -> Iterator[PreTrainedModel]:
        """The base model with `adapter` switched on and its weights requiring gradients.

        Args:
            dropout: whether LoRA's own is on, where it is configured: in fine-tuning only. While a sampler is trained
                it stays off, so that log q is that of the weights that sampled.
        """
        self._switch_on(adapter, trained=True)
        self._changed(adapter)
        self._switch_training(True, dropout=dropout)
        try:
            yield self._reasoner(adapter, trained=True) if self.sharded else self._base
        finally:
            self._switch_training(False, dropout=False)
            self._changed(adapter)

    def _switch_on(self, adapter: AdapterName, *, trained: bool) -> None:
        if self._active != (adapter, trained):
            self.peft.set_adapter(adapter)
            for other, weights in self._weights.items():
                for weight in weights.values():
                    weight.requires_grad_(trained and other == adapter)
            self._active = adapter, trained

    def _reasoner(self, adapter: AdapterName, *, trained: bool = False) -> PreTrainedModel:
        """The sharded model with this adapter, which every pass of it switches on."""
        return cast("PreTrainedModel", ShardedModel(adapter, self.base_config, trained))

    @contextmanager
    def without_adapters(self) -> Iterator[PreTrainedModel]:
        """The base model as it was before any training, for scoring."""
        with self.peft.disable_adapter():
            yield self._base
        self._active = None  # PEFT has switched on the gradients of an adapter again

    @torch.no_grad()
    def merged(self, adapter: AdapterName) -> PreTrainedModel:
        """A copy of the base model with `adapter` merged into its weights, for sampling and scoring.

        Unmerged LoRA on all linear layers triples the time of a decoding step. The copy is made afresh
        from the base each time the adapter has changed: merging back and forth in bf16 would drift. Of a sharded model
        there is no copy: its adapter stays unmerged.
        """
        if self.sharded:
            return self._reasoner(adapter)
        if adapter not in self._copies:  # a spare one, most of which are never run
            like, adapted = self._copies["q"], {name for name, _ in self._adapted}
            frozen = (w for name, w in like.named_parameters() if name.removesuffix(".weight") not in adapted)
            self._copies[adapter] = _copy_sharing(like, frozen)
        model = self._copies[adapter]
        if adapter not in self._fresh:
            for name, layer in self._adapted:
                weight = lora_layer.merged_weight(layer, adapter)
                target: Any = model.get_submodule(name)
                put = target.pack if isinstance(target, PackedLinear) else target.weight.copy_
                put(weight)
            self._fresh.add(adapter)
        return model

    def complete(self, adapter: AdapterName, requests: Sequence[Request]) -> list[Completion]:
        """A completion of each request by the engine, which is given the adapter where it has changed."""
        assert self.engine is not None
        if adapter not in self._at_engine:
            self.publish(adapter)
        return self.engine.complete(adapter, requests)

    def publish(self, adapter: AdapterName) -> None:
        """Give the engine the adapter as it is: its megabytes travel, the base model does not."""
        assert self.engine is not None
        self.engine.put(adapter, lambda folder: self.save_adapter(adapter, folder))
        self._at_engine.add(adapter)

    @contextmanager
    def sampling_by(self, engine: Engine | None) -> Iterator[None]:
        """Sample by this engine, which is closed in the end; None: by the model itself."""
        self.engine = engine
        self._at_engine.clear()
        try:
            yield
        finally:
            self.engine = None
            if engine is not None:
                engine.close()

    def _switch_training(self, on: bool, *, dropout: bool) -> None:
        """LoRA's own dropout, and gradient checkpointing: the base model's own dropout stays off."""
        for _, layer in self._adapted:
            layer.lora_dropout.train(dropout)
        for layer in self._checkpointed:
            layer.training = on  # of the layer itself, not of what is in it

    @torch.no_grad()
    def _refuse_without_cache(self, base: PreTrainedModel) -> None:
        """Raises UsageError where sampling from a key-value cache, in rows of different lengths that change places and
        branch, would fail or not be the model's."""
        some = torch.tensor(some_tokens(base, 11), device=self.device)
        ids, tokens, sources = some[:8].view(2, 4), some[8:, None], [1, 0, 0]
        seen = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], device=self.device)
        reason = "what it then says is another thing"
        try:
            cache = self.new_cache(base)
            self.decode_step(base, ids, seen, (seen.cumsum(1) - 1).clamp(min=0), cache)
            cache.rearrange(sources, self.device)
            ids = torch.cat([ids[sources], tokens], 1)
            seen = nn.functional.pad(seen[sources], (0, 1), value=1)
            last = self.decode_step(base, tokens, seen, seen.cumsum(1)[:, -1:] - 1, cache)
            head = self.capabilities.linear_head
            with self.accelerator.autocast():
                rows = [row[mask.bool()][None] for row, mask in zip(ids, seen, strict=True)]
                alone = [features_of(base, head, input_ids=row)[:, -1] for row in rows]
            # Behind three tokens a whole network may amplify what bf16 rounds, to some 6 %.
            same = close(last, torch.cat(alone), tolerance=0.25 if architecture.is_half(last) else None)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            same, reason = False, first_line(error)
        if not same:
            raise _no_cache(base, reason)

    def _refuse_misfits(self) -> None:
        """Raises ValueError where a layer's adapter is trained as another thing than what is merged into a copy."""
        ids = torch.tensor([some_tokens(self._base, 8)], device=self.device)

        def run(model: PreTrainedModel) -> Tensor:
            with self.accelerator.autocast():
                return features_of(model, self.capabilities.linear_head, input_ids=ids)

        def run_merged() -> Tensor:
            self._changed("p")
            return run(self.merged("p"))

        trial.refuse_misfits(self._adapted, "p", lambda: run(self._base), run_merged)
        self._changed("p")

    @torch.no_grad()
    def _cascades(self, base: PreTrainedModel) -> bool:
        """Whether attention finds a beginning that the cache keeps apart from the rows (`Capabilities.cascade`)."""
        ids = torch.arange(5, device=self.device)[None]
        first = KVCache(base.config)
        if self.capabilities.trees != "flat" or not first.joinable:
            return False
        seen = torch.ones(2, 5, dtype=torch.long, device=self.device)
        rest = ids[:, 2:].expand(2, -1)
        self.decode_step(base, ids[:, :2], seen[:1, :2], ids[:, :2], first)
        found = []
        with suppress(AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            for apart in (False, True):
                cache = KVCache(base.config, first, apart=apart)
                self.decode_step(base, rest[:, :2], seen[:, :4], rest[:, :2], cache)
                found.append(self.decode_step(base, rest[:, 2:], seen, rest[:, 2:], cache))
        return len(found) == 2 and close(found[1], found[0])

    # -- forward passes ------------------------------------------------------------------------------

    def hidden(self, model: PreTrainedModel, trees: Sequence[TokenTree]) -> Tensor:
        """(nodes, H) final hidden states at the nodes of `trees`, tree after tree.

        For an architecture whose logits are no plain linear map of them, these are the logits (H = V).
        """
        longest = max((max(tree.positions, default=0) + 1 for tree in trees), default=0)
        self._refuse_too_long(longest)
        to_run = partial(self._to_run, model)
        kind = self.capabilities.trees
        window = self.capabilities.window
        columns = self.capabilities.columns
        row = sum(map(len, trees))
        # Some models count the columns of a row from each other, whatever its mask says of them.
        if window is not None and (row if kind == "masked" else longest) > window:
            kind = "paths"
        if columns is not None and row > columns:
            kind = "paths"
        with self.accelerator.autocast():
            return run_trees(to_run(), trees, kind, linear_head=self.capabilities.linear_head, between=to_run)

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """(n, V), or (n, len(ids)), float32 logits at n hidden states: of all tokens, or of `ids` only."""
        if not self.capabilities.linear_head:
            return (hidden if ids is None else hidden[:, ids]).float()
        weight, bias = self._base_head.weight, getattr(self._base_head, "bias", None)
        copied = ids is not None and (len(ids) < _FEW * len(weight) or len(hidden) > hidden.shape[1])
        if copied:
            weight, bias = weight[ids], None if bias is None else bias[ids]
        logits = nn.functional.linear(hidden.to(weight.dtype), weight, bias)
        return (logits if ids is None or copied else logits[:, ids]).float()

    def decode_step(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: KVCache
    ) -> Tensor:
        """(B, H) hidden state (see `hidden`) after the last of `input_ids` (B, n); extends `cache`.

        `attention_mask` (B, past + n) is 0 where padded, `position_ids` (B, n).
        """
        if self.limit is not None:  # elsewhere nobody waits for the device
            by_column = self.capabilities.columns is not None
            self._refuse_too_long(attention_mask.shape[1] if by_column else int(position_ids.max()) + 1)
        model = self._to_run(model)
        given: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": True}
        given[self.capabilities.cache_argument] = cache
        with self.accelerator.autocast():
            return features_of(model, self.capabilities.linear_head, input_ids=input_ids, **given)[:, -1]

    def _to_run(self, model: PreTrainedModel | ShardedModel) -> PreTrainedModel:
        """The model itself; if it is sharded, once all processes are about to run it."""
        trained = False
        if isinstance(model, ShardedModel):
            trained = model.trained and torch.is_grad_enabled()
            self._switch_on(model.adapter, trained=model.trained)
            model = self._base
        if self.processes.empty_pass is not None:
            self.processes.announce_pass(backward=trained)
        return model

    def _empty_pass(self, backward: bool) -> None:
        """Take part in a pass of the other processes: with one token, and a gradient of 0."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.set_grad_enabled(backward), self.accelerator.autocast():
            inputs: dict[str, Any] = {"input_ids": token, "attention_mask": torch.ones_like(token)}
            features = features_of(self._base, self.capabilities.linear_head, **inputs)
        if backward:
            self.accelerator.backward(0 * features.float().sum())

    def _refuse_too_long(self, tokens: int) -> None:
        """In a table of positions there would be nothing to look up, and other models would say another thing."""
        if self.limit is not None and tokens > self.limit.tokens:
            length = f"{tokens} tokens (with what tools put in and --augmentation.gap-share leaves out)"
            most = f"{self.limit.tokens} ({self.limit.reason})"
            remedy = "give shorter texts, fewer --rollout.max-tokens or --evaluation.max-tokens, or another model"
            raise UsageError(f"--model: a text of {length} is longer than the model's {most}; {remedy}")

    def new_cache(self, model: PreTrainedModel, beginning: KVCache | None = None) -> KVCache:
        """An empty cache, or one whose rows all go on behind the single row of `beginning`."""
        return KVCache(model.config, beginning, apart=self.capabilities.cascade)


def _copy_sharing(model: PreTrainedModel, weights: Iterable[Tensor]) -> PreTrainedModel:
    """A copy that has these weights in common with the model."""
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _is_of(name: str, adapter: AdapterName) -> bool:
    """Whether the name of a parameter is that of an adapter's: `layers.0.q_proj.lora_A.q.weight`. A layer may be called
    `q`, too."""
    return re.search(rf"\.lora_\w+\.{adapter}\b", name) is not None


def _renamed(name: str, of: AdapterName, to: AdapterName) -> str:
    """The name of the same parameter of another adapter."""
    return re.sub(rf"(\.lora_\w+)\.{of}\b", rf"\1.{to}", name)


def _no_cache(base: PreTrainedModel, reason: str) -> UsageError:
    what = f"a {type(base).__name__} cannot go on from a key-value cache ({reason})"
    return UsageError(f"--model: {what}; take another --model")


def _checkpoint_layers(base: PreTrainedModel) -> list[nn.Module]:
    """Switch on gradient checkpointing; returns the layers, which do it when they are in training mode.

    Raises ValueError if the architecture does not support it.
    """
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers: list[nn.Module] = [one for one in base.modules() if isinstance(one, GradientCheckpointingLayer)]
    for layer in layers:  # dropout of its own, which training mode would switch on
        _switch_off_dropout(layer)
        if isinstance(config := vars(layer).get("config"), PretrainedConfig):  # Falcon's asks it in each pass
            own = copy.copy(config)
            _switch_off_dropout(own)
            layer.config = own  # type: ignore[assignment]
    return layers


def _switch_off_dropout(of: object) -> None:
    for name, value in list(vars(of).items()):
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(of, name, 0.0)
