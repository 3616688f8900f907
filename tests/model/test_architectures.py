"""Architectures with something of their own: windows of attention, soft-capped logits, experts, recurrences."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import PreTrainedModel

from latent_cot.model.architecture import Capabilities
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import score
from latent_cot.types import UsageError
from tests.rationales.test_scoring import assert_scores, random_groups
from tests.tiny import build_tokenizer
from tests.worlds import ALPHABET

WINDOW = 12
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}),
    "qwen2, no window": ("Qwen2", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_GLOBAL}),
    "gpt-neo": (
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
}


@contextmanager
def skip_where_older_versions_have_no_cache() -> Iterator[None]:
    """transformers 5.0 has Doge and Jamba without a cache that ours can take the place of: they are refused there."""
    try:
        yield
    except UsageError as error:
        version = tuple(map(int, transformers.__version__.split(".")[:2]))
        if "key-value cache" in str(error) and version < (5, 24):
            pytest.skip(str(error))
        raise


def build(family: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A tiny model with random weights."""
    name = f"{family}TextConfig" if hasattr(transformers, f"{family}TextConfig") else f"{family}Config"
    if family in ("Mpt", "OPT", "TrOCR", "GPTJ", "CodeGen", "CTRL", "XLM"):
        sizes: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    elif family == "GPTNeo":
        sizes = {k: v for k, v in _SIZES.items() if not k.startswith("num_")}
    elif family == "RecurrentGemma":
        sizes = {k: v for k, v in _SIZES.items() if k not in ("max_position_embeddings", "initializer_range")}
    else:
        sizes = _SIZES
    config = getattr(transformers, name)(vocab_size=len(build_tokenizer()), **{**sizes, **settings})
    torch.manual_seed(0)
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model


def language_model(family: str, settings: dict[str, Any]) -> LanguageModel:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return LanguageModel(build(family, settings), build_tokenizer(), lora)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_sampled_is_what_is_scored(name: str) -> None:
    """Beyond a window of attention, and within it."""
    lm = language_model(*MODELS[name])
    assert (lm.capabilities.window is None) == name.endswith("no window")
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    for seed in range(3):
        groups = random_groups(codec, random.Random(seed), longest=9)
        scores = score(lm, lm.merged("q"), groups, codec, answers_at="states", tool_tokens=True)
        assert_scores(scores, lm.merged("q"), groups, codec, "states", True)
    prompt = list(range(3, 3 + WINDOW))
    rules = ChainRules(codec, max_tokens=6)
    with torch.no_grad():
        ((chain,),) = rollout(lm, "q", [prompt], rules, temperature=0.0)
        actions = codec.actions
        for i in range(len(chain) + (not chain.truncated)):
            ids = torch.tensor([[*prompt, *chain.tokens[:i]]])
            best = int(actions[lm.merged("q")(input_ids=ids, use_cache=False).logits[0, -1, actions].argmax()])
            assert best == (chain.tokens[i] if i < len(chain) else codec.stop_id)


@pytest.mark.parametrize(
    ("family", "settings", "linear"),
    [
        ("Gemma2", {"head_dim": 8}, False),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": None}, True),
        ("Granite", {"logits_scaling": 1.002}, False),
        ("Granite", {}, True),
        ("Cohere", {"logit_scale": 0.998}, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_is_one_whose_logits_are_small_so_far(
    family: str, settings: dict[str, Any], linear: bool, dtype: torch.dtype
) -> None:
    model = build(family, {"tie_word_embeddings": False, **settings}).to(dtype=dtype).eval()  # type: ignore[call-arg]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.05)
    assert Capabilities.of(model).linear_head == linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_soft_capped_head_is_not_taken_for_a_linear_one(dtype: torch.dtype) -> None:
    model = build("Gemma2", {"head_dim": 8, "tie_word_embeddings": False})
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)  # logits near the cap, as trained ones are
    linear = build("Mistral", {})
    for one in (model, linear):
        one.to(dtype=dtype).eval()  # type: ignore[call-arg]
    assert not Capabilities.of(model).linear_head
    assert Capabilities.of(linear).linear_head


_SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("family", "settings", "positions"),
    [
        ("Bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 2}, False),
        ("Falcon", {**_SMALL, "alibi": True}, False),
        ("Falcon", _SMALL, True),
        ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, False),
        ("OPT", {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, True),
        ("Mistral", {}, True),
    ],
)
def test_whether_a_model_reads_positions_is_found(family: str, settings: dict[str, Any], positions: bool) -> None:
    assert Capabilities.of(build(family, settings).eval()).positions == positions


def test_experts_are_refused_where_they_cannot_be_adapted() -> None:
    mixtral = ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})
    with pytest.raises(ValueError, match=r"mlp\.experts is a MixtralExperts, which is no linear layer"):
        language_model(*mixtral)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    LanguageModel(build(*mixtral), build_tokenizer(), lora)


