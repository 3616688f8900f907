"""Greedy decoding from drafts: the same chains in fewer passes.

Speculative decoding (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023) with
the chain that a task expects in place of a small model's. One pass over a draft says how far the model would have
written it by itself; its own token follows there, and from it the chain is decoded as ever. A good draft saves nearly
all of the decoding, a bad one costs a pass; neither changes what comes out, but for ties within the precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from latent_cot.chain import Chain, ChainRules, encode_rationale
from latent_cot.errors import UsageError
from latent_cot.lm import LanguageModel
from latent_cot.rollout import rollout
from latent_cot.tree import TokenTree, micro_batches
from latent_cot.types import Rationale

# Rows of logits at once, as they may be of the whole vocabulary.
_ROWS = 256


@torch.no_grad()
def decode_drafted(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[str | None],
    rules: ChainRules,
    *,
    batch_size: int,
    max_tokens: int = 8192,
) -> list[Rationale]:
    """The greedy rationale of each prompt.

    Args:
        model: the weights to decode with, e.g. `lm.dense("q")`.
        drafts: what each may be, without the tools' results; None: no idea.
        batch_size: chains in progress at once.
        max_tokens: of a pass over drafts.
    """
    begun = [Chain(rules) for _ in prompts]
    finished: dict[int, Rationale] = {}
    known = {i: encoded for i, draft in enumerate(drafts) if (encoded := _encode(draft, rules)) is not None}
    for i, actions in _greedy_actions(lm, model, prompts, known, rules, max_tokens).items():
        if _follow(begun[i], known[i], actions):
            finished[i] = begun[i].finish()
    rest = [i for i in range(len(prompts)) if i not in finished]
    sampled = rollout(
        lm,
        model,
        [prompts[i] for i in rest],
        rules,
        begun=[begun[i] for i in rest],
        temperature=0.0,
        batch_size=batch_size,
    )
    finished.update(zip(rest, (rationale for (rationale,) in sampled), strict=True))
    return [finished[i] for i in range(len(prompts))]


def _encode(draft: str | None, rules: ChainRules) -> Rationale | None:
    """None for a draft that no chain can be, under these rules."""
    try:
        return None if draft is None else encode_rationale(draft, rules)
    except UsageError:
        return None


def _follow(chain: Chain, draft: Rationale, actions: Sequence[int]) -> bool:
    """Write the draft as far as the greedy actions agree with it, and the first that does not.

    `actions` are those at the prefixes at which the policy chooses, the end included. Returns whether the chain ends.
    """
    codec = chain.rules.codec
    written = [token for token, chosen in zip(draft.tokens, draft.chosen, strict=True) if chosen]
    for k, action in enumerate(actions):
        if action == codec.stop_index:
            return True
        token = int(codec.actions[action])
        chain.push(token)
        if chain.full:
            return True
        if k == len(written) or token != written[k]:
            return False
    return False


def _greedy_actions(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    drafts: dict[int, Rationale],
    rules: ChainRules,
    max_tokens: int,
) -> dict[int, list[int]]:
    """The likeliest action at each prefix of each draft at which the policy chooses one, its end included."""
    codec = rules.codec
    numbers, trees, prefixes = list(drafts), [], []
    for i in numbers:
        tree = TokenTree()
        root = tree.extend(-1, prompts[i])[-1]
        prefixes.append([root, *tree.extend(root, drafts[i].tokens)])
        trees.append(tree)
    actions: dict[int, list[int]] = {}
    for batch in micro_batches(trees, max_tokens):
        rows: list[int] = []
        may_stop: list[bool] = []
        owner: list[int] = []
        offset = 0
        for t in batch:
            draft = drafts[numbers[t]]
            places = [place for place, chosen in enumerate((*draft.chosen, True)) if chosen]
            rows += [offset + prefixes[t][place] for place in places]
            may_stop += [draft.states[place] for place in places]
            owner += [numbers[t]] * len(places)
            offset += len(trees[t])
        hidden = lm.hidden(model, [trees[t] for t in batch])[torch.tensor(rows, device=lm.device)]
        blocked = ~torch.tensor(may_stop)
        best = []
        for part, no_stop in zip(hidden.split(_ROWS), blocked.split(_ROWS), strict=True):
            logits = lm.logits(part, codec.actions.to(lm.device)).cpu()
            logits[no_stop, codec.stop_index] = -torch.inf
            best += logits.argmax(-1).tolist()
        for i, action in zip(owner, best, strict=True):
            actions.setdefault(i, []).append(action)
    return actions
