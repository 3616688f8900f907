"""Scores against the oracle, which runs every prefix by itself: in fp32 to 1e-4 nats."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.model.architecture import Trees
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales import scoring
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Group, Scores, score, score_in_batches, score_rows
from latent_cot.types import Rationale, Reasoner
from tests.oracles import scoring as oracle
from tests.worlds import ALPHABET, NO_SHRINKING, FakeTool, language_model, masked_rationale, random_chain

NATS = 1e-4

Loader = Callable[..., LanguageModel]


@pytest.fixture(scope="module")
def load(tiny_model: Callable[[str], Path]) -> Loader:
    @functools.cache
    def cached(variant: str, **abilities: Any) -> LanguageModel:
        return language_model(tiny_model(variant), **abilities)

    return cached


def codec_of(lm: LanguageModel, *, constrained: bool = True) -> TextCodec:
    return TextCodec(lm.tokenizer, allowed_characters=ALPHABET if constrained else None)


def random_groups(codec: TextCodec, rng: random.Random, size: int = 3, longest: int = 7) -> list[Group]:
    """Prompts and answers of different lengths; chains with tools, cut ones, repeated and shared ones, empty ones."""
    groups = []
    for _ in range(size):
        tools = [FakeTool()] if rng.random() < 0.8 else []
        rules = ChainRules(
            codec,
            tools,
            granularity=rng.choice(["token", "step"]),
            step_delimiter=rng.choice([None, "."]) if tools else ".",  # something has to end a step
            min_tokens=rng.choice([0, 0, 2]),
            max_tokens=longest,
        )
        chains = [random_chain(rules, rng, rng.randint(rules.min_tokens, longest)) for _ in range(rng.randint(1, 3))]
        chains.append(rng.choice(chains))
        vocabulary = codec.vocab_size
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 9))]
        answer = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 4))]
        answer[0] = rng.choice([answer[0], codec.stop_id])
        groups.append(Group(prompt, chains, answer))
    return groups


def assert_scores(
    scores: Scores, model: torch.nn.Module, groups: list[Group], codec: TextCodec, answers_at: str, tool_tokens: bool
) -> None:
    actions, stop = codec.actions.tolist(), codec.stop_id
    b = 0
    with torch.no_grad():
        for g, group in enumerate(groups):
            for rationale in group.rationales:
                n = len(rationale)
                log_pf, log_pterm = oracle.log_policy(model, group.prompt, rationale, actions, stop)
                log_y, log_tool = torch.zeros(n + 1), torch.zeros(n)
                for i in range(n + 1):
                    prefix = [*group.prompt, *rationale.tokens[:i]]
                    if (answers_at == "states" and rationale.states[i]) or (answers_at == "end" and i == n):
                        log_y[i] = oracle.log_text(model, prefix, group.answer)
                    if tool_tokens and i < n and not rationale.policy_mask[i]:
                        log_tool[i] = oracle.log_text(model, prefix, [rationale.tokens[i]])
                expected = {"log_pf": log_pf, "log_pterm": log_pterm, "log_y": log_y, "log_tool": log_tool}
                for name, values in expected.items():
                    row = getattr(scores, name)[b]
                    assert row.dtype == torch.float32
                    torch.testing.assert_close(
                        row[: len(values)].double(), values.double(), atol=NATS, rtol=0, msg=name
                    )
                    assert not row[len(values) :].any(), name
                assert scores.states[b].tolist() == [*rationale.states, *[False] * (scores.states.shape[1] - n - 1)]
                assert int(scores.group[b]) == g
                b += 1
    assert b == len(scores.group)


VARIANTS = [
    ("llama", {}),
    ("llama", {"trees": "paths"}),
    ("llama", {"linear_head": False}),
    ("gpt2", {}),
    ("gpt2", {"trees": "paths", "linear_head": False}),
    ("multi_digit", {}),
]


@pytest.mark.parametrize(("variant", "abilities"), VARIANTS, ids=str)
@pytest.mark.parametrize("constrained", [True, False], ids=["constrained", "unconstrained"])
@settings(max_examples=4, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**32),
    answers_at=st.sampled_from(["none", "states", "end"]),
    tool_tokens=st.booleans(),
    adapter=st.sampled_from(["p", "q"]),
)
def test_scores_are_the_oracles(
    load: Loader,
    variant: str,
    abilities: dict[str, bool],
    constrained: bool,
    seed: int,
    answers_at: str,
    tool_tokens: bool,
    adapter: Reasoner,
) -> None:
    lm = load(variant, **abilities)
    codec = codec_of(lm, constrained=constrained)
    groups = random_groups(codec, random.Random(seed))
    with torch.no_grad():
        scores = score(lm, lm.merged(adapter), groups, codec, answers_at=answers_at, tool_tokens=tool_tokens)
    with lm.trainable(adapter) as unmerged:
        assert_scores(scores, unmerged, groups, codec, answers_at, tool_tokens)


@settings(max_examples=20, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**32))
def test_masks_of_any_kind(load: Loader, seed: int) -> None:
    """Masks that no chain has, so that nothing is right by accident."""
    lm = load("llama")
    codec = codec_of(lm)
    rng = random.Random(seed)
    actions = [a for a in codec.actions.tolist() if a != codec.stop_id]
    chains: list[Rationale] = []
    for _ in range(3):
        n = rng.randint(0, 6)
        chosen = [rng.random() < 0.6 for _ in range(n)]
        tokens = [rng.choice(actions) if c else rng.randrange(codec.vocab_size) for c in chosen]
        states = [rng.random() < 0.5 for _ in range(n + 1)]
        chains.append(masked_rationale(tokens, chosen, states, cut=rng.random() < 0.4))
    groups = [Group([5, 6, 7], chains, [8, 9])]
    with torch.no_grad():
        scores = score(lm, lm.merged("q"), groups, codec, answers_at="states", tool_tokens=True)
    assert_scores(scores, lm.merged("q"), groups, codec, "states", True)


def test_a_cut_chain_and_its_uncut_twin_share_a_tree(load: Loader) -> None:
    """At the same prefix one may stop and the other must: only the first has the stop in its softmax."""
    lm = load("llama")
    codec = codec_of(lm)
    token = codec.encode("1")[0]
    short = masked_rationale([token], [True], [True, True])
    cut = masked_rationale([token], [True], [True, True], cut=True)
    longer = masked_rationale([token, token], [True, True], [True, False, True])
    groups = [Group([5], [short, cut, longer])]
    with torch.no_grad():
        scores = score(lm, lm.merged("q"), groups, codec)
    assert float(scores.log_pterm[0, 1]) < 0
    assert float(scores.log_pterm[1, 1]) == 0
    assert float(scores.log_pterm[2, 1]) == 0
    assert_scores(scores, lm.merged("q"), groups, codec, "none", False)


def test_the_cells_of_a_cut_chain_with_a_tools_token(load: Loader) -> None:
    """By hand. Behind a prompt of two tokens, nodes 0 and 1, the chain is nodes 2 and 3, Y's first token a branch at
    its end, node 4. The second tree's rows go on from there."""
    codec = codec_of(load("llama"))
    one, two = codec.encode("12")
    cut = masked_rationale([one, two], [True, False], [True, False, True], cut=True)
    groups = [Group([5, 6], [cut], [8, 9]), Group([7], [masked_rationale([], [], [True])])]
    cells = scoring._cells([scoring._Layout(group, "end") for group in groups], codec, tool_tokens=True)
    assert cells.prefixes == {(1, True): 0, (5, True): 1}
    assert cells.chosen == [(0, 0, 0, int(codec.action_index[one]))]
    assert cells.stops == [(0, 0, 0, codec.stop_index), (1, 0, 1, codec.stop_index)]
    assert cells.tool == [(0, 1, 2, two)]
    assert cells.answers == [(0, 2, 0, 3, 8), (0, 2, 0, 4, 9)]


