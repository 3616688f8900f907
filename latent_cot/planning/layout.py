"""How a run may be laid out on devices, and which of the ways is suggested."""

from __future__ import annotations

from dataclasses import dataclass, replace

from latent_cot.config.schema import RunConfig
from latent_cot.planning.cost import Cost, CostModel
from latent_cot.planning.rounds import Round, Texts, plan

ROOM = 0.9
"""Share of a device's memory that is planned with: an allocator loses some to gaps."""


@dataclass(frozen=True)
class Layout:
    """One way, with what it takes."""

    name: str
    devices: int
    round: Round
    memory: float
    """Bytes of a device."""

    @property
    def fits(self) -> bool:
        return self.round.peak <= ROOM * self.memory

    @property
    def seconds(self) -> float:
        """Of a round."""
        return sum(self.round.later.values(), Cost()).seconds

    @property
    def device_hours(self) -> float:
        """Of a round."""
        return self.devices * self.seconds / 3600


def layouts(config: RunConfig, texts: Texts, costs: CostModel, devices: int, splits: int) -> list[Layout]:
    """One device; and of several, the whole model on each or a part of it on each."""
    found = [("one device", 1, costs)]
    if devices > 1:
        found += [("data parallel", devices, costs), ("sharded", devices, replace(costs, shards=devices))]
    return [Layout(name, n, plan(config, texts, of, n, splits), costs.device.memory) for name, n, of in found]


def suggested(found: list[Layout]) -> Layout | None:
    """The fastest of those that fit, unless it costs twice the device hours of a slower one; None if none fits."""
    fitting = sorted((one for one in found if one.fits), key=lambda one: one.seconds)
    if not fitting:
        return None
    cheapest = min(fitting, key=lambda one: one.device_hours)
    return next(one for one in fitting if one.device_hours <= 2 * cheapest.device_hours)


def split(samplers: float, devices: int) -> tuple[int, int]:
    """(samplers, trainers) of so many devices, two or more, where a trainer keeps up with `samplers`."""
    trainers = min(devices - 1, max(1, round(devices / (1 + samplers))))
    return devices - trainers, trainers
