"""Batched, cached sampling against the oracle, which runs one whole sequence a step."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.evaluation import diagnostics
from latent_cot.methods import method
from latent_cot.model.kv_cache import KVCache
from latent_cot.model.limits import Limit
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales import rollout as fast
from latent_cot.rationales.chain import MAX_RESULT_TOKENS, ChainRules
from latent_cot.types import Rationale
from tests.loops import CONFIG, make
from tests.oracles import rollout as oracle
from tests.oracles import scoring
from tests.worlds import ALPHABET, NO_SHRINKING, FakeTool, language_model


@pytest.fixture(scope="module", params=["llama", "gpt2", "logits only"])
def lm(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> LanguageModel:
    """GPT-2 has learned positions, so that a wrong position shows at once; a model of logits only has no
    linear head."""
    if request.param == "logits only":
        return language_model(tiny_model("llama"), linear_head=False)
    return language_model(tiny_model(request.param))


def rules_of(lm: LanguageModel, *, constrained: bool = True, **settings: Any) -> ChainRules:
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET if constrained else None)
    return ChainRules(codec, [FakeTool()], **settings)


def random_prompts(codec: TextCodec, rng: random.Random, n: int) -> list[list[int]]:
    return [[rng.randrange(codec.vocab_size) for _ in range(rng.randint(1, 12))] for _ in range(n)]


def expected(lm: LanguageModel, prompt: Sequence[int], rules: ChainRules, **options: Any) -> Rationale:
    """The oracle's rationale, sampled from q unmerged."""
    codec = rules.codec
    with lm.trainable("q") as model:
        return oracle.rollout(
            model,
            lm.tokenizer,
            prompt,
            codec.actions.tolist(),
            codec.stop_id,
            tool=rules.tools[0] if rules.tools else None,
            granularity=rules.granularity,
            min_tokens=rules.min_tokens,
            max_tokens=rules.max_tokens,
            longest_result=MAX_RESULT_TOKENS,
            step_delimiter=rules.step_delimiter,
            **options,
        )


@pytest.mark.parametrize("batch_size", [None, 2, 3, 4])
def test_a_model_that_counts_columns_has_room_for_each_text_that_fits(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    """Of a row that goes on where others have ended, too."""
    rules = dataclasses.replace(rules_of(lm), tools=(), max_tokens=25)
    monkeypatch.setattr(lm, "capabilities", dataclasses.replace(lm.capabilities, columns=45))
    monkeypatch.setattr(lm, "limit", Limit(45, "index_topk of its configuration", of_rows=True))
    prompts = [[5 + k % 7 for k in range(20)] for _ in range(40)]
    drawn = fast.rollout(
        lm, "q", prompts, rules, n=1, batch_size=batch_size, generator=torch.Generator().manual_seed(0)
    )
    assert max(len(z) for (z,) in drawn) > 15, "all are short"


def favour_trigger(noise: torch.Tensor, rules: ChainRules) -> torch.Tensor:
    """Make the tool be called about every third token."""
    trigger = rules.codec.encode("=")[0]
    noise[..., int(rules.codec.action_index[trigger])] += 4
    return noise


@settings(max_examples=6, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**32),
    constrained=st.booleans(),
    granularity=st.sampled_from(["token", "step"]),
    min_tokens=st.integers(0, 3),
    max_tokens=st.integers(3, 10),
)
def test_greedy_chains_are_the_oracles(
    lm: LanguageModel, seed: int, constrained: bool, granularity: str, min_tokens: int, max_tokens: int
) -> None:
    rules = rules_of(lm, constrained=constrained, granularity=granularity, min_tokens=min_tokens, max_tokens=max_tokens)
    prompts = random_prompts(rules.codec, random.Random(seed), 4)
    sampled = fast.rollout(lm, "q", prompts, rules, n=2, temperature=0.0)
    for prompt, rationales in zip(prompts, sampled, strict=True):
        assert rationales == [expected(lm, prompt, rules)] * 2


