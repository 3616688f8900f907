"""`kill -9` at random moments, each time resumed, ends in the run that was never stopped."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 10


def command(*arguments: str) -> list[str]:
    saved_often = (
        "import sys; from latent_cot.cli import main; from latent_cot.run import session; "
        "session.SAVE_EVERY = 0.2; sys.exit(main())"
    )
    return [sys.executable, "-c", saved_often, "em", *arguments]


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
def test_killed_ten_times_ends_in_the_same_results(tmp_path: Path, tiny_model_dir: Path) -> None:
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
    subprocess.run(command(*options, "--output-dir", str(whole)), check=True, capture_output=True)

    rng = random.Random(0)
    start = command(*options, "--output-dir", str(broken))
    kills = 0
    while True:
        log = tmp_path / f"log{kills}"
        with log.open("wb") as sink:
            process = subprocess.Popen(start, stdout=sink, stderr=subprocess.STDOUT)
            if kills == KILLS:
                assert process.wait() == 0, log.read_text()
                break
            _wait_for_work(process, broken)
            time.sleep(rng.uniform(0.0, 0.8))
            process.send_signal(signal.SIGKILL)
            assert process.wait() in (-signal.SIGKILL, 0), log.read_text()
        kills += 1
        start = command("--output-dir", str(broken), "--resume")

    assert outcome(broken) == outcome(whole)


def _wait_for_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the process has begun to work: starting up takes longer than the work itself."""
    events = folder / "events.jsonl"
    before = _size(events)
    deadline = time.monotonic() + 120
    while process.poll() is None and _size(events) == before and time.monotonic() < deadline:
        time.sleep(0.01)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
