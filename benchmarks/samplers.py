"""Many samplers and one trainer, simulated: `python -m benchmarks.samplers [--json]`.

Nothing here is measured but the times of a step that it begins with (`docs/results/plan.json`, or flags). A sampler
takes `sample` seconds for a batch, with the newest weights there were when it began, and puts it into a buffer; it
waits while that is full. The trainer takes `per_update` batches from the buffer, oldest first, drops those that are
staler than allowed, and takes `train` seconds for an update of the weights. A sampler fails at random, once in `mtbf`
seconds of work on average (exponential), loses its batch and comes back after `restart` seconds. Sending weights costs
nothing: an adapter is some megabytes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from latent_cot.report.tables import Table
from latent_cot.types import finite

MEASURED = Path(__file__).parent.parent / "docs" / "results" / "plan.json"


@dataclass(frozen=True)
class Setting:
    """What is simulated; times in seconds."""

    samplers: int
    sample: float
    """Of a batch: its rollout and reward."""
    train: float
    """Of an update."""
    per_update: int = 1
    """Batches of one update."""
    capacity: int = 1
    """Batches that the buffer has room for."""
    max_staleness: float = math.inf
    """Updates since a batch was begun; a staler one is dropped."""
    mtbf: float = math.inf
    """Mean working time between failures of one sampler."""
    restart: float = 0.0


@dataclass
class Outcome:
    """Shares of the time of the trainer, or of all samplers; and counts of batches."""

    trainer_busy: float = 0.0
    useful: float = 0.0
    """Sampling what was trained on, or is still to be."""
    dropped: float = 0.0
    """Sampling what was dropped as too stale."""
    waiting: float = 0.0
    """For room in the buffer."""
    failed: float = 0.0
    """Lost batches and restarts."""
    updates: int = 0
    staleness: float = 0.0
    """Mean, in updates, of what was trained on."""
    share_dropped: float = 0.0
    """Of the batches that the trainer looked at."""


class _World:
    """The state of a simulation, and what happens in it."""

    def __init__(self, setting: Setting, rng: random.Random) -> None:
        self.setting, self.rng = setting, rng
        self.now, self.version, self.training_since = 0.0, 0, math.nan
        self.events: list[tuple[float, int, str, int]] = []  # (when, order, what, version it began with)
        self.order = 0
        self.buffer: deque[int] = deque()
        """Version that each batch was begun with."""
        self.blocked: deque[tuple[float, int]] = deque()
        """(since when, version) of each sampler with a batch that finds no room."""
        self.chosen: list[int] = []
        """Batches of the next update."""
        self.sampled = self.waited = self.lost = self.trained_for = 0.0
        self.stale: list[int] = []
        self.dropped = 0
        for i in range(setting.samplers):  # not all at once
            self.at(i / setting.samplers * setting.sample, "begin")

    def at(self, when: float, what: str, version: int = 0) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, what, version))

    def begin(self, _: int) -> None:
        """A sampler begins a batch."""
        s = self.setting
        lasts = math.inf if s.mtbf == math.inf else self.rng.expovariate(1 / s.mtbf)
        if lasts < s.sample:
            self.lost += lasts + s.restart
            self.at(self.now + lasts + s.restart, "begin")
        else:
            self.at(self.now + s.sample, "finish", self.version)

    def finish(self, version: int) -> None:
        """A batch is there."""
        self.sampled += self.setting.sample
        self.blocked.append((self.now, version))
        self.go_on()

    def update(self, _: int) -> None:
        """An update is done."""
        self.trained_for += self.setting.train
        self.version += 1
        self.training_since = math.nan
        self.go_on()

    def go_on(self) -> None:
        """Fill the buffer; let the trainer take from it, if it is idle."""
        s = self.setting
        while True:
            while self.blocked and len(self.buffer) < s.capacity:
                since, version = self.blocked.popleft()
                self.waited += self.now - since
                self.buffer.append(version)
                self.begin(0)
            if not self.buffer or not math.isnan(self.training_since):
                return
            age = self.version - self.buffer[0]
            if age > s.max_staleness:
                self.dropped += 1
                self.buffer.popleft()
            else:
                self.chosen.append(self.buffer.popleft())
            if len(self.chosen) == s.per_update:
                self.stale += [self.version - version for version in self.chosen]
                self.chosen = []
                self.training_since = self.now
                self.at(self.now + s.train, "update")


def simulate(setting: Setting, seconds: float, seed: int = 0) -> Outcome:
    """So many seconds, from an empty buffer on."""
    world = _World(setting, random.Random(seed))
    while world.events[0][0] <= seconds:
        world.now, _, what, version = heapq.heappop(world.events)
        getattr(world, what)(version)
    all_time = seconds * setting.samplers
    wasted = world.dropped * setting.sample
    waited = world.waited + sum(seconds - since for since, _ in world.blocked)
    looked_at = len(world.stale) + world.dropped
    return Outcome(
        trainer_busy=world.trained_for / seconds,
        useful=(world.sampled - wasted) / all_time,
        dropped=wasted / all_time,
        waiting=waited / all_time,
        failed=world.lost / all_time,
        updates=world.version,
        staleness=sum(world.stale) / len(world.stale) if world.stale else math.nan,
        share_dropped=world.dropped / looked_at if looked_at else 0.0,
    )


def settings(sample: float, train: float, mtbf: float, restart: float, max_staleness: float) -> list[Setting]:
    """1, 8, 64 and 1,024 samplers: with a trainer that stays as it is; and with one whose update takes as many batches
    as come in meanwhile, in the same time, which takes more devices. Each without failures and with them."""
    found = []
    for n in (1, 8, 64, 1024):
        batches = max(1, round(n * train / sample))
        one = Setting(n, sample, train, capacity=2, max_staleness=max_staleness)
        grown = replace(one, per_update=batches, capacity=2 * batches)
        found += [replace(of, mtbf=m, restart=restart) for of in (one, grown) for m in (math.inf, mtbf)]
    return sorted(dict.fromkeys(found), key=lambda of: (of.per_update > 1, of.samplers))


def above_zero(text: str) -> float:
    """An argument that is a number above 0. Raises ValueError."""
    if not (number := float(text)) > 0:
        raise ValueError
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--sample", type=above_zero, help="seconds of a batch's rollout and reward; default: as measured"
    )
    parser.add_argument("--train", type=above_zero, help="seconds of an update; default: as measured")
    parser.add_argument("--mtbf", type=above_zero, default=3600.0, help="seconds between failures of a sampler")
    parser.add_argument("--restart", type=above_zero, default=60.0, help="seconds until a sampler is back")
    parser.add_argument("--max-staleness", type=float, default=4, help="updates; a staler batch is dropped")
    parser.add_argument("--hours", type=above_zero, default=1.0, help="that are simulated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    parts = json.loads(MEASURED.read_text(encoding="utf-8"))["workloads"]["untrained"]["parts"]
    sample, train = arguments.sample, arguments.train
    if sample is None:
        sample = parts["rollout"]["measured"] + parts["reward"]["measured"]
    if train is None:
        train = parts["update"]["measured"]
    rows = [
        (one, simulate(one, 3600 * arguments.hours, arguments.seed))
        for one in settings(sample, train, arguments.mtbf, arguments.restart, arguments.max_staleness)
    ]
    if arguments.json:
        print(json.dumps(finite([asdict(one) | asdict(of) for one, of in rows]), indent=1, allow_nan=False))
        return 0
    shares = ("trainer_busy", "useful", "dropped", "waiting", "failed")
    figures = {name.replace("_", " "): [f"{getattr(of, name):.1%}" for _, of in rows] for name in shares}
    names = {
        "samplers": [str(one.samplers) for one, _ in rows],
        "batches an update": [str(one.per_update) for one, _ in rows],
        "failures": ["none" if one.mtbf == math.inf else f"1 in {one.mtbf:.0f} s" for one, _ in rows],
    }
    staleness = {"staleness": [f"{of.staleness:.2f}" for _, of in rows]}
    drops = {"batches dropped": [f"{of.share_dropped:.1%}" for _, of in rows]}
    Table(names, figures | staleness | drops).show(Console(width=160))
    return 0


if __name__ == "__main__":
    sys.exit(main())
