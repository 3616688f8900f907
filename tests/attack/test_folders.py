"""Whatever a run's folder holds: it is read, or one line says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot import disk
from latent_cot.api.run import Run
from latent_cot.config.settings import check, from_dict, load_config, parse_yaml, to_dict
from latent_cot.report.web import logs
from latent_cot.run import schemas
from latent_cot.run import session as of_session
from latent_cot.run.reasoners import Source, find, other_model
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import Session
from latent_cot.types import TaskData, UsageError
from tests.attack.cases import TEXTS, attack, bad_bytes, count, damaged, written


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def seal(checkpoint: Path) -> None:
    """Write a manifest that fits: who damages a folder on purpose would do so."""
    files = {
        path.relative_to(checkpoint).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))


def refused(act: Callable[[], object], *, rows: bool = False) -> bool:
    """Whether it was refused, in one line; with `rows`, in one for each bad row, and one with their number."""
    try:
        act()
    except UsageError as error:
        line = str(error)
    else:
        count("read")
        return False
    count("refused")
    *bad, last = line.split("\n")
    assert line and (not bad or (rows and last.startswith(f"{len(bad)} of "))), line
    return True


def resumed(session: Session, folder: RunFolder) -> None:
    """A run that is resumed, for one unit of work."""
    running = of_session._Running(session, folder, resume=True)
    next(running.loop.run(), None)


@attack(few=40, many=1000)
@given(data=st.data())
def test_states(data: st.DataObject, copy: Path, session: Session) -> None:
    checkpoint = newest(copy)
    kept = (checkpoint / "state.json").read_bytes()
    others = [path for path in (copy / "checkpoints").iterdir() if path != checkpoint]
    for other in others:
        shutil.rmtree(other)
    state = json.loads(kept)
    part = data.draw(st.sampled_from(["all", *state["state"], "loop", "loop", "buffer"]))
    if part == "all":
        state = data.draw(damaged(state))
    else:
        state["state"][part] = data.draw(damaged(state["state"][part]))
    (checkpoint / "state.json").write_bytes(written(state))
    seal(checkpoint)
    before = {name: (copy / name).read_bytes() for name in ("events.jsonl", "rationales.jsonl")}
    try:
        other_model(Source(session.config, RunFolder.open(copy)), session.lm)
        refused(lambda: resumed(session, RunFolder.open(copy)))
    finally:
        (checkpoint / "state.json").write_bytes(kept)
        for name, content in before.items():
            (copy / name).write_bytes(content)


@attack(few=60, many=500)
@given(data=st.data())
def test_manifests(data: st.DataObject, copy: Path) -> None:
    manifest = newest(copy) / "manifest.json"
    kept = manifest.read_bytes()
    content = data.draw(damaged(json.loads(kept)).map(written) | bad_bytes(kept))
    manifest.write_bytes(content)
    checkpoint = RunFolder.open(copy).latest()  # the older one is intact
    assert checkpoint is not None
    count("refused" if checkpoint.skipped else "read")
    manifest.write_bytes(kept)


def _seen(folder: Path) -> None:
    """All that is shown of a run."""
    source = find(str(folder), None)
    run = Run(source)
    for act in (
        lambda: run.status,
        lambda: run.results.table().text(),
        lambda: list(run.rationales()),
        lambda: run.events,
    ):
        with suppress(UsageError):
            act()
    logs.collect(source, RunFolder.open(folder), run.task, TaskData((), (), ()))


@attack(few=60, many=500)
@given(data=st.data())
def test_records(data: st.DataObject, copy: Path) -> None:
    results = copy / "results.json"
    if not results.exists():
        state = of_session.state_in(RunFolder.open(copy).latest())  # type: ignore[arg-type]
        resources = {"seconds": 1.0, "phases": {}, "peak_memory_bytes": 1}
        results.write_bytes(written({**disk.parse_json(written(state.results()), ""), "resources": resources}))
    name = data.draw(st.sampled_from(["run.json", "results.json", "events.jsonl", "rationales.jsonl"]))
    file = copy / name
    kept = file.read_bytes()
    lines = kept.splitlines() if name.endswith("l") else [kept]
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = data.draw(damaged(json.loads(lines[place])).map(written) | bad_bytes(lines[place]))
    file.write_bytes(b"\n".join(lines) + b"\n")
    try:
        refused(lambda: _seen(copy))
    finally:
        file.write_bytes(kept)


@attack(few=100, many=500)
@given(data=st.data())
def test_configurations(data: st.DataObject) -> None:
    import yaml

    record = data.draw(damaged(to_dict(load_config("smoke"))))
    try:
        text = yaml.safe_dump(record, allow_unicode=data.draw(st.booleans()))
        if not data.draw(st.integers(0, 3)):
            text = data.draw(bad_bytes(text.encode())).decode(errors="replace")
    except (UnicodeEncodeError, yaml.YAMLError):  # no such file can be written
        return
    refused(lambda: check(from_dict(parse_yaml(text, "mine.yaml"), "mine.yaml")))


YAMLS = ["? [a, b]\n: 1", "? {a: 1}\n: 2", "&a [*a]", "a: &a [x, x]\nb: [*a, *a]", "rounds: " + "9" * 400, "[" * 5000]


@pytest.mark.parametrize("text", [*TEXTS, *YAMLS, "rounds: 1\nrounds: 2", "!!python/object:os.system {}", "a: \x07"])
def test_yaml(text: str) -> None:
    refused(lambda: check(from_dict(parse_yaml(text, "mine.yaml"), "mine.yaml")))


@pytest.mark.parametrize("text", TEXTS)
def test_json(text: str) -> None:
    refused(lambda: disk.decoded(schemas.About, disk.parse_json(text, "run.json"), "run.json"))
