"""The run folder: what is written comes back, and what was cut off in the middle does no harm."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from latent_cot import disk
from latent_cot.model.optimise import load_optimizer, save_optimizer
from latent_cot.run import schemas
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError, finite

CONFIG = {"task": "arithmetic", "seed": 3, "e_step": {"learning_rate": 1.5e-4, "splits": ["a", "b"]}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


@contextmanager
def scratch() -> Iterator[RunFolder]:
    """A run folder for one hypothesis example."""
    with tempfile.TemporaryDirectory() as path:
        yield RunFolder(Path(path), {})


def write_files(value: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / "q").mkdir()
        save_file({"w": torch.full((100,), value)}, path / "q" / "adapter_model.safetensors")
        (path / "buffer.json").write_text(json.dumps({"value": value}))

    return write


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def exact(value: Any) -> str:
    """Distinguishes what `==` does not: NaN from NaN never, 0 from -0.0, 1 from 1.0 and True, key orders."""
    return repr(value)


# -- the folder --------------------------------------------------------------------------------------------


def test_create_and_open(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "run"
    made = RunFolder.create(path, {**CONFIG, "tools": ("calculator",), "model": "smöl"})
    opened = RunFolder.open(path)
    assert made.config == opened.config == {**CONFIG, "tools": ["calculator"], "model": "smöl"}
    record = opened.read_json("run.json")
    assert record["status"] == "running"
    assert record["seed"] == 3
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(record["versions"]) == {"latent_cot", "python", "torch", "transformers", "peft", "accelerate"}
    assert record["torch_threads"] == torch.get_num_threads()


def test_mark_keeps_the_first_start(folder: RunFolder) -> None:
    started = folder.read_json("run.json")["started_at"]
    folder.mark("finished")
    record = folder.read_json("run.json")
    assert (record["status"], record["started_at"]) == ("finished", started)
    assert record["updated_at"] >= started


def test_nothing_is_saved_yet(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="nothing was saved in this run yet: it is running; wait until it has, or"):
        folder.adapters()
    folder.mark("failed")
    with pytest.raises(UsageError, match="nothing was saved in this run yet; go on with --resume"):
        folder.adapters()


def test_the_newest_checkpoint_is_told_apart(folder: RunFolder) -> None:
    assert folder.newest is None
    folder.save({}, write_files(1))
    first = folder.newest
    assert first == folder.newest
    folder.save({}, write_files(2))
    assert folder.newest != first


def test_a_broken_run_json_does_not_stop_a_run(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text("{")
    folder.mark("running")
    assert folder.read_json("run.json")["status"] == "running"


def test_a_configuration_is_read_whole_or_not_at_all(folder: RunFolder) -> None:
    file = folder.path / "config.yaml"
    file.write_bytes(file.read_bytes() + b"# " + b"x" * 2**20 + b"\n")
    with pytest.raises(UsageError, match=r"config\.yaml: larger than 1 MiB"):
        RunFolder.open(folder.path)


def test_create_refuses_a_run(folder: RunFolder) -> None:
    before = (folder.path / "config.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"--output-dir .*holds a run.*--resume"):
        RunFolder.create(folder.path, {"seed": 4})
    assert (folder.path / "config.yaml").read_bytes() == before


def test_create_refuses_a_folder_of_others_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"--output-dir .*not empty"):
        RunFolder.create(tmp_path, CONFIG)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_create_takes_an_empty_folder_and_what_an_interrupted_create_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", disk_full)
        with pytest.raises(UsageError, match=r"the disk is full.*--output-dir"):
            RunFolder.create(tmp_path, CONFIG)
    for left in (".config.yaml", "..lock.pid", ".run.json"):
        (tmp_path / f"{left}.0123456789abcdef.new").touch()
    (tmp_path / ".lock.pid").write_text("123")
    assert RunFolder.create(tmp_path, CONFIG).config == CONFIG


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300, "nul\0"])
def test_create_where_no_folder_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--output-dir"):
        RunFolder.create(tmp_path / name, CONFIG)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_create_where_nobody_can_write() -> None:
    with pytest.raises(UsageError, match="--output-dir /proc/self/run"):
        RunFolder.create(Path("/proc/self/run"), CONFIG)


@pytest.mark.parametrize("name", ["", "nothing", "file", "file/run"])
def test_open_what_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"no run folder .*--output-dir"):
        RunFolder.open(tmp_path / name)


@pytest.mark.parametrize("text", [b"", b"- 1", b"a: [", b"a: !!python/object:os.system {}", b"\xff\xfe\xff", b"\x00"])
def test_open_a_broken_configuration(folder: RunFolder, text: bytes) -> None:
    (folder.path / "config.yaml").write_bytes(text)
    with pytest.raises(UsageError, match=r"config\.yaml(:\d)?: (holds no settings|not valid YAML|not UTF-8)"):
        RunFolder.open(folder.path)


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, latent_cot.run.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the lock ----------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from latent_cot.run.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(folder: RunFolder) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with (
                pytest.raises(UsageError, match=rf"in use by another process \(pid {holder.pid} on .*--output-dir"),
                folder.lock(),
            ):
                pytest.fail("two hold the lock")
        finally:
            holder.send_signal(signal.SIGKILL)
    with folder.lock():
        assert (folder.path / ".lock.pid").read_text().split()[0] == str(os.getpid())


def test_the_lock_is_free_after_use_and_after_an_error(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with (
        folder.lock(),
        pytest.raises(UsageError, match=f"pid {os.getpid()} on"),
        RunFolder.open(folder.path).lock(),
    ):
        pytest.fail("two hold the lock")
    assert not (folder.path / ".lock.pid").exists()


def test_locking_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"file/run: cannot be written"),
        RunFolder(tmp_path / "file" / "run", {}).lock(),
    ):
        pytest.fail("locked nothing")


# -- logs --------------------------------------------------------------------------------------------------


def test_events_come_back(folder: RunFolder) -> None:
    assert list(folder.events()) == []
    first = folder.log("e-step", loss=1.25, norm=math.inf, rewards=(math.nan, -1.0))
    second = folder.log("note", text="two\nlines\u2028, and ünicode \ud800")
    assert list(folder.events()) == [first, second]
    assert first["norm"] is None
    assert first["rewards"] == [None, -1.0]
    assert first["time"].endswith("+00:00")


@given(st.lists(json_objects, max_size=4))
def test_rationales_are_strict_json_lines(records: list[dict[str, Any]]) -> None:
    with scratch() as folder:
        folder.append_rationales(records[:2])
        folder.append_rationales(records[2:])
        lines = (folder.path / "rationales.jsonl").read_bytes().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == finite(records)


@given(st.integers(1, 200))
def test_a_last_event_that_was_cut_short(cut: int) -> None:
    with scratch() as folder:
        events = [folder.log("step", number=number) for number in range(3)]
        file = folder.path / "events.jsonl"
        os.truncate(file, max(0, file.stat().st_size - cut))
        data = file.read_bytes()
        whole = events[: data.count(b"\n")]
        assert len(whole) < 3
        assert list(folder.events()) == whole
        assert file.read_bytes() == data  # reading changes nothing
        with folder.lock():
            event = folder.log("resume")
        assert list(folder.events()) == [*whole, event]


def test_an_event_in_the_middle_that_is_none(folder: RunFolder) -> None:
    folder.log("step")
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"kind": \n')
    with pytest.raises(UsageError, match=r"events\.jsonl, line 2"):
        list(folder.events())


def test_a_record_that_is_no_json_leaves_no_trace(folder: RunFolder) -> None:
    with pytest.raises(TypeError):
        folder.append_rationales([{"a": 1}, {"a": object()}])
    assert not (folder.path / "rationales.jsonl").exists()


FILL = """
import json, resource, signal, sys
from pathlib import Path
from latent_cot.types import UsageError, finite
from latent_cot.run.run_folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(1000):
    try:
        folder.log("step", number=number, text="x" * 30_000)
    except UsageError as error:
        sys.exit(str(error))
