"""What `scaling.py` and `plan.py` time: the parts of an E-step, at sizes of one's choice."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from latent_cot import tools
from latent_cot.config.schema import trained_tokens
from latent_cot.config.settings import load_config
from latent_cot.methods import e_step
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, Query
from latent_cot.run.session import open_session
from latent_cot.types import Rationale, Tool, ToolError

SAMPLES = 8
"""Rationales a question."""


class EStepWork:
    """The parts of an E-step on a model, at sizes of one's choice; each method runs one; most return its seconds.

    Args:
        max_tokens: of a pass, as the setting `max_batch_tokens`; None: the default configuration's.
    """

    def __init__(self, model: str, seed: int, max_tokens: int | None = None) -> None:
        config = load_config()
        data = replace(config.data, demonstrations=0, validation=0, unlabelled=64)
        evaluation = replace(config.evaluation, splits=())
        self.session = open_session(
            replace(config, task="arithmetic", model=model, seed=seed, p_init="base", data=data, evaluation=evaluation)
        )
        self.lm, self.codec = self.session.lm, self.session.rules.codec
        self.queries = [
            Query(pair, self.codec.encode_prompt(pair.x), self.codec.encode_prompt(pair.x), self._answer(pair.y))
            for pair in self.session.data.unlabelled
        ]
        # A learning rate of 0: each run finds the same q.
        self.optimiser = AdapterOptimiser(self.lm.parameters("q"), Schedule(0.0, 10**6, 0, "constant"), 100.0)
        config = replace(config, max_batch_tokens=max_tokens or config.max_batch_tokens)
        self.max_tokens, self.trained_tokens = config.max_batch_tokens, trained_tokens(config)
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def learn(
        self, queries: Sequence[Query], rules: ChainRules, temperature: float = 1.0, floor: float | None = None
    ) -> list[Trajectories]:
        """A step of the E-step on these questions, with SAMPLES rationales each."""
        batches = e_step.collect(
            self.lm,
            queries,
            [e_step.Behaviour(temperature) for _ in queries],
            rules,
            ReplayBuffer(),
            Reward(self.lm, self.codec, max_tokens=self.max_tokens),
            samples=SAMPLES,
            generator=self.generator,
        )
        c = self.session.config.e_step
        e_step.balance_step(
            self.lm,
            batches,
            rules,
            self.optimiser,
            0,
            objective=c.objective,
            reward_temperature=1.0,
            reward_floor=floor,
            huber_delta=c.huber_delta,
            max_tokens=self.trained_tokens,
        )
        return batches

    def step(self, questions: int, tokens: int) -> float:
        """The same with rationales of `tokens` tokens for so many questions."""
        rules = ChainRules(self.codec, min_tokens=max(0, tokens - 3), max_tokens=tokens)
        queries = list(itertools.islice(itertools.cycle(self.queries), questions))
        started = time.perf_counter()
        self.learn(queries, rules)
        return time.perf_counter() - started

    def reward(self, prefixes: int, tokens: int) -> float:
        """Score 8 random rationales of `tokens` tokens, of two questions, with so many states each."""
        groups = [
            Group(query.model_prompt, [self.rationale(prefixes, tokens) for _ in range(4)], query.answer)
            for query in self.queries[:2]
        ]
        reward, examples = (
            Reward(self.lm, self.codec, max_tokens=self.max_tokens),
            [q.example for q in self.queries[:2]],
        )
        self.lm.merged("p")  # once for all: not what is measured
        started = time.perf_counter()
        reward.of_prefixes(examples, groups)
        return time.perf_counter() - started

    def prompted(self, shared: int, tokens: int) -> float:
        """Sample a chain of `tokens` tokens for each of 64 questions behind the same `shared` random tokens."""
        actions = [action for action in self.codec.actions.tolist() if action != self.codec.stop_id]
        beginning = self.rng.choices(actions, k=shared)
        prompts = [[*beginning, *query.policy_prompt] for query in self.queries[:64]]
        rules = ChainRules(self.codec, min_tokens=max(0, tokens - 3), max_tokens=tokens)
        self.lm.merged("q")  # merged before the clock starts
        started = time.perf_counter()
        rollout(self.lm, "q", prompts, rules, generator=self.generator)
        return time.perf_counter() - started

    def chains(self, calls: int, tokens: int) -> float:
        """`sample_chains`; returns seconds a token."""
        self.lm.merged("q")  # merged before the clock starts
        started = time.perf_counter()
        sampled = self.sample_chains(calls, tokens)
        return (time.perf_counter() - started) / sum(map(len, sampled))

    def sample_chains(self, calls: int, tokens: int) -> list[Rationale]:
        """16 chains of `tokens` + 1 tokens, for different questions, with so many tool calls each.

        `calls` is even and divides `tokens`. The tokens are that many if the tokenizer has one for each `=` and `0`.
        """
        codec = TextCodec(self.lm.tokenizer, stop=self.session.task.stop, allowed_characters="=")
        called: list[Tool] = [Staggered(calls, tokens // calls - 1)] if calls else []
        chosen = (calls or tokens) + 1  # after the last result one more, so that all of it has to be read
        rules = ChainRules(codec, called, min_tokens=chosen, max_tokens=chosen)
        prompts = [query.policy_prompt for query in self.queries[:16]]
        sampled = rollout(self.lm, "q", prompts, rules, generator=self.generator)
        return [rationale for [rationale] in sampled]

    def _answer(self, y: str | None) -> list[int]:
        return self.codec.encode(y or "")

    def rationale(self, prefixes: int, tokens: int) -> Rationale:
        """Random tokens, with so many states at equal distances, the last one at the end."""
        actions = [action for action in self.codec.actions.tolist() if action != self.codec.stop_id]
        states = {tokens - k * tokens // prefixes for k in range(prefixes)}
        return Rationale(
            tuple(self.rng.choices(actions, k=tokens)),
            (True,) * tokens,
            tuple(i in states for i in range(tokens + 1)),
            text="",
            truncated=True,
        )


class Staggered:
    """A tool that makes chains of equal length in which no two rows get results at the same time.

    It is called after every token, since `=` is all that the chains may choose. The first result of a chain has 1 to
    2 · `length` − 1 characters, whatever the turn gives; the second as many fewer than 2 · `length`, and so on. After
    `calls` results it refuses. Each call computes something with the calculator first, for the sake of its time.
    """

    name = "staggered"
    description = "for measuring"
    trigger = "="

    def __init__(self, calls: int, length: int) -> None:
        self.calls, self.length = calls, length
        self.first = itertools.cycle(range(1, 2 * length))
        self.calculator = tools.load("calculator")

    def request(self, text: str) -> str:
        return text

    def __call__(self, request: str) -> str:
        results = re.findall("0+", request)
        if len(results) == self.calls:
            raise ToolError("no more")
        self.calculator(f"{len(request)} + 7")
        return "0" * (2 * self.length - len(results[-1]) if len(results) % 2 else next(self.first))
