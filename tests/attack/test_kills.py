"""`kill -9` at a call that writes: in its middle, before it, after it. The resumed run ends as if it had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latent_cot import disk
from latent_cot.config.settings import to_dict
from latent_cot.run import session as of_session
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import Session, run_loop
from tests.attack.cases import FULL, SEED, count
from tests.run.test_kill import outcome, own_thread_pool

CHAINS, KILLS = (21, 10) if FULL else (1, 8)
CALLS = [(os, "open"), (os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree")]


def killing(point: int) -> Callable[[], int]:
    """In this process, be killed at the `point`-th call that writes (0: never). Returns a function that counts them."""
    calls = 0

    def reached() -> bool:
        nonlocal calls
        calls += 1
        return calls == point

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if reached():
                kill()
            result = function(*arguments, **named)
            if reached():
                kill()
            return result

        return called

    class Half:
        """A file of which a write comes half-way."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.file)

        def write(self, data: bytes) -> None:
            if reached():
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                kill()
            self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    for module, name in CALLS:
        setattr(module, name, around(getattr(module, name)))
    fdopen = os.fdopen
    os.fdopen = lambda *arguments, **named: Half(fdopen(*arguments, **named))  # type: ignore[assignment]
    return lambda: calls


def in_a_fork(session: Session, folder: Path, point: int, *, counted: Path | None = None) -> int:
    """Begin or resume the run in a copy of this process; returns its status, minus a signal's number."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        own_thread_pool()
        of_session.SAVE_EVERY = 0.0
        there = (folder / "config.yaml").exists()
        count = killing(point)
        run = RunFolder.open(folder) if there else RunFolder.create(folder, to_dict(session.config))
        with run.lock():
            run_loop(session, run, resume=there)
        if counted is not None:
            counted.write_text(str(count()))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.fixture(scope="module")
def whole(session: Session, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What the run comes to, and how many calls write."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_a_fork(session, folder / "run", 0, counted=folder / "calls") == 0
    return outcome(folder / "run"), int((folder / "calls").read_text())


@pytest.mark.parametrize("chain", range(CHAINS))
def test_a_run_that_is_killed_again_and_again(
    chain: int, session: Session, whole: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    expected, calls = whole
    rng, folder, precious = random.Random(f"{SEED}/{chain}"), tmp_path / "run", tmp_path / "precious"
    precious.write_text("mine")
    points = [rng.randint(1, calls // 4) for _ in range(KILLS)]
    statuses = [in_a_fork(session, folder, point) for point in points]
    assert set(statuses) <= {-signal.SIGKILL, 0}, (points, statuses)
    assert statuses.count(-signal.SIGKILL) > KILLS // 2
    for _ in range(statuses.count(-signal.SIGKILL)):
        count("killed")
    assert in_a_fork(session, folder, 0) == 0, points
    assert outcome(folder) == expected, points
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "run"]
    assert precious.read_text() == "mine"
    assert not [path for path in folder.rglob("*") if disk._NEW.fullmatch(path.name)], points
