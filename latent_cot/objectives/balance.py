"""Balance objectives over a question's trajectories, above all the modified sub-trajectory balance (SubTB),
Eq. 3 of Hu et al., "Amortizing intractable inference in large language models" (ICLR 2024), in closed form.

Every prefix of a rationale may terminate, so the flow of a state needs no network of its own:
F(s_i) = R(s_i ⊤) / q(⊤ | s_i). With

    a_i = log R(s_i ⊤) − log q(⊤ | s_i) − Σ_{k ≤ i} log q(z_k | z_{1:k-1})

the residual of the sub-trajectory from s_i to s_j is a_i − a_j, and with λ = 1

    Σ_{i<j} (a_i − a_j)² = n Σ a² − (Σ a)²   over the n states of a trajectory: O(n), no double loop.

At the optimum every a_i of a question equals its log Z(X). The losses differ in what they tie the a_i to:

    subtb                those of one trajectory to each other
    pooled_subtb         those of all trajectories of a question to their mean
    trajectory_balance   those of all trajectories of a question to a learned log Z(X)

The objectives (`OBJECTIVES`) differ besides in whether all a_i count or, as in VarGrad and plain trajectory balance,
each trajectory's last one only: who makes the `Balance` leaves out the other states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

IMPOSSIBLE = 1e4
"""Nats below the best of its question at which an impossible rationale is put where there is no floor."""


class Balance(NamedTuple):
    """What an objective is a function of: B trajectories of G questions, padded to S prefixes."""

    a: torch.Tensor
    """(B, S) from `log_flow`, nats."""
    states: torch.Tensor
    """(B, S) bool."""
    group: torch.Tensor
    """(B,) long, the question of each trajectory, 0 to G − 1."""
    weight: torch.Tensor
    """(B,) how often each distinct trajectory was sampled."""
    censored: torch.Tensor
    """(B, S) bool, states of whose reward only an upper bound is known: see `below_floor`."""
    log_z: torch.Tensor | None = None
    """(G,) log Z(X) of each question as it is learned, for an objective that does (`log_z_rate`)."""
    huber_delta: float | None = None
    """Beyond this many nats a deviation counts linearly (2δ|d| − δ²). None: squared."""


class BalanceInfo(NamedTuple):
    """Diagnostics of a loss, detached."""

    variance: torch.Tensor
    """(G,) mean squared deviation of a over the states of each question, nats²; 0 at the optimum."""
    log_z: torch.Tensor
    """(G,) mean of a over each question's states but the censored, or log Z(X) as it is learned; nats."""


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
            to be `censored` in the loss), but for those of the rationales themselves: see `below_floor`. None:
            `IMPOSSIBLE`, so that an impossible rationale (−inf) leaves the loss finite.

    Returns (B, S), finite at states, 0 elsewhere.
    """
    raised = torch.maximum(log_reward, _least(log_reward, states, group, floor))
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
    The posterior stays an optimum; for `subtb`, which ties no trajectory to another, not the only one.

    The last state of a trajectory is where q did stop. Its reward counts as it is, however low, unless the rationale
    is impossible (−inf): were q's own worthless chains only bounded, all its probability could be on them. On
    impossible ones it still can, at no loss, if there are more than e^floor: a task whose reward is −inf almost
    everywhere needs a high floor.
    """
    return states & (log_reward < _least(log_reward, states, group, floor))


