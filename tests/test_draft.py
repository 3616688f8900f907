"""Greedy decoding from drafts gives what greedy decoding gives, whatever the drafts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from latent_cot.chain import Chain, ChainRules, encode_rationale
from latent_cot.draft import decode_drafted
from latent_cot.errors import UsageError
from latent_cot.lm import LanguageModel
from latent_cot.rollout import rollout
from latent_cot.text import TextCodec
from latent_cot.types import Rationale
from tests.worlds import ALPHABET, FakeTool, language_model


@pytest.fixture(scope="module", params=["llama", "gpt2", "logits only"])
def lm(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> LanguageModel:
    if request.param == "logits only":
        return language_model(tiny_model("llama"), linear_head=False)
    return language_model(tiny_model(request.param))


@pytest.fixture(scope="module", params=["token", "step"])
def rules(lm: LanguageModel, request: pytest.FixtureRequest) -> ChainRules:
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    return ChainRules(codec, [FakeTool()], granularity=request.param, min_tokens=2, max_tokens=9, step_delimiter=" ")


def prompts_of(rules: ChainRules, n: int = 12) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(rules.codec.vocab_size) for _ in range(rng.randint(1, 12))] for _ in range(n)]


def greedy(lm: LanguageModel, prompts: Sequence[Sequence[int]], rules: ChainRules) -> list[Rationale]:
    return [z for (z,) in rollout(lm, lm.dense("q"), prompts, rules, temperature=0.0)]


def written(rationale: Rationale) -> list[int]:
    """The tokens of a rationale that the policy chose."""
    return [token for token, chosen in zip(rationale.tokens, rationale.chosen, strict=True) if chosen]


def text_of(tokens: Sequence[int], rules: ChainRules) -> str | None:
    """The draft that is encoded as these tokens, if there is one."""
    text = rules.codec.decode(tokens)
    try:
        return text if written(encode_rationale(text, rules)) == list(tokens) else None
    except UsageError:
        return None


def test_what_comes_out_does_not_depend_on_the_drafts(lm: LanguageModel, rules: ChainRules) -> None:
    """Drafts that are right, right up to somewhere, right and shorter, of another question, no chains, none."""
    prompts, rng = prompts_of(rules), random.Random(0)
    expected = greedy(lm, prompts, rules)
    for _ in range(4):
        drafts: list[str | None] = []
        for rationale in expected:
            tokens = written(rationale)
            cut = rng.randrange(len(tokens) + 1)
            drafts.append(
                rng.choice(
                    [
                        text_of(tokens, rules),
                        text_of(tokens[:cut], rules),
                        text_of([*tokens[:cut], *written(rng.choice(expected))[cut:]], rules),
                        "not in the alphabet!",
                        "",
                        None,
                    ]
                )
            )
        assert decode_drafted(lm, lm.dense("q"), prompts, drafts, rules, batch_size=4) == expected


def test_a_right_draft_is_not_decoded_again(
    lm: LanguageModel, rules: ChainRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(rules, 60)
    expected = greedy(lm, prompts, rules)
    drafts = [text_of(written(rationale), rules) for rationale in expected]
    known = [i for i, draft in enumerate(drafts) if draft is not None]
    assert len(known) >= 2
    monkeypatch.setattr(lm, "decode_step", lambda *_: pytest.fail("decoded"))
    chains = decode_drafted(
        lm, lm.dense("q"), [prompts[i] for i in known], [drafts[i] for i in known], rules, batch_size=4, max_tokens=40
    )
    assert chains == [expected[i] for i in known]


def test_a_rollout_goes_on_from_chains_that_have_begun(lm: LanguageModel, rules: ChainRules) -> None:
    prompts, rng = prompts_of(rules), random.Random(1)
    expected = greedy(lm, prompts, rules)
    begun = []
    for rationale in expected:
        chain = Chain(rules)
        for token in written(rationale)[: rng.randrange(len(written(rationale)))]:
            chain.push(token)
        begun.append(chain)
    assert any(chain.calls for chain in begun)
    sampled = rollout(lm, lm.dense("q"), prompts, rules, n=2, begun=begun, temperature=0.0, batch_size=6)
    assert sampled == [[rationale] * 2 for rationale in expected]
