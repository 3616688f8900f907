"""The sizes of a language model that its cost depends on: of a short name, or of a configuration of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latent_cot import disk
from latent_cot.types import UsageError, did_you_mean, first_line


@dataclass(frozen=True)
class Shape:
    """A decoder whose layers are alike."""

    layers: int
    width: int
    """Of the residual stream."""
    inner: int
    """Width inside the feed-forward block."""
    heads: int
    kv_heads: int
    head: int
    """Width of a head."""
    vocabulary: int
    layer_weights: int
    """Of one layer."""
    tied: bool = False
    """The output layer has the embeddings' weights."""

    @property
    def linear(self) -> int:
        """Weights of all layers, without embeddings and head: N in 2 N FLOP a token."""
        return self.layers * self.layer_weights

    @property
    def weights(self) -> int:
        return self.linear + (1 if self.tied else 2) * self.vocabulary * self.width

    @property
    def cached(self) -> int:
        """Numbers in the keys and values of one token, in all layers."""
        return 2 * self.layers * self.kv_heads * self.head

    def lora_weights(self, rank: int) -> int:
        """Of an adapter on all linear layers: rank x (inputs + outputs) of each, with a gated feed-forward block."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        return self.layers * rank * (2 * (self.width + q) + 2 * (self.width + kv) + 3 * (self.width + self.inner))

    def activation_bytes(self, context: float, rank: int, number: int) -> float:
        """What the backward pass needs of one token in one layer, whose weights are frozen and have LoRA.

        The inputs of the linear layers, of `number` bytes each; the two norms' inputs, in fp32; the gate, its SiLU and
        what it is multiplied by; queries, keys and values; the weights of attention to `context` tokens (`attend` of
        `model/attention.py` keeps them); the low-rank product of each of seven layers. Counted as by Korthikanti et
        al., "Reducing activation recomputation in large transformer models" (MLSys 2023), for these layers.
        """
        q, kv = self.heads * self.head, self.kv_heads * self.head
        inputs = number * (2 * self.width + q + self.inner)
        norms = 2 * 4 * self.width
        return inputs + norms + number * (3 * self.inner + q + 2 * kv + self.heads * context + 7 * rank)


def gated(layers: int, width: int, inner: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> Shape:
    """A model of the kind of Llama and Qwen: grouped key-value heads, a gated feed-forward block."""
    head = width // heads
    weights = 2 * width * width + 2 * width * kv_heads * head + 3 * width * inner
    return Shape(layers, width, inner, heads, kv_heads, head, vocabulary, weights, tied)


SHAPES = {
    "smollm2-135m": gated(30, 576, 1536, 9, 3, 49152, True),
    "360m": gated(32, 960, 2560, 15, 5, 49152, True),
    "1.7b": gated(24, 2048, 8192, 32, 32, 49152, True),
    "0.5b": gated(24, 896, 4864, 14, 2, 151936, True),
    "1.5b": gated(28, 1536, 8960, 12, 2, 151936, True),
    "7b": gated(28, 3584, 18944, 28, 4, 152064, False),
    "14b": gated(48, 5120, 13824, 40, 8, 152064, False),
    "32b": gated(64, 5120, 27648, 40, 8, 152064, False),
    "72b": gated(80, 8192, 29568, 64, 8, 152064, False),
}
"""Short name -> the shape. The first three are SmolLM2's, the others Qwen2.5's (their `config.json` on the hub)."""


MAX_LAYERS = 1000


def shape_of(model: str, *, trust_remote_code: bool = False) -> Shape:
    """The shape of a short name, a folder or a hub name; of the latter only the configuration is fetched.

    Raises UsageError for what is none of these, and for a mixture of experts, whose tokens use a part of its weights.
    """
    if model in SHAPES and not (disk.expanded(model) / "config.json").exists():
        return SHAPES[model]
    import torch  # here: a short name need not wait for it
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    from latent_cot.model.weights import quiet_transformers

    try:
        with quiet_transformers():
            folder = disk.expanded(model)
            source = str(folder) if folder.is_dir() else model
            config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            text = config.get_text_config(decoder=True)
            if text.num_hidden_layers > MAX_LAYERS:
                raise ValueError(f"it has {text.num_hidden_layers} layers, more than any")
            width = text.hidden_size
            heads = getattr(text, "num_attention_heads", 0)
            layers = text.num_hidden_layers
            if not heads:
                raise ValueError("its layers have no heads of attention, and only such are planned")
            of_text = text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config  # without what sees pictures
            with torch.device("meta"):  # shapes only
                made = AutoModelForCausalLM.from_config(of_text, trust_remote_code=trust_remote_code)
                made.tie_weights()  # older versions of transformers leave that to whoever loads weights
    except Exception as error:  # each architecture and the hub's client have their own
        names = f"a folder, OWNER/NAME on the hub, or one of {', '.join(SHAPES)}"
        raise UsageError(
            f"--model {model}: no configuration can be read ({first_line(error)}).{did_you_mean(model, SHAPES)} "
            f"Give {names}"
        ) from error
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UsageError(f"--model {model}: is a mixture of experts, which is not planned; give a dense model")
    shared = getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False)
    tables = sum(p.numel() for p in {made.get_input_embeddings().weight, made.get_output_embeddings().weight})
    return Shape(
        layers=layers,
        width=width,
        inner=_first(text, "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner") or 4 * width,
        heads=heads,
        kv_heads=1 if shared else _first(text, "num_key_value_heads", "num_kv_heads") or heads,
        head=getattr(text, "head_dim", None) or width // heads,
        vocabulary=text.vocab_size,
        layer_weights=(sum(p.numel() for p in made.parameters()) - tables) // layers,
        tied=tables == text.vocab_size * width,
    )


def _first(config: Any, *names: str) -> int:
    """The first of these settings that there is, of layers of different sizes the largest; 0: none."""
    value = next((value for name in names if (value := getattr(config, name, None))), 0)
    return max(value) if isinstance(value, list | tuple) else value
