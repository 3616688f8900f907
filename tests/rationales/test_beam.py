"""Beam search and diverse beam search, beside searches that can be checked by eye."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.beam import beam_search
from latent_cot.rationales.chain import ChainRules
from tests.oracles import beam as oracle
from tests.worlds import language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def rules_of(lm: LanguageModel, characters: str = "abc", max_tokens: int = 4, min_tokens: int = 1) -> ChainRules:
    codec = TextCodec(lm.tokenizer, stop=".", allowed_characters=characters)
    return ChainRules(codec, min_tokens=min_tokens, max_tokens=max_tokens)


@pytest.mark.parametrize("text", ["Once?", "So it is"])
def test_with_beams_for_everything_it_lists_everything(lm: LanguageModel, text: str) -> None:
    rules = rules_of(lm)
    prompt = rules.codec.encode_prompt(text)
    everything = oracle.enumerate_chains(lm.merged("p"), prompt, rules)
    assert len(everything) == 3 + 9 + 27 + 81
    # What is cut pays for its stop, though a sampled chain is stopped for nothing: the others' share is gone.
    assert sum(p.exp() for _, p in everything) < 0.99
    (found,) = beam_search(lm, lm.merged("p"), prompt, rules, beams=200)
    best = sorted(everything, key=lambda one: -one[1])
    assert [one.rationale.tokens for one in found] == [tokens for tokens, _ in best]
    assert [one.log_prob for one in found] == pytest.approx([float(p) for _, p in best], abs=1e-4)
    assert {one.rationale.truncated for one in found} == {False, True}


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize(("groups", "penalty"), [(1, 0.0), (2, 0.7), (3, 2.0)])
def test_it_is_the_search_by_eye(lm: LanguageModel, beams: int, groups: int, penalty: float) -> None:
    rules = rules_of(lm, "abcdefg", max_tokens=5)
    for text in ("Once?", "So it is", "b"):
        prompt = rules.codec.encode_prompt(text)
        found = beam_search(lm, lm.merged("q"), prompt, rules, beams=beams * groups, groups=groups, penalty=penalty)
        expected = oracle.search(lm.merged("q"), prompt, rules, width=beams, groups=groups, penalty=penalty)
        for ours, theirs in zip(found, expected, strict=True):
            assert [one.rationale.tokens for one in ours] == [tokens for tokens, _ in theirs]
            assert [one.log_prob for one in ours] == pytest.approx([p for _, p in theirs], abs=1e-4)


def test_plain_beams_are_those_of_transformers(lm: LanguageModel) -> None:
    """With all of the vocabulary allowed, where its rules and ours are the same."""
    codec = TextCodec(lm.tokenizer, stop=".")
    rules = ChainRules(codec, max_tokens=6, min_tokens=0)
    prompt = codec.encode_prompt("Once")
    special = [i for i in lm.tokenizer.all_special_ids if i != codec.stop_id]
    model = language_model(Path(lm.tokenizer.name_or_path), perturb=False).merged("p")

    def by_our_rules(ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        """No special token; and behind the last token that is allowed nothing but the stop, at its price."""
        log_probs = log_probs.index_fill(1, torch.tensor(special), -torch.inf).log_softmax(-1)
        if ids.shape[1] < len(prompt) + rules.max_tokens:
            return log_probs
        goes_on = torch.arange(log_probs.shape[1]) != codec.stop_id
        return log_probs.masked_fill(goes_on, -torch.inf)

    (found,) = beam_search(lm, model, prompt, rules, beams=4)
    generate: Any = model.generate
    theirs = generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=7,
        length_penalty=0.0,
        early_stopping="never",
        do_sample=False,
        logits_processor=LogitsProcessorList([by_our_rules]),
        eos_token_id=codec.stop_id,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    decoded = [str(lm.tokenizer.decode(row[len(prompt) :])) for row in theirs]
    texts = [text.split(".")[0].replace("<|endoftext|>", "") for text in decoded]
    assert [one.rationale.text for one in found] == texts


def test_groups_avoid_each_other(lm: LanguageModel) -> None:
    rules = rules_of(lm, "abcdefgh", max_tokens=6)
    prompt = rules.codec.encode_prompt("Say")
    same = beam_search(lm, lm.merged("p"), prompt, rules, beams=4, groups=4)
    apart = beam_search(lm, lm.merged("p"), prompt, rules, beams=4, groups=4, penalty=50.0)
    assert len({group[0].rationale for group in same}) == 1
    chains = [group[0].rationale.tokens for group in apart]
    assert all(a[0] != b[0] for a, b in itertools.combinations(chains, 2))
