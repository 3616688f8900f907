"""Beam search, and diverse beam search (Vijayakumar et al., 2016, arXiv 1610.02424).

transformers' `generate` has the first, and has given up the second; and it knows neither a rationale's alphabet nor
where it may stop. Here both follow the rules that a sampled rationale follows, so that they can be compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.types import Rationale


class Hypothesis(NamedTuple):
    """A finished chain."""

    rationale: Rationale
    log_prob: float
    """log p(Z ⊤ | X) over the allowed alphabet, nats: without a penalty, and of any length. The stop of a chain that
    was cut counts too: else one in mid-sentence would be the likelier for not having to end."""


class _Live(NamedTuple):
    """A chain that goes on."""

    chain: Chain
    log_prob: float
    row: int
    """Of the batch, where its last token was run."""


@dataclass
class _Group:
    """Hypotheses that compete with each other only."""

    width: int
    live: list[_Live]
    finished: list[Hypothesis] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """A chain's probability only falls: nothing that is still live can become one of the best."""
        full = len(self.finished) == self.width
        return not self.live or (full and self.live[0].log_prob <= self.finished[-1].log_prob)

    def finish(self, chain: Chain, log_prob: float) -> None:
        self.finished.append(Hypothesis(chain.finish(), log_prob))
        self.finished.sort(key=lambda one: -one.log_prob)
        del self.finished[self.width :]


@torch.no_grad()
def beam_search(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompt: Sequence[int],
    rules: ChainRules,
    *,
    beams: int,
    groups: int = 1,
    penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The likeliest rationales of one prompt, as far as `beams` of them at a time can tell.

    Args:
        beams: chains that go on at a time, over all groups.
        groups: of equal size. One after the other chooses its tokens, and a token that other groups have chosen at this
            step, each time, counts as `penalty` nats less likely. 1 group: plain beam search.
        rules: without tools, whose results no beam could wait for.

    Returns for each group up to beams / groups finished chains, the likeliest first.
    """
    actions = rules.codec.actions.to(lm.device)
    cache = lm.new_cache(model)
    ids = torch.tensor([list(prompt)], device=lm.device)
    positions = torch.arange(ids.shape[1], device=lm.device)[None]
    hidden = lm.decode_step(model, ids, torch.ones_like(ids), positions, cache)
    searched = [_Group(beams // groups, [_Live(Chain(rules), 0.0, 0)]) for _ in range(groups)]
    columns = ids.shape[1]
    while True:
        logits = lm.logits(hidden, actions).cpu()
        chosen = torch.zeros(len(actions))
        for group in searched:
            if group.done:
                group.live = []
            elif group.live:
                _extend(group, logits, chosen, penalty, rules)
        live = [one for group in searched for one in group.live]
        if not live:
            return [group.finished for group in searched]
        cache.rearrange([one.row for one in live], lm.device)
        columns += 1
        tokens = torch.tensor([one.chain.tokens[-1] for one in live], device=lm.device)[:, None]
        mask = torch.ones(len(live), columns, dtype=torch.long, device=lm.device)
        hidden = lm.decode_step(model, tokens, mask, torch.full_like(tokens, columns - 1), cache)
        rows = iter(range(len(live)))
        for group in searched:
            group.live = [one._replace(row=next(rows)) for one in group.live]


def _extend(group: _Group, logits: torch.Tensor, chosen: torch.Tensor, penalty: float, rules: ChainRules) -> None:
    """Give each of a group's chains its best continuations, and note the tokens in `chosen`, (A,) counts."""
    stop = rules.codec.stop_index
    table = logits[[one.row for one in group.live]]
    table[[not (one.chain.may_stop or one.chain.full) for one in group.live], stop] = -torch.inf
    log_probs = table.log_softmax(-1) + torch.tensor([one.log_prob for one in group.live])[:, None]
    goes_on = torch.arange(len(chosen)) != stop
    log_probs[torch.tensor([one.chain.full for one in group.live])[:, None] & goes_on] = -torch.inf
    # Twice the width: of these at most half are stops, so that enough are left that go on.
    ranked = (log_probs - penalty * chosen).flatten()
    best = ranked.topk(min(2 * group.width, len(ranked)))
    going: list[_Live] = []
    for rank, place in enumerate(best.indices.tolist()):
        parent, action = divmod(place, len(chosen))
        log_prob = float(log_probs[parent, action])
        if log_prob == -torch.inf or len(going) == group.width:
            break
        before = group.live[parent]
        if action == stop:
            if rank < group.width:
                group.finish(before.chain, log_prob)
                chosen[action] += 1
            continue
        chain = before.chain.copy()
        chain.push(int(rules.codec.actions[action]))
        chosen[action] += 1
        going.append(_Live(chain, log_prob, before.row))
    group.live = sorted(going, key=lambda one: -one.log_prob)
