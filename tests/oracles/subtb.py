"""The objectives as sums over pairs, in double loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def subtb(
    log_reward: torch.Tensor, log_pf: torch.Tensor, log_pterm: torch.Tensor, states: Sequence[bool]
) -> torch.Tensor:
    """Eq. 3 for one trajectory, in nats²; the plain sum over its sub-trajectories.

    Args:
        log_reward: (n + 1,) log R(z_{1:i} ⊤).
        log_pf: (n,) log q(z_k | z_{1:k-1}).
        log_pterm: (n + 1,) log q(⊤ | z_{1:i}).
        states: n + 1 flags; sub-trajectories run between states only.
    """
    total = torch.zeros((), dtype=torch.float64)
    places = [i for i, state in enumerate(states) if state]
    for i in places:
        for j in places:
            if i < j:
                forward = torch.zeros((), dtype=torch.float64)
                for k in range(i, j):
                    forward = forward + log_pf[k].double()
                numerator = log_reward[i].double() + forward + log_pterm[j].double()
                denominator = log_reward[j].double() + log_pterm[i].double()
                total = total + (numerator - denominator) ** 2
    return total


def sub_trajectories(states: Sequence[bool]) -> int:
    """How many terms the sum of `subtb` has."""
    return sum(1 for i, a in enumerate(states) for b in states[i + 1 :] if a and b)


def mean_subtb(
    log_reward: torch.Tensor, log_pf: torch.Tensor, log_pterm: torch.Tensor, states: Sequence[bool]
) -> torch.Tensor:
    """`subtb` divided by its number of terms; 0 without any."""
    return subtb(log_reward, log_pf, log_pterm, states) / max(1, sub_trajectories(states))


def pooled(flows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Half the mean of (a − b)² over all ordered pairs of states of all trajectories of a question.

    Args:
        flows: for each trajectory its a_i at its states only, listed as often as it was sampled.
    """
    values = [value.double() for flow in flows for value in flow]
    total = torch.zeros((), dtype=torch.float64)
    for a in values:
        for b in values:
            total = total + (a - b) ** 2 / 2
    return total / len(values) ** 2


def flow(
    log_reward: torch.Tensor, log_pf: torch.Tensor, log_pterm: torch.Tensor, states: Sequence[bool]
) -> torch.Tensor:
    """The a_i of one trajectory at its states."""
    values = []
    for i, state in enumerate(states):
        if state:
            value = log_reward[i].double() - log_pterm[i].double()
            for k in range(i):
                value = value - log_pf[k].double()
            values.append(value)
    return torch.stack(values)


def rooted(flow: torch.Tensor) -> torch.Tensor:
    """The mean of (a_i − a_0)² over the states of one trajectory behind its first; 0 without any."""
    total = torch.zeros((), dtype=torch.float64)
    for a in flow[1:]:
        total = total + (a - flow[0]) ** 2
    return total / max(1, len(flow) - 1)