_JAMBA: dict[str, Any] = {"attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False}
_JAMBA |= {"num_experts": 4, "mamba_dt_rank": 4, "mamba_d_state": 8}
_LLAMA4: dict[str, Any] = {"intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "Llama4",
            _LLAMA4,
            r"layers\.0\.feed_forward\.router and 1 more \(Llama4Router\) cannot be trained: .* it fails",
        ),
        ("Jamba", _JAMBA, r"layers\.0\.mamba\.dt_proj \(Linear\) cannot be trained: the model reads its weight past"),
    ],
)
def test_layers_whose_adapter_is_not_what_is_merged_are_refused(
    family: str, settings: dict[str, Any], message: str
) -> None:
    """A layer with a forward pass of its own, and one whose weight the model reads without calling it."""
    with skip_where_older_versions_have_no_cache(), pytest.raises(ValueError, match=message):
        language_model(family, settings)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    LanguageModel(build(family, settings), build_tokenizer(), lora)


def test_a_layer_that_would_do_another_thing_with_an_adapter_is_refused() -> None:
    class Twice(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = build("Mistral", {})
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Twice
    lora = LoraConfig(r=4, target_modules="all-linear")
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.up_proj and 1 more \(Twice\) cannot be trained: .* merged weights"
    ):
        LanguageModel(model, build_tokenizer(), lora)


def test_finding_that_out_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model = build("Falcon", {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2})  # has its own layers
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    lm = LanguageModel(model, build_tokenizer(), lora)
    state = torch.get_rng_state()
    lm._refuse_misfits()
    assert torch.equal(state, torch.get_rng_state())
    assert not any(weight.any() for name, weight in lm.parameters("p").items() if "lora_B" in name)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad(), lm.without_adapters() as base:
        assert torch.equal(lm.merged("p")(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens is a Embedding, which is no linear layer"),
        (
            {"target_modules": ["q_proj", "out_proj"]},
            "no layer is called out_proj; there are .*o_proj, q_proj",
        ),
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA or biases"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "DoRA or biases"),
    ],
)
def test_an_adapter_that_would_be_trained_or_merged_wrongly_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(build("Mistral", {}), build_tokenizer(), LoraConfig(r=4, **settings))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("RecurrentGemma", {"attention_window_size": WINDOW}),
        ("RecurrentGemma", {}),  # its state is in the model: what is done to the rows of a cache does not reach it
        ("TrOCR", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}),  # counts
        ("XLM", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True}),  # asserts what is not so there
    ],
)
def test_an_architecture_without_a_cache_to_go_on_from_is_refused(family: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--model: a {family}.* cannot go on from a key-value cache .*; take another"):
        language_model(family, settings)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "initializer_range": 0.3}),
        ("GPTNeo", {**MODELS["gpt-neo"][1], "max_position_embeddings": 128}),
    ],
)
def test_where_columns_are_counted_no_padding_stands_behind_a_common_beginning(
    family: str, settings: dict[str, Any]
) -> None:
    """Prompts of different lengths, sampled together and each by itself."""
    lm = language_model(family, settings)
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    prompts = [codec.encode_prompt(text) for text in ("What is 3+4? " * 2 + rest for rest in ("", "and", "or even 5"))]
    rules = ChainRules(codec, max_tokens=8)
    together = rollout(lm, "q", prompts, rules, temperature=0.0)
    assert together == [chains for prompt in prompts for chains in rollout(lm, "q", [prompt], rules, temperature=0.0)]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("OPT", {"ffn_dim": 64, "dropout": 0.1, "word_embed_proj_dim": 32}),
        (
            "Falcon",
            {"hidden_dropout": 0.1, "attention_dropout": 0.1, "bias": False},
        ),  # its layers ask the configuration
    ],
)
def test_checkpointing_switches_on_no_dropout_of_the_models_own(family: str, settings: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = build(family, {**sizes, **settings})
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    lm = LanguageModel(model, build_tokenizer(), lora, gradient_checkpointing=True)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = lm.merged("q")(input_ids=ids, use_cache=False).logits
    with lm.trainable("q") as trained:
        found = trained(input_ids=ids, use_cache=False).logits
    assert found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_full_memory_is_not_blamed_on_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Capabilities:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Capabilities, "of", fail)
    with pytest.raises(torch.OutOfMemoryError):
        LanguageModel(build("Mistral", {}), build_tokenizer(), LoraConfig(r=4, target_modules=["q_proj"]))
