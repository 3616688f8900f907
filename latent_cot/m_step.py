"""One optimiser step of the M-step: raise log p(Z Y | X) of given rationales."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot.chain import ChainRules
from latent_cot.lm import Adapter, LanguageModel
from latent_cot.optimise import AdapterOptimiser
from latent_cot.scoring import Group, score_in_batches


@dataclass(frozen=True)
class LikelihoodInfo:
    """What an update saw."""

    loss: float
    """(Weighted) mean negative log-likelihood of a token, in nats."""
    gradient_norm: float
    seconds: float


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
) -> LikelihoodInfo:
    """One gradient step on the likelihood of each group's rationales and of Y behind each.

    The tokens a tool wrote are attended to but not learned. `weights` holds, for each group, the weight of each of
    its rationales' log-likelihoods; None: 1.
    """
    started = time.perf_counter()
    if weights is None:
        weights = [[1.0] * len(group.rationales) for group in groups]
    tokens = sum(
        weight * (sum(rationale.chosen) + len(group.answer))
        for group, of_group in zip(groups, weights, strict=True)
        for rationale, weight in zip(group.rationales, of_group, strict=True)
    )
    total = 0.0
    with lm.trainable(adapter) as model:
        for members, scores in score_in_batches(
            lm, model, groups, rules.codec, max_tokens=max_tokens, answers_at="end"
        ):
            log_likelihood = scores.log_pf.sum(1) + scores.log_y.sum(1)  # (B,)
            loss = -(log_likelihood @ log_likelihood.new_tensor([w for g in members for w in weights[g]])) / tokens
            lm.accelerator.backward(loss)
            total += float(loss.detach())
        norm = optimiser.step(step)
    return LikelihoodInfo(total, norm, time.perf_counter() - started)


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
