"""Balance objectives over a question's trajectories, above all the modified sub-trajectory balance (SubTB),
Eq. 3 of Hu et al., "Amortizing intractable inference in large language models" (ICLR 2024), in closed form.

Every prefix of a rationale may terminate, so the flow of a state needs no network of its own:
F(s_i) = R(s_i ⊤) / q(⊤ | s_i). With

    a_i = log R(s_i ⊤) − log q(⊤ | s_i) − Σ_{k ≤ i} log q(z_k | z_{1:k-1})

the residual of the sub-trajectory from s_i to s_j is a_i − a_j, and with λ = 1

    Σ_{i<j} (a_i − a_j)² = n Σ a² − (Σ a)²   over the n states of a trajectory: O(n), no double loop.

At the optimum every a_i of a question equals its log Z(X). The objectives differ in which a_i they tie to what:

    subtb          those of one trajectory to each other
    pooled_subtb   those of all trajectories of a question to their mean
    vargrad        the last ones of all trajectories of a question to their mean
    trajectory_balance   the last one of each trajectory to a learned log Z(X)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

IMPOSSIBLE = 1e4
"""Nats below the best of its question at which an impossible rationale is put where there is no floor."""


class BalanceInfo(NamedTuple):
    """Diagnostics of a loss, detached."""

    variance: torch.Tensor
    """(G,) mean squared deviation of a over the states of each question, nats²; 0 at the optimum."""
    log_z: torch.Tensor
    """(G,) mean of a over the states of each question: an estimate of log Z(X), in nats."""


def temper(
    log_reward: torch.Tensor,
    states: torch.Tensor,
    group: torch.Tensor,
    *,
    temperature: float = 1.0,
    floor: float | None = None,
) -> torch.Tensor:
    """log R, floored and divided by the reward temperature.

    Args:
        log_reward: (B, S) nats; may be −inf at a state (an impossible rationale).
        states: (B, S) bool.
        group: (B,) long, the question of each trajectory.
        temperature: T in log R / T.
        floor: rewards lower than this many nats below the best of their question are raised to it (and are
            to be `censored` in the loss). None: `IMPOSSIBLE`, so that an impossible rationale (−inf) leaves
            the loss finite.

    Returns (B, S), finite at states, 0 elsewhere.
    """
    raised = torch.maximum(log_reward, _least(log_reward, states, group, floor)[group, None])
    return raised.masked_fill(~states, 0.0) / temperature


def below_floor(
    log_reward: torch.Tensor, states: torch.Tensor, group: torch.Tensor, floor: float | None
) -> torch.Tensor:
    """(B, S) bool: the states whose reward `temper` raises to the floor.

    Early prefixes, which cannot explain Y, have rewards of −40 to −80 nats. In a squared loss they would
    outweigh everything else, though their share of the posterior is nil either way. All that matters of
    them is that q's share be small too. So of such a state we use only that log R is *at most* the floor: it
    is penalised if q gives it more than that, and not at all if q gives it less. Raising the reward without
    this (a plain clamp) asks q for e^-floor on each of countless worthless chains, and q learns to babble.
    The posterior stays the optimum.
    """
    return states & (log_reward < _least(log_reward, states, group, floor)[group, None])


def _least(log_reward: torch.Tensor, states: torch.Tensor, group: torch.Tensor, floor: float | None) -> torch.Tensor:
    """(G,) the lowest reward that is taken at its word."""
    masked = log_reward.masked_fill(~states, -torch.inf)
    n_groups = int(group.max()) + 1
    best = masked.new_full((n_groups,), -torch.inf).scatter_reduce(0, group, masked.amax(1), "amax")
    # A question none of whose rationales is possible has nothing to tell: all its rewards are equal.
    return torch.where(best.isfinite(), best - (IMPOSSIBLE if floor is None else floor), torch.zeros_like(best))


def log_flow(
    log_pf: torch.Tensor, log_pterm: torch.Tensor, log_reward: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """a_i = log R_i − log q(⊤ | s_i) − Σ_{k ≤ i} log q(z_k), in nats.

    Args:
        log_pf: (B, N) log q of the tokens the policy chose, 0 for a tool's tokens and padding.
        log_pterm: (B, N + 1) log q(⊤ | s_i); 0 at a forced stop.
        log_reward: (B, N + 1) tempered, finite at states.
        states: (B, N + 1) bool.

    Returns (B, N + 1); 0 where the prefix is no state.
    """
    prefix = torch.nn.functional.pad(log_pf.cumsum(1), (1, 0))
    return torch.where(states, log_reward - log_pterm - prefix, 0.0)


def pooled_subtb(
    a: torch.Tensor,
    states: torch.Tensor,
    group: torch.Tensor,
    weight: torch.Tensor,
    *,
    huber: float | None = None,
    log_z: torch.Tensor | None = None,
    censored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, BalanceInfo]:
    """The spread of a over all the states of all the trajectories of a question, at once.

    Half the mean of (a_i − a_j)² over all pairs of states of a question is their variance. Trajectories
    of one question are so tied to each other even where they share no prefix but s_0.

    Args:
        a: (B, S) from `log_flow`.
        states: (B, S) bool.
        group: (B,) long, the question of each trajectory, 0 to G − 1.
        weight: (B,) how often each distinct trajectory was sampled.
        huber: beyond this many nats from its question's mean a deviation counts linearly (2δ|d| − δ²).
            None: squared.
        log_z: not used here; see `trajectory_balance`.
        censored: (B, S) bool, states of whose reward only an upper bound is known: see `below_floor`.

    Returns each question's loss, (G,), and its diagnostics.
    """
    w = weight[:, None] * states
    known = w if censored is None else w * ~censored
    mean = _group_mean(a, known, group)
    # The gradient of Σ w (a − mean)² through the mean is zero; detached, it is zero for Huber too.
    deviation = _one_sided(a - mean.detach()[group, None], censored)
    # Where all that is known of a question are upper bounds, there is nothing to compare them with.
    w = w * (_group_mean(torch.ones_like(a), known, group) > 0)[group, None]
    loss = _group_mean(_penalty(deviation, huber), w, group)
    variance = _group_mean(deviation.detach() ** 2, w, group)
    return loss, BalanceInfo(variance, mean.detach())


def subtb(
    a: torch.Tensor,
    states: torch.Tensor,
    group: torch.Tensor,
    weight: torch.Tensor,
    *,
    huber: float | None = None,
    log_z: torch.Tensor | None = None,
    censored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, BalanceInfo]:
    """Eq. 3, normalised: per trajectory the mean over its sub-trajectories (pairs i < j) of (a_i − a_j)².

    Arguments as for `pooled_subtb`; with `huber` or `censored` the pairs are formed one by one, O(S²). A
    trajectory with a single state has no pair and adds nothing. Returns for each question the weighted mean over its
    trajectories, (G,), and its diagnostics.
    """
    n = states.sum(1)
    pairs = (n * (n - 1) / 2).to(a.dtype)
    if huber is None and (censored is None or not bool(censored.any())):
        # Centred first: nΣa² − (Σa)² of large, nearly equal values would cancel in float32.
        centre = (a.sum(1) / n.clamp(min=1)).detach()
        centred = torch.where(states, a - centre[:, None], 0.0)
        total = n * (centred**2).sum(1) - centred.sum(1) ** 2
    else:
        both = (states[:, :, None] & states[:, None, :]).triu(1)
        residual = a[:, :, None] - a[:, None, :]
        if censored is not None:  # a of a censored state is an upper bound: it can only be too low
            residual = _one_sided(residual, censored[:, :, None])
            residual = -_one_sided(-residual, censored[:, None, :])
        total = (_penalty(residual, huber) * both).sum((1, 2))
    w = (weight * (pairs > 0))[:, None]
    loss = _group_mean((total / pairs.clamp(min=1))[:, None], w, group)
    with torch.no_grad():
        _, info = pooled_subtb(a, states, group, weight, censored=censored)
    return loss, info


def vargrad(
    a: torch.Tensor,
    states: torch.Tensor,
    group: torch.Tensor,
    weight: torch.Tensor,
    *,
    huber: float | None = None,
    log_z: torch.Tensor | None = None,
    censored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, BalanceInfo]:
    """Trajectory balance with log Z(X) estimated by the mean over the question's trajectories.

    Richter et al., "VarGrad" (2020); for GFlowNets, Zhang et al., "Robust scheduling with GFlowNets" (2023).
    Only complete trajectories count: the a of each one's last state. Arguments and result as for
    `pooled_subtb`.
    """
    return pooled_subtb(a, _last_state(states), group, weight, huber=huber, censored=censored)


def trajectory_balance(
    a: torch.Tensor,
    states: torch.Tensor,
    group: torch.Tensor,
    weight: torch.Tensor,
    *,
    huber: float | None = None,
    log_z: torch.Tensor | None = None,
    censored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, BalanceInfo]:
    """(log Z(X) + log q(Z) − log R(Z))², Malkin et al., "Trajectory balance" (2022), with a learned log Z(X).

    Arguments and result as for `pooled_subtb`, and log_z: (G,) the parameter of each question.
    """
    assert log_z is not None
    w = weight[:, None] * _last_state(states)
    loss = _group_mean(_penalty(_one_sided(a - log_z[group, None], censored), huber), w, group)
    with torch.no_grad():
        _, info = pooled_subtb(a, states, group, weight, censored=censored)
    return loss, BalanceInfo(info.variance, log_z.detach())


def _last_state(states: torch.Tensor) -> torch.Tensor:
    """(B, S) bool: only the last state of each trajectory."""
    later = states.flip(1).cumsum(1).flip(1)
    return states & (later == 1)


def _one_sided(deviation: torch.Tensor, censored: torch.Tensor | None) -> torch.Tensor:
    """Where a is an upper bound, being above its target is no error."""
    return deviation if censored is None else torch.where(censored, deviation.clamp(max=0.0), deviation)


def _penalty(deviation: torch.Tensor, huber: float | None) -> torch.Tensor:
    if huber is None:
        return deviation**2
    return 2 * torch.nn.functional.huber_loss(deviation, torch.zeros_like(deviation), delta=huber, reduction="none")


def _group_mean(values: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(G,) weighted mean over the cells of each group; 0 for a group without weight."""
    n_groups = int(group.max()) + 1
    total = values.new_zeros(n_groups).index_add(0, group, (values * weight).sum(1))
    mass = values.new_zeros(n_groups).index_add(0, group, weight.sum(1).to(values.dtype))
    return total / mass.clamp(min=1e-9)
