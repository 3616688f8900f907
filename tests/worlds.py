"""Small worlds in which the engine can be compared with the oracles: models, a tool, tasks, rationales."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase
from peft import LoraConfig

from latent_cot.model.architecture import Trees
from latent_cot.model.lm import ADAPTERS, LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.model.weights import load_model_and_tokenizer
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.scoring import Group
from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData, ToolError, UsageError

ALPHABET = " ,.1234567890=+-"

NO_SHRINKING = (Phase.explicit, Phase.generate)
"""For tests that run the oracles: a failure is reported at once, and a smaller seed is no simpler a case."""


def language_model(
    folder: Path,
    *,
    perturb: bool = True,
    trees: Trees | None = None,
    linear_head: bool | None = None,
    rank: int = 4,
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    """A tiny model with adapters; `perturb` makes p, q and the base model three different models."""
    base, tokenizer = load_model_and_tokenizer(folder, dtype=torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=is_gpt2(base))
    lm = LanguageModel(base, tokenizer, lora, gradient_checkpointing=gradient_checkpointing)
    for seed, adapter in enumerate(ADAPTERS):
        lm.reset_adapter(adapter, seed)
        if perturb:
            shake(lm, seed)
    if trees is not None:
        lm.capabilities = dataclasses.replace(lm.capabilities, trees=trees)
    if linear_head is not None:
        lm.capabilities = dataclasses.replace(lm.capabilities, linear_head=linear_head)
    return lm


def is_gpt2(base: torch.nn.Module) -> bool:
    """GPT-2 stores its weights transposed, and PEFT warns unless it is told so."""
    return type(base).__name__.startswith("GPT2")


@torch.no_grad()
def shake(lm: LanguageModel, seed: int) -> None:
    """Give one adapter's B noise, so that the adapter does something."""
    adapter = ADAPTERS[seed]
    generator = torch.Generator().manual_seed(100 + seed)
    for name, weight in sorted(lm.parameters(adapter).items()):
        if "lora_B" in name:
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    lm.copy_adapter(adapter, adapter)  # its merged copy is out of date


class FakeTool:
    """A tool whose results have all lengths, from none to too many, and which sometimes fails."""

    name = "fake"
    description = "for tests"
    trigger = "="

    def request(self, text: str) -> str:
        return text.removesuffix("=").rsplit(",", 1)[-1]

    def __call__(self, request: str) -> str:
        kind = sum(map(ord, request)) % 6
        if kind == 0:
            raise ToolError("not today")
        return {1: "", 2: "7", 3: " 12", 4: " 3, = 4+", 5: " 1" * 40}[kind]


class CountTool:
    """Writes how many characters it was asked with: never fails, always two tokens."""

    name = "count"
    description = "for tests"
    trigger = "="

    def request(self, text: str) -> str:
        return text.removesuffix("=").rsplit("=", 1)[-1]

    def __call__(self, request: str) -> str:
        return f" {len(request) % 10}"


def prefix_log_rewards(
    lm: LanguageModel, groups: Sequence[Group], codec: TextCodec, *, ends_only: bool = False, **settings: Any
) -> list[torch.Tensor]:
    """log p(z_{1:i} Y | X) of every prefix, by group: the plain reward, which needs no examples."""
    reward = Reward(lm, codec, **settings)
    return reward.of_prefixes([Example("")] * len(groups), groups, ends_only=ends_only)


def random_chain(rules: ChainRules, rng: random.Random, length: int) -> Rationale:
    """A rationale of at most `length` chosen tokens that the policy could have written."""
    chain = Chain(rules)
    actions = [a for a in rules.codec.actions.tolist() if a != rules.codec.stop_id]
    trigger = rules.codec.encode("=")[0]
    while chain.n_chosen < length and not chain.full:
        chain.push(trigger if rng.random() < 0.2 else rng.choice(actions))
    return chain.finish()


def masked_rationale(
    tokens: Sequence[int], chosen: Sequence[bool], states: Sequence[bool], *, cut: bool = False
) -> Rationale:
    """A rationale with masks of any kind; its last prefix is always a state."""
    return Rationale(tuple(tokens), tuple(chosen), (*states[:-1], True), text="", truncated=cut)


@dataclasses.dataclass
class ToyTask(Task):
    """Letters are counted by `CountTool`: `"abc"` has the rationale `" abc="` and the answer 4."""

    name: str = "toy"
    description: str = "for tests"
    tools: tuple[str, ...] = ("count",)
    stop: str | None = None
    allowed_characters: str | None = " abc=0123456789"
    default_splits: tuple[str, ...] = ("test",)

    def load(self, request: DataRequest) -> TaskData:
        words = ["a", "ab", "abc", "ba", "c", "cab"]
        examples = [self.example(word) for word in words]
        return TaskData(tuple(examples[:2]), tuple(examples[2:]), (self.example("bc"), self.example("cba")))

    def split(self, name: str, size: int | None = None) -> list[Example]:
        if name != "test":
            raise UsageError(f"no split {name!r}")
        return [self.example(word) for word in ["cc", "bab", "aa"]][:size]

    def read(self, path: str) -> list[Example]:
        raise UsageError(f"{path}: the toy task reads no files")

    def example(self, question: str, answer: str | None = None) -> Example:
        gold = str(len(question) + 1)
        return Example(f"{question}?", f". It is {gold}.", f" {question}=", gold, question)

    def posterior_prompt(self, example: Example) -> str:
        return f"{example.x}{example.y}"

    def answer(self, rationale: Rationale) -> str | None:
        results = [call.result for call in rationale.calls if call.result]
        return results[-1].strip() if results else None


class PlainTask(ToyTask):
    """No tool, no demonstrations; the answer is one of two candidates."""

    def __init__(self) -> None:
        super().__init__(name="plain", tools=(), allowed_characters=None)

    def load(self, request: DataRequest) -> TaskData:
        return TaskData((), tuple(self.example(word) for word in ["aab", "abb", "bbb"]), ())

    def example(self, question: str, answer: str | None = None) -> Example:
        gold = "a" if question.count("a") > question.count("b") else "b"
        return Example(f"{question}?", f", so {gold}", None, gold, question)

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        return {"a": ", so a", "b": ", so bb"}

    def answer(self, rationale: Rationale) -> str | None:
        raise AssertionError("a task with candidates is not asked to read an answer off")
