"""Decoding strategies: how many rationales, which, and at what price."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.config.methods import METHODS
from latent_cot.config.schema import DecodeConfig, RunConfig
from latent_cot.config.settings import check, with_method
from latent_cot.methods.method import Method, method_class
from latent_cot.model.lm import LanguageModel
from latent_cot.types import DataRequest, Sample, UsageError
from tests.loops import CONFIG, make
from tests.measured import LengthTask
from tests.oracles import beam as oracle
from tests.worlds import PlainTask, ToyTask, language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def config_of(granularity: Any = "token", **decode: Any) -> RunConfig:
    rollout = dataclasses.replace(CONFIG.rollout, granularity=granularity, min_tokens=1)
    evaluation = dataclasses.replace(CONFIG.evaluation, samples=4, votes=1, max_tokens=4)
    config = dataclasses.replace(CONFIG, p_init="base", rollout=rollout, evaluation=evaluation)
    return dataclasses.replace(with_method(config, "decode"), decode=DecodeConfig(**decode))


def decode(lm: LanguageModel, seed: int = 3, **decode: Any) -> tuple[Method, list[list[Sample]]]:
    loop = make(lm, config_of(**decode), LengthTask())
    loop.test_rules = dataclasses.replace(loop.test_rules, min_tokens=1)
    return loop, [list(one.samples) for one in loop.sample_tests("p", loop.tests["test"], seed=seed)]


@functools.cache
def likelihoods(loop: Method, question: int) -> dict[tuple[int, ...], float]:
    """Of every chain, under the model that is decoded, over the allowed alphabet."""
    prompt = loop.test_prompt("p", loop.tests["test"][question])
    chains = oracle.enumerate_chains(loop.lm.merged("p"), prompt, loop.test_rules)
    return {tokens: float(log_prob) for tokens, log_prob in chains}


@pytest.mark.parametrize("strategy", ["sample", "nucleus", "beam", "diverse-beam"])
def test_as_many_as_are_asked_for(lm: LanguageModel, strategy: str) -> None:
    _, found = decode(lm, strategy=strategy)
    assert [sum(sample.count for sample in of_one) for of_one in found] == [4, 4, 4]
    if strategy == "beam":
        assert all(sample.count == 1 for of_one in found for sample in of_one)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [({"strategy": "sample"}, True), ({"strategy": "nucleus"}, False), ({"strategy": "sample", "multiple": 2}, False)],
)
def test_only_plain_samples_can_be_weighed(lm: LanguageModel, settings: dict[str, Any], plain: bool) -> None:
    assert make(lm, config_of(**settings), LengthTask()).draws_as_it_is is plain
    assert make(lm, CONFIG).draws_as_it_is


@pytest.mark.parametrize("strategy", ["sample", "nucleus", "beam", "diverse-beam"])
def test_more_chains_give_likelier_rationales(lm: LanguageModel, strategy: str) -> None:
    """On average: a few samples can be the likeliest ones by chance."""
    likelihood = []
    loop, _ = decode(lm)  # one for all likelihoods, which are computed once
    for multiple in (1, 4):
        values = []
        for seed in range(20 if strategy in ("sample", "nucleus") else 1):
            _, found = decode(lm, seed, strategy=strategy, multiple=multiple)
            values += [likelihoods(loop, q)[s.rationale.tokens] for q, of_one in enumerate(found) for s in of_one]
            assert all(sum(sample.count for sample in of_one) <= 4 for of_one in found)
            if multiple > 1 and strategy in ("sample", "nucleus"):
                assert all(sample.count == 1 for of_one in found for sample in of_one)
        likelihood.append(sum(values) / len(values))
    assert likelihood[1] > likelihood[0]


def test_the_beam_finds_the_likeliest_of_all(lm: LanguageModel) -> None:
    loop, found = decode(lm, strategy="beam", multiple=100)
    for question, of_one in enumerate(found):
        everything = likelihoods(loop, question)
        best = sorted(everything, key=lambda tokens: -everything[tokens])[:4]
        assert [sample.rationale.tokens for sample in of_one] == best


def test_sampling_is_that_of_any_reasoner(lm: LanguageModel) -> None:
    _, found = decode(lm)
    few_shot = dataclasses.replace(config_of(), method="few-shot", shots=0)
    other = make(lm, few_shot, LengthTask())
    other.test_rules = dataclasses.replace(other.test_rules, min_tokens=1)
    assert found == [list(one.samples) for one in other.sample_tests("p", other.tests["test"], seed=3)]


def test_nothing_is_spent(lm: LanguageModel) -> None:
    loop = make(lm, config_of(strategy="beam"), LengthTask())
    assert [info["reasoner"] for _, info in loop.run()] == ["p"]
    assert (loop.state.budget.trajectories, loop.state.budget.gradient_steps) == (0, 0)
    assert METHODS["decode"].planned(loop.config) == (0, 0)
    assert "length" in loop.state.metrics["0"]["p"]["test"]


def check_loop(config: RunConfig, task: ToyTask) -> None:
    method_class("decode").check(config, task, task.load(DataRequest()))


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match=r"--decode.strategy beam: the task plain has right answers"):
        check_loop(config_of(strategy="beam"), PlainTask())

    class WithTool(LengthTask):
        def __init__(self) -> None:
            super().__init__(tools=("count",))

    with pytest.raises(UsageError, match="cannot call tools"):
        check_loop(config_of(strategy="beam"), WithTool())
    for many in ({"strategy": "nucleus"}, {"multiple": 4}):
        config = config_of(**many)
        greedy = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, temperature=0.0))
        with pytest.raises(UsageError, match=r"chains are the same at --evaluation\.temperature 0; give a higher one"):
            check_loop(greedy, LengthTask())
        check_loop(
            dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, temperature=1.0)),
            LengthTask(),
        )
    check_loop(config_of("step"), ToyTask())  # sampled as ever
    with pytest.raises(UsageError, match=r"--decode.multiple is 0"):
        check(config_of(multiple=0))


def test_the_seed_decides(lm: LanguageModel) -> None:
    found = decode(lm, strategy="nucleus")[1]
    assert found == decode(lm, strategy="nucleus")[1]
    loop, _ = decode(lm, strategy="nucleus")
    assert found != [list(one.samples) for one in loop.sample_tests("p", loop.tests["test"], seed=4)]
    torch.manual_seed(7)
    assert decode(lm, strategy="diverse-beam")[1] == decode(lm, strategy="diverse-beam")[1]
