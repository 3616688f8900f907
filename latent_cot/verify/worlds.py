"""Worlds in which every rationale can be listed: a tiny language model, two questions, and the rules of a chain.

The models have random weights. Nothing is claimed about what they can do; what matters is that p(X Z Y) is
a distribution like any other, far from uniform, and that it can be summed up exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Query
from latent_cot.types import Example, Tool, ToolError

END = "<end>"
CHARACTERS = "ab12=,."
"""With END, the vocabulary: one token a character."""

QUESTIONS = (Example(x="ab", y=".a", question="ab"), Example(x="b1a", y=".b2", question="b1a"))


class CountingTool:
    """Writes a text of zero to three tokens that depends on what it is asked with, and sometimes refuses.

    Asked at once, it fails; after `a` it writes nothing; else one token for each token it reads, at most three.
    """

    name = "counting"
    description = "for `latent-cot verify`"
    trigger = "="

    def request(self, text: str) -> str:
        return text.removesuffix("=").rsplit("=", 1)[-1]

    def __call__(self, request: str) -> str:
        if not request:
            raise ToolError("nothing to count")
        return "" if request == "a" else "212"[: len(request)]


@dataclass(frozen=True)
class WorldSpec:
    """What a world is made from."""

    description: str
    seed: int
    """Of the model's weights. Chosen among the first twenty so that the posterior is spread
    over many rationales, s_0 and the tool's among them, and is far from where q starts."""
    steps: int
    """Of training: what a world of its size needs."""
    max_tokens: int
    """Of a rationale, as `ChainRules` has it."""
    allowed_characters: str | None = None
    stop: str | None = None
    sees_answer: bool = False
    """q's prompt is X and Y, not X alone."""
    tools: Sequence[Tool] = ()
    by_step: bool = False
    """It may stop only where a step, which ends with a comma, is complete."""
    floor: float | None = None
    """The reward floor that q is trained with, nats: rewards below it are known as upper bounds only."""
    spread: float = 1.0
    """The logits of p and q are multiplied by this: above 1, rewards are as far apart as those of a trained model."""


_TOOL = WorldSpec("a tool writes 0 to 3 tokens, or refuses", 7, 450, 4, "ab=", tools=(CountingTool(),))
_SPREAD = "most rewards are 40 nats below the best, as a trained model's are; a floor"

WORLDS: Mapping[str, WorldSpec] = {
    "plain": WorldSpec("any token; stop anywhere", 0, 450, 3),
    "tool": _TOOL,
    "steps": WorldSpec("stop only where a step is complete", 5, 400, 5, "ab,", by_step=True),
    "constrained": WorldSpec("three letters; the stop is the answer's first token", 10, 350, 5, "ab1", stop="."),
    "xy": WorldSpec("q reads X and Y, p reads X", 0, 250, 4, "ab1", sees_answer=True),
    "floor": replace(_TOOL, description="most rewards are below a floor; a tool, as in `tool`", floor=10.0, spread=2.0),
    "spread": WorldSpec(_SPREAD, 13, 450, 5, "ab1", stop=".", floor=10.0, spread=5.0),
}
"""Name -> world."""


@dataclass(frozen=True)
class World:
    """A world, built."""

    lm: LanguageModel
    rules: ChainRules
    queries: tuple[Query, ...]
    floor: float | None = None
    """See `WorldSpec`."""


def build(spec: WorldSpec) -> World:
    """A new model with its adapters p and q, q equal to p as at the start of an E-step."""
    tokenizer = _tokenizer()
    triggers = [tool.trigger for tool in spec.tools]
    codec = TextCodec(tokenizer, stop=spec.stop, allowed_characters=spec.allowed_characters, triggers=triggers)
    rules = ChainRules(
        codec, spec.tools, "step" if spec.by_step else "token", max_tokens=spec.max_tokens, step_delimiter=","
    )
    queries = tuple(
        Query(
            example,
            policy_prompt=codec.encode_prompt(example.x + (example.y or "") * spec.sees_answer),
            model_prompt=codec.encode_prompt(example.x),
            answer=codec.encode(example.y or ""),
        )
        for example in QUESTIONS
    )
    return World(_language_model(tokenizer, spec), rules, queries, spec.floor)


def _tokenizer() -> PreTrainedTokenizerFast:
    pieces = [END, *CHARACTERS]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def _language_model(tokenizer: PreTrainedTokenizerFast, spec: WorldSpec) -> LanguageModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.25,  # large, so that the next token depends visibly on all tokens before it
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        base = LlamaForCausalLM(config)
    with torch.no_grad():
        base.lm_head.weight.mul_(spec.spread)
    # Of the model's width, so that capacity is no excuse.
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")
    lm = LanguageModel(base, tokenizer, lora)
    lm.reset_adapter("p", spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for name, weight in sorted(lm.parameters("p").items()):
            if "lora_B" in name:  # p is not the base model: a mix-up of the two would be noticed
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    lm.copy_adapter("p", "q")
    return lm


@dataclass(frozen=True)
class Settings:
    """How q is trained; the same in all worlds. At reward temperature 1: another would change what q
    converges to."""

    samples: int = 96
    """Rationales sampled for each question of each step."""
    learning_rate: float = 5e-3
    warmup: int = 10
    max_grad_norm: float = 0.3
    huber_delta: float = 3.0
    log_z_learning_rate: float = 0.2
    on_policy: float = 0.4
    """Share of questions whose rationales are sampled from q at temperature 1."""
    tempered: float = 0.3
    """Share sampled at a temperature from 1 to `temperature_high`. The rest are replayed."""
    temperature_high: float = 2.0
    max_batch_tokens: int = 1 << 16
    seed: int = 0
