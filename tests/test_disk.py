"""Files are read within bounds, and written through no link, at once."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import secrets
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from latent_cot import disk
from latent_cot.run.export.folder import refuse_unless_free
from latent_cot.run.paths import check_writable
from latent_cot.run.run_folder import RunFolder, write_text
from latent_cot.types import UsageError
from tests.conftest import ROOT

LEFT = "0123456789abcdef"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    file = tmp_path / "precious.txt"
    file.write_text("mine")
    return file


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path, precious: Path) -> None:
    link = tmp_path / "report.html"
    link.symlink_to(precious)
    write_text(link, "a report")
    assert precious.read_text() == "mine"
    assert not link.is_symlink() and link.read_text() == "a report"


def test_no_planted_name_is_written_through(tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that was guessed."""
    monkeypatch.setattr(secrets, "token_hex", lambda n: LEFT)
    (tmp_path / f".run.json.{LEFT}.new").symlink_to(precious)
    (tmp_path / f".run.json.{os.getpid()}.tmp").symlink_to(precious)
    disk.write(tmp_path / "run.json", b"{}")  # the link is cleared away first
    assert precious.read_text() == "mine" and (tmp_path / "run.json").read_text() == "{}"
    monkeypatch.setattr(disk, "clear", lambda *_: None)
    (tmp_path / f".run.json.{LEFT}.new").symlink_to(precious)
    with pytest.raises(FileExistsError):
        disk.write(tmp_path / "run.json", b"[]")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["events.jsonl", "rationales.jsonl"])
def test_a_log_is_not_appended_to_or_cut_through_a_link(tmp_path: Path, precious: Path, name: str) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    (folder.path / name).symlink_to(precious)
    for act in (lambda: disk.append(folder.path / name, b"x"), lambda: disk.keep_lines(folder.path / name)):
        with pytest.raises(OSError, match="symbolic links"):
            act()
    assert precious.read_text() == "mine"


def test_adapters_are_not_put_through_a_link(tmp_path: Path) -> None:
    folder, theirs = RunFolder.create(tmp_path / "run", {}), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mine").touch()
    (folder.path / "p").symlink_to(theirs)
    folder.put_folders(["p"], lambda target: (target / "p").mkdir())
    assert os.listdir(theirs) == ["mine"] and not (folder.path / "p").is_symlink()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_no_tracker_is_led_elsewhere(tmp_path: Path, name: str) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    (folder.path / name).symlink_to(tmp_path)
    with pytest.raises(UsageError, match=f"{name}: a symbolic link"), folder.lock():
        pass


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="the disk is full"):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_a_figure_is_put_in_place_at_once(tmp_path: Path, precious: Path) -> None:
    pytest.importorskip("matplotlib")
    from latent_cot.report.plots import figure_in

    (tmp_path / "curve.svg").symlink_to(precious)
    with figure_in(tmp_path / "curve.svg", 1, 1):
        pass
    assert precious.read_text() == "mine" and "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        disk.write(tmp_path / "pipe", b"")
    with pytest.raises(OSError, match="no regular file"):
        disk.read(tmp_path / "pipe", 10)  # and is not waited for
    with pytest.raises(OSError, match="no regular file"):
        disk.read(Path("/dev/zero"), 10)


def test_a_small_file_takes_no_more_memory_than_it_has(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"{}")
    tracemalloc.start()
    try:
        assert disk.read(tmp_path / "small", 2**28) == b"{}"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "old").touch()
    replace = os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(target).name == "export" and Path(source).name != "export" and (Path(source) / "new").exists():
            raise OSError(errno.EIO, "the disk is broken")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with disk.new_folder(tmp_path / "export") as new:
        (new / "new").touch()
        with pytest.raises(OSError, match="broken"):
            disk.put_folder(new, tmp_path / "export")
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "old"]


