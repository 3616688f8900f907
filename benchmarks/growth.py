"""How a time grows with a size: measurements in random order, and the exponent of the power law through them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Growth:
    """Repeated measurements of one time at several sizes."""

    name: str
    """What was done, e.g. `E-step`."""
    size: str
    """What was varied, e.g. `trajectories`."""
    values: Mapping[int, Sequence[float]]
    """Size -> its measurements, in seconds."""

    @property
    def medians(self) -> dict[int, float]:
        """Size -> the median of its measurements, in order of size."""
        return {size: statistics.median(self.values[size]) for size in sorted(self.values)}

    def exponent(self) -> tuple[float, tuple[float, float]]:
        """b of time = a · size^b, by least squares on the logarithms of all measurements, and its 95 % interval.

        The interval is that of the line's slope (Student's t). It covers noise, not a curve that is no power law:
        for that see `last`.
        """
        points = [(size, value) for size, values in self.values.items() for value in values]
        x, y = np.log(np.array(points, dtype=float)).T
        line = stats.linregress(x, y)
        slope = float(line.slope)
        if len(points) < 3:
            return slope, (slope, slope)
        half = float(line.stderr * stats.t.ppf(0.975, len(points) - 2))
        return slope, (slope - half, slope + half)

    def last(self) -> float:
        """The exponent between the two largest sizes: what a fixed cost hides from the fit through all of them."""
        (size, cost), (larger, more) = list(self.medians.items())[-2:]
        return float(np.log(more / cost) / np.log(larger / size))

    def to_json(self) -> dict[str, Any]:
        exponent, interval = self.exponent()
        return {
            "name": self.name,
            "size": self.size,
            "medians": {str(size): median for size, median in self.medians.items()},
            "values": {str(size): list(values) for size, values in sorted(self.values.items())},
            "exponent": exponent,
            "interval_95": list(interval),
            "last_exponent": self.last(),
        }


def measure(
    sizes: Sequence[int], run: Callable[[int], float], repeats: int, rng: random.Random
) -> dict[int, list[float]]:
    """Size -> `repeats` results of `run(size)`.

    In random order, so that a machine that becomes busier does not make one size look dearer; after one run of the
    smallest size that does not count.
    """
    run(min(sizes))
    order = [size for size in sizes for _ in range(repeats)]
    rng.shuffle(order)
    values: dict[int, list[float]] = {size: [] for size in sizes}
    for size in order:
        values[size].append(run(size))
    return values