def best_of_group(log_reward: torch.Tensor, states: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(G,) the highest reward of each question; −inf if none is possible."""
    masked = log_reward.masked_fill(~states, -torch.inf)
    lowest = masked.new_full((int(group.max()) + 1,), -torch.inf)
    return lowest.scatter_reduce(0, group, masked.amax(1), "amax")


def _least(log_reward: torch.Tensor, states: torch.Tensor, group: torch.Tensor, floor: float | None) -> torch.Tensor:
    """(B, S) the lowest reward that is taken at its word."""
    best = best_of_group(log_reward, states, group)[group, None]
    bounded = ~last_state(states) | log_reward.isneginf()
    least = best - torch.where(bounded, IMPOSSIBLE if floor is None else floor, IMPOSSIBLE)
    # A question none of whose rationales is possible has nothing to tell: all its rewards are equal.
    return torch.where(best.isfinite(), least, 0.0)


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


def pooled_subtb(b: Balance) -> tuple[torch.Tensor, BalanceInfo]:
    """The spread of a over all the states of all the trajectories of a question, at once.

    Half the mean of (a_i − a_j)² over all pairs of states of a question is their variance. Trajectories
    of one question are so tied to each other even where they share no prefix but s_0.

    The mean is that of the known states, those that are not `censored`. It is a function of a, and the loss has a
    gradient through it: under a floor that is what draws the known rationales *up* where q gives too much to those
    below. (Without a floor, and squared, it is zero.)

    Over the last states only it is VarGrad: trajectory balance with log Z(X) estimated by the mean over the question's
    trajectories. Richter et al., "VarGrad" (2020); for GFlowNets, Zhang et al., "Robust scheduling with GFlowNets"
    (2023).

    Returns each question's loss, (G,), and its diagnostics.
    """
    w, known = _weights(b)
    mean = _group_mean(b.a, known, b.group)
    deviation = _one_sided(b.a - mean[b.group, None], b.censored)
    loss = _group_mean(_penalty(deviation, b.huber_delta), w, b.group)
    variance = _group_mean(deviation.detach() ** 2, w, b.group)
    return loss, BalanceInfo(variance, mean.detach())


def subtb(b: Balance) -> tuple[torch.Tensor, BalanceInfo]:
    """Eq. 3, normalised: per trajectory the mean over its sub-trajectories (pairs i < j) of (a_i − a_j)².

    With `huber_delta` or censored states the pairs are formed one by one, O(S²). A trajectory with a single state has
    none and adds nothing. Returns for each question the weighted mean over its trajectories, (G,), and its diagnostics.
    """
    a, states = b.a, b.states
    n = states.sum(1)
    pairs = (n * (n - 1) / 2).to(a.dtype)
    if b.huber_delta is None and not bool(b.censored.any()):
        # Centred first: nΣa² − (Σa)² of large, nearly equal values would cancel in float32.
        centre = a.sum(1) / n.clamp(min=1)
        centred = torch.where(states, a - centre[:, None], 0.0)
        total = n * (centred**2).sum(1) - centred.sum(1) ** 2
    else:
        both = (states[:, :, None] & states[:, None, :]).triu(1)
        residual = _two_sided(a[:, :, None] - a[:, None, :], b.censored[:, :, None], b.censored[:, None, :])
        total = (_penalty(residual, b.huber_delta) * both).sum((1, 2))
    w = (b.weight * (pairs > 0))[:, None]
    loss = _group_mean((total / pairs.clamp(min=1))[:, None], w, b.group)
    return loss, _info(b)


def trajectory_balance(b: Balance) -> tuple[torch.Tensor, BalanceInfo]:
    """(log Z(X) + log q(Z) − log R(Z))², Malkin et al., "Trajectory balance" (2022), with a learned log Z(X); over all
    states, since each may stop, and so is a complete trajectory.

    Over all of them for rewards that are nothing almost everywhere, such as 0 or 1. Of what is worth nothing only an
    upper bound is known (`below_floor`). A batch may hold hardly any other state, whose mean `pooled_subtb` would have
    to trust; a learned log Z(X) remembers what earlier batches have shown.

    Result as for `pooled_subtb`.
    """
    assert b.log_z is not None
    w, _ = _weights(b)
    residual = _one_sided(b.a - b.log_z[b.group, None], b.censored)
    return _group_mean(_penalty(residual, b.huber_delta), w, b.group), _info(b)._replace(log_z=b.log_z.detach())


def _info(b: Balance) -> BalanceInfo:
    """The diagnostics that all objectives share: over all states, squared."""
    with torch.no_grad():
        return pooled_subtb(b._replace(huber_delta=None))[1]


def _weights(b: Balance) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) of all states, and of the known ones. Where all that is known of a question are upper bounds, its states
    weigh nothing: there is nothing to compare them with, and a learned log Z(X) would only drift."""
    w = b.weight[:, None] * b.states
    known = w * ~b.censored
    return w * (_group_mean(torch.ones_like(b.a), known, b.group) > 0)[b.group, None], known


def last_state(states: torch.Tensor) -> torch.Tensor:
    """(B, S) bool: only the last state of each trajectory."""
    later = states.flip(1).cumsum(1).flip(1)
    return states & (later == 1)


def _one_sided(deviation: torch.Tensor, censored: torch.Tensor) -> torch.Tensor:
    """Where a is an upper bound, being above its target is no error."""
    return torch.where(censored, deviation.clamp(max=0.0), deviation)


def _two_sided(difference: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Likewise for the difference of two a, of which the first, the second or both may be upper bounds."""
    return -_one_sided(-_one_sided(difference, first), second)


def _penalty(deviation: torch.Tensor, huber_delta: float | None) -> torch.Tensor:
    if huber_delta is None:
        return deviation**2
    return 2 * torch.nn.functional.huber_loss(
        deviation, torch.zeros_like(deviation), delta=huber_delta, reduction="none"
    )


def _group_mean(values: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(G,) weighted mean over the cells of each group; 0 for a group without weight."""
    n_groups = int(group.max()) + 1
    total = values.new_zeros(n_groups).index_add(0, group, (values * weight).sum(1))
    mass = values.new_zeros(n_groups).index_add(0, group, weight.sum(1).to(values.dtype))
    return total / mass.clamp(min=1e-9)
