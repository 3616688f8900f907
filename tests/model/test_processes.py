"""Several processes find what one finds, and stay alike."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

import latent_cot as lc
from latent_cot.cli import main
from latent_cot.model.processes import Processes
from latent_cot.run import session
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.run_folder import RunFolder
from tests import shared_work
from tests.run.test_kill import outcome, own_thread_pool

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def launch(*arguments: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in so many processes; raises if one fails."""
    several = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *several, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **options, check=False, timeout=900)  # processes may wait for each other forever
    assert done.returncode == 0, done.stderr
    return done


def forked(work: Callable[[], object], *, processes: int = 2, **environment: str) -> None:
    """Do it in so many copies of this process, which has imported everything; raises if one fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        several = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    ranks = [{**several, "RANK": str(k), "LOCAL_RANK": str(k)} for k in range(processes)] if processes > 1 else [{}]
    children = [_begun(work, environment | rank) for rank in ranks]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(statuses), statuses


def _begun(work: Callable[[], object], environment: dict[str, str]) -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        signal.alarm(900)  # processes may wait for each other forever
        own_thread_pool()
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)
        status = int(bool(work()))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def test_a_single_process_has_everything() -> None:
    processes = Processes()
    assert (processes.count, processes.main) == (1, True)
    assert processes.join(processes.share([3, 1, 2])) == [3, 1, 2]
    assert processes.sum([1.5, 2.0]) == [1.5, 2.0]
    assert processes.of_main([1.5]) == [1.5]
    assert [processes.any(value) for value in (True, False)] == [True, False]
    generator = torch.Generator()
    assert processes.generator(generator) is generator
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    processes.sum_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    processes.wait()


@pytest.fixture(scope="module")
def found(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes -> what each of them has found."""
    results = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp("found")
        forked(partial(shared_work.main, str(tiny_model_dir), str(folder)), processes=count)
        results[count] = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]
        assert [one["count"] for one in results[count]] == [count] * count
    return results


def test_two_processes_find_what_one_finds(found: dict[int, list[dict[str, Any]]]) -> None:
    """Rewards, greedy chains, the figures of updates of all kinds, and the weights after them."""
    (alone,), (first, _) = found[1], found[2]
    assert alone["gradients"].keys() == first["gradients"].keys()
    assert first["gradients"]["greedy"] == alone["gradients"]["greedy"]
    for name, expected in alone["gradients"].items():
        for ours, theirs in zip(first["gradients"][name], expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=1e-3, msg=name)


def test_all_processes_stay_alike(found: dict[int, list[dict[str, Any]]]) -> None:
    """Exactly, to the end of a run: adapters, buffer, state."""
    first, second = found[2]
    assert first == second
    assert all(first["loops"][method]["learned_again"] for method in ("em", "forward-kl"))


def test_a_run_in_two_processes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By torchrun and in copies of this process. One of them writes, once; it is repeatable, and one process goes on
    with it and reads it."""
    settings = ["--model", str(tiny_model_dir), "--preset", "smoke"]
    program = tmp_path / "saves_after_each_unit.py"
    program.write_text(
        "import sys\nfrom latent_cot.cli import main\nfrom latent_cot.run import session\n"
        "session.SAVE_EVERY = 0.0\nsys.exit(main(sys.argv[1:]))\n"
    )
    outcomes = []
    for name in ("a", "b"):
        folder = tmp_path / name
        command = ["em", *settings, "--output-dir", str(folder), "--json"]
        if name == "a":
            out = launch(str(program), *command).stdout
        else:
            with monkeypatch.context() as patch:
                patch.setattr(session, "SAVE_EVERY", 0.0)
                forked(partial(main, command), CUDA_VISIBLE_DEVICES="")
            out = capfd.readouterr().out
        assert json.loads(out)["run"] == str(folder)
        outcomes.append(outcome(folder))
        events = [event for event in RunFolder.open(folder).events() if event["kind"] != "note"]
        units = [(event["round"], event["kind"], event["unit"]) for event in events]
        assert len(units) == len(set(units)) > 10
        assert any("in 2 processes" in event["text"] for event in RunFolder.open(folder).events() if "text" in event)
    assert outcomes[0] == outcomes[1]

    for name in ("a", "b"):
        for finished in ("results.json", "p", "q"):
            (tmp_path / name / finished).rename(tmp_path / f"{name}-was-{finished}")
        newest = max((tmp_path / name / "checkpoints").iterdir())
        newest.rename(tmp_path / f"{name}-was-{newest.name}")
    assert main(["em", "--output-dir", str(tmp_path / "a"), "--resume"]) == 0
    assert outcome(tmp_path / "a")["p"] == outcomes[1]["p"]
    forked(partial(main, ["em", "--output-dir", str(tmp_path / "b"), "--resume"]), CUDA_VISIBLE_DEVICES="")
    assert outcome(tmp_path / "b") == outcomes[1]


def _train(model: str, method: str, folder: Path) -> None:
    """What a process finds at its end, beside `folder`; the main one takes its time to write."""
    save, mark, index = RunFolder.save, RunFolder.mark, os.environ["RANK"]

    def save_late(self: RunFolder, *arguments: Any) -> None:
        time.sleep(1)
        save(self, *arguments)

    def mark_late(self: RunFolder, status: Any) -> None:
        time.sleep(status != "running")
        mark(self, status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", save_late)
        patch.setattr(RunFolder, "mark", mark_late)
        evaluation = {"splits": ("3-operands",), "size": 2, "diagnostics": 2}
        config = lc.configure("smoke", model=model, method=method, evaluation=evaluation)
        run = lc.train(config, output_dir=folder, progress=False, callbacks=[lambda unit: method == "em"])
    checkpoints = len(list((folder / "checkpoints").iterdir()))
    folder.with_name(f"{folder.name}-{index}.json").write_text(json.dumps([run.status, checkpoints > 0]))


@pytest.mark.parametrize(("method", "status"), [("few-shot", "finished"), ("em", "stopped")])
def test_none_ends_before_all_is_written(tiny_model_dir: Path, tmp_path: Path, method: str, status: str) -> None:
    """A launcher ends the others when one of them has: the main one in the middle of saving."""
    folder = tmp_path / "run"
    forked(partial(_train, str(tiny_model_dir), method, folder), CUDA_VISIBLE_DEVICES="")
    found = [json.loads((tmp_path / f"run-{index}.json").read_text()) for index in range(2)]
    assert found == [[status, True]] * 2


def test_what_one_process_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "runs/x"]) == 2
    assert "without torchrun or accelerate launch" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "stops"), [("1", False), ("2", True)])
def test_a_launcher_repeats_the_terminals_signal(monkeypatch: pytest.MonkeyPatch, count: str, stops: bool) -> None:
    """Which is then no second one: that aborts at once. A later one is."""
    monkeypatch.setenv("WORLD_SIZE", count)
    now = [0.0]
    monkeypatch.setattr("latent_cot.run.interrupts.time.monotonic", lambda: now[0])
    with stop_signals() as stopped_by:
        signal.raise_signal(signal.SIGINT)
        now[0] = 0.5
        with nullcontext() if stops else pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stopped_by() == signal.SIGINT
        now[0] = 60.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
