"""The objectives as sums over pairs, in double loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def penalty(deviation: torch.Tensor, huber_delta: float | None) -> torch.Tensor:
    """d², or 2δ|d| − δ² beyond δ."""
    if huber_delta is not None and abs(float(deviation.detach())) > huber_delta:
        return 2 * huber_delta * deviation.abs() - huber_delta**2
    return deviation**2


def question_loss(
    name: str,
    a: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    censored: torch.Tensor,
    huber_delta: float | None,
    log_z: torch.Tensor | None,
) -> torch.Tensor:
    """An objective of one question as it is defined, state by state and pair by pair, with nothing held constant.

    Of a censored a only an upper bound is known: it is too low if it is below what it is compared with, and otherwise
    nothing is known.

    Args:
        name: of the objective, as in the registry.
        a: (B, S) nats. states: (B, S) bool. weight: (B,). censored: (B, S) bool. log_z: ().
    """
    terms: list[tuple[int, int]] = []
    for b in range(a.shape[0]):
        places = [i for i in range(a.shape[1]) if states[b, i]]
        terms += [(b, i) for i in (places[-1:] if name in ("vargrad", "tb") else places)]
    unknown = {(b, i): bool(censored[b, i]) for b, i in terms}
    if name == "subtb":
        return _sub_trajectories_of_a_question(a, weight, terms, unknown, huber_delta)
    target, mass, known_mass = torch.zeros((), dtype=a.dtype), 0.0, 0.0
    for b, i in terms:
        if not unknown[b, i]:
            target = target + weight[b] * a[b, i]
            known_mass += float(weight[b])
    if not known_mass:  # upper bounds alone say nothing
        return a.sum() * 0.0
    target = target / known_mass if log_z is None else log_z
    total = torch.zeros((), dtype=a.dtype)
    for b, i in terms:
        deviation = a[b, i] - target
        mass += float(weight[b])
        if not (unknown[b, i] and float(deviation.detach()) > 0):
            total = total + weight[b] * penalty(deviation, huber_delta)
    return total / mass


def _sub_trajectories_of_a_question(
    a: torch.Tensor,
    weight: torch.Tensor,
    terms: Sequence[tuple[int, int]],
    unknown: Mapping[tuple[int, int], bool],
    huber_delta: float | None,
) -> torch.Tensor:
    total, mass = torch.zeros((), dtype=a.dtype), 0.0
    for b in range(a.shape[0]):
        places = [i for row, i in terms if row == b]
        pairs = [(i, j) for i in places for j in places if i < j]
        if not pairs:
            continue
        mass += float(weight[b])
        for i, j in pairs:
            residual = a[b, i] - a[b, j]
            positive = float(residual.detach()) > 0
            if not ((unknown[b, i] and positive) or (unknown[b, j] and not positive)):
                total = total + weight[b] * penalty(residual, huber_delta) / len(pairs)
    return total / max(mass, 1e-9) + a.sum() * 0.0