@pytest.mark.parametrize("trees", ["flat", "masked", "paths"])
def test_batching_changes_nothing(load: Loader, trees: Trees) -> None:
    """Neither the order of the questions, nor the size of a micro-batch, nor what a question is padded to."""
    lm = load("llama", trees=trees)
    codec = codec_of(lm)
    groups = random_groups(codec, random.Random(1), size=7)
    with torch.no_grad():
        alone = [score(lm, lm.merged("q"), [group], codec, answers_at="states") for group in groups]
        for max_tokens in (1, 100, 10_000):
            seen = []
            for members, scores in score_in_batches(
                lm, lm.merged("q"), groups[::-1], codec, max_tokens=max_tokens, answers_at="states"
            ):
                seen += members
                for place, member in enumerate(members):
                    single = alone[len(groups) - 1 - member]
                    rows = scores.group == place
                    width = single.states.shape[1]
                    for name in ("log_pf", "log_pterm", "log_y", "states"):
                        size = width - (name == "log_pf")
                        together = getattr(scores, name)[rows]
                        torch.testing.assert_close(together[:, :size], getattr(single, name), atol=NATS, rtol=0)
                        assert not together[:, size:].any()
            assert sorted(seen) == list(range(len(groups)))


@pytest.mark.parametrize("answers_at", ["none", "states", "end"])
def test_a_large_group_is_scored_in_parts(load: Loader, answers_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rationale's scores are those of the oracle, whatever is scored beside it; and no tree is larger than asked for,
    Y behind each of its prefixes included."""
    lm = load("llama")
    codec = codec_of(lm)
    groups = [dataclasses.replace(g, others=[[3, 4], [5]]) for g in random_groups(codec, random.Random(4))]
    more = [z for seed in range(9) for group in random_groups(codec, random.Random(seed)) for z in group.rationales]
    groups[1] = dataclasses.replace(groups[1], rationales=[*more, *groups[1].rationales])
    sizes, run = list[int](), LanguageModel.hidden

    def hidden(self: LanguageModel, model: Any, trees: Any) -> torch.Tensor:
        sizes.extend(map(len, trees))
        return run(self, model, trees)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    found = []
    for max_tokens in (10_000, 100):
        sizes.clear()
        settings: dict[str, Any] = {"max_tokens": max_tokens, "answers_at": answers_at, "tool_tokens": True}
        found.append(score_rows(lm, lm.merged("q"), groups, codec, **settings))
        assert max(sizes) <= max_tokens and (len(sizes) > 4) == (max_tokens == 100)
    for group, whole, parts in zip(groups, *found, strict=True):
        assert_scores(parts, lm.merged("q"), [group], codec, answers_at, True)
        for name, table in vars(whole).items():
            torch.testing.assert_close(getattr(parts, name), table, atol=NATS, rtol=0)


def test_the_parts_of_a_group_stand_beside_groups_with_more_candidates(load: Loader) -> None:
    lm = load("llama")
    codec = codec_of(lm)
    several = [random_groups(codec, random.Random(seed)) for seed in range(9)]
    chains = [z for groups in several for group in groups for z in group.rationales]
    few, many = [[3, 4]], [[3, 4], [5], [6, 3]]
    groups = [
        dataclasses.replace(several[0][0], rationales=chains[k : k + n], others=others)
        for k, n, others in ((0, 2, many), (2, 40, few), (42, 2, many))
    ]
    for group, found in zip(
        groups, score_rows(lm, lm.merged("q"), groups, codec, max_tokens=120, answers_at="end"), strict=True
    ):
        (alone,) = score_rows(lm, lm.merged("q"), [group], codec, max_tokens=10_000, answers_at="end")
        torch.testing.assert_close(found.log_choice, alone.log_choice, atol=NATS, rtol=0)


def test_merged_and_unmerged_adapters_agree(load: Loader) -> None:
    lm = load("llama")
    codec = codec_of(lm)
    groups = random_groups(codec, random.Random(2))
    with torch.no_grad():
        merged = score(lm, lm.merged("q"), groups, codec, answers_at="states")
        other = score(lm, lm.merged("p"), groups, codec, answers_at="states")
        with lm.trainable("q") as model:
            unmerged = score(lm, model, groups, codec, answers_at="states")
    for name in ("log_pf", "log_pterm", "log_y"):
        torch.testing.assert_close(getattr(merged, name), getattr(unmerged, name), atol=NATS, rtol=0)
        assert float((getattr(merged, name) - getattr(other, name)).abs().max()) > 0.01, "p and q are the same"


@pytest.mark.parametrize(("variant", "abilities"), VARIANTS[:5], ids=str)
def test_gradients_are_the_oracles(load: Loader, variant: str, abilities: dict[str, bool]) -> None:
    """Of a random combination of all the scores, with respect to the adapter's weights."""
    lm = load(variant, **abilities)
    codec = codec_of(lm)
    groups = random_groups(codec, random.Random(3), size=2, longest=5)
    gradients = []
    for fast in (True, False):
        generator = torch.Generator().manual_seed(0)
        with lm.trainable("q") as model:
            if fast:
                scores = score(lm, model, groups, codec, answers_at="end")
                rows = [
                    (scores.log_pf[b, :n], scores.log_pterm[b, : n + 1], scores.log_y[b, n])
                    for b, n in enumerate(len(r) for group in groups for r in group.rationales)
                ]
            else:
                rows = [
                    (
                        *oracle.log_policy(model, group.prompt, r, codec.actions.tolist(), codec.stop_id),
                        oracle.log_text(model, [*group.prompt, *r.tokens], group.answer),
                    )
                    for group in groups
                    for r in group.rationales
                ]
            total = torch.zeros((), dtype=torch.float64)
            for parts in rows:
                for part in parts:
                    total = total + (part.double() * torch.rand(part.shape, generator=generator).double()).sum()
            weights = [weight for _, weight in sorted(lm.parameters("q").items())]
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)]))
    assert float(gradients[1].norm()) > 1
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-3)