@settings(max_examples=12, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**32),
    granularity=st.sampled_from(["token", "step"]),
    min_tokens=st.integers(0, 3),
    step_delimiter=st.sampled_from([None, ","]),
    batch_size=st.sampled_from([None, 1, 4]),
    shared=st.sampled_from([0, 20]),
)
def test_batched_sampling_is_the_oracles(
    lm: LanguageModel,
    seed: int,
    granularity: str,
    min_tokens: int,
    step_delimiter: str | None,
    batch_size: int | None,
    shared: int,
) -> None:
    """Given the same noise: rows branch, finish, drop out, let others in and wait for tools of all lengths at
    different times, behind a beginning that all prompts share or not.

    A position that ignores the left-padding, or the length of a tool's result, changes the chain.
    """
    rules = rules_of(lm, granularity=granularity, min_tokens=min_tokens, max_tokens=10, step_delimiter=step_delimiter)
    rng = random.Random(seed)
    beginning = [rng.randrange(rules.codec.vocab_size) for _ in range(shared)]
    prompts = [beginning + prompt for prompt in random_prompts(rules.codec, rng, 5)]
    n = 2
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts) * n, rules.max_tokens + 1, len(rules.codec.actions))
    noise = favour_trigger(-torch.log(torch.empty(shape).exponential_(generator=generator)), rules)
    heats = [[0.5, 1.0], [1.0, 2.0], [2.0, 0.5], [1.0, 1.0], [0.2, 0.1]]

    chosen_so_far: Counter[int] = Counter()

    def sample(
        logits: torch.Tensor, draws: Sequence[tuple[int, int]], temperature: torch.Tensor, *_: object
    ) -> tuple[list[int], list[float]]:
        if not draws:
            return [], []
        rows, samples = zip(*draws, strict=True)
        own = torch.stack([noise[k, chosen_so_far[k]] for k in samples])
        chosen_so_far.update(samples)
        chosen: list[int] = (logits[list(rows)] / temperature[list(samples)][:, None] + own).argmax(-1).tolist()
        return chosen, [0.0] * len(samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "_sample", sample)
        patch.setattr(fast, "_DEAD_COLUMNS", 2)
        sampled = fast.rollout(lm, "q", prompts, rules, n=n, temperature=heats, batch_size=batch_size)
    for i, prompt in enumerate(prompts):
        for k in range(n):
            own = noise[i * n + k]
            assert sampled[i][k] == expected(lm, prompt, rules, temperature=heats[i][k], noise=own.__getitem__)


