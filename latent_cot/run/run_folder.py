"""The run folder: what a run writes, and what it needs to go on after it was stopped, or killed.

    config.yaml        the resolved configuration; its presence makes a folder a run folder
    run.json           seed, versions, machine, status
    events.jsonl       the event log: one JSON object a line, only ever appended to
    rationales.jsonl   sampled rationales, likewise
    checkpoints/NNNNNN/  state.json, the caller's files, and manifest.json with their sizes and hashes
    p/, q/             the final adapters in PEFT's format, written by the caller; prior/, if the reward needs it
    results.json       the evaluation
    .lock              held by the one process that may write

Every file but the two logs appears at once, by renaming, or not at all (`disk.py`). What is read is decoded by a schema
(`schemas.py`). Importing this loads no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from latent_cot import __version__, disk
from latent_cot.config.settings import parse_yaml, read_settings, write_yaml
from latent_cot.run import schemas
from latent_cot.run.schemas import Status
from latent_cot.types import UsageError, finite

EVENTS = "events.jsonl"
RATIONALES = "rationales.jsonl"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A saved state whose files have been verified."""

    path: Path
    """The folder with the files that `write` stored."""
    state: dict[str, Any]
    """As it was given to `RunFolder.save`, tuples as lists."""
    log_sizes: dict[str, int]
    """Bytes of each log when the state was saved."""
    skipped: tuple[str, ...] = ()
    """One sentence for each newer checkpoint that is damaged."""