def test_the_answer_may_begin_like_the_rationale(load: Loader) -> None:
    """Y's tokens and Z's agree; each must still be scored after its own prefix, under its own softmax."""
    lm = load("llama")
    codec = codec_of(lm)
    tokens = codec.encode("1+1")
    rationale = masked_rationale(tokens, [True] * 3, [True] * 4)
    groups = [Group([5, 6], [rationale], tokens)]
    with torch.no_grad():
        scores = score(lm, lm.merged("p"), groups, codec, answers_at="states")
    assert_scores(scores, lm.merged("p"), groups, codec, "states", False)


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_log_probabilities_are_made_in_blocks(load: Loader, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with the same gradient, and never more of them at once than a block has: here 32 rows."""
    lm = load(variant)
    codec = codec_of(lm)
    groups, sizes, found = random_groups(codec, random.Random(0), size=12, longest=9), list[int](), []
    make = LanguageModel.logits

    def logits(self: LanguageModel, hidden: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        sizes.append(len(hidden))
        return make(self, hidden, ids)

    monkeypatch.setattr(LanguageModel, "logits", logits)
    for block in (scoring.BLOCK, 1):
        monkeypatch.setattr(scoring, "BLOCK", block)
        sizes.clear()
        with lm.trainable("q") as model:
            scores = score(lm, model, groups, codec)
            made = list(sizes)
            (scores.log_pf.sum() + 2 * scores.log_pterm.clamp(min=-1e3).sum()).backward()
            gradients = [weight.grad for _, weight in sorted(lm.parameters("q").items())]
            for weight in lm.parameters("q").values():
                weight.grad = None
        found.append((scores.log_pf.detach(), scores.log_pterm.detach(), gradients))
    torch.testing.assert_close(*found)
    assert len(made) > 2 and set(sizes) == {32} and len(sizes) > len(made), "made again in the backward pass"
