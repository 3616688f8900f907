"""Policy-gradient kernels: advantages, the clipped surrogate, a KL penalty and weights for another policy's samples, as
pure functions of tensors.

A batch holds B distinct trajectories, each with the number of times it was sampled (`weight`), of G questions
(`group`). An action is a token that the policy chose, or the stop; `mask` (B, S) says where there is one.

    leave_one_out       RLOO, Ahmadian et al., "Back to Basics" (2024); Kool et al., "Buy 4 REINFORCE samples" (2019)
    normalised          GRPO, Shao et al., "DeepSeekMath" (2024), Eq. 3 and section 4.1.2
    clipped_surrogate   PPO, Schulman et al., "Proximal policy optimization algorithms" (2017), Eq. 7
    kl_penalty          Schulman, "Approximating KL divergence" (2020), k3: what GRPO adds to its loss
    truncated_weights   Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025);
                        Espeholt et al., "IMPALA" (2018), section 4.1

Left out: the 1 / length of GRPO's loss, which favours long wrong chains (Liu et al., "Understanding R1-Zero-like
training", 2025). A trajectory's loss is the sum over its actions, as in the policy gradient itself.
"""

from __future__ import annotations

import torch


def leave_one_out(reward: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Each trajectory's reward less the mean reward of its question's other samples.

    Args:
        reward: (B,) finite.
        weight: (B,) how often each was sampled.
        group: (B,) long, its question, 0 to G − 1.

    Returns (B,); 0 where the question has a single sample.
    """
    count, total = _sums(reward, weight, group)
    others = (total[group] - reward) / (count[group] - 1).clamp(min=1)
    return torch.where(count[group] > 1, reward - others, 0.0)


def normalised(reward: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, *, floor: float) -> torch.Tensor:
    """Each trajectory's reward less its question's mean, in standard deviations of that question.

    `floor`, in units of the reward, is added to the (unbiased) standard deviation. Other arguments and result as for
    `leave_one_out`.
    """
    count, total = _sums(reward, weight, group)
    centred = reward - (total / count)[group]
    _, squares = _sums(centred**2, weight, group)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation[group] + floor)


def returns_to_go(
    reward: torch.Tensor, log_prob: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, *, kl: float
) -> torch.Tensor:
    """What each action can still earn: the reward at the end, less the KL penalties from this action on.

    The penalty of an action is kl · (log_prob − reference), as in Ziegler et al., "Fine-tuning language models from
    human preferences" (2019): its expectation under the policy is kl times the KL divergence.

    Args:
        reward: (B,) of the complete trajectories.
        log_prob, reference: (B, S) log-probability of each action under the policy that sampled it, and under
            the reference; nats.
        mask: (B, S) bool, the actions.

    Returns (B, S); 0 where there is no action.
    """
    penalty = torch.where(mask, kl * (log_prob - reference), 0.0)
    to_go = penalty.flip(1).cumsum(1).flip(1)
    return torch.where(mask, reward[:, None] - to_go, 0.0)


def clipped_surrogate(
    log_prob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor, *, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's loss: −min(r A, clip(r, 1 − ε, 1 + ε) A) with r = exp(log_prob − old), summed over the actions.

    Args:
        log_prob: (B, S) under the policy that is being trained.
        old: (B, S) under the one that sampled.
        advantage: (B, S).
        mask: (B, S) bool, the actions.
        clip_range: ε.

    Returns (B,); and (B,) number of actions whose gradient the clipping has cut off.
    """
    ratio = torch.where(mask, log_prob - old, 0.0).exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    loss = -torch.where(mask, gain, 0.0).sum(1)
    with torch.no_grad():
        cut = mask & (ratio != bounded) & (bounded * advantage < ratio * advantage)
    return loss, cut.sum(1)


def kl_penalty(log_prob: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """exp(d) − d − 1 with d = reference − log_prob, summed over the actions: (B,), an unbiased estimate of
    KL(policy || reference) for actions that the policy has sampled, and never negative."""
    d = torch.where(mask, reference - log_prob, 0.0)
    return (d.exp() - d - 1).sum(1)


def truncated_weights(
    log_trainer: torch.Tensor, log_sampler: torch.Tensor, mask: torch.Tensor, *, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """min(π / μ, cap) for each action, by which a loss of the trainer's policy π is multiplied where another, μ, has
    sampled: one of some updates ago, or the same in another arithmetic.

    E_μ[π / μ · f] = E_π[f] for a single action; the cap bounds the variance at the price of a bias. What stays the
    sampler's are the prefixes that an action is chosen at, and the returns that follow it.

    Args:
        log_trainer: (B, S) log π of each action, before the gradient steps on this batch; nats.
        log_sampler: (B, S) log μ; nats.
        mask: (B, S) bool, the actions.
        cap: the largest weight. Below 1 it would only shrink the loss of samples of π itself.

    Returns (B, S), detached, 0 where there is no action; and (B,) number of actions whose weight the cap has cut.
    """
    with torch.no_grad():
        ratio = torch.where(mask, log_trainer - log_sampler, -torch.inf).exp()
        return ratio.clamp(max=cap), (ratio > cap).sum(1)


def _sums(values: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(G,) number of samples of each question, and (G,) the sum of their values."""
    zeros = values.new_zeros(int(group.max()) + 1)
    return zeros.index_add(0, group, weight), zeros.index_add(0, group, weight * values)
