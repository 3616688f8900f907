"""Rollouts by an engine that completes texts (`model.engine`): one call for each stretch between tool calls.

A call has a request for every chain that is not finished. What comes back is pushed into the chain, which calls its
tools; the next request's prompt is the same token ids with the result's behind them. Nothing is turned into text and
back, and an engine that keeps the keys and values of prefixes computes only what is new.

An engine is told once for a request which tokens it may choose. So a stretch also ends where the stop begins or ceases
to be one of them: with steps as states, a first request of a single token that may be the stop, and one without it up
to the end of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from latent_cot.model.engine import Completion, Request
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.types import Rationale, UsageError


@dataclass
class _Open:
    """A chain that is being written."""

    chain: Chain
    prompt: Sequence[int]
    temperature: float
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False
    asked: int = 0
    """How many tokens were asked for, at most."""

    def request(self, rules: ChainRules, top_p: float, seed: int) -> Request:
        """What is asked for next."""
        chain = self.chain
        length = rules.max_tokens - chain.n_chosen
        if chain.may_stop and rules.granularity == "step":
            length = 1
        elif chain.n_chosen < rules.min_tokens:
            length = min(length, rules.min_tokens - chain.n_chosen)
        allowed = rules.allowed[chain.may_stop]
        prompt = (*self.prompt, *chain.tokens)
        self.asked = length
        return Request(prompt, allowed, rules.ends, length, self.temperature, top_p, seed)

    def rationale(self, *, whole: bool) -> Rationale:
        """What it has become. `whole`: nothing was cut off the distribution that it was drawn from."""
        known = whole and self.temperature == 1
        return replace(self.chain.finish(), log_probs=tuple(self.log_probs) if known else None)

    def take(self, completion: Completion, codec: TextCodec) -> None:
        """Add what was written, up to the stop, a tool's result or the longest length. Raises UsageError for what no
        engine may write."""
        tokens = completion.tokens
        known = all(map(codec.is_action, tokens))
        stops = codec.stop_id in tokens and not self.chain.may_stop
        if not known or stops or not 0 < len(tokens) == len(completion.log_probs) <= self.asked:
            raise UsageError(f"--rollout.engine: it has written {completion}, which no rationale may be; leave it out")
        for token, log_prob in zip(tokens, completion.log_probs, strict=True):
            self.log_probs.append(log_prob)
            self.finished = token == codec.stop_id
            if self.finished:
                return
            result = self.chain.push(token)
            self.finished = self.chain.full
            if result or self.finished:
                return


@torch.no_grad()
def rollout(
    complete: Callable[[Sequence[Request]], Sequence[Completion]],
    prompts: Sequence[Sequence[int]],
    rules: ChainRules,
    *,
    n: int = 1,
    temperature: float | Sequence[Sequence[float]] = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[Rationale]]:
    """`n` rationales of each prompt; `complete` asks an engine. The rest as in `rollout.rollout`."""
    heat = torch.as_tensor(temperature, dtype=torch.float32).expand(len(prompts), n).tolist()
    chains = [
        [_Open(Chain(rules), prompt, own) for own in of_prompt] for prompt, of_prompt in zip(prompts, heat, strict=True)
    ]
    while going := [chain for of_prompt in chains for chain in of_prompt if not chain.finished]:
        seeds = torch.randint(2**31, (len(going),), generator=generator).tolist()
        asked = [chain.request(rules, top_p, seed) for chain, seed in zip(going, seeds, strict=True)]
        for chain, completion in zip(going, complete(asked), strict=True):
            chain.take(completion, rules.codec)
    return [[chain.rationale(whole=top_p == 1) for chain in of_prompt] for of_prompt in chains]