"""


def test_an_event_for_which_there_is_no_room(folder: RunFolder) -> None:
    """A real failure in the middle of a write: the kernel refuses to let a file grow beyond 100 kB."""
    done = subprocess.run([sys.executable, "-c", FILL, str(folder.path)], capture_output=True, text=True, check=False)
    assert "events.jsonl: cannot be written" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert [event["number"] for event in folder.events()] == [0, 1, 2]
    assert (folder.path / "events.jsonl").read_bytes().endswith(b"\n")


# -- JSON --------------------------------------------------------------------------------------------------


@given(json_values)
def test_json_comes_back(value: Any) -> None:
    with scratch() as folder:
        folder.write_json("results.json", value)
        text = (folder.path / "results.json").read_text()
        assert folder.read_json("results.json") == finite(value)
        json.loads(text, parse_constant=pytest.fail)
        assert os.listdir(folder.path) == ["results.json"]


def test_json_is_stable_and_without_infinities(folder: RunFolder) -> None:
    folder.write_json("results.json", {"b": math.nan, "a": (1, -math.inf)})
    expected = '{\n  "a": [\n    1,\n    null\n  ],\n  "b": null\n}\n'
    assert (folder.path / "results.json").read_text() == expected


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_json(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    folder.write_json("results.json", {"accuracy": 0.5})
    before = sorted(os.listdir(folder.path))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, disk_full)
        with pytest.raises(UsageError, match=r"results\.json: cannot be written \(the disk is full\); free space"):
            folder.write_json("results.json", {"accuracy": 0.9})
    assert folder.read_json("results.json") == {"accuracy": 0.5}
    assert sorted(os.listdir(folder.path)) == before


@pytest.mark.parametrize("text", [None, "{", "\xff"])
def test_reading_json_that_is_not_there_or_broken(folder: RunFolder, text: str | None) -> None:
    if text is not None:
        (folder.path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"results\.json: "):
        folder.read_json("results.json")


# -- checkpoints -------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(folder: RunFolder) -> None:
    assert folder.latest() is None
    path = folder.save({"step": 7, "buffer": {"q": [-math.inf, 0.1]}}, write_files(1))
    checkpoint = folder.latest()
    assert checkpoint is not None
    assert checkpoint.path == path == folder.path / "checkpoints" / "000001"
    assert checkpoint.state == {"step": 7, "buffer": {"q": [-math.inf, 0.1]}}
    assert checkpoint.skipped == ()
    assert load_file(path / "q" / "adapter_model.safetensors")["w"].tolist() == [1] * 100


@given(json_objects)
def test_a_state_survives_exactly(state: dict[str, Any]) -> None:
    with scratch() as folder:
        folder.save(state, lambda _: None)
        checkpoint = folder.latest()
        assert checkpoint is not None
        assert exact(checkpoint.state) == exact(state)


def test_a_state_that_would_not_survive(folder: RunFolder) -> None:
    with pytest.raises(TypeError):
        folder.save({"a": object()}, write_files(1))
    assert folder.latest() is None


def test_the_newest_two_are_kept(folder: RunFolder) -> None:
    for step in range(1, 5):
        folder.save({"step": step}, write_files(step))
    assert sorted(os.listdir(folder.path / "checkpoints")) == ["000003", "000004"]


def test_numbers_beyond_six_digits(folder: RunFolder) -> None:
    (folder.path / "checkpoints" / "999999").mkdir(parents=True)
    assert folder.save({"step": 1}, write_files(1)).name == "1000000"
    checkpoint = folder.latest()
    assert checkpoint is not None
    assert checkpoint.path.name == "1000000"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
}
FILES = ["state.json", "manifest.json", "buffer.json", "q/adapter_model.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(folder: RunFolder, damage: str, name: str) -> None:
    folder.save({"step": 1}, write_files(1))
    newer = folder.save({"step": 2}, write_files(2))
    DAMAGES[damage](newer / name)
    checkpoint = folder.latest()
    assert checkpoint is not None
    assert checkpoint.state == {"step": 1}
    (sentence,) = checkpoint.skipped
    assert str(newer) in sentence
    assert name == "manifest.json" or name in sentence


@settings(max_examples=50)
@given(st.integers(0), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position: int, bit: int) -> None:
    with scratch() as folder:
        path = folder.save({"step": 1, "reward": -math.inf}, write_files(1))
        files = sorted(file for file in path.rglob("*") if file.is_file())
        data = b"".join(file.read_bytes() for file in files)
        position %= len(data)
        for file in files:
            if position < file.stat().st_size:
                break
            position -= file.stat().st_size
        changed = bytearray(file.read_bytes())
        changed[position] ^= 1 << bit
        file.write_bytes(changed)
        try:
            checkpoint = folder.latest()
        except UsageError:
            return
        # White space and the like in the manifest: then nothing may be lost.
        assert file.name == "manifest.json"
        assert checkpoint is not None
        assert checkpoint.state == {"step": 1, "reward": -math.inf}


def test_no_checkpoint_is_intact(folder: RunFolder) -> None:
    for step in (1, 2):
        flip(folder.save({"step": step}, write_files(step)) / "buffer.json")
    with pytest.raises(UsageError, match=r"000002/buffer\.json.*000001/buffer\.json.*--output-dir"):
        folder.latest()


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleaned_up(folder: RunFolder) -> None:
    folder.save({"step": 1}, write_files(1))
    abandoned = folder.path / "checkpoints" / ".000002.0123456789abcdef.new"
    abandoned.mkdir()
    write_files(2)(abandoned)
    checkpoint = folder.latest()
    assert checkpoint is not None
    assert checkpoint.state == {"step": 1}
    folder.save({"step": 2}, write_files(2))
    assert sorted(os.listdir(folder.path / "checkpoints")) == ["000001", "000002"]


KILLED = """
import os, signal, sys
from pathlib import Path
from latent_cot.run.run_folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]))
def write(path):
    (path / "half").write_bytes(b"x" * 100)
    os.kill(os.getpid(), signal.SIGKILL)
