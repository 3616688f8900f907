"""Sampling one rationale by running the whole sequence anew at each step: batch one, no cache, no padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from latent_cot.types import Rationale, Tool, ToolCall, ToolError
from tests.oracles.scoring import last_logits

Noise = Callable[[int], torch.Tensor]
"""Number of chosen tokens so far -> Gumbel noise, one value an action."""


@torch.no_grad()
def rollout(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    actions: Sequence[int],
    stop: int,
    *,
    tool: Tool | None,
    granularity: str,
    min_tokens: int,
    max_tokens: int,
    longest_result: int,
    step_delimiter: str | None = None,
    temperature: float = 0.0,
    noise: Noise | None = None,
) -> Rationale:
    """Greedy at temperature 0; else the largest of log-probability at that temperature plus noise.

    For a tokenizer whose decoding is the concatenation of its tokens' texts.
    """
    tokens: list[int] = []
    chosen: list[bool] = []
    calls: list[ToolCall] = []
    states = [min_tokens == 0]
    picked = 0
    cut = False
    while True:
        if picked == max_tokens:
            cut = True
            break
        logits = last_logits(model, [*prompt, *tokens]).tolist()
        noises = [] if noise is None else noise(picked).tolist()
        values = []
        for k, action in enumerate(actions):
            value = logits[action]
            if action == stop and not states[-1]:
                value = -float("inf")
            elif temperature > 0:
                value = value / temperature + noises[k]
            values.append(value)
        action = actions[max(range(len(actions)), key=lambda k: values[k])]
        if action == stop:
            break
        tokens.append(action)
        chosen.append(True)
        states.append(False)
        picked += 1
        text = tokenizer.decode(tokens)
        assert isinstance(text, str)
        written: list[int] = []
        answered = False
        if tool is not None and text.endswith(tool.trigger):
            position, request = len(tokens), tool.request(text)
            try:
                result = tool(request)
                written = tokenizer(result, add_special_tokens=False)["input_ids"]
                if len(written) > longest_result:
                    length, written = len(written), []
                    raise ToolError(f"the result has {length} tokens, more than {longest_result}")
                answered = True
                calls.append(ToolCall(tool.name, position, request, result, n_tokens=len(written)))
            except ToolError as error:
                calls.append(ToolCall(tool.name, position, request, None, error=str(error)))
        for token in written:
            tokens.append(token)
            chosen.append(False)
            states.append(False)
        text = tokenizer.decode(tokens)
        assert isinstance(text, str)
        complete = answered or (step_delimiter is not None and text.endswith(step_delimiter))
        states[-1] = picked >= min_tokens and (granularity == "token" or complete)
    states[-1] = True
    return Rationale(tuple(tokens), tuple(chosen), tuple(states), str(tokenizer.decode(tokens)), cut, tuple(calls))
