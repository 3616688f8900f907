"""95 % intervals of means over questions, and over seeds. Importing this loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, norm, t

_RESAMPLES = 9999
_AT_ONCE = 4_000_000
"""Values of resamples that are held at once, three times 32 MB."""


def of_mean(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of (n,) values by the percentile bootstrap, always the same for the same values; None
    for fewer than two, and where one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    batch = max(1, min(1000, _AT_ONCE // len(values)))
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=batch, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def of_matched_proportions(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference of two shares of right answers to the same questions.

    Wald's interval after half a question is added to each of the four cases, right or wrong twice (Agresti & Min,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005). A
    bootstrap would be sure of a difference of 0 where none was seen.

    Args:
        differences: (n,), from -1 to 1: of each question, or of its means over some runs.
    """
    n = len(differences) + 2
    mean = float(differences.sum()) / n
    variance = (float((differences**2).sum()) + 1) / n - mean**2
    half = float(norm.ppf(0.975)) * math.sqrt(variance / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t-interval of the mean of one value for each seed; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = float(np.mean(values))
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean - half, mean + half
