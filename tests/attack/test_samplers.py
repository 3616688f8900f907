"""`kill -9` of samplers and of the trainer, at random moments, while they work at once."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latent_cot.config.settings import to_dict
from latent_cot.run import session as of_session
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import Session, run_loop
from tests.attack.cases import FULL, SEED, count
from tests.engines import FakeVllm, ReferenceEngine
from tests.run.test_kill import own_thread_pool

KILLS = 20 if FULL else 2
LIMIT = 600.0
"""Seconds within which a run ends, whatever was killed."""


def forked(work: Callable[[], None]) -> int:
    """Do it in a copy of this process; returns its number."""
    if child := os.fork():
        return child
    status = 1
    try:
        own_thread_pool()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Samplers:
    """Two servers, each a process of its own, which are started again at the same address."""

    def __init__(self, model: Path) -> None:
        self.engine = ReferenceEngine(model)
        self.ports = [self._free_port(), self._free_port()]
        self.processes: dict[int, int] = {}
        self.start()

    @property
    def addresses(self) -> str:
        return ",".join(f"http://127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        for port in self.ports:
            if port not in self.processes:
                self.processes[port] = forked(partial(self._serve, port))

    def kill(self, port: int) -> None:
        if process := self.processes.pop(port, None):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)

    def _serve(self, port: int) -> None:
        FakeVllm(self.engine, port=port).serve_forever()

    def _free_port(self) -> int:
        with FakeVllm(self.engine) as server:
            return int(server.server_address[1])


@pytest.fixture
def samplers(tiny_model_dir: Path) -> Iterator[Samplers]:
    found = Samplers(tiny_model_dir)
    yield found
    for port in found.ports:
        found.kill(port)


def train(session: Session, folder: Path) -> int:
    """Begin or resume the run in a process of its own; returns the process."""

    def work() -> None:
        of_session.SAVE_EVERY = 0.0
        there = (folder / "config.yaml").exists()
        run = RunFolder.open(folder) if there else RunFolder.create(folder, to_dict(session.config))
        with run.lock():
            run_loop(session, run, resume=there)

    return forked(work)


def ended(process: int) -> int:
    """Its status, minus a signal's number. One that hangs is killed, and fails the test."""
    overtime = threading.Timer(LIMIT, os.kill, [process, signal.SIGKILL])
    overtime.start()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert overtime.is_alive(), "it hangs"
    overtime.cancel()
    return status


def spent(folder: Path) -> tuple[dict[str, Any], Counter[tuple[int, str, int]]]:
    """The budget of a finished run, and how often each unit of work is in its log."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    units = Counter((event["round"], event["kind"], event["unit"]) for event in events if "unit" in event)
    budget = json.loads((folder / "results.json").read_text())["budget"]
    return {name: budget[name] for name in ("trajectories", "gradient_steps")}, units


def test_samplers_and_trainer_are_killed_again_and_again(session: Session, samplers: Samplers, tmp_path: Path) -> None:
    """Nothing is lost, or counted twice, and nothing hangs."""
    c = session.config
    rollout = replace(c.rollout, engine=samplers.addresses, max_tokens=12)
    e_step = replace(c.e_step, steps=6, max_staleness=3, replay_share=0.0)  # what is replayed depends on the clock
    session = replace(session, config=replace(c, rollout=rollout, e_step=e_step))
    begun = time.monotonic()
    assert ended(train(session, tmp_path / "whole")) == 0
    seconds = time.monotonic() - begun

    rng, folder = random.Random(f"{SEED}/samplers"), tmp_path / "run"
    for kill in range(KILLS):
        samplers.start()
        process = train(session, folder)
        time.sleep(rng.uniform(0.1, 0.8) * seconds)
        port = rng.choice([None, *samplers.ports]) if kill else None
        if port is None:
            os.kill(process, signal.SIGKILL)
            assert ended(process) in (-signal.SIGKILL, 0)
        else:
            samplers.kill(port)  # the other one is left
            assert ended(process) == 0
            folder = folder.with_name(f"run{kill}")  # it has ended: another begins
        count("killed")
    samplers.start()
    if not (folder / "results.json").exists():
        assert ended(train(session, folder)) == 0
    expected = spent(tmp_path / "whole")
    for path in tmp_path.glob("run*"):
        assert spent(path) == expected, path