with folder.lock():
    folder.log("step", number=2)
    folder.save({"step": 2}, write)
"""


def test_kill_in_the_middle_of_a_save(folder: RunFolder) -> None:
    with folder.lock():
        folder.log("step", number=1)
        folder.save({"step": 1}, write_files(1))
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    resumed = RunFolder.open(folder.path)
    with resumed.lock():
        checkpoint = resumed.latest()
        assert checkpoint is not None
        assert checkpoint.state == {"step": 1}
        resumed.rewind(checkpoint)
        resumed.log("step", number=2)
        resumed.save({"step": 2}, write_files(2))
    assert [event["number"] for event in resumed.events()] == [1, 2]
    assert sorted(os.listdir(folder.path / "checkpoints")) == ["000001", "000002"]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_older_checkpoints(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for step in (1, 2):
        folder.save({"step": step}, write_files(step))
    with monkeypatch.context() as patch:
        if where != "write":
            patch.setattr(os, where, disk_full)
        with pytest.raises(UsageError, match=r"checkpoints: .*the disk is full.*free space and go on with --resume"):
            folder.save({"step": 3}, disk_full if where == "write" else lambda path: (path / "x").touch())
    assert sorted(os.listdir(folder.path / "checkpoints")) == ["000001", "000002"]
    checkpoint = folder.latest()
    assert checkpoint is not None
    assert checkpoint.state == {"step": 2}


FILL_CHECKPOINT = """
import resource, sys
from pathlib import Path
from latent_cot import disk
from latent_cot.types import UsageError
from latent_cot.run.run_folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    folder.save({}, lambda path: disk.write(path / "w.safetensors", bytes(400_000)))
except UsageError as error:
    sys.exit(str(error))
