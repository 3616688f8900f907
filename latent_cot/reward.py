"""The E-step's reward: log p(z_{1:i} Y | X) at every prefix where stopping is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from latent_cot.lm import LanguageModel
from latent_cot.scoring import Group, score_in_batches
from latent_cot.text import TextCodec


@torch.no_grad()
def prefix_log_rewards(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    codec: TextCodec,
    *,
    tool_tokens: bool = False,
    max_tokens: int = 4096,
) -> list[torch.Tensor]:
    """log R(z_{1:i} ⊤) = log p(X z_{1:i} Y) − log p(X), untempered, in nats, for every state.

    Which tokens count:

    * each token of the rationale that the policy chose: log p over the allowed alphabet (and the stop,
      where it is allowed), as p itself would have sampled it;
    * a tool's tokens: not at all, since the tool writes them whatever p thinks; or, with `tool_tokens`,
      log p over the whole vocabulary, as the paper's code does;
    * each token of Y, over the whole vocabulary. Y's first token is where p ends the rationale;
    * the stop itself: not at all (Y's opening, such as ". The answer is", plays its part), as in the paper.

    Args:
        model: the frozen p, `lm.dense("p")`.
        groups: with their answers.
        max_tokens: padded size of a forward pass; bounds memory.

    Returns for each group a (B_g, N_g + 1) tensor on the CPU; −inf where the prefix is no state.
    """
    rewards: list[torch.Tensor | None] = [None] * len(groups)
    scored = score_in_batches(
        lm, model, groups, codec, max_tokens=max_tokens, answers_at="states", tool_tokens=tool_tokens
    )
    for batch, scores in scored:
        tokens = (scores.log_pf + scores.log_tool).cumsum(1)
        prefix = torch.nn.functional.pad(tokens, (1, 0))
        reward = torch.where(scores.states, prefix + scores.log_y, -torch.inf).cpu()
        for k, g in enumerate(batch):
            longest = max(len(rationale) for rationale in groups[g].rationales)
            rewards[g] = reward[scores.group.cpu() == k][:, : longest + 1]
    return rewards  # type: ignore[return-value]