def test_a_folder_survives_a_kill_between_two_renames(tmp_path: Path) -> None:
    target = tmp_path / "export"
    (target / "old").mkdir(parents=True)
    with disk.new_folder(target):
        disk._put_away(target, "old")  # and no more
    with disk.new_folder(target) as new:  # of the next process
        (left,) = tmp_path.glob(".export.*.old")
        assert (left / "old").exists()
        disk.put_folder(new, target)
    assert left.exists()
    disk.clear(tmp_path)
    assert os.listdir(tmp_path) == ["export"], "there is another in its place"


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that is full in the middle of it, even if there is room again at once."""
    log, write = tmp_path / "log", os.write

    def full(descriptor: int, data: bytes) -> int:
        if not data[:1] == b"a":
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(descriptor, data[:3])

    disk.append(log, b"one\n")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        disk.append(log, b"aaabbb\n")
    assert log.read_bytes() == b"one\n"


def test_a_link_to_a_pipe_and_a_place_without_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "link", Path("/dev/stdout").parent / "fd" / "99"):
        with pytest.raises(OSError, match=r"no regular file|No such file"):
            disk.write(path, b"")
    with pytest.raises(UsageError, match=r"--output .*link: no regular file"):
        check_writable(tmp_path / "link", "--output")
    (tmp_path / "away").symlink_to("nowhere")
    check_writable(tmp_path / "away", "--output")


def test_a_file_needs_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put in place by renaming."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).is_file())
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable(tmp_path / "file", "--output")


HOLD = """
import sys
from pathlib import Path
from latent_cot import disk
with disk.new_folder(Path(sys.argv[1])) as new:
    (new / "half").touch()
    print(new.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_and_what_one_is_writing_stays(tmp_path: Path) -> None:
    target = tmp_path / "export"
    command = [sys.executable, "-c", HOLD, str(target)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        with disk.new_folder(target) as new:
            disk.put_folder(new, target)
        assert (tmp_path / name / "half").exists()  # it is at it
        other.kill()
    (tmp_path / f".other.{LEFT}.new").mkdir()
    (tmp_path / ".export.notes.new").touch()  # the user's own
    disk.write(tmp_path / "export.json", b"")
    assert (tmp_path / name).exists()
    with disk.new_folder(target):
        pass
    assert sorted(os.listdir(tmp_path)) == [".export.notes.new", f".other.{LEFT}.new", "export", "export.json"]
    refuse_unless_free(target, tmp_path / "run", force=False)


@pytest.mark.parametrize("create", ["_new_file", "_new_folder"])
@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_what_another_process_clears_away_too_early_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: str, moment: str
) -> None:
    target, cleared, new = tmp_path / "target", list[Path](), getattr(disk, create)
    flock = fcntl.flock

    def clear_once() -> None:
        if not cleared:
            cleared.extend(tmp_path.glob(".target.*"))
            disk.clear(tmp_path)

    def locked(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH:
            clear_once()
        flock(descriptor, operation)

    def made(path: Path) -> int:
        if not cleared:
            path.mkdir()
            clear_once()
            raise FileNotFoundError  # as opening it does
        return int(new(path))

    monkeypatch.setattr(fcntl, "flock", locked)
    if moment == "before it is opened":
        monkeypatch.setattr(disk, create, made)
    if create == "_new_file":
        disk.write(target, b"all")
        assert target.read_bytes() == b"all"
    else:
        with disk.new_folder(target) as folder:
            disk.put_folder(folder, target)
        assert target.is_dir()
    assert len(cleared) == 1 and os.listdir(tmp_path) == ["target"]


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.write(tmp_path / "missing" / "file", b"")


def test_a_runs_folder_is_cleared_by_the_next_process(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    for place in (folder.path, folder.path / "checkpoints"):
        (place / f".000001.{LEFT}.new").mkdir(parents=True)
        (place / f".run.json.{LEFT}.new").touch()
    with folder.lock():
        pass
    assert not [path for path in folder.path.rglob("*") if path.name.endswith(".new")]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("~nobody-of-this-name/x", "Could not determine home|can't determine home"),
        ("x" * 256, "more than 255 bytes"),
        ("a/" + "ü" * 128 + "/b", "more than 255 bytes"),
        ("a\0b", "a zero byte"),
        ("caf\udce9", "no UTF-8 text"),
    ],
)
def test_a_path_that_cannot_be(path: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"(?i){why}"):
        disk.expanded(path)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    with pytest.raises(UsageError, match="write the path in full"):
        disk.expanded("~/runs")


WRITES = {
    "write_text",
    "write_bytes",
    "savefig",
    "touch",
    "mkstemp",
    "NamedTemporaryFile",
    "TemporaryDirectory",
    "truncate",
}
OPENS = {"open", "fdopen", "read_text", "read_bytes"}


def test_nothing_else_opens_files() -> None:
    """All goes through `disk.py`, but for what libraries write into a folder that it has made."""
    found = []
    for folder in ("latent_cot", "tasks", "tools"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if (
                file == ROOT / "latent_cot" / "disk.py"
                or "latent_cot/tasks" in str(file)
                or "latent_cot/tools" in str(file)
            ):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                owner = ast.unparse(node.func)
                if name in WRITES | OPENS and owner not in ALLOWED:
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {owner}")
    assert not found, found


ALLOWED = {
    *("write_text", "figure.savefig"),  # that of `run_folder.py`, and into memory
    *("RunFolder.open", "Follower.open", "self._open", "safe_open"),
    *("os.fdopen",),  # a pipe to a tool's own process
    # Files of the package itself:
    "file.read_text",
    "(_SHIPPED / f'{source}.yaml').read_text",
    "_STYLE.read_text",
    "resources.files('latent_cot.report.web').joinpath(folder, name).read_text",
    "Path(__file__).with_name('_portable_calculator.py').read_text",
}
