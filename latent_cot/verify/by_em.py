"""EM's own E-step in a world of `latent-cot verify`: what works together by default (both losses, the floor, the Huber
cap, the gradient's largest norm) is held against the posterior together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latent_cot.config.schema import EStepConfig, RolloutConfig, RunConfig
from latent_cot.em import EM
from latent_cot.methods.phases import Steps
from latent_cot.methods.state import State
from latent_cot.rationales.scoring import Query
from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData
from latent_cot.verify.worlds import Settings, World


class WorldTask(Task):
    """The questions of a world."""

    name = "world"
    description = "for `latent-cot verify`"
    default_splits = ()

    def load(self, request: DataRequest) -> TaskData:
        raise NotImplementedError

    def split(self, name: str, size: int | None = None) -> list[Example]:
        raise NotImplementedError

    def read(self, path: str) -> list[Example]:
        raise NotImplementedError

    def example(self, question: str, answer: str | None = None) -> Example:
        raise NotImplementedError


class WorldEStep(EM):
    """One E-step on the questions of a world, from its q."""

    tells_right = False

    def __init__(self, config: RunConfig, world: World) -> None:
        self._queries = {query.example.key: query for query in world.queries}
        data = TaskData((), tuple(query.example for query in world.queries), ())
        super().__init__(config, world.lm, WorldTask(), data, {}, world.rules, world.rules, state=State())

    def algorithm(self) -> Steps:
        yield from self.e_step(1)

    def query(self, example: Example, **_: Any) -> Query:
        return self._queries[example.key]

    def is_correct(self, example: Example, rationale: Rationale) -> bool:
        return True  # as wherever nobody can tell


def train_by_em(world: World, steps: int, settings: Settings, on_step: Callable[[], None]) -> None:
    """Train q with so many batches; `on_step` is called after each. Sizes, rates and how q explores are those of the
    worlds, all else is default. (With q's own samples alone, the default, it is chance whether a rationale of `floor`
    with a tenth of the posterior is found; with hotter ones, but none replayed, it is lost again.)"""
    e_step = EStepConfig(
        steps=steps,
        questions=len(world.queries),
        samples=settings.samples,
        tempered_share=settings.tempered,
        temperatures=(1.0, settings.temperature_high),
        replay_share=1 - settings.on_policy - settings.tempered,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
    )
    rollout = RolloutConfig(max_tokens=world.rules.max_tokens)  # the world's own rules say where a chain may stop
    config = RunConfig(seed=settings.seed, max_batch_tokens=settings.max_batch_tokens, rollout=rollout, e_step=e_step)
    for _ in WorldEStep(config, world).run():
        on_step()