class RunFolder:
    """One run on disk. Whoever writes holds `lock()`; reading needs no lock.

    Make it by `create` or `open`. Every write raises UsageError, naming the file and the remedy, where the
    disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path.absolute()  # the working directory may change
        self.given = path
        """As the user named it."""
        self.config = config
        """The resolved configuration, as read from YAML: tuples are lists."""

    @property
    def name(self) -> str:
        """What reports and trackers call it: as the folder is called, with its variant where it is a comparison's."""
        path = self.path
        return f"{path.parent.name}/{path.name}" if re.fullmatch(r"seed\d+", path.name) else path.name

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Make the folder, its parents too, for a new run.

        Raises UsageError if it holds a run or anything else, or cannot be written.
        """
        text = write_yaml(config)
        folder = cls(path, parse_yaml(text, str(path)))
        try:
            refuse_unless_free(path)
            path.mkdir(parents=True, exist_ok=True)
            with folder.lock():
                refuse_unless_free(path)  # another process may have been quicker
                disk.write(path / "config.yaml", text.encode())
                folder.mark("running")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise UsageError(f"--output-dir {path}: cannot be written ({error}); give another one") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises UsageError if there is none at `path`, or its configuration is broken."""
        file = path / "config.yaml"
        if not os.path.isfile(file):  # it takes names of any length
            missing = "it has no config.yaml" if os.path.isdir(path) else "no such folder"
            raise UsageError(f"{path}: no run folder ({missing}); give the --output-dir of a run")
        config = read_settings(file)
        if not config or not isinstance(config, dict):
            raise UsageError(f"{file}: holds no settings; put it right, or start a new run")
        return cls(path, config)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here. Raises UsageError naming the process that already is.

        The lock is the kernel's: it ends with the process, however that ends. What a killed process left of
        a last line in the logs is cut off.
        """
        for name in (".lock", ".lock.pid", EVENTS, RATIONALES, "checkpoints", "tensorboard", "wandb"):
            if (self.path / name).is_symlink():  # in a folder of somebody else's it may lead to a file of the user's
                raise UsageError(f"{self.path / name}: a symbolic link, which is not written through; take it away")
        lock = FileLock(self.path / ".lock")
        owner = self.path / ".lock.pid"  # a file of its own: filelock may truncate the lock file
        with _writing(self.path):
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                holder = "unknown"  # it has only just got the lock, or is about to end
                with suppress(OSError, UsageError, ValueError):
                    holder = disk.read(owner, 1000).decode().strip()
                who = f"another process (pid {holder})"
                raise UsageError(f"{self.path}: in use by {who}; wait for it, or give another --output-dir") from error
        try:
            with _writing(self.path):
                for place in (self.path, self.path / "checkpoints"):
                    disk.clear(place)
                disk.write(owner, f"{os.getpid()} on {platform.node()}\n".encode())
                for name in (EVENTS, RATIONALES):
                    disk.keep_lines(self.path / name)
            yield
        finally:
            with suppress(OSError):
                owner.unlink()
            lock.release()

    def mark(self, status: Status) -> None:
        """Write run.json: the status, and the versions and machine of this process. `started_at` stays."""
        import torch  # here: it takes seconds

        started = now = _now()
        with suppress(UsageError):
            started = self.about.started_at or now
        packages = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
        record = {
            "status": status,
            "seed": self.config.get("seed"),
            "started_at": started,
            "updated_at": now,
            "versions": {"latent_cot": __version__, "python": platform.python_version(), **packages},
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        }
        self.write_json("run.json", record)

    @contextmanager
    def marking_failure(self) -> Iterator[None]:
        """Mark a run as failed, and log why, when an error ends what is done in here, unless it was marked already."""
        try:
            yield
        except Exception as error:
            # Of no avail where the disk or the memory is full, which may be the error, the one to be seen.
            with suppress(UsageError, OSError, MemoryError):
                if self.about.status == "running":
                    self.mark("failed")
                    self.log("note", text=f"Failed: {type(error).__name__}: {error}")
            raise

    # -- logs ----------------------------------------------------------------------------------------

    def log(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Append an event; returns it as written: non-finite numbers are null."""
        event = finite(dict([("time", _now()), ("kind", kind)], **fields))
        self._append(EVENTS, [event])
        return event  # type: ignore[no-any-return]

    def events(self) -> Iterator[dict[str, Any]]:
        """All complete events, oldest first; a last line that was cut short is left out.

        Raises UsageError for any other line that is no JSON object.
        """
        return (record for record, _ in self._records(EVENTS, schemas.of_event))

    def rationales(self) -> Iterator[schemas.LoggedRationale]:
        """All complete lines of rationales.jsonl, likewise."""
        return (one for _, one in self._records(RATIONALES, lambda record: schemas.LoggedRationale))

    def _records(self, name: str, kind: Callable[[dict[str, Any]], type]) -> Iterator[tuple[dict[str, Any], Any]]:
        """Each line as JSON, and as what its kind says that it holds."""
        file = self.path / name
        if not os.path.lexists(file):
            return
        try:
            with disk.opened(file) as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        return
                    where = f"{file}, line {number}"
                    try:
                        record = disk.parse_json(line, where, any_text=True)
                        if not isinstance(record, dict):
                            raise UsageError(f"{where}: no JSON object")
                        found: Any = disk.decoded(kind(record), record, where)
                    except UsageError as error:
                        raise UsageError(f"{error}; take the line out") from error
                    yield record, found
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error})") from error

    def append_rationales(self, records: Iterable[dict[str, Any]]) -> None:
        """Append to rationales.jsonl, all or none; non-finite numbers become null."""
        self._append(RATIONALES, map(finite, records))

    def _append(self, name: str, records: Iterable[Any]) -> None:
        # ASCII only: no lone surrogate or exotic line separator in a model's text can break a line.
        data = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode("ascii")
        with _writing(self.path / name):
            disk.append(self.path / name, data)

    # -- JSON ----------------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        """Write a file at once, keys sorted. JSON has no NaN or infinity: they become null."""
        with _writing(self.path / name):
            text = json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n"
            disk.write(self.path / name, text.encode("ascii"))

    def read_json(self, name: str) -> Any:
        """Raises UsageError if there is no such file, or it is broken."""
        return _read_json(self.path / name)

    def write_config(self, config: dict[str, Any]) -> None:
        """Put another configuration in the place of the run's: it goes on with that."""
        with _writing(self.path / "config.yaml"):
            disk.write(self.path / "config.yaml", write_yaml(config).encode())
        self.config = config

    @property
    def about(self) -> schemas.About:
        """What is in `run.json`. Raises UsageError as `read_json`."""
        return disk.decoded(schemas.About, self.read_json("run.json"), str(self.path / "run.json"))

    @property
    def results(self) -> dict[str, Any]:
        """What is in `results.json`, see `schemas.Results`. Raises UsageError as `read_json`."""
        found = self.read_json("results.json")
        disk.decoded(schemas.Results, found, str(self.path / "results.json"))
        return found  # type: ignore[no-any-return]

    # -- checkpoints ---------------------------------------------------------------------------------

    def adapters(self) -> Path:
        """Where the adapters `p/` and `q/` are: in the run's folder once it is finished, else in its newest checkpoint.

        Raises UsageError if nothing was saved yet.
        """
        if all((self.path / adapter / "adapter_model.safetensors").is_file() for adapter in ("p", "q")):
            return self.path
        checkpoint = self.latest()
        if checkpoint is None:
            begun, remedy = "", "go on with --resume"
            with suppress(UsageError):
                if self.about.status == "running":
                    begun = ": it is running"
                    remedy = "wait until it has, or, if it was killed, go on with --resume"
            raise UsageError(f"{self.path}: nothing was saved in this run yet{begun}; {remedy}")
        return checkpoint.path

    def put_folders(self, names: Iterable[str], write: Callable[[Path], None]) -> None:
        """Put folders into the run's, each as a whole: what is half written is never taken for an adapter.

        Args:
            write: makes folders of these names in the folder it is given.
        """
        with _writing(self.path), disk.new_folder(self.path / "adapters") as temporary:
            write(temporary)
            for name in names:
                disk.put_folder(temporary / name, self.path / name)

    def save(self, state: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Save a checkpoint and drop all but the newest two; returns its folder.

        On failure nothing is left of it, and the older ones are untouched.

        Args:
            state: JSON with string keys; −inf, inf and NaN survive.
            write: stores the caller's files (tensors, adapters) in the folder it is given.
        """
        logs = [path for name in (EVENTS, RATIONALES) if (path := self.path / name).exists()]
        sizes = {path.name: path.stat().st_size for path in logs}
        encoded = json.dumps({"log_sizes": sizes, "state": state})
        number = max((int(path.name) for path in self._checkpoints()), default=0) + 1
        target = self.path / "checkpoints" / f"{number:06d}"
        with _writing(target.parent):
            target.parent.mkdir(exist_ok=True)
            with disk.new_folder(target) as temporary:
                write(temporary)
                disk.write(temporary / "state.json", encoded.encode("ascii"))
                files = {name: _fingerprint(path) for name, path in _files_in(temporary).items()}
                disk.write(temporary / "manifest.json", json.dumps({"files": files}, indent=2).encode())
                disk.sync(*logs)
                disk.put_folder(temporary, target)
            for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
                with suppress(OSError):
                    disk.remove_folder(old)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; None if none was saved.

        Raises UsageError, naming what is damaged, if there are checkpoints but none is intact.
        """
        damages: list[str] = []
        for path in reversed(self._checkpoints()):
            try:
                saved = _read_checkpoint(path)
            except UsageError as damage:
                damages.append(str(damage))
            else:
                return Checkpoint(path, saved.state, saved.log_sizes, tuple(damages))
        if damages:
            remedy = "Restore the files, or start again in another --output-dir"
            raise UsageError(f"{self.path}: no checkpoint is intact: {'; '.join(damages)}. {remedy}")
        return None

    @property
    def newest(self) -> tuple[str, int] | None:
        """What is another with each checkpoint that is saved: the newest's name, and when it was written. None if there
        is none. Quick: nothing is verified."""
        for path in reversed(self._checkpoints()):
            with suppress(OSError):
                return path.name, (path / "manifest.json").stat().st_mtime_ns
        return None

    def unfinish(self) -> None:
        """A finished run goes on, to more rounds: what it was at its end is in its newest checkpoint."""
        with _writing(self.path):
            (self.path / "results.json").unlink(missing_ok=True)
            for name in ("p", "q"):
                disk.remove_folder(self.path / name)

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Cut the logs back to where they were at the checkpoint, and drop newer (damaged) checkpoints.

        A resumed run then logs no event twice. None rewinds to the start.
        """
        with _writing(self.path):
            for name in (EVENTS, RATIONALES):
                disk.keep_lines(self.path / name, checkpoint.log_sizes.get(name, 0) if checkpoint else 0)
            for path in self._checkpoints():
                if checkpoint is None or int(path.name) > int(checkpoint.path.name):
                    disk.remove_folder(path)

    def _checkpoints(self) -> list[Path]:
        """Oldest first, damaged ones included."""
        folders = (self.path / "checkpoints").glob("[0-9]*")
        return sorted((path for path in folders if path.name.isdecimal()), key=lambda path: int(path.name))


class Follower(RunFolder):
    """A run's folder as those of its processes see it that are not the main one: they read, and write nothing."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The main process has it."""
        yield

    def write_json(self, name: str, value: Any) -> None:
        """Nothing."""

    def write_config(self, config: dict[str, Any]) -> None:
        """Nothing."""

    def save(self, state: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Nothing."""
        return self.path

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Nothing: the main process does it."""

    def unfinish(self) -> None:
        """Nothing, likewise."""

    def _append(self, name: str, records: Iterable[Any]) -> None:
        """Nothing."""


def write_text(path: Path, text: str) -> None:
    """Write a file at once, and its folder if there is none. Raises UsageError if it cannot be written."""
    with _writing(path, "repeat the command, or write elsewhere"):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write(path, text.encode("utf-8"))


def _read_json(file: Path) -> Any:
    try:
        return disk.parse_json(disk.read(file, disk.MAX_BYTES), str(file))
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such file; the run has not got that far") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error}); the file is damaged") from error


def _read_checkpoint(folder: Path) -> schemas.Saved:
    """What was saved, once all files have been compared with the manifest. Raises UsageError for damage."""
    manifest, state = folder / "manifest.json", folder / "state.json"
    try:
        files = disk.decoded(schemas.Manifest, _read_json(manifest), str(manifest)).files
        there = _files_in(folder)
        for name, expected in files.items():
            if name not in there:  # a folder of somebody else's may name any file there is, one without an end too
                raise UsageError(f"{manifest} names {name}, which is no file of this checkpoint")
            if _fingerprint(there[name]) != vars(expected):
                raise UsageError(f"{there[name]} has changed since it was written")
        if "state.json" not in files:
            raise UsageError(f"{manifest} lacks state.json")
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    return disk.decoded(schemas.Saved, _read_json(state), str(state))


def refuse_unless_free(path: Path) -> None:
    """Only what an interrupted `create` leaves may be where a run begins. Raises UsageError."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output-dir {path}: is a file; give a folder")
    if (path / "config.yaml").exists():
        raise UsageError(f"--output-dir {path}: holds a run; go on with it by --resume, or give another one")
    if path.exists() and any(not (e.name.startswith(".lock") or disk.is_unfinished(e.name)) for e in path.iterdir()):
        raise UsageError(f"--output-dir {path}: is not empty and holds no run; give a new or empty folder")


@contextmanager
def _writing(path: Path, then: str = "go on with --resume, or give another --output-dir") -> Iterator[None]:
    """Turn failures to write into UsageErrors about `path`, which say what to do `then`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason, first = ("the disk is full", "free space") if full else (str(error), "make it writable")
        raise UsageError(f"{path}: cannot be written ({reason}); {first} and {then}") from error


def _files_in(folder: Path) -> dict[str, Path]:
    """The regular files of a folder by their names in it, without what links lead to."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _fingerprint(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    with disk.opened(path) as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
