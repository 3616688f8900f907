"""Runs of any method in the toy world, and a way to stop and resume them as the session does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latent_cot.config.methods import METHODS
from latent_cot.config.schema import (
    EStepConfig,
    EvaluationConfig,
    InitStepConfig,
    MethodName,
    MStepConfig,
    RolloutConfig,
    RunConfig,
)
from latent_cot.evaluation.evaluate import Judge, Outcome
from latent_cot.methods.method import Method, method_class
from latent_cot.methods.phases import Steps
from latent_cot.methods.state import State
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import load_optimizer, save_optimizer
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.run.session import checkpointed_adapters
from latent_cot.types import DataRequest, Example, Reasoner, Task, TaskData
from tests.worlds import CountTool, ToyTask

FIT = MStepConfig(steps=3, batch_size=2, samples=2, keep="all", learning_rate=1e-2, warmup=1, interpolation=0.9)
CONFIG = RunConfig(
    rounds=2,
    rollout=RolloutConfig(granularity="step", max_tokens=6, batch_size=6),
    e_step=EStepConfig(
        steps=4,
        questions=2,
        samples=3,
        tempered_share=0.4,
        replay_share=0.3,
        learning_rate=1e-2,
        warmup=1,
        reward_temperature_steps=3,
    ),
    init_step=InitStepConfig(steps=3, batch_size=2, learning_rate=1e-2),
    m_step=FIT,
    evaluation=EvaluationConfig(max_tokens=8, votes=2, temperature=1.0, diagnostics=2),
)


def of_method(method: MethodName, config: RunConfig = CONFIG) -> RunConfig:
    """Another method with the same settings, but for what its q must see."""
    return dataclasses.replace(config, method=method, q_sees=METHODS[method].q_sees or config.q_sees)


def make(lm: LanguageModel, config: RunConfig, task: ToyTask | None = None, **arguments: Any) -> Method:
    task = task or ToyTask()
    codec = TextCodec(lm.tokenizer, allowed_characters=task.allowed_characters)
    tools = [CountTool()] if task.tools else []
    rules = ChainRules(codec, tools, config.rollout.granularity, max_tokens=config.rollout.max_tokens)
    test_rules = dataclasses.replace(rules, max_tokens=config.evaluation.max_tokens)
    data, tests = task.load(DataRequest()), {"test": task.split("test")}
    return method_class(config.method)(config, lm, task, data, tests, rules, test_rules, **arguments)


class HandMade(Method):
    """Answers test questions as it is told to."""

    def __init__(
        self,
        lm: LanguageModel,
        sampler: Reasoner | None,
        task: Task,
        rules: ChainRules,
        *,
        judge: Judge | None = None,
        prefix: str = "",
        batch_size: int = 128,
    ) -> None:
        super().__init__(RunConfig(), lm, task, TaskData((), (), ()), {}, rules, rules, state=State())
        self._sampler, self._judge, self._prefix, self._batch_size = sampler, judge, prefix, batch_size

    def algorithm(self) -> Steps:
        yield from ()

    def sampler_of(self, reasoner: Reasoner) -> Reasoner | None:
        return self._sampler

    def judge_of(self, reasoner: Reasoner) -> Judge:
        return self._judge or "p"

    def test_text(self, reasoner: Reasoner, example: Example) -> str:
        return self._prefix + example.x

    @property
    def test_batch_size(self) -> int:
        return self._batch_size


def answer_questions(
    lm: LanguageModel,
    sampler: Reasoner | None,
    task: Task,
    examples: Sequence[Example],
    rules: ChainRules,
    *,
    votes: int = 1,
    temperature: float = 0.0,
    **other: Any,
) -> Iterator[Outcome]:
    loop = HandMade(lm, sampler, task, rules, **other)
    return loop.answer_tests(sampler or "p", examples, seed=0, votes=votes, temperature=temperature)


def outcome(loop: Method) -> dict[str, Any]:
    """Everything a run leaves, exactly."""
    return {
        **json.loads(json.dumps(loop.state_dict())),
        **{
            name: [w.tolist() for w in loop.lm.parameters(name).values()] for name in checkpointed_adapters(loop.config)
        },
    }


def save(loop: Method, folder: Path) -> str:
    """As the session does it."""
    for adapter in checkpointed_adapters(loop.config):
        loop.lm.save_adapter(adapter, folder / adapter)
    if loop.optimiser is not None:
        save_optimizer(loop.optimiser.adam, folder)
    return json.dumps(loop.state_dict())


def resume(lm: LanguageModel, config: RunConfig, folder: Path, saved: str, task: ToyTask | None = None) -> Method:
    """In a process that knows nothing: its adapters hold something else."""
    record = json.loads(saved)
    for adapter in checkpointed_adapters(config):
        lm.reset_adapter(adapter, seed=99)
        lm.merged(adapter)
    loop = make(
        lm, config, task, state=State.from_json(record["loop"]), restore=lambda adam: load_optimizer(adam, folder)
    )
    loop.load_state_dict(record)
    for adapter in checkpointed_adapters(config):
        lm.load_adapter(adapter, folder / adapter)
    return loop


def run_in_parts(lm: LanguageModel, config: RunConfig, folder: Path, k: int, task: ToyTask | None = None) -> Method:
    """A run that is stopped after each `k` units and resumed from what was saved."""
    loop, parts = make(lm, config, task), 0
    while True:
        for unit, _ in enumerate(loop.run(), 1):
            if unit == k:
                break
        else:
            return loop
        part = folder / f"{k}-{parts}"
        parts += 1
        loop = resume(lm, config, part, save(loop, part), task)
