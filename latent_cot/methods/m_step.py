"""One optimiser step of the M-step: raise log p(Z Y | X) of given rationales."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import Adapter, LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Group, score_in_batches

NEGLIGIBLE = 0.05
"""Share of a batch's loss that gets no backward pass: that of the rationales which p knows best. Late in fine-tuning
most rationales are known, and a few have nearly all of the loss (Jiang et al., "Accelerating deep learning by focusing
on the biggest losers", 2019)."""

Target = Literal["joint", "answer", "candidates"]
"""Whose likelihood is raised: Z and Y, Y after Z, or Y among the candidates after Z."""


@dataclass(frozen=True)
class LikelihoodInfo:
    """What an update saw."""

    loss: float
    """(Weighted) mean negative log-likelihood of a token, in nats; of an answer, if it is one among candidates."""
    gradient_norm: float
    learned: float
    """Share of the groups that had a part in the gradient."""


def update(
    lm: LanguageModel,
    adapter: Adapter,
    groups: Sequence[Group],
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    max_tokens: int,
    weights: Sequence[Sequence[float]] | None = None,
    target: Target = "joint",
    negligible: float = 0.0,
) -> LikelihoodInfo:
    """One gradient step on the likelihood of each group's rationales and of Y behind each.

    The tokens a tool wrote are attended to but not learned. Where Y begins with the stop, p ends a rationale by Y's
    first token; else the stop, which is then no token of the text, is learned besides. `weights` holds, for each group,
    the weight of each of its rationales' log-likelihoods, of mean 1 over all that is learned; None: 1. (Divided by the
    weights of the batch instead, a batch of light rationales would count for as much as one of heavy ones.) The groups
    that together have at most the share `negligible` of the loss are left out of the gradient. Several processes divide
    the groups among them.
    """
    if weights is None:
        weights = [[1.0] * len(group.rationales) for group in groups]
    tokens = sum(n for group in groups for n in _tokens(group, rules.codec.stop_id, target))
    lessons, share = list(zip(groups, weights, strict=True)), lm.processes.share

    def losses_of(own: Sequence[tuple[Group, Sequence[float]]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The lessons of each micro-batch, and (B,) what each of their rationales adds to the loss."""
        for members, found in _log_likelihoods(lm, model, [group for group, _ in own], rules, max_tokens, target):
            yield members, found * found.new_tensor([-w / tokens for k in members for w in own[k][1]])

    total = 0.0
    with lm.trainable(adapter, dropout=True) as model:
        if negligible:
            own = share(lessons)
            loss_of = [0.0] * len(own)
            with torch.no_grad():
                for members, losses in losses_of(own):
                    sizes = [len(own[k][1]) for k in members]
                    for k, part in zip(members, losses.split(sizes), strict=True):
                        loss_of[k] = float(part.sum())
            of_all = lm.processes.join(loss_of)
            total, lessons = sum(of_all), [lessons[k] for k in _worth_learning(of_all, negligible)]
        for _, losses in losses_of(share(lessons)):
            loss = losses.sum()
            lm.accelerator.backward(loss)
            total += 0.0 if negligible else float(loss.detach())
        norm = optimiser.step(step)
    if not negligible:
        (total,) = lm.processes.sum([total])
    return LikelihoodInfo(total, norm, len(lessons) / len(groups))


def _worth_learning(losses: Sequence[float], negligible: float) -> list[int]:
    """Which lessons are left without the least of them that together have at most this share of the loss; in order."""
    left_out, budget = set[int](), negligible * sum(losses)
    for k in sorted(range(len(losses)), key=losses.__getitem__):
        budget -= losses[k]
        if budget <= 0:
            break
        left_out.add(k)
    return [k for k in range(len(losses)) if k not in left_out]


@torch.no_grad()
def held_out_loss(
    lm: LanguageModel, adapter: Adapter, groups: Sequence[Group], rules: ChainRules, *, max_tokens: int
) -> float:
    """What `update` would call the loss of these rationales, in nats, without learning them."""
    scored = _log_likelihoods(lm, lm.merged(adapter), groups, rules, max_tokens)
    total = sum(float(log_likelihood.sum()) for _, log_likelihood in scored)
    return -total / sum(n for group in groups for n in _tokens(group, rules.codec.stop_id))


def _log_likelihoods(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    rules: ChainRules,
    max_tokens: int,
    target: Target = "joint",
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The groups of each micro-batch, and (B,) log-likelihoods of their rationales."""
    for members, scores in score_in_batches(lm, model, groups, rules.codec, max_tokens=max_tokens, answers_at="end"):
        if target == "joint":
            yield members, scores.log_pf.sum(1) + scores.log_y.sum(1) + scores.at_end(scores.log_stop)
        else:
            yield members, scores.at_end(scores.log_y if target == "answer" else scores.log_choice)


def _tokens(group: Group, stop_id: int, target: Target = "joint") -> list[int]:
    """How many tokens of each rationale, and behind it, are learned; the stop counts as one, a forced one is none; a
    choice among candidates counts as one."""
    if target != "joint":
        return [len(group.answer) if target == "answer" else 1] * len(group.rationales)
    stop = list(group.answer[:1]) != [stop_id]
    return [sum(z.policy_mask) + len(group.answer) + int(stop and not z.truncated) for z in group.rationales]


def epoch_batch(n: int, size: int, step: int, seed: str) -> list[int]:
    """The indices of batch `step` when n items are gone through in a new random order each epoch.

    A function of its arguments only, so that a resumed run takes the same batches.
    """
    batch = []
    orders: dict[int, list[int]] = {}
    for k in range(step * size, (step + 1) * size):
        epoch, place = divmod(k, n)
        if epoch not in orders:
            orders[epoch] = list(range(n))
            random.Random(f"{seed}/{epoch}").shuffle(orders[epoch])
        batch.append(orders[epoch][place])
    return batch
