"""What every engine has to do: one contract, whoever samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.model import weights
from latent_cot.model.engine import Engine
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.model.vllm import VllmHere, VllmServers
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from tests.engines import ReferenceEngine, serving, vllm_server
from tests.worlds import ALPHABET, FakeTool, language_model

TOLERANCE = 1e-3
"""Nats by which a log-probability may differ from that of the model that is trained, in fp32."""


Opened = Callable[[], Engine | None]

VLLM = ("vllm", "vllm-server")
QUIET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of vLLM's own sockets


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "reference",
        "server",
        "two servers",
        *(pytest.param(name, marks=[pytest.mark.vllm, QUIET]) for name in VLLM),
    ],
)
def world(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LanguageModel, Opened]]:
    """A model, and how to open an engine for it: vLLM itself samples from SmolLM2-135M, the others from a tiny one."""
    if request.param in VLLM:
        pytest.importorskip("vllm")
    folder = weights.resolve(weights.DEFAULT_MODEL) if request.param in VLLM else tiny_model("llama")
    lm = language_model(folder)
    vocabulary = lm.base_config.vocab_size
    if request.param == "transformers":
        yield lm, lambda: None
    elif request.param == "reference":
        yield lm, lambda: ReferenceEngine(folder)
    elif request.param == "vllm":
        engine = VllmHere(folder, precision="float32", rank=8, vocabulary=vocabulary, trust_remote_code=False)
        close, engine.close = engine.close, lambda: None  # type: ignore[method-assign]
        yield lm, lambda: engine
        close()
    elif request.param == "vllm-server":
        with vllm_server(folder, tmp_path_factory.mktemp("vllm") / "log") as address:
            yield lm, lambda: VllmServers([address], vocabulary)
    else:
        with serving(ReferenceEngine(folder)) as one, serving(ReferenceEngine(folder)) as other:
            addresses = [one.address, other.address][: 1 + (request.param == "two servers")]
            yield lm, lambda: VllmServers(addresses, vocabulary)
            assert not one.engine.adapters  # they were taken back
            assert not other.engine.adapters


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
def test_greedy_chains_are_those_of_transformers(world: tuple[LanguageModel, Opened], settings: dict[str, Any]) -> None:
    lm, engine = world
    rules = rules_of(lm, **settings)
    expected = rollout(lm, "q", prompts_of(rules), rules, n=1, temperature=0.0)
    with lm.sampling_by(engine()):
        assert rollout(lm, "q", prompts_of(rules), rules, n=1, temperature=0.0) == expected


@RULES
def test_log_probabilities_are_those_of_the_trained_model(
    world: tuple[LanguageModel, Opened], settings: dict[str, Any]
) -> None:
    lm, engine = world
    rules = rules_of(lm, **settings)
    prompts = prompts_of(rules)
    generator = torch.Generator().manual_seed(1)
    heats = [[1.0, 1.0, 0.5]] * len(prompts)
    with lm.sampling_by(engine()):
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


def test_the_same_generator_gives_the_same_chains_and_another_others(world: tuple[LanguageModel, Opened]) -> None:
    lm, engine = world
    rules = rules_of(lm)
    with lm.sampling_by(engine()):
        first, again, other = (
            rollout(lm, "q", prompts_of(rules), rules, n=4, generator=torch.Generator().manual_seed(seed))
            for seed in (5, 5, 6)
        )
    assert first == again
    assert first != other
    assert len({rationale for of_one in first for rationale in of_one}) > 4  # samples of a question differ


def test_a_changed_adapter_is_seen_by_the_next_request(world: tuple[LanguageModel, Opened]) -> None:
    lm, engine = world
    rules = rules_of(lm)
    prompts = prompts_of(rules)
    before = rollout(lm, "q", prompts, rules, temperature=0.0)
    lm.copy_adapter("q", "kept")
    with lm.sampling_by(engine()):
        assert rollout(lm, "q", prompts, rules, temperature=0.0) == before
        lm.copy_adapter("p", "q")
        after = rollout(lm, "q", prompts, rules, temperature=0.0)
        assert after == rollout(lm, "p", prompts, rules, temperature=0.0)
    assert after != before
    assert rollout(lm, "q", prompts, rules, temperature=0.0) == after
    lm.copy_adapter("kept", "q")
