"""What every engine has to do: one contract, whoever samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.model.engine import Engine
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.model.vllm import VllmServers
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from tests.engines import ReferenceEngine, serving
from tests.worlds import ALPHABET, FakeTool, language_model

TOLERANCE = 1e-3
"""Nats by which a log-probability may differ from that of the model that is trained, in fp32."""


@pytest.fixture(params=["transformers", "reference", "server", "two servers"])
def engine(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Iterator[Engine | None]:
    folder = tiny_model("llama")
    if request.param == "transformers":
        yield None
    elif request.param == "reference":
        yield ReferenceEngine(folder)
    else:
        with serving(ReferenceEngine(folder)) as one, serving(ReferenceEngine(folder)) as other:
            addresses = [one.address, other.address][: 1 + (request.param == "two servers")]
            yield VllmServers(addresses, vocabulary=one.engine.vocabulary)
            assert not one.engine.adapters and not other.engine.adapters


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def rules_of(lm: LanguageModel, *, constrained: bool = True, **settings: Any) -> ChainRules:
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET if constrained else None)
    return ChainRules(codec, [FakeTool()], max_tokens=9, **settings)


def prompts_of(rules: ChainRules, n: int = 4) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(rules.codec.vocab_size) for _ in range(rng.randint(1, 9))] for _ in range(n)]


RULES = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"constrained": False},
        {"min_tokens": 3},
        {"granularity": "step"},
        {"granularity": "step", "step_delimiter": ",", "min_tokens": 2},
    ],
    ids=str,
)


@RULES
def test_greedy_chains_are_those_of_transformers(
    lm: LanguageModel, engine: Engine | None, settings: dict[str, Any]
) -> None:
    rules = rules_of(lm, **settings)
    expected = rollout(lm, "q", prompts_of(rules), rules, n=1, temperature=0.0)
    with lm.sampling_by(engine):
        assert rollout(lm, "q", prompts_of(rules), rules, n=1, temperature=0.0) == expected


@RULES
def test_log_probabilities_are_those_of_the_trained_model(
    lm: LanguageModel, engine: Engine | None, settings: dict[str, Any]
) -> None:
    rules = rules_of(lm, **settings)
    prompts = prompts_of(rules)
    generator = torch.Generator().manual_seed(1)
    heats = [[1.0, 1.0, 0.5]] * len(prompts)
    with lm.sampling_by(engine):
        found = rollout(lm, "q", prompts, rules, n=3, temperature=heats, generator=generator)
    calls = 0
    for prompt, sampled in zip(prompts, found, strict=True):
        assert sampled[2].log_probs is None  # not sampled from q itself
        with lm.trainable("q") as model, torch.no_grad():
            scores = score(lm, model, [Group(prompt, sampled[:2])], rules.codec)
        for rationale, log_actions in zip(sampled, scores.log_actions, strict=False):
            actions = [*rationale.policy_mask, not rationale.truncated]
            expected = [float(value) for value, chosen in zip(log_actions, actions, strict=False) if chosen]
            assert rationale.log_probs == pytest.approx(expected, abs=TOLERANCE)
            calls += len(rationale.calls)
    assert calls or settings.get("constrained") is False  # tools were asked in between


def test_the_same_generator_gives_the_same_chains_and_another_others(lm: LanguageModel, engine: Engine | None) -> None:
    rules = rules_of(lm)
    with lm.sampling_by(engine):
        first, again, other = (
            rollout(lm, "q", prompts_of(rules), rules, n=4, generator=torch.Generator().manual_seed(seed))
            for seed in (5, 5, 6)
        )
    assert first == again
    assert first != other
    assert len({rationale for of_one in first for rationale in of_one}) > 4  # samples of a question differ


def test_a_changed_adapter_is_seen_by_the_next_request(lm: LanguageModel, engine: Engine | None) -> None:
    rules = rules_of(lm)
    prompts = prompts_of(rules)
    before = rollout(lm, "q", prompts, rules, temperature=0.0)
    with lm.sampling_by(engine):
        assert rollout(lm, "q", prompts, rules, temperature=0.0) == before
        lm.copy_adapter("p", "q")
        after = rollout(lm, "q", prompts, rules, temperature=0.0)
        assert after == rollout(lm, "p", prompts, rules, temperature=0.0)
    assert after != before
    assert rollout(lm, "q", prompts, rules, temperature=0.0) == after