def test_what_samples_share_is_run_once(lm: LanguageModel) -> None:
    """Greedy samples of one prompt are one row; the tokens the model reads are those of distinct prefixes."""
    rules = rules_of(lm, max_tokens=8)
    prompts = [[5, 6, 7], [8, 9]]
    fed: list[int] = []
    step = LanguageModel.decode_step

    def count(self: LanguageModel, model: Any, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        fed.append(input_ids.numel())
        return step(self, model, input_ids, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "decode_step", count)
        fast.rollout(lm, "q", prompts, rules, n=16, temperature=0.0)
        assert max(fed[1:]) <= 2
        fed.clear()
        generator = torch.Generator().manual_seed(0)
        sampled = fast.rollout(lm, "q", prompts, rules, n=16, temperature=1.0, generator=generator)
    # The last token of a chain that was cut is never fed; all other prefixes are, once.
    distinct = {
        (i, rationale.tokens[: length + 1])
        for i, group in enumerate(sampled)
        for rationale in group
        for length in range(len(rationale))
    }
    assert len(distinct) >= sum(fed[1:]) > len(distinct) / 2


@pytest.mark.parametrize("joinable", [True, False])
def test_prompts_are_run_in_passes_of_bounded_size(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, joinable: bool
) -> None:
    """Padding counts: one long prompt makes all that are run with it as long."""
    rules = rules_of(lm, max_tokens=4)
    rng = random.Random(4)
    prompts = [[rng.randrange(rules.codec.vocab_size) for _ in range(n)] for n in (40, 3, 5, 4, 3, 6, 30)]
    passes: list[tuple[int, int]] = []
    step = LanguageModel.decode_step

    def watch(self: LanguageModel, model: Any, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append((input_ids.shape[0], input_ids.shape[1]))
        return step(self, model, input_ids, *rest)

    monkeypatch.setattr(KVCache, "joinable", property(lambda self: joinable))
    monkeypatch.setattr(LanguageModel, "decode_step", watch)
    whole = fast.rollout(lm, "q", prompts, rules, n=2, temperature=0.0)
    assert max(rows * columns for rows, columns in passes) == 7 * 40
    passes.clear()
    assert fast.rollout(lm, "q", prompts, rules, n=2, temperature=0.0, max_tokens=20) == whole
    prefills = [(rows, columns) for rows, columns in passes if columns > 1]
    assert prefills == [(1, 40), (1, 30), (3, 6), (2, 3)]


def test_what_prompts_begin_with_is_kept_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the attention function knows nothing of that, copies of it give the same rationales."""
    assert lm.capabilities.cascade
    rules = rules_of(lm, max_tokens=8)
    rng = random.Random(3)
    beginning = [rng.randrange(rules.codec.vocab_size) for _ in range(40)]
    prompts = [beginning + prompt for prompt in random_prompts(rules.codec, rng, 5)]
    columns = []
    step = LanguageModel.decode_step

    def watch(self: LanguageModel, *arguments: Any) -> torch.Tensor:
        hidden = step(self, *arguments)
        columns.append(max(layer.columns for layer in arguments[-1].layers))
        return hidden

    monkeypatch.setattr(LanguageModel, "decode_step", watch)
    kept_once = fast.rollout(lm, "q", prompts, rules, n=2, temperature=0.0)
    assert columns[0] == len(beginning)
    assert max(columns[1:]) < len(beginning)
    monkeypatch.setattr(lm, "capabilities", dataclasses.replace(lm.capabilities, cascade=False))
    assert fast.rollout(lm, "q", prompts, rules, n=2, temperature=0.0) == kept_once


def test_a_long_result_beside_short_ones(lm: LanguageModel) -> None:
    """One chain waits while others go on: the classic place for positions to slip."""
    rules = rules_of(lm, max_tokens=8)
    generator = torch.Generator().manual_seed(0)
    prompts = [[5, 6, 7], [8] * 11, [9]]
    sampled = fast.rollout(lm, "q", prompts, rules, n=40, temperature=2.0, generator=generator)
    lengths = {call.n_tokens for group in sampled for rationale in group for call in rationale.calls}
    assert len(lengths) >= 3, lengths
    for group in sampled:
        for rationale in group:
            for call in rationale.calls:
                span = slice(call.position, call.position + call.n_tokens)
                assert not any(rationale.policy_mask[span])
                assert rules.codec.decode(rationale.tokens[span]) == (call.result or "")
            assert sum(rationale.policy_mask) == len(rationale) - sum(call.n_tokens for call in rationale.calls)
            assert rationale.truncated == (sum(rationale.policy_mask) == rules.max_tokens)


def test_the_same_generator_state_gives_the_same_rationales(lm: LanguageModel) -> None:
    rules = rules_of(lm, max_tokens=6)
    first, second, other = (
        fast.rollout(lm, "q", [[5], [6, 7]], rules, n=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_frequencies_are_the_probabilities(lm: LanguageModel, temperature: float) -> None:
    """Of all chains of a small world, each with its probability at the temperature, by the chi-square test."""
    codec = TextCodec(lm.tokenizer, allowed_characters="ab")
    rules = ChainRules(codec, max_tokens=2, min_tokens=0)
    actions, stop = codec.actions.tolist(), codec.stop_id
    prompt, n = [7, 8, 9], 4000
    probabilities: dict[tuple[int, ...], float] = {}

    def walk(tokens: tuple[int, ...], probability: float) -> None:
        if len(tokens) == rules.max_tokens:
            probabilities[tokens] = probability
            return
        logits = scoring.last_logits(lm.merged("q"), [*prompt, *tokens]) / temperature
        for action, log_prob in scoring.action_log_probs(logits, actions, stop, True).items():
            share = probability * float(log_prob.exp())
            if action == stop:
                probabilities[tokens] = share
            else:
                walk((*tokens, action), share)

    with torch.no_grad():
        walk((), 1.0)
    generator = torch.Generator().manual_seed(0)
    # Two prompts of different lengths in the batch; the second one only pads.
    sampled = fast.rollout(lm, "q", [prompt, [5] * 6], rules, n=n, temperature=temperature, generator=generator)
    counts = Counter(rationale.tokens for rationale in sampled[0])
    assert sum(probabilities.values()) == pytest.approx(1)
    assert set(counts) <= set(probabilities)
    rare = {z for z, p in probabilities.items() if n * p < 5}  # the test holds for counts that are not small
    cells = [(counts[z], n * p) for z, p in probabilities.items() if z not in rare]
    cells.append((sum(counts[z] for z in rare), n * sum(probabilities[z] for z in rare) + 1e-9))
    chi_square = sum((seen - mean) ** 2 / mean for seen, mean in cells if mean > 1)
    assert chi_square < 24.3  # at most 7 degrees of freedom: exceeded once in a thousand


def test_each_sample_draws_by_its_row_and_temperature() -> None:
    """Beside others of the same row; never what is impossible, even where a draw falls between two tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 5), generator=generator)
    logits[:, [0, 4]] = -torch.inf
    kinds, n = [(0, 1.0), (0, 2.0), (2, 1.0), (1, 0.0)], 4000
    draws = [(kinds[k % 4][0], k) for k in range(4 * n)]
    heat = torch.tensor([kinds[k % 4][1] for k in range(4 * n)])
    chosen, log_prob = fast._sample(logits, draws, heat, 1.0, generator)
    for k, (row, temperature) in enumerate(kinds):
        own = chosen[k::4]
        if not temperature:
            assert set(own) == {int(logits[row].argmax())}
            continue
        share = (logits[row] / temperature).softmax(-1)
        assert set(own) == {1, 2, 3}
        assert log_prob[k::4] == pytest.approx(share[own].log().tolist())
        for action, count in Counter(own).items():
            assert count / n == pytest.approx(float(share[action]), abs=4 * (0.25 / n) ** 0.5)
        following = Counter(pairwise(own))
        for (one, two), count in following.items():
            assert count / (n - 1) == pytest.approx(float(share[one] * share[two]), abs=4 * (0.25 / n) ** 0.5)


