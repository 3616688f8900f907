"""One optimiser step on the likelihood of given rationales."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import Counts
from latent_cot.rationales.scoring import Group, score_in_batches
from latent_cot.types import Reasoner

Target = Literal["joint", "answer", "candidates"]
"""Whose likelihood is raised: Z and Y, Y after Z, or Y among the candidates after Z."""


@dataclass(frozen=True)
class LikelihoodInfo:
    """What an update saw."""

    loss: float
    """(Weighted) mean negative log-likelihood of a token, in nats; of an answer, if it is one among candidates;
    of a question, in forward KL."""
    gradient_norm: float


def likelihood_step(
    lm: LanguageModel,
    adapter: Reasoner,
    groups: Sequence[Group],
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    max_tokens: int,
    weights: Sequence[Sequence[float]] | None = None,
    target: Target = "joint",
) -> LikelihoodInfo:
    """One gradient step on the likelihood of each group's rationales and of Y behind each.

    The tokens a tool wrote are attended to but not learned. Where Y begins with the stop, p ends a rationale by Y's
    first token; else the stop, which is then no token of the text, is learned besides. `weights` holds, for each group,
    the weight of each of its rationales' log-likelihoods; None: 1. The loss is divided by the tokens that are
    learned, for weights of mean 1 over all batches. (Divided by the weights of the batch instead, a batch of light
    rationales would count for as much as one of heavy ones.) Several processes divide the groups among them.
    """
    if weights is None:
        weights = [[1.0] * len(group.rationales) for group in groups]
    divisor = sum(n for group in groups for n in _tokens(group, rules.codec, target))
    groups, weights = lm.processes.share(groups), lm.processes.share(weights)
    total = 0.0
    with lm.trainable(adapter, dropout=True) as model:
        for members, log_likelihood in _log_likelihoods(lm, model, groups, rules, max_tokens, target):
            loss = -(log_likelihood @ log_likelihood.new_tensor([w for g in members for w in weights[g]])) / divisor
            lm.accelerator.backward(loss)
            total += float(loss.detach())
        norm = optimiser.step(step)
    (total,) = lm.processes.sum([total])
    return LikelihoodInfo(total, norm)


@torch.no_grad()
def held_out_loss(
    lm: LanguageModel, adapter: Reasoner, groups: Sequence[Group], rules: ChainRules, *, max_tokens: int
) -> float:
    """What `likelihood_step` would call the loss of these rationales, in nats, without learning them."""
    scored = _log_likelihoods(lm, lm.merged(adapter), groups, rules, max_tokens)
    total = sum(float(log_likelihood.sum()) for _, log_likelihood in scored)
    return -total / sum(n for group in groups for n in _tokens(group, rules.codec))


@torch.no_grad()
def evidence_weights(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[Counts],
    rules: ChainRules,
    *,
    max_tokens: int,
    target: Target,
) -> list[torch.Tensor]:
    """For each question the (B,) log w of its distinct rationales, which were sampled behind these prompts. They are
    for `log_evidence`.

    Where p writes Z itself ("joint"), w is 1 / (n q(Z)) for each of n samples of q, else 1 / n.
    """
    found = [torch.tensor([*of.values()], dtype=torch.double).log() - math.log(sum(of.values())) for of in counts]
    if target == "joint":
        read = [Group(prompt, list(of)) for prompt, of in zip(prompts, counts, strict=True)]
        for members, scores in score_in_batches(lm, lm.merged("q"), read, rules.codec, max_tokens=max_tokens):
            log_q = scores.log_complete.cpu().double().split([len(counts[g]) for g in members])
            for g, of_question in zip(members, log_q, strict=True):
                found[g] -= of_question
    return found


class Evidence(NamedTuple):
    """How likely p finds the answer of a question, nats, by n sampled rationales."""

    log_y: float
    """log Σ w p, an estimate of log p(Y | X). Where p writes Z itself, the log of the mean of p(Z Y | X) / q(Z): a
    lower bound in expectation (Burda et al., "Importance weighted autoencoders", ICLR 2016). Where p only decides, the
    log of the mean of p(Y | X Z) over rationales of who has not read Y."""
    elbo: float
    """The mean of the logarithm instead, of n w p: the bound that both steps of EM raise."""


@torch.no_grad()
def log_evidence(
    lm: LanguageModel,
    groups: Sequence[Group],
    counts: Sequence[Counts],
    log_weights: Sequence[torch.Tensor],
    rules: ChainRules,
    *,
    max_tokens: int,
    target: Target,
) -> list[Evidence]:
    """Of each group's question, whose distinct rationales with their `counts` have these weights."""
    found = [Evidence(0.0, 0.0)] * len(groups)
    for members, log_likelihood in _log_likelihoods(lm, lm.merged("p"), groups, rules, max_tokens, target):
        rows = log_likelihood.cpu().double().split([len(groups[g].rationales) for g in members])
        for g, row in zip(members, rows, strict=True):
            times, log_ratio = torch.tensor([*counts[g].values()], dtype=torch.double), row + log_weights[g]
            share = times / times.sum()
            elbo = (share * (log_ratio - share.log())).sum()
            found[g] = Evidence(float(log_ratio.logsumexp(0)), float(elbo))
    return found


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


def _tokens(group: Group, codec: TextCodec, target: Target = "joint") -> list[int]:
    """How many tokens of each rationale, and behind it, are learned; the stop counts as one, a forced one is none; a
    choice among candidates counts as one."""
    if target != "joint":
        return [len(group.answer) if target == "answer" else 1] * len(group.rationales)
    stop = not group.stop_in_answer(codec)
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
