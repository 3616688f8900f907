"""The engine that a run samples by: opened as the configuration says, and compared with the model it stands for."""

from __future__ import annotations

from dataclasses import replace

import torch

from latent_cot.config.schema import VLLM_HERE, RunConfig
from latent_cot.model import weights
from latent_cot.model.engine import Engine
from latent_cot.model.lm import LanguageModel
from latent_cot.model.vllm import VllmHere, VllmServers
from latent_cot.rationales.batch import sampler_gap
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import Example, UsageError

PROBES = 4
"""Rationales that are sampled to compare an engine with the model."""
PROBE_TOKENS = 8
"""Tokens of each, at most."""
LARGEST_GAP = 0.1
"""Nats a token by which an engine may differ there, on average: in bf16 some 0.02, with `top_k` 20 some 0.2, another
model's some 3."""


def open_engine(config: RunConfig, lm: LanguageModel) -> Engine | None:
    """None: the model samples by itself. Raises UsageError for an engine that cannot be had."""
    choice, vocabulary = config.rollout.engine, lm.base_config.get_text_config().vocab_size
    if config.e_step.max_staleness and lm.processes.count > 1:
        raise UsageError("--e-step.max-staleness: with several processes sampling and training take turns; give 0")
    if choice.startswith("http"):
        return VllmServers(choice.split(","), vocabulary)
    if choice == VLLM_HERE:
        if lm.processes.count > 1:
            raise UsageError("--rollout.engine vllm: each of several processes would start one; give vLLM servers")
        return VllmHere(
            weights.resolve(config.model),
            precision=str(lm.dtype).removeprefix("torch."),
            rank=config.lora.rank,
            vocabulary=vocabulary,
            trust_remote_code=config.trust_remote_code,
        )
    return None


def check_engine(lm: LanguageModel, example: Example, rules: ChainRules) -> None:
    """Raises UsageError where the engine samples from another model, or tells other probabilities than those it
    samples by."""
    if lm.engine is None:
        return
    prompt = rules.codec.encode_prompt(example.x)
    short = replace(rules, max_tokens=PROBE_TOKENS)
    (sampled,) = rollout(lm, "p", [prompt], short, n=PROBES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = float(sampler_gap(score(lm, lm.merged("p"), [Group(prompt, sampled)], rules.codec), sampled).mean())
    if not gap <= LARGEST_GAP:
        remedy = "serve the run's --model, with --logprobs-mode processed_logprobs"
        raise UsageError(f"--rollout.engine: it samples {gap:.1f} nats a token from this model, as it says; {remedy}")
