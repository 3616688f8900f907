"""The one place that opens files. A folder may come from somebody else, and a process may be killed at any moment.

* Read: regular files only (a named pipe would wait for ever), of a bounded size. JSON has bounds too.
* Written: under a random name in the same folder, through no link, synced and then renamed: at any moment there is the
  old file, or the new one, and never half a folder. What a killed process has left of a new one goes when the next is
  written.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from latent_cot.types import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Decoded = TypeVar("Decoded")

MAX_BYTES = 2**33
"""Of a file that a run has written."""
MAX_DEPTH = 64
"""Of lists and mappings within each other."""
MAX_DIGITS = 100
"""Of an integer."""
MAX_NAME_BYTES = 255
"""Of a file's name, on all common file systems."""

_LARGEST = 10**MAX_DIGITS
_TOKEN_BYTES = 8
_NEW, _OLD = (re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.{suffix}", re.DOTALL) for suffix in ("new", "old"))
"""The names of what is being written, and of what it takes the place of."""
_ATTEMPTS = 100
"""To make something new while other processes clear it away."""


# -- paths and text --------------------------------------------------------------------------------------


def expanded(text: str | Path) -> Path:
    """A path with `~` put in. Raises UsageError for one that no file can have, or that could not be written down."""
    try:
        path = Path(refuse_surrogates(str(text), "a path")).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: {error}; write the path in full") from error
    if "\0" in str(path):
        raise UsageError(f"{str(text)!r:.80}: cannot be read or written: it has a zero byte; give another name")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        raise UsageError(f"{text!s:.80}...: a name of more than {MAX_NAME_BYTES} bytes, which no file can have")
    return path


def refuse_surrogates(text: str, where: str) -> str:
    """The text. Raises UsageError for half a character, which can be neither written to a file nor tokenized."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{where}: {text[:80]!r} is no UTF-8 text (character {error.start + 1})") from error
    return text


def open_closed_streams() -> None:
    """Where the shell has closed a standard stream, no file of ours may get its number: it would be written into. And
    not all libraries look whether there is one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # a tool's process has the same need
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


# -- reading ---------------------------------------------------------------------------------------------


def opened(path: str | Path) -> BufferedReader:
    """A regular file, to read. Raises OSError for any other, ValueError for a zero byte in its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read(path: str | Path, limit: int) -> bytes:
    """The content of a regular file. Raises OSError and ValueError as `opened`; UsageError beyond `limit` bytes."""
    with opened(path) as file:  # which takes as much memory as it is asked for, whatever there is to read
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(data) > limit:
        size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"
        raise UsageError(f"{path}: larger than {size}; is it the right file? Else split it")
    return data


def user_text(file: str | Path, limit: int) -> str:
    """A user's text file of at most `limit` bytes. Raises UsageError if it cannot be read or is not UTF-8."""
    try:
        return read(expanded(file), limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{file}: cannot be read ({error}); check the path") from error


def parse_json(text: str | bytes, where: str, line: int | None = None, *, any_text: bool = False) -> Any:
    """The value of a JSON text. Raises UsageError, naming `where` and the line, if it has none or is beyond the limits.

    Args:
        line: number of the text's first line; None: lines are not named.
        any_text: half a character is let through: what is read goes nowhere but to a screen.
    """
    at = where if line is None else f"{where}:{line}"
    try:
        return bounded(json.loads(text, object_pairs_hook=_without_repeats), at, any_text=any_text)
    except json.JSONDecodeError as error:
        if line is not None:
            at = f"{where}:{line + error.lineno - 1}"
        raise UsageError(f"{at}: not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise UsageError(f"{at}: not valid JSON: brackets are nested too deep") from error
    except ValueError as error:  # not UTF-8, a key that is there twice, or more digits than Python reads
        why = f"a number of more than {MAX_DIGITS} digits" if "int_max_str_digits" in str(error) else error
        raise UsageError(f"{at}: not valid JSON: {why}") from error


def bounded(value: Any, where: str, *, any_text: bool = False) -> Any:
    """A value as JSON or YAML gives it. Raises UsageError for one that is nested deeper than `MAX_DEPTH`, an integer of
    more than `MAX_DIGITS` digits and, unless `any_text`, half a character."""
    level = [value]
    seen = set[int]()  # YAML can name a part again: a few lines may stand for billions
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if not any_text:
                    refuse_surrogates(one, where)
            elif type(one) is int:
                if not -_LARGEST < one < _LARGEST:
                    raise UsageError(f"{where}: a number of more than {MAX_DIGITS} digits")
            elif isinstance(one, dict | list) and id(one) not in seen:
                seen.add(id(one))
                below += [*one.keys(), *one.values()] if isinstance(one, dict) else one
        if not below:
            return value
        level = below
    raise UsageError(f"{where}: brackets are nested too deep (more than {MAX_DEPTH})")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


@functools.cache
def schema(kind: Any) -> TypeAdapter[Any]:
    """What reads and writes values of a type, such as a dataclass."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def decoded(kind: type[Decoded], value: Any, where: str) -> Decoded:
    """A value as one of a type. Raises UsageError in one line: where, which part, and why."""
    from pydantic import ValidationError

    try:
        found: Decoded = schema(cast("Any", kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        part = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {f'{part:.120}: ' if part else ''}{first['msg']:.200}") from error
    return found


# -- writing ---------------------------------------------------------------------------------------------


def is_special(path: Path) -> bool:
    """Whether there is a device, a pipe or a socket, or a link to one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing, or a link that leads nowhere
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write(path: Path, data: bytes) -> None:
    """Put a file in place, at once. Raises OSError; the old one is then untouched."""
    if is_special(path):
        raise OSError(errno.EINVAL, "is no regular file", str(path))  # root could replace /dev/null
    temporary, descriptor = _claimed(path, _new_file)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, to be put in its place when it is complete. What is left of it in the end goes."""
    temporary, descriptor = _claimed(path, _new_folder)
    try:
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(new: Path, path: Path) -> None:
    """Put a folder in the place of another, or of nothing. Raises OSError; the old one is then where it was. If the
    process is killed in between, it has a name that ends in `.old`, and stays until there is another in its place."""
    sync(*new.rglob("*"), new)
    away = _put_away(path, "old")
    try:
        os.replace(new, path)
    except BaseException:
        if away is not None:
            os.replace(away, path)
        raise
    sync(path.parent)
    if away is not None:
        _remove(away)


def remove_folder(path: Path) -> None:
    """Remove a folder, or a link to one, if it is there: at once, so that nobody meets the half of it."""
    if (away := _put_away(path, "new")) is not None:
        _remove(away)


def append(path: Path, data: bytes) -> None:
    """Append to a file, all or nothing. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        size, left = os.fstat(descriptor).st_size, memoryview(data)
        try:
            while left:  # no buffer, which would write its rest when it is closed, into the room that is made below
                left = left[os.write(descriptor, left) :]
        except BaseException:  # half a line would spoil the next one
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def keep_lines(path: Path, size: int = -1) -> None:
    """Cut a file, if there is one, to the complete lines within its first `size` bytes (-1: all). Raises OSError."""
    with suppress(FileNotFoundError), os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
        file.truncate(file.read(size).rfind(b"\n") + 1)


def sync(*paths: Path) -> None:
    """Have the kernel put files, or the entries of folders, on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot do it for folders
                raise
        finally:
            os.close(descriptor)


def clear(folder: Path, name: str = "") -> None:
    """Remove what killed processes have left in a folder of new files and folders, and of old ones that others have
    taken the place of; `name`: of those of this name."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            start = f".{name}." if name else "."
            old = _OLD.fullmatch(entry.name)
            replaced = old is not None and os.path.lexists(folder / old[1])
            if (is_unfinished(entry.name) or replaced) and entry.name.startswith(start):
                _remove_unless_held(Path(entry.path))


def is_unfinished(name: str) -> bool:
    """Whether a file or folder of this name is what a killed process has left of a new one."""
    return _NEW.fullmatch(name) is not None


def _put_away(path: Path, suffix: str) -> Path | None:
    """A folder, or a link to one, under another name; None: there is none."""
    away = _fresh(path, suffix)
    try:
        os.replace(path, away)
    except FileNotFoundError:
        return None
    return away


def _fresh(path: Path, suffix: str = "new") -> Path:
    """A name that nobody can guess, beside `path`. What killed processes have left under such a name goes."""
    clear(path.parent, path.name)
    start = path.name.encode()[: MAX_NAME_BYTES - 2 * _TOKEN_BYTES - 6].decode(errors="ignore")
    return path.with_name(f".{start}.{secrets.token_hex(_TOKEN_BYTES)}.{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _claimed(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """What is new beside `path`, and its descriptor, with a lock that says that this process is still at it: the kernel
    takes it back when the process ends. Another process may clear it away before it is locked; then there is another
    one. Raises OSError."""
    for attempt in range(_ATTEMPTS):
        temporary = _fresh(path)
        try:
            descriptor = create(temporary)
        except FileNotFoundError:
            if path.parent.is_dir() and attempt < _ATTEMPTS - 1:  # in /dev/fd there is nothing to be made
                continue
            raise
        with suppress(OSError):  # there are file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink > 0:
            return temporary, descriptor
        os.close(descriptor)
    raise OSError(errno.EBUSY, "is cleared away as soon as it is made", str(path))


def _remove_unless_held(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link is nobody's
            _remove(path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)  # locked, so that whoever has just made it waits, and then sees that it is gone
    except OSError:
        return
    finally:
        os.close(descriptor)
