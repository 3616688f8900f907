"""The reward of every prefix against the oracle, which scores one prefix at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.reward import Comparison, Reward, copied_words
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import Example
from tests.oracles import scoring as oracle
from tests.rationales.test_scoring import NATS, codec_of, random_groups
from tests.worlds import ALPHABET, NO_SHRINKING, PlainTask, language_model, masked_rationale, prefix_log_rewards


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


@settings(max_examples=10, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**32), tool_tokens=st.booleans(), constrained=st.booleans(), max_tokens=st.integers(1, 300))
def test_rewards_are_the_oracles(
    lm: LanguageModel, seed: int, tool_tokens: bool, constrained: bool, max_tokens: int
) -> None:
    codec = codec_of(lm, constrained=constrained)
    groups = random_groups(codec, random.Random(seed))
    model = lm.merged("p")
    rewards = prefix_log_rewards(lm, groups, codec, tool_tokens=tool_tokens, max_tokens=max_tokens)
    for group, rows in zip(groups, rewards, strict=True):
        longest = max(map(len, group.rationales))
        assert rows.shape == (len(group.rationales), longest + 1)
        for rationale, row in zip(group.rationales, rows, strict=True):
            with torch.no_grad():
                expected = oracle.log_reward(
                    model,
                    group.prompt,
                    rationale,
                    group.answer,
                    codec.actions.tolist(),
                    codec.stop_id,
                    tool_tokens=tool_tokens,
                )
            padded = torch.full((longest + 1,), -torch.inf, dtype=torch.float64)
            padded[: len(expected)] = expected
            torch.testing.assert_close(row.double(), padded, atol=NATS, rtol=1e-6)


@settings(max_examples=10, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**32), tool_tokens=st.booleans(), max_tokens=st.integers(1, 300))
def test_the_rewards_of_complete_rationales_alone(
    lm: LanguageModel, seed: int, tool_tokens: bool, max_tokens: int
) -> None:
    codec = codec_of(lm, constrained=True)
    groups = random_groups(codec, random.Random(seed))
    options: dict[str, Any] = {"tool_tokens": tool_tokens, "max_tokens": max_tokens}
    every = prefix_log_rewards(lm, groups, codec, **options)
    found = prefix_log_rewards(lm, groups, codec, **options, ends_only=True)
    for group, expected, table in zip(groups, every, found, strict=True):
        for rationale, of_prefixes, row in zip(group.rationales, expected, table, strict=True):
            end = len(rationale)
            torch.testing.assert_close(row[end], of_prefixes[end], atol=NATS, rtol=1e-6)
            assert torch.isinf(row[:end]).all()
            assert torch.isinf(row[end + 1 :]).all()


def test_the_weight_of_the_answer(lm: LanguageModel) -> None:
    """log p(Z T | X) + w log p(Y | X Z), of prefixes and of complete rationales."""
    codec = codec_of(lm, constrained=True)
    groups = random_groups(codec, random.Random(3))
    examples = [Example(str(k), question=str(k)) for k in range(len(groups))]
    scores = score(lm, lm.merged("p"), groups, codec, answers_at="states")
    said_by_y = torch.tensor([groups[g].answer[0] == codec.stop_id for g in scores.group.tolist()])
    assert 0 < said_by_y.sum() < len(said_by_y)
    log_stop = scores.log_pterm.masked_fill(said_by_y[:, None], 0.0)
    log_z = torch.nn.functional.pad(scores.log_pf.cumsum(1), (1, 0)) + log_stop
    reward = Reward(lm, codec, comparison=Comparison(PlainTask(), weight=3.0))
    expected = (log_z + 3.0 * scores.log_y)[scores.states]
    assert float((log_z + scores.log_y)[scores.states].sub(expected).abs().min()) > 0.1
    found = torch.cat([table[table > -torch.inf] for table in reward.of_prefixes(examples, groups)])
    torch.testing.assert_close(found, expected, atol=NATS, rtol=1e-5)
    ends = [
        table[row, len(z)]
        for group, table in zip(groups, reward.of_prefixes(examples, groups), strict=True)
        for row, z in enumerate(group.rationales)
    ]
    complete = torch.cat([t[t > -torch.inf] for t in reward.of_prefixes(examples, groups, ends_only=True)])
    torch.testing.assert_close(complete, torch.stack(ends), atol=NATS, rtol=1e-5)


@settings(max_examples=10, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**32),
    ends_only=st.booleans(),
    max_tokens=st.integers(1, 300),
    weight=st.sampled_from([1.0, 2.0]),
)
def test_the_sampler_as_the_prior(
    lm: LanguageModel, seed: int, ends_only: bool, max_tokens: int, weight: float
) -> None:
    """log q0(z T | what q reads) + w log p(Y | X z), of prefixes and of complete rationales; q itself moves on."""
    lm.copy_adapter("q", "prior")
    before = copy.deepcopy(lm.merged("q"))
    rng = random.Random(seed)
    codec = codec_of(lm, constrained=True)
    groups = random_groups(codec, rng)
    examples = [Example(str(k), question=str(k)) for k in range(len(groups))]
    read = [[rng.randrange(5, 50) for _ in range(rng.randrange(1, 6))] for _ in groups]
    reward = Reward(
        lm,
        codec,
        max_tokens=max_tokens,
        comparison=None if weight == 1 else Comparison(PlainTask(), weight=weight),
        prior=lambda example: read[int(example.question)],
    )
    try:
        lm.interpolate("q", 0.5)
        tables = reward.of_prefixes(examples, groups, ends_only=ends_only)
    finally:
        lm.copy_adapter("prior", "q")
    for g, (group, table) in enumerate(zip(groups, tables, strict=True)):
        for row, rationale in enumerate(group.rationales):
            for i in range(table.shape[1]):
                if i > len(rationale) or not rationale.states[i] or (ends_only and i < len(rationale)):
                    assert table[row, i] == -torch.inf
                    continue
                with torch.no_grad():
                    log_pf, log_pterm = oracle.log_policy(
                        before, read[g], rationale, codec.actions.tolist(), codec.stop_id
                    )
                    prefix = [*group.prompt, *rationale.tokens[:i]]
                    log_y = oracle.log_text(lm.merged("p"), prefix, group.answer)
                expected = float(log_pf[:i].sum() + log_pterm[i] + weight * log_y)
                assert float(table[row, i]) == pytest.approx(expected, abs=NATS, rel=1e-6)


@given(a=st.lists(st.sampled_from("xyz"), max_size=8), b=st.lists(st.sampled_from("xyz"), max_size=8))
def test_copied_words_are_the_longest_run(a: list[str], b: list[str]) -> None:
    runs = [tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)]
    expected = max((len(run) for run in runs if " ".join(run) in " ".join(b)), default=0)
    assert copied_words(" ".join(a), " ".join(b)) == expected


def test_case_and_punctuation_are_no_words() -> None:
    assert copied_words(" She didn't WANT, to go", ". Later she didn't want to go.") == 5


def test_what_is_copied_from_y_is_penalised(lm: LanguageModel) -> None:
    """Two nats for each word after the third, of every prefix and of the complete rationale."""
    codec = codec_of(lm, constrained=False)
    texts = [" a b c d e", " a b c x y", " d"]
    spelled = [codec.encode(text) for text in texts]
    rationales = [masked_rationale(ids, [True] * len(ids), [True] * (len(ids) + 1)) for ids in spelled]
    groups = [Group([5, 6], rationales, [7])]
    examples = [Example("X", "so a b c d e.", question="X")]
    plain, penalised = (Reward(lm, codec, copy_penalty=penalty) for penalty in (0.0, 2.0))
    (before,), (after,) = (reward.of_prefixes(examples, groups) for reward in (plain, penalised))
    lost = before - after
    for text, rationale, row in zip(texts, rationales, lost, strict=True):
        words = [len(codec.decode(rationale.tokens[:n]).split()) for n in range(len(rationale) + 1)]
        expected = [2.0 * max(0, n - 3) if text == texts[0] else 0.0 for n in words]
        assert row[: len(rationale) + 1].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_tools_tokens_count_only_if_asked(lm: LanguageModel) -> None:
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    tokens = codec.encode("1= 2")
    rationale = masked_rationale(tokens, [True, True, False, False], [True, True, False, False, True])
    group = Group([5, 6], [rationale], [7])
    without, with_them = (prefix_log_rewards(lm, [group], codec, tool_tokens=flag)[0][0] for flag in (False, True))
    torch.testing.assert_close(without[:3], with_them[:3])
    assert float(with_them[4]) < float(without[4]) - 0.1
