"""How long a text may be: beyond, what is sampled would not be what is scored, or there is nothing to look up."""

from __future__ import annotations

import random
from typing import Any

import pytest
from peft import LoraConfig

from latent_cot.model.limits import limits_of, table_of_positions
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import UsageError
from tests.model.test_architectures import build, skip_where_older_versions_have_no_cache
from tests.rationales.test_scoring import assert_scores
from tests.tiny import build_tokenizer
from tests.worlds import ALPHABET, random_chain

LIMIT = 32
_LONG: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
_LONG |= {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": LIMIT}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA4: dict[str, Any] = {
    "intermediate_size_mlp": 64,
    "num_local_experts": 2,
    "attn_scale": 0.5,
    "attn_temperature_tuning": True,
}
_LLAMA4 |= {"head_dim": 8, "no_rope_layers": [1, 0], "floor_scale": LIMIT + 1, "attention_chunk_size": 200}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "longrope": (
        "Phi3",
        {"original_max_position_embeddings": LIMIT, "rope_parameters": _LONG, "sliding_window": None},
        "original_max_position_embeddings",
    ),
    "dynamic": ("Llama", {"max_position_embeddings": LIMIT, "rope_parameters": _DYNAMIC}, " max_position_embeddings"),
    "doge": ("Doge", {"keep_window_size": LIMIT, "sliding_window": None}, "keep_window_size"),
    "llama4": ("Llama4", _LLAMA4, "floor_scale"),
}


def language_model(name: str) -> tuple[LanguageModel, TextCodec]:
    family, settings, _ = MODELS[name]
    with skip_where_older_versions_have_no_cache():
        base = build(family, settings)
        there = {module.rpartition(".")[2] for module, _ in base.named_modules()}
        targets = [target for target in ("q_proj", "v_proj", "qkv_proj") if target in there]
        lm = LanguageModel(base, build_tokenizer(), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    return lm, TextCodec(lm.tokenizer, allowed_characters=ALPHABET)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_no_longer_than_what_its_attention_stays_the_same_for(name: str) -> None:
    """And the error names the setting."""
    lm, codec = language_model(name)
    rules = ChainRules(codec, max_tokens=4)
    chain = random_chain(rules, random.Random(0), 4)
    prompt = codec.encode("7" * (LIMIT - len(chain) + 1))
    message = rf"a text of {LIMIT + 1} tokens .* longer than the model's {LIMIT} \({MODELS[name][2].strip()} of its"
    with pytest.raises(UsageError, match=message):
        score(lm, lm.merged("q"), [Group(prompt, [chain])], codec)
    with pytest.raises(UsageError, match=message):
        rollout(lm, "q", [codec.encode("7" * (LIMIT + 1))], rules)
    score(lm, lm.merged("q"), [Group(prompt[1:], [chain])], codec)


@pytest.mark.parametrize("name", MODELS)
def test_up_to_the_limit_a_text_is_scored_as_if_it_were_alone(name: str) -> None:
    """Also where all texts of a row together are longer."""
    lm, codec = language_model(name)
    rng, rules = random.Random(0), ChainRules(codec, max_tokens=6)
    lengths = (LIMIT - 6, 8, 12, LIMIT - 6, 5)
    groups = [Group([rng.randrange(3, 90) for _ in range(n)], [random_chain(rules, rng, 6)]) for n in lengths]
    scores = score(lm, lm.merged("q"), groups, codec)
    assert_scores(scores, lm.merged("q"), groups, codec, "none", False)


def test_positions_that_are_computed_have_no_limit() -> None:
    assert limits_of(build("Llama", {})) == []
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": LIMIT}
    assert limits_of(build("Llama", {"rope_parameters": yarn})) == []


def test_angles_may_differ_between_types_of_layers() -> None:
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    settings = {"rope_parameters": {"sliding_attention": plain, "full_attention": _DYNAMIC}, **layers}
    (limit,) = limits_of(build("Gemma3", settings))
    assert limit.tokens == 512 and "max_position_embeddings" in limit.reason


def test_of_indexers() -> None:
    """DeepSeek's, GLM's and others: models too large to build here."""
    model = build("Llama", {})
    model.config.index_topk = LIMIT
    (limit,) = limits_of(model)
    assert (limit.tokens, limit.of_rows) == (LIMIT, True) and limit.reason.startswith("index_topk ")
    model = build("Llama", {})
    model.config.index_topk_blocks, model.config.index_block_size = 4, 8
    (limit,) = limits_of(model)
    assert (limit.tokens, limit.of_rows) == (32, True) and "index_topk_blocks times" in limit.reason


@pytest.mark.parametrize("family", ["GPTJ", "CodeGen", "CTRL"])
def test_a_table_of_positions_that_is_no_embedding(family: str) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    assert table_of_positions(build(family, sizes | ({} if family == "CTRL" else {"rotary_dim": 8}))) == 64


def test_a_model_without_a_table_has_none() -> None:
    assert table_of_positions(build("Mistral", {})) is None
