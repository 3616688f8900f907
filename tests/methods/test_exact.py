"""In a world so small that every rationale can be listed, q becomes the posterior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from latent_cot.config.schema import EStepConfig, MStepConfig, RolloutConfig, RunConfig
from latent_cot.methods.e_step import Behaviour, balance_step, collect
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.scoring import Query
from latent_cot.types import DataRequest, Example, Rationale, TaskData
from tests.loops import make
from tests.oracles import scoring
from tests.worlds import CountTool, ToyTask, language_model


def every_rationale(rules: ChainRules, chosen: tuple[int, ...] = ()) -> Iterator[Rationale]:
    """All that the policy could write: those that stop, and those that are cut."""
    chain = Chain(rules)
    for token in chosen:
        chain.push(token)
    if chain.full or chain.may_stop:
        yield chain.finish()
    if not chain.full:
        for action in rules.codec.actions.tolist():
            if action != rules.codec.stop_id:
                yield from every_rationale(rules, (*chosen, action))


@torch.no_grad()
def log_policy(lm: LanguageModel, query: Query, rules: ChainRules, rationales: list[Rationale]) -> torch.Tensor:
    """log q of each rationale, by the oracle."""
    codec = rules.codec
    values = []
    for rationale in rationales:
        parts = scoring.log_policy(
            lm.merged("q"), query.policy_prompt, rationale, codec.actions.tolist(), codec.stop_id
        )
        values.append(parts[0].sum() + parts[1][-1])
    return torch.stack(values)


@torch.no_grad()
def log_posterior(
    lm: LanguageModel, query: Query, rules: ChainRules, rationales: list[Rationale], temperature: float
) -> torch.Tensor:
    """log of R(Z)^(1/T) / Σ R^(1/T), by the oracle."""
    codec = rules.codec
    rewards = [
        scoring.log_reward(lm.merged("p"), query.model_prompt, r, query.answer, codec.actions.tolist(), codec.stop_id)[
            -1
        ]
        for r in rationales
    ]
    return (torch.stack(rewards) / temperature).log_softmax(0)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "world"), [("pooled-subtb", "tool"), ("subtb", "token")])
def test_q_becomes_the_posterior(tiny_model: Callable[[str], Path], objective: str, world: str) -> None:
    lm = language_model(tiny_model("llama"), rank=16)
    lm.reset_adapter("q", seed=0)
    tools = [] if world == "token" else [CountTool()]
    codec = TextCodec(lm.tokenizer, allowed_characters="abc" if world == "token" else "ab=")
    rules = ChainRules(codec, tools, max_tokens=3)
    queries = [
        Query(Example(x, question=x), codec.encode_prompt(f"{x} {y}"), codec.encode_prompt(x), codec.encode(y))
        for x, y in (("one?", ". 1"), ("and two?", ". It is 2"))
    ]
    rationales = list(every_rationale(rules))
    temperature = 1.5  # not 1, so that q must become the tempered posterior and not p's
    targets = [log_posterior(lm, query, rules, rationales, temperature) for query in queries]

    def divergences() -> list[float]:
        found = []
        for query, target in zip(queries, targets, strict=True):
            log_q = log_policy(lm, query, rules, rationales)
            assert float(log_q.exp().sum()) == pytest.approx(1), "the list is complete and q is normalised"
            found.append(float((log_q.exp() * (log_q - target)).sum()))
        return found

    before = divergences()
    steps = 150
    optimiser = AdapterOptimiser(lm.parameters("q"), Schedule(5e-3, steps, 5, "cosine"), 1.0)
    buffer, reward = ReplayBuffer(tolerance=0), Reward(lm, codec)
    for step in range(steps):
        batches = collect(
            lm,
            queries,
            [Behaviour(temperature=2.0 if step % 2 else 1.0)] * 2,
            rules,
            buffer,
            reward,
            samples=16,
            generator=torch.Generator().manual_seed(step),
        )
        balance_step(
            lm,
            batches,
            rules,
            optimiser,
            step,
            objective=objective,
            reward_temperature=temperature,
            reward_floor=None,
            huber_delta=3.0,
            max_tokens=5000,
        )
    after = divergences()
    assert len(rationales) == 40
    assert min(before) > 0.4
    assert max(after) < 0.1
    assert sum(after) < sum(before) / 20


class Small(ToyTask):
    """All of its rationales can be listed, and none is wrong."""

    def __init__(self) -> None:
        super().__init__(allowed_characters="ab=")

    def load(self, request: DataRequest) -> TaskData:
        return TaskData((), tuple(self.example(word) for word in ("a", "ab", "bab")), ())

    def grade(self, example: Example, answer: str | None) -> bool:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("floor", [None, 10.0])
def test_an_e_step_that_learns_again_becomes_the_posterior(
    tiny_model: Callable[[str], Path], floor: float | None
) -> None:
    """Balance on each batch, and forward KL on the samples of earlier q's: with the same optimum."""
    lm = language_model(tiny_model("llama"), rank=16)
    e_step = EStepConfig(
        steps=120,
        questions=3,
        samples=16,
        updates=3,
        tempered_share=0.0,
        reward_floor=floor,
        learning_rate=2e-3,  # at 5e-3 q stops writing one of two good rationales with two seeds of three
        warmup=5,
        max_grad_norm=1.0,
    )
    config = RunConfig(
        p_init="base",
        q_sees="question",  # `latent-cot verify --objective em` has a world in which it sees Y
        rounds=1,
        rollout=RolloutConfig(granularity="token", max_tokens=3),
        e_step=e_step,
        m_step=MStepConfig(batch_size=3),
    )
    loop = make(lm, config, Small())
    queries = list(map(loop.query, loop.questions))
    rationales = list(every_rationale(loop.rules))
    targets = [log_posterior(lm, query, loop.rules, rationales, 1.0) for query in queries]

    def divergence() -> float:
        logs = [log_policy(lm, query, loop.rules, rationales) for query in queries]
        return sum(float((q.exp() * (q - p)).sum()) for q, p in zip(logs, targets, strict=True)) / len(queries)

    found = dict[str, float]()
    for phase, _ in loop.run():
        if phase.name == "draw":
            break
        if phase.name != "e_step" or loop.state.unit == e_step.steps:
            found[phase.name] = divergence()
    assert len(rationales) == 40
    assert found["evaluate"] > 1.0
    print("KL", floor, found)
    assert found["e_step"] < 0.1
