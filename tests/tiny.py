"""Tiny causal language models with tokenizers of their own, for tests.

Their weights are random: they test the machinery and are never evaluated as if they could reason.
Each has fewer than 50,000 weights and is built in well under a second.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from latent_cot.model.weights import quiet_transformers

END = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<|unknown|>"
"""What any character beyond printable ASCII and newline is encoded as."""

CHARACTERS = "".join(chr(code) for code in range(ord(" "), ord("~") + 1)) + "\n"
MAX_POSITIONS = 512
VARIANTS = ("llama", "gpt2", "multi_digit", "distinct_pad")


def build_tiny_model(folder: Path, *, seed: int = 0, variant: str = "llama") -> Path:
    """Save a model and its tokenizer in `folder`, so that ``--model FOLDER`` works; returns `folder`.

    The variants:

    * ``llama``: rotary positions, grouped key-value heads; one token a character, the space included;
      padding is the end-of-sequence token, so that padding cannot be told from a token's id.
    * ``gpt2``: learned positions (at most 512), ``Conv1D`` layers, tied embeddings; tokenizer as above.
    * ``multi_digit``: a Llama whose tokenizer has each two-digit number as one token, and ``" ="``,
      ``" +"``, ``" -"`` with their space, as trained vocabularies do. "312" is "3" "12", "1234" "12" "34".
    * ``distinct_pad``: as ``llama``, with a padding token of its own.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
    tokenizer = build_tokenizer(
        merges=_merges() if variant == "multi_digit" else [], distinct_pad=variant == "distinct_pad"
    )
    # torch.manual_seed inside a fork: building a model does not disturb the test's own random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _gpt2(tokenizer) if variant == "gpt2" else tiny_llama(tokenizer)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer(
    *, merges: list[tuple[str, str]] | None = None, distinct_pad: bool = False
) -> PreTrainedTokenizerFast:
    """One token a character (98 with END and UNKNOWN), and one a merge."""
    pieces = [END, UNKNOWN, *([PAD] if distinct_pad else []), *CHARACTERS]
    pieces += [left + right for left, right in merges or []]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges or [], unk_token=UNKNOWN
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD if distinct_pad else END,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _merges() -> list[tuple[str, str]]:
    numbers = [(tens, units) for tens in string.digits for units in string.digits]
    return [*numbers, (" ", "="), (" ", "+"), (" ", "-")]


def tiny_llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        # Large, so that the next token depends visibly on the context: near-uniform predictions would
        # hide mistakes in positions and masks.
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=MAX_POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)