"""


def test_tensors_for_which_there_is_no_room(folder: RunFolder) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_CHECKPOINT, str(folder.path)], capture_output=True, text=True, check=False
    )
    assert "checkpoints: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(folder.path / "checkpoints") == []


def test_an_interrupted_save_leaves_nothing(folder: RunFolder) -> None:
    def interrupt(path: Path) -> None:
        (path / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.save({"step": 1}, interrupt)
    assert os.listdir(folder.path / "checkpoints") == []


# -- rewinding ---------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["log", "rationale", "save"]), max_size=12))
def test_rewinding_restores_both_logs(actions: list[str]) -> None:
    with scratch() as folder:
        saved: tuple[Any, Any] = ([], [])

        def logs() -> tuple[Any, Any]:
            file = folder.path / "rationales.jsonl"
            return list(folder.events()), file.read_text().splitlines() if file.exists() else []

        for number, action in enumerate(actions):
            if action == "log":
                folder.log("step", number=number)
            elif action == "rationale":
                folder.append_rationales([{"number": number}])
            else:
                folder.save({}, lambda _: None)
                saved = logs()
        checkpoint = folder.latest()
        assert (checkpoint is not None) == ("save" in actions)
        folder.rewind(checkpoint)
        assert logs() == saved


def test_rewinding_past_a_damaged_checkpoint_drops_it(folder: RunFolder) -> None:
    folder.save({"step": 1}, write_files(1))
    flip(folder.save({"step": 2}, write_files(2)) / "state.json")
    folder.rewind(folder.latest())
    assert os.listdir(folder.path / "checkpoints") == ["000001"]


def test_rewinding_a_log_that_lost_its_end(folder: RunFolder) -> None:
    event = folder.log("step", number=1)
    folder.log("step", number=2)
    folder.save({}, write_files(1))
    file = folder.path / "events.jsonl"
    os.truncate(file, file.stat().st_size - 5)
    folder.rewind(folder.latest())
    assert list(folder.events()) == [event]


def test_lines_longer_than_a_block(folder: RunFolder) -> None:
    event = folder.log("step", text="x" * 200_000)
    file = folder.path / "events.jsonl"
    size = file.stat().st_size
    folder.log("step", text="y" * 200_000)
    os.truncate(file, file.stat().st_size - 1)
    with folder.lock():
        assert file.stat().st_size == size
    assert list(folder.events()) == [event]
    os.truncate(file, size - 1)
    with folder.lock():
        assert file.stat().st_size == 0


# -- the optimiser's state ---------------------------------------------------------------------------------


def make_model(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters()), "lr": 0.1},
        {"params": list(model[2].parameters()), "betas": (0.7, 0.99)},
    ]
    return model, torch.optim.AdamW(groups, **{"lr": 1e-3, **options})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 3)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("pause", [0, 1, 6])
def test_training_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, Any], pause: int) -> None:
    model, optimizer = make_model(**options)
    train(model, optimizer, range(pause))
    save_optimizer(optimizer, tmp_path)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, optimizer, range(pause, 10))

    resumed, resumed_optimizer = make_model(**options)
    resumed.load_state_dict(weights)
    load_optimizer(resumed_optimizer, tmp_path)
    train(resumed, resumed_optimizer, range(pause, 10))

    for name, weight in model.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    expected, found = optimizer.state_dict(), resumed_optimizer.state_dict()
    assert exact(found["param_groups"]) == exact(expected["param_groups"])
    for index, entries in expected["state"].items():
        assert found["state"][index].keys() == entries.keys()
        for key, value in entries.items():
            assert value.dtype == found["state"][index][key].dtype
            assert torch.equal(value, found["state"][index][key]), (index, key)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: torch.optim.AdamW([nn.Parameter(torch.ones(2, 3))]), "parameter 0 has another shape"),
        (
            lambda: torch.optim.AdamW([nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))]),
            "doesn't match|different number",
        ),
        (
            lambda: torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(size))]} for size in ((3, 2), 2)]),
            "doesn't match|different number",
        ),
    ],
)
def test_the_state_of_another_optimiser(
    tmp_path: Path, other: Callable[[], torch.optim.Optimizer], message: str
) -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    save_optimizer(optimizer, tmp_path)
    target = other()
    before = exact(target.state_dict())
    with pytest.raises(UsageError, match=message):
        load_optimizer(target, tmp_path)
    assert exact(target.state_dict()) == before


@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_damaged_optimiser_state(tmp_path: Path, damage: str) -> None:
    model, optimizer = make_model()
    train(model, optimizer, range(2))
    save_optimizer(optimizer, tmp_path)
    file = tmp_path / "optimizer.pt"
    if damage == "cut short":
        os.truncate(file, file.stat().st_size // 2)
    else:
        DAMAGES[damage](file)
    with pytest.raises(UsageError, match=r"optimizer\.pt: cannot be read"):
        load_optimizer(optimizer, tmp_path)


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch bomb",)


def test_an_optimiser_state_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Bomb(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(UsageError, match=r"optimizer\.pt: cannot be read"):
        load_optimizer(make_model()[1], tmp_path)
    assert not (tmp_path / "bomb").exists()


def test_a_folder_that_was_removed(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)
    with pytest.raises(UsageError, match=r"events\.jsonl: cannot be written"):
        folder.log("step")
    with pytest.raises(UsageError, match=r"results\.json: cannot be written"):
        folder.write_json("results.json", {})


@pytest.mark.parametrize("name", [".lock.pid", "events.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Somebody else's run folder may have one that leads to a file of the user's."""
    precious = tmp_path / "precious.txt"
    precious.write_text("mine\nand unfinished")
    folder = RunFolder.create(tmp_path / "run", {"seed": 1})
    (folder.path / name).symlink_to(precious)
    with pytest.raises(UsageError, match=f"{name}: a symbolic link"), folder.lock():
        pass
    assert precious.read_text() == "mine\nand unfinished"


