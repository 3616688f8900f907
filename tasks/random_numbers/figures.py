"""How uniform the numbers are: from samples, and exactly."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from latent_cot.types import Measured, Metric

METRICS: Mapping[str, Metric] = {
    "valid": Metric("share of samples that are a number between the bounds, and end there", format="{:.2%}"),
    "valid_low": Metric("lower end of its 95 % interval (Wilson)", "neither", "{:.2%}"),
    "valid_high": Metric("upper end", "neither", "{:.2%}"),
    "kl": Metric("KL of the valid samples from the uniform distribution, nats", "lower"),
    "kl_floor": Metric("what KL is to be expected of so many truly uniform samples, (K - 1) / 2N nats", "neither"),
    "tv": Metric("total variation distance of all samples from uniform; what is not valid counts in full", "lower"),
    "exact_valid": Metric("probability of a valid sample, by scoring each number: nothing is sampled", format="{:.4%}"),
    "exact_kl": Metric("KL from uniform, given that the sample is valid, likewise; nats", "lower"),
    "exact_tv": Metric("total variation distance from uniform, likewise", "lower"),
    "leading": Metric("share of samples that begin with such a number, whatever follows", "neither", "{:.2%}"),
    "leading_kl": Metric("KL from uniform of the numbers that samples begin with, nats", "neither"),
}

MOST_DIGITS = 18
"""Of a bound; a longer text is no number of this task."""

_NUMBER = re.compile(rf" (0|-?[1-9][0-9]{{0,{MOST_DIGITS - 1}}})")
_LEADING = re.compile(rf"\s*(-?[0-9]{{1,{MOST_DIGITS}}})(?![0-9])")


def read(text: str, low: int, high: int, *, leading: bool = False) -> int | None:
    """The number between the bounds that a complete rationale is: after a space, without leading zeros. Or, if
    `leading`, the number that it begins with, after any white space. None if there is none."""
    found = _LEADING.match(text) if leading else _NUMBER.fullmatch(text)
    number = None if found is None else int(found[1])
    return number if number is not None and low <= number <= high else None


def measure(questions: Sequence[Measured]) -> dict[str, list[float]]:
    """The figures of each question."""
    rows = [_measure(question) for question in questions]
    return {name: [row[name] for row in rows] for name in METRICS if all(name in row for row in rows)}


def _measure(question: Measured) -> dict[str, float]:
    from scipy.stats import binomtest

    counts, leading = histogram(question), histogram(question, leading=True)
    n, k = sum(counts), len(counts)
    interval = binomtest(n, question.n).proportion_ci(0.95, method="wilson")
    found = {
        "valid": n / question.n,
        "valid_low": float(interval.low),
        "valid_high": float(interval.high),
        "kl": kl_from_uniform(counts),
        "kl_floor": (k - 1) / (2 * n) if n else math.nan,
        "tv": tv_from_uniform([count / question.n for count in counts]),
        "leading": sum(leading) / question.n,
        "leading_kl": kl_from_uniform(leading),
    }
    if question.listed is not None:
        shares = [math.exp(log_prob) for log_prob in question.listed]
        found |= {
            "exact_valid": math.fsum(shares),
            "exact_kl": kl_from_uniform(shares),
            "exact_tv": tv_from_uniform(shares),
        }
    return found


def histogram(question: Measured, *, leading: bool = False) -> list[int]:
    """How many samples are each of the K numbers between the bounds, or begin with it; what is no number is left out.

    The reference code counts such samples as a number of its own, one that a uniform distribution never gives; its KL
    is then infinite.
    """
    low, high = question.example.meta["low"], question.example.meta["high"]
    counts: Counter[int | None] = Counter()
    for sample in question.samples:
        counts[read(sample.rationale.text, low, high, leading=leading)] += sample.count
    return [counts[number] for number in range(low, high + 1)]


def kl_from_uniform(weights: Sequence[float]) -> float:
    """KL from the uniform distribution of the one ∝ weights, in nats; NaN if they are all 0."""
    total = math.fsum(weights)
    if not total:
        return math.nan
    return math.fsum(w / total * math.log(w / total * len(weights)) for w in weights if w)


def tv_from_uniform(shares: Sequence[float]) -> float:
    """Half the sum of absolute differences; the shares need not add up to 1, what is missing is something else."""
    k = len(shares)
    rest = max(0.0, 1 - math.fsum(shares))
    return (math.fsum(abs(share - 1 / k) for share in shares) + rest) / 2