def test_a_mixture_of_greedy_and_sampled_prompts(lm: LanguageModel) -> None:
    rules = rules_of(lm, max_tokens=6)
    greedy, sampled = fast.rollout(
        lm,
        "q",
        [[5, 6], [5, 6]],
        rules,
        n=8,
        temperature=[[0.0] * 8, [1.5] * 8],
        generator=torch.Generator().manual_seed(0),
    )
    assert set(greedy) == {expected(lm, [5, 6], rules)}
    assert len(set(sampled)) > 1


def test_nucleus_sampling_draws_the_likeliest_tokens_only(tiny_model: Callable[[str], Path]) -> None:
    lm = language_model(tiny_model("llama"))
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters="abcdefgh"), min_tokens=1, max_tokens=1)
    prompt, n, heat = rules.codec.encode_prompt("Say"), 4000, 1.5
    codec = rules.codec
    with torch.no_grad():
        logits = lm.merged("p")(torch.tensor([prompt])).logits[0, -1, codec.actions].float()
    logits[codec.stop_index] = -torch.inf
    share = (logits / heat).softmax(-1)
    order = share.argsort(descending=True).tolist()
    kept: list[int] = []
    while sum(float(share[k]) for k in kept) < 0.6:
        kept.append(order[len(kept)])
    settings: dict[str, Any] = {"n": n, "temperature": heat, "generator": torch.Generator().manual_seed(0)}
    (sampled,) = fast.rollout(lm, "p", [prompt], rules, top_p=0.6, **settings)
    counts = Counter(rationale.tokens[0] for rationale in sampled)
    assert counts.keys() == {int(codec.actions[k]) for k in kept}
    total = float(share[kept].sum())
    for k in kept:
        expected = float(share[k]) / total
        assert counts[int(codec.actions[k])] / n == pytest.approx(expected, abs=5 * (expected / n) ** 0.5)


def test_training_and_diagnostics_bound_their_prefill(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `max_batch_tokens`, as tests do. A rollout of a step had no bound."""
    given: dict[str, list[int | None]] = {"method": [], "diagnostics": []}
    for module in (method, diagnostics):
        name = module.__name__.rsplit(".", 1)[-1]

        def spied(*arguments: Any, name: str = name, **settings: Any) -> Any:
            given[name].append(settings.get("max_tokens"))
            return fast.rollout(*arguments, **settings)

        monkeypatch.setattr(module, "rollout", spied)
    config = dataclasses.replace(CONFIG, rounds=1, max_batch_tokens=120)
    for _ in make(language_model(tiny_model("llama"), perturb=False), config).run():
        pass
    assert given["diagnostics"] and given["method"]
    assert {*given["diagnostics"], *given["method"]} == {120}


@pytest.mark.parametrize(("n", "parts"), [(4, [4]), (5, [5]), (12, [5, 5, 2])])
def test_no_more_samples_of_a_question_at_once_than_the_batch_size(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, n: int, parts: list[int]
) -> None:
    lm, asked = language_model(tiny_model("llama"), perturb=False), list[int]()
    rollout = dataclasses.replace(CONFIG.rollout, batch_size=5)
    loop = make(lm, dataclasses.replace(CONFIG, rollout=rollout))

    def spied(*arguments: Any, n: int, **settings: Any) -> list[list[Rationale]]:
        asked.append(n)
        return fast.rollout(*arguments, n=n, **settings)

    monkeypatch.setattr(method, "rollout", spied)
    sampled = loop.sample_questions("q", [0, 1], 7, n=n)
    assert asked == parts and [len(of_one) for of_one in sampled] == [n, n]
    if len(parts) == 1:  # then nothing is other than it was
        prompts = [loop.query(loop.questions[i]).policy_prompt for i in (0, 1)]
        assert sampled == fast.rollout(lm, "q", prompts, loop.rules, n=n, generator=torch.Generator().manual_seed(7))