def test_no_checkpoint_is_written_or_cleared_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs" / ".000001.0123456789abcdef.new").mkdir(parents=True)
    folder = RunFolder.create(tmp_path / "run", {"seed": 1})
    (folder.path / "checkpoints").symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match="checkpoints: a symbolic link"), folder.lock():
        folder.save({}, lambda target: None)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == [".000001.0123456789abcdef.new"]


@pytest.mark.parametrize("name", ["/dev/zero", "../../../secret", "link"])
def test_a_manifest_that_names_files_of_others(folder: RunFolder, name: str) -> None:
    """`/dev/zero` has size 0 and no end."""
    checkpoint = folder.save({}, lambda target: None)
    (folder.path.parent / "secret").touch()
    (checkpoint / "link").symlink_to("/dev/zero")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=f"names {re.escape(name)}, which is no file of this checkpoint"):
        folder.latest()


def test_folders_are_put_in_place_as_a_whole(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"seed": 1})

    def write(text: str, fails: bool = False) -> Callable[[Path], None]:
        def to(target: Path) -> None:
            for name in ("p", "q"):
                (target / name).mkdir()
                (target / name / "file").write_text(text)
            if fails:
                raise OSError(errno.ENOSPC, "No space left on device")

        return to

    folder.put_folders(("p", "q"), write("old"))
    with pytest.raises(UsageError, match="the disk is full"):
        folder.put_folders(("p", "q"), write("new", fails=True))
    assert [(folder.path / name / "file").read_text() for name in ("p", "q")] == ["old", "old"]
    folder.put_folders(("p", "q"), write("new"))
    assert (folder.path / "q" / "file").read_text() == "new"
    assert {path.name for path in folder.path.iterdir()} >= {"p", "q"}
    assert not list(folder.path.glob(".*.new"))


@pytest.mark.parametrize("wrong", [{"accuracy": "0.5"}, {"correct": "4"}, {"n": 8.5}, {"interval_95": ["0.1", 0.9]}])
def test_text_that_looks_like_a_number_is_none(wrong: dict[str, Any]) -> None:
    """It would be used as it is, in sums and formats."""
    right = {"accuracy": 0.5, "correct": 4, "n": 8, "interval_95": [0.2, 1]}
    disk.decoded(schemas.Accuracy, right, "x")
    with pytest.raises(UsageError, match=f"x: .*{next(iter(wrong))}"):
        disk.decoded(schemas.Accuracy, {**right, **wrong}, "x")


def test_a_unit_of_work_has_a_round() -> None:
    event = {"time": "now", "kind": "e_step", "unit": 1}
    with pytest.raises(UsageError, match="round"):
        disk.decoded(schemas.of_event(event), event, "x")
