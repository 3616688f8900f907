"""Self-normalised importance weights, and what they are like.

With K samples Z_k ~ q(Z) of a question and w_k = p(Z_k Y | X) / q(Z_k), the normalised weights w̃_k = w_k / Σ w make
of the samples an approximation of the posterior p(Z | X, Y). Two gradients are expectations under it:

    −∇ KL(p(Z | X, Y) || q)          = E[∇ log q(Z)]        ≈ Σ w̃_k ∇ log q(Z_k)
    ∇ log p(Y | X)                   = E[∇ log p(Z Y | X)]  ≈ Σ w̃_k ∇ log p(Z_k Y | X)

The first is the wake-phase update of q, the second that of p, which is the gradient of the importance-weighted bound
log 1/K Σ w_k: Bornschein & Bengio, "Reweighted wake-sleep" (2015); Burda et al., "Importance weighted
autoencoders" (2016); for rationales Zhou et al., "Variational reasoning for language models" (ICLR 2026).

Few samples of a posterior that has many rationales are not the posterior: the first gradient, taken again and again on
the same ones, makes q learn these by heart. Since E_q[∇ log q(Z)] = 0, what q gives the same samples may be subtracted,

    −∇ KL(p(Z | X, Y) || q)          ≈ Σ (w̃_k − b ũ_k) ∇ log q(Z_k),     ũ_k ∝ q(Z_k) / (the q that sampled Z_k)

over all samples, also those that are worth nothing. For b = 1 that is 0 once q is the posterior, whichever the samples
are: the self-normalised baseline of BRAIn (Pandey et al., ICML 2024). Where the posterior is a single rationale there
is nothing to subtract: the samples show all of it.
`baseline_weight` says what b is best. b = 0 is the first line again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

NEGLIGIBLE = 1e-3
"""A rationale of less weight than this, relative to the mean of its question's samples, is not worth fine-tuning on."""


class ImportanceInfo(NamedTuple):
    """Diagnostics of the weights of each question."""

    ess: torch.Tensor
    """(G,) effective sample size 1 / Σ w̃², as a share of the number of samples: 1 if all weigh the same."""
    bound: torch.Tensor
    """(G,) log 1/K Σ w_k: in expectation a lower bound on log p(Y | X), nats; −inf if no sample reaches Y."""
    elbo: torch.Tensor
    """(G,) 1/K Σ log w_k: in expectation log p(Y | X) − KL(q ‖ posterior), the lower bound that an E-step raises; nats,
    −inf if any sample cannot reach Y."""


def importance_weights(
    log_target: torch.Tensor, log_proposal: torch.Tensor, count: torch.Tensor, group: torch.Tensor
) -> tuple[torch.Tensor, ImportanceInfo]:
    """Normalised weights of B distinct samples, each times how often it was drawn.

    Args:
        log_target: (B,) log p(Z Y | X) in nats; −inf for an impossible one.
        log_proposal: (B,) log q(Z), finite.
        count: (B,) how often each was drawn.
        group: (B,) long, the question of each, 0 to G − 1.

    Returns (B,), which adds up to 1 for each question, or to 0 where all its samples are impossible.
    """
    log_w = log_target - log_proposal
    zeros = log_w.new_zeros(int(group.max()) + 1)
    best = (zeros - torch.inf).scatter_reduce(0, group, log_w, "amax")
    shift = torch.where(best.isfinite(), best, 0.0)
    each = (log_w - shift[group]).exp()
    n = zeros.index_add(0, group, count)
    total = zeros.index_add(0, group, count * each)
    least = torch.finfo(total.dtype).tiny
    weight = count * each / total.clamp(min=least)[group]
    squares = zeros.index_add(0, group, count * (each / total.clamp(min=least)[group]) ** 2)
    ess = torch.where(squares > 0, 1 / squares.clamp(min=least), 0.0) / n
    elbo = zeros.index_add(0, group, count * log_w) / n
    return weight, ImportanceInfo(ess, shift + (total / n).log(), elbo)


def baseline_weight(weight: torch.Tensor, count: torch.Tensor) -> float:
    """b, from 0 to 1: how much of what q gives its samples to subtract.

    The best coefficient of a control variate is Cov(A, B) / Var(B), here of A = Σ w̃ ∇ log q and B = Σ ũ ∇ log q. With
    independent samples, and gradients of different rationales that are orthogonal and equally long, it is
    (1 − Σ w̃²) / (1 − Σ s²), s a rationale's share of the samples: how diverse the posterior is among them, in
    proportion to q. 0 where one of several rationales has all the weight, 1 where the weights are as even as the
    samples, or all samples are one rationale.

    Args:
        weight: (K,) w̃ of the distinct rationales of a question; they add up to 1.
        count: (K,) how often each was sampled.
    """
    share = count / count.sum()
    diversity = 1 - float(share @ share)
    return min(1.0, max(0.0, 1 - float(weight @ weight)) / diversity) if diversity > 0 else 1.0


def forward_kl(log_q: torch.Tensor, weight: torch.Tensor, log_seen: torch.Tensor, b: float) -> torch.Tensor:
    """What has the gradient −Σ (w̃ − b ũ) ∇ log q of K distinct rationales of a question, nats; ().

    Args:
        log_q: (K,) under q as it is, nats.
        weight: (K,) w̃; of a part of the question's rationales, they add up to less than 1, and so does ũ.
        log_seen: (K,) log of the mean over the question's samples of 1/q, with the q that drew each, where the sample
            is this rationale, and 0 elsewhere.
        b: `baseline_weight`.
    """
    likelihood = weight @ log_q
    return b * weight.sum() * (log_seen + log_q).logsumexp(0) - likelihood if b else -likelihood


def bound_error(ess: float, n: int) -> float:
    """The standard error of the bound log 1/n Σ w_k, nats: that of the mean weight, as a share of it, with one sample
    more that is worth nothing. Without that one, n samples that are all alike would have no error, though the next may
    be another. From 1 / n, where all weigh the same, to 1, where one carries all the weight.

    Args:
        ess: of n samples, as a share, above 0.
    """
    return math.sqrt(max(0.0, (n + 1) / (n * ess) - 1) / n)
