"""How long a task's texts are, before anything is trained: counted in its training data, with the model's tokenizer.

Nothing is fetched: data on the hub are left alone, and without a tokenizer on this machine the tokens are estimated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from latent_cot import disk, tasks, tools
from latent_cot.config.schema import RunConfig, data_request, tool_names
from latent_cot.planning.shape import SHAPES
from latent_cot.run.paths import DATA_OPTIONS, train_files
from latent_cot.run.preflight import MAX_TOKENS, codec_of
from latent_cot.tasks.files import HUB, sources
from latent_cot.types import Example, Task, TaskData, UsageError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_cot.rationales.chain import ChainRules

LOOKED_AT = 200
"""Examples of each kind, at most: a mean of so many is as near as a plan needs it."""
_PIECES = re.compile(r"[A-Za-z]+|[^A-Za-z\s]")
_LETTERS = 7
"""Letters of a word that are a token, about; other characters are one each."""
_RESULT = 2
"""Tokens of a tool's result, about. No tool is called: a plan for a model that is not here has not to wait for it."""
_TEMPLATE = 30
"""Tokens of a chat template, as SmolLM2's and Qwen2.5's have, about."""

Counted = Literal["counted", "estimated"]
"""With the model's tokenizer, or from the characters."""


@dataclass(frozen=True)
class Lengths:
    """What the data tell."""

    tokens: Mapping[str, float] = field(default_factory=dict)
    """Field of `Texts` -> its mean, of those that the data have: without a demonstration there is no `chain`."""
    how: Counted = "counted"
    examples: int = 0
    """In how many."""
    data: Mapping[str, int] = field(default_factory=dict)
    """Part of `RunConfig.data` -> how many examples a run would have, which may be fewer than were asked for."""
    why_not: str | None = None
    """Why the data could not be looked at, or the tokens not be counted."""


def lengths_of(config: RunConfig, task: Task, *, whole: bool = True) -> Lengths:
    """Of the questions, demonstrations and answers that a run would learn from. `whole`: whether they are counted, too,
    and not only looked at, a few of each kind."""
    if on_hub := _on_hub(config):
        return Lengths(why_not=f"{on_hub} is on the hub")
    request, parts = data_request(config), ("demonstrations", "unlabelled", "validation")
    few = {part: min(LOOKED_AT, getattr(request, part)) for part in parts}
    try:
        data = task.load(request if whole else replace(request, **few))
        counts = {part: len(getattr(data, part)) for part in parts} if whole else {}
        data = replace(data, **{part: getattr(data, part)[:LOOKED_AT] for part in parts})
        examples = [*data.demonstrations, *data.unlabelled]
        prompts = [task.posterior_prompt(one) if config.q_sees != "question" else one.x for one in examples]
    except (UsageError, OSError) as error:
        return Lengths(why_not=first_line(error))
    if not examples:
        return Lengths(why_not="there are no examples")
    try:
        tokens = _counted(config, task, data, prompts)
    except UsageError as error:
        return Lengths(_estimated(config, task, data, prompts), "estimated", len(examples), counts, first_line(error))
    return Lengths(tokens, "counted", len(examples), counts)


def _counted(config: RunConfig, task: Task, data: TaskData, prompts: Sequence[str]) -> dict[str, float]:
    """Raises UsageError without a tokenizer, and for a demonstration that cannot be written."""
    rules = _rules(config, task)
    codec = rules.codec

    from latent_cot.rationales.chain import encode_rationale

    examples: list[Example] = [*data.demonstrations, *data.unlabelled]
    rationales = [encode_rationale(one.z, rules) for one in data.demonstrations if one.z]
    return _means(
        prompt=[len(codec.encode_prompt(prompt)) for prompt in prompts],
        answer=[len(codec.encode(one.y)) for one in examples if one.y],
        chain=[len(rationale) for rationale in rationales],
        states=[sum(rationale.states) for rationale in rationales],
    )


def _estimated(config: RunConfig, task: Task, data: TaskData, prompts: Sequence[str]) -> dict[str, float]:
    """The same by `_estimate`, but for the states, which depend on what a token is."""
    chain_tools = [tools.load(name) for name in tool_names(config, task)]
    examples = [*data.demonstrations, *data.unlabelled]
    return _means(
        prompt=[_estimate(prompt) + (_TEMPLATE if task.chat else 0) for prompt in prompts],
        answer=[_estimate(one.y) for one in examples if one.y],
        chain=[
            _estimate(one.z) + _RESULT * sum(one.z.count(tool.trigger) for tool in chain_tools)
            for one in data.demonstrations
            if one.z
        ],
    )


def _means(**counts: Sequence[int]) -> dict[str, float]:
    """Of those that there are."""
    return {name: max(1.0, fmean(of)) for name, of in counts.items() if of}


def _estimate(text: str) -> int:
    """Tokens of a text, about: words are one or a few, digits, signs and the letters of other scripts one each."""
    return sum(math.ceil(len(piece) / _LETTERS) for piece in _PIECES.findall(text))


def _on_hub(config: RunConfig) -> str | None:
    """The first of the data sets on the hub that the task would read."""
    options = dict(config.data.options)
    if config.task.endswith(tasks.FILES):
        options = tasks.files_of(config.task) | options
    texts = [options[name] for name in DATA_OPTIONS if name in options]
    named = [*train_files(config), *(name for text in texts for name in sources(text))]
    return next((name for name in named if name.startswith(HUB)), None)


def _rules(config: RunConfig, task: Task) -> ChainRules:
    """As in training, but for the longest chain: a demonstration that is too long is counted as it is."""
    tokenizer = _tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    if tokenizer is None:
        raise UsageError(f"the tokenizer of {config.model} is not on this machine")

    from latent_cot.rationales.chain import ChainRules

    chain_tools = [tools.load(name) for name in tool_names(config, task)]
    codec = codec_of(tokenizer, task, chain_tools)
    r = config.rollout
    return ChainRules(codec, chain_tools, r.granularity, task.step_delimiter, r.min_tokens, MAX_TOKENS)


def _tokenizer(model: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Of a folder, or of a model on the hub that this machine has a copy of."""
    from latent_cot.model.weights import DEFAULT_MODEL, HUB_ID, converted_folder, quiet_transformers

    places: list[str | Path] = [HUB_ID, converted_folder()] if model == DEFAULT_MODEL else [model]
    if (folder := disk.expanded(model)).is_dir():
        places = [folder] if all(entry.is_file() or entry.is_dir() for entry in folder.iterdir()) else []
    elif model in SHAPES and model != DEFAULT_MODEL:
        return None  # a size, and no model

    from transformers import AutoTokenizer

    for place in places:
        try:
            with quiet_transformers():
                found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                    place, local_files_only=True, trust_remote_code=trust_remote_code
                )
        except Exception:  # each kind has its own, and so has the hub's client
            continue
        return found
    return None
