"""`kill -9` at random moments, each time resumed, ends in the run that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from latent_cot.cli import main
from latent_cot.run import session

KILLS = 10


def whole_run(*arguments: str) -> None:
    """In a process of its own, from its start."""
    done = subprocess.run([sys.executable, "-m", "latent_cot.cli", "em", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def begun(log: Path, *arguments: str) -> int:
    """The number of a process that runs it, saving often: a copy of this one, which has imported everything."""
    if child := os.fork():
        return child
    status = 1
    try:
        own_thread_pool()
        with log.open("wb", 0) as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        session.SAVE_EVERY = 0.2
        AcceleratorState._reset_state(reset_partial_state=True)
        status = main(["em", *arguments])
    finally:
        os._exit(status)


def own_thread_pool() -> None:
    """In a forked process, before it starts a thread: torch replaces its parent's pool by one of its own.

    Left to the threads that load a model, one of them may find neither ("Invalid thread pool!").
    """
    torch.set_num_threads(1)


def status_of(process: int, *, wait: bool = True) -> int | None:
    """How it has ended, minus a signal's number; None: it has not."""
    found, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be the same, i.e. everything but times, memory, and the folder's own name."""
    results = json.loads((folder / "results.json").read_text())
    del results["resources"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        for timing in ("time", "seconds"):
            event.pop(timing, None)
    adapters = {name: (folder / name / "adapter_model.safetensors").read_bytes() for name in ("p", "q")}
    notes = [event for event in events if event["kind"] == "note"]
    return {
        "results": results,
        "events": [event for event in events if event not in notes],
        "rationales": (folder / "rationales.jsonl").read_text(),
        **adapters,
    }


@pytest.mark.slow
def test_killed_again_and_again_ends_in_the_same_results(tmp_path: Path, tiny_model_dir: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "rounds: 2\n"
        "init_step: {steps: 12}\n"
        "e_step: {steps: 12, reward_temperature_steps: 12}\n"
        "m_step: {steps: 12}\n"
        "evaluation: {splits: [3-operands], size: 40}\n"
    )
    options = ["--model", str(tiny_model_dir), "--preset", "smoke", "--config", str(settings)]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole_run(*options, "--output-dir", str(whole))

    rng, log = random.Random(0), tmp_path / "log"
    killed = 0
    for number in range(KILLS):
        process = begun(log, *(["--resume"] if number else options), "--output-dir", str(broken))
        status = _status_at_work(process, broken)
        if status is None:
            time.sleep(rng.uniform(0.0, 0.8))
            os.kill(process, signal.SIGKILL)
            status = status_of(process)
        assert status in (-signal.SIGKILL, 0), log.read_text()
        killed += status != 0
    assert killed >= KILLS // 2
    whole_run("--output-dir", str(broken), "--resume")

    assert outcome(broken) == outcome(whole)


def _status_at_work(process: int, folder: Path) -> int | None:
    """None, once the process has begun to work (starting up takes longer than the work itself); else how it ended."""
    events = folder / "events.jsonl"
    before, deadline = _size(events), time.monotonic() + 120
    status = None
    while status is None and _size(events) == before and time.monotonic() < deadline:
        time.sleep(0.01)
        status = status_of(process, wait=False)
    return status


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
