"""Somebody's own code within limits: a tool, a reward, a grader. What it does wrong costs the chain it was asked about.

Whatever it raises, a result that is not of the kind, and a call beyond `SECONDS` count as failures, by kind; a run ends
where more than `MAX_FAILED` of at least `MIN_CALLS` calls of one function fail. In another thread than the main one
calls have no time limit, code that stays in C cannot be interrupted, and code that goes on after twice the limit ends
the run: a tool for which that matters asks for a process of its own (`isolated = True`). What is built in is not
wrapped, and pays nothing.
"""

from __future__ import annotations

import copy
import json
import math
import numbers
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from latent_cot.types import CodeError, Example, Sweep, Task, TaskData, Tool, ToolError, UsageError, first_line

SECONDS = 5.0
"""Of one call."""
MAX_CHARACTERS = 4096
"""Of a text that it returns."""
MAX_NATS = 1e6
"""Of a reward, up or down; −inf is worth nothing."""
MAX_FAILED = 0.5
MIN_CALLS = 20
_AGAIN = 10
"""So often code is told that its time is up, within as much time again."""
_BYTES = 4 * 2**30
"""Of memory, for a tool in a process of its own."""


class Failure(Exception):
    """A call of somebody's code that came to nothing; the message is its kind."""


class Guard:
    """Calls somebody's code, and counts what goes wrong.

    Args:
        where: what is called, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = Counter[str]()
        self.failures = Counter[tuple[str, str]]()
        self._first = ""
        self._busy = False

    def call(
        self, member: str, function: Callable[..., Any], *args: Any, check: Callable[[Any], Any], **named: Any
    ) -> Any:
        """What `check` makes of the function's result. Raises Failure, ToolError as the function does, and CodeError
        where too many calls of this `member` have failed: others of the same tool or task may well work."""
        if self._busy:  # one of its functions calls another
            return function(*args, **named)
        self.calls[member] += 1
        self._busy = True
        try:
            with _time_limit(self.where):
                value = function(*args, **named)
            return check(value)
        except (ToolError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() too
            kind = says = _kind(error)
            with suppress(Exception):  # what it says of itself is its own code too
                says = kind if isinstance(error, Failure) else f"{kind}: {first_line(error)}"
            self._first = self._first or f"`{member}` gave {says}"
            self.failures[member, kind] += 1
            failed = sum(count for (of, _), count in self.failures.items() if of == member)
            if self.calls[member] >= MIN_CALLS and failed > MAX_FAILED * self.calls[member]:
                raise CodeError(f"{self.note}; mend it") from error
            raise Failure(kind) from error
        finally:
            self._busy = False

    @property
    def note(self) -> str | None:
        """A sentence on what has gone wrong, if anything has."""
        if not self.failures:
            return None
        kinds = ", ".join(f"{count} {kind}" for (_, kind), count in self.failures.most_common(5))
        asked = sum(self.calls[member] for member in {member for member, _ in self.failures})
        failed = f"{self.failures.total()} of {asked} calls failed"
        return f"{self.where}: {failed}: {kinds} (first: {self._first:.160})"


def _kind(error: BaseException) -> str:
    return str(error) if isinstance(error, Failure) else type(error).__name__


class _TimeUp(BaseException):
    """Passes `except Exception`."""


@contextmanager
def _time_limit(where: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running, times = True, 0

    def up(number: int, frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        if times > _AGAIN:  # it has swallowed them all
            says = f"error: {where}: goes on after {2 * SECONDS:g} s; mend it, and go on with --resume\n"
            with suppress(OSError):  # nobody reads it
                os.write(2, says.encode())
            os._exit(2)
        if running:
            raise _TimeUp

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS / _AGAIN)
    try:
        yield
    except _TimeUp:
        raise Failure(f"longer than {SECONDS:g} s") from None
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- what may come back ----------------------------------------------------------------------------------


def _named(value: Any) -> str:
    """What kind of thing it is, with an article."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeioAEIO" else f"a {kind}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Failure(f"{_named(value)} instead of text")
    if len(value) > MAX_CHARACTERS:
        raise Failure(f"more than {MAX_CHARACTERS} characters")
    str.encode(value)  # half a character has no code
    return str.__str__(value)


def _request(value: Any) -> str:
    """A long one is the chain's doing, and what reads it may be this toolkit's own code: it is refused."""
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise ToolError(f"the request has {len(value)} characters, at most {MAX_CHARACTERS}")
    return _text(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _nats(value: Any) -> float:
    if type(value) is bool or not isinstance(value, numbers.Real):
        raise Failure(f"{_named(value)} instead of a number")
    nats = float(value)
    if not (nats == -math.inf or abs(nats) <= MAX_NATS):
        raise Failure(f"{nats} as a reward" if not math.isfinite(nats) else f"a reward beyond {MAX_NATS:g} nats")
    return nats


def _truth(value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's too
        raise Failure(f"{_named(value)} instead of True or False")
    return bool(value)


def failures(guarded: Iterable[object]) -> list[str]:
    """A sentence on each of these tasks and tools whose code has failed."""
    guards = {id(guard): guard for one in guarded if isinstance(guard := getattr(one, "guard", None), Guard)}
    return [guard.note for guard in guards.values() if guard.note]


# -- tasks -----------------------------------------------------------------------------------------------

_METHODS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "log_reward": (_nats, -math.inf),
    "answer": (_text_or_none, None),
    "grade": (_truth, False),
    "mistake": (_text_or_none, None),
}
"""Method of a task -> what it may return, and what counts where it fails."""


def _examples(value: Any) -> Any:
    """Raises Failure for what is no list of examples."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Failure(f"{_named(value)} instead of a list of Example")
    for example in value:
        _example(example)
    return value


def _example(value: Any) -> Any:
    if not isinstance(value, Example):
        raise Failure(f"{_named(value)} instead of an Example")
    for name in ("x", "y", "z", "answer", "question"):
        held = getattr(value, name)
        if not isinstance(held, str | None) or (held is None and name in ("x", "question")):
            raise Failure(f"an Example whose `{name}` is {_named(held)} instead of text")
    return value


def _task_data(value: Any) -> Any:
    if not isinstance(value, TaskData):
        raise Failure(f"{_named(value)} instead of a TaskData")
    for part in (value.demonstrations, value.unlabelled, value.validation):
        _examples(part)
    return value


def _of(*kinds: type, what: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise Failure(f"{_named(value)} instead of {what}")
        return value

    return check


_NEEDED: dict[str, Callable[[Any], Any]] = {
    "load": _task_data,
    "split": _examples,
    "read": _examples,
    "example": _example,
    "configured": _of(Task, what="a Task"),
    "sweep": _of(Sweep, what="a Sweep"),
    "posterior_prompt": _of(str, what="a text"),
    "allows": bool,
    "texts": _of(Sequence, type(None), what="texts, or None"),
    "candidates": _of(Mapping, type(None), what="a mapping of answers to texts, or None"),
    "measure": _of(Mapping, what="a mapping of metrics to numbers"),
    "require": _of(type(None), what="nothing"),
    "seed_prompt": _of(str, type(None), what="a text, or None"),
    "can_be_joined": bool,
    "is_held_out": bool,
}
"""Method of a task -> what refuses a wrong result. Nothing can go on without one."""


def needed(file: str, name: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a method of a task returns. Raises CodeError, naming the `file`, where that fails or is nothing of use."""
    try:
        return _NEEDED[name](function(*args, **named))
    except Failure as failure:
        raise CodeError(f"{file}: `{name}` returns {failure}; mend it (see tasks/README.md)") from failure
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit() too, which would end the command as if all were well
        says = f"{type(error).__name__}: {first_line(error)}"
        raise CodeError(f"{file}: `{name}` raised {says}; mend it (see tasks/README.md)") from error


def guard_needed(task: Task, file: str) -> None:
    """Have a task, which is changed, call its own methods by `needed`."""
    for name in _NEEDED:
        if getattr(type(task), name) is not getattr(Task, name):
            # It may be a frozen dataclass.
            object.__setattr__(task, name, partial(needed, file, name, getattr(task, name)))


def guard_task(task: Task, where: str) -> Task:
    """A copy of the task, with its rewards and grades within the limits."""
    guarded = copy.copy(task)  # a file may name a task that is built in
    guard = Guard(where)

    def within(name: str) -> Callable[..., Any]:
        function, (check, instead) = getattr(guarded, name), _METHODS[name]

        def method(*args: Any, **named: Any) -> Any:
            try:
                return guard.call(name, function, *args, check=check, **named)
            except (Failure, ToolError):
                return instead

        return method

    own = [name for name in _METHODS if getattr(type(task), name) is not getattr(Task, name)]
    for name, value in {"guard": guard, **{name: within(name) for name in own}}.items():
        object.__setattr__(guarded, name, value)  # it may be a frozen dataclass
    return guarded


# -- tools -----------------------------------------------------------------------------------------------


_MEMBERS: dict[str, Callable[[Any], str]] = {"request": _request, "__call__": _text}
"""Member of a tool -> what refuses a wrong result."""


class ForeignTool:
    """A tool within the limits: whatever else than a text it comes to is a failed call.

    Args:
        name: as the user has named it, for a process that loads it again.
    """

    def __init__(self, tool: Tool, name: str) -> None:
        self.name, self.description, self.trigger = tool.name, tool.description, tool.trigger
        self.portable = getattr(tool, "portable", None)
        self.tool, self.guard = tool, Guard(f"tool {tool.name}")
        self._process = _Process(name) if getattr(tool, "isolated", False) else None
        self._one_at_a_time = threading.RLock()  # rollouts may be sampled in several threads

    def request(self, text: str) -> str:
        """See `Tool`."""
        return self._call("request", text)

    def __call__(self, request: str) -> str:
        """See `Tool`."""
        return self._call("__call__", request)

    def _call(self, member: str, text: str) -> str:
        check = _MEMBERS[member]
        try:
            with self._one_at_a_time:
                if self._process is None:
                    return str(self.guard.call(member, getattr(self.tool, member), text, check=check))
                self._process.start()
                return str(self.guard.call(member, self._process.ask, member, text, check=check))
        except Failure as failure:
            raise ToolError(f"the tool failed: {failure}") from failure


class _Process:
    """A process that has loaded a tool, and is asked by lines of JSON. It is started when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, member: str, text: str) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # that there is no answer says so
                os.write(process.stdin.fileno(), json.dumps([member, text]).encode() + b"\n")
            in_time, _, _ = select.select([process.stdout], [], [], 0.9 * SECONDS)
            line = process.stdout.readline() if in_time else b""
            if not line.endswith(b"\n"):
                raise Failure("no answer in time, or its process ended")
        except BaseException:  # a late answer would be taken for the next one
            self._process = None
            _end(process)
            raise
        how, value = json.loads(line)
        if how == "refused":
            raise ToolError(value)
        if how == "failed":
            raise Failure(value)
        return value

    def start(self) -> None:
        """Have the process ready, which takes the time of its imports."""
        if self._process is not None:
            return
        code = "import sys; from latent_cot.tools._foreign import serve; serve(sys.argv[1])"
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", code, self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the run, which does its unit of work to the end
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        weakref.finalize(self, _end, process)
        if process.stdout is None or not process.stdout.readline():
            raise UsageError(f"{self._name}: its process cannot be started; see above")


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:  # which waits, and closes the pipes
        process.kill()


def serve(name: str) -> None:
    """Be the process of a `_Process`: load the tool, and answer until the other side ends."""
    from latent_cot.tools import load_unguarded

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a job's whole group: it ends as the run does
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what the tool prints is no answer
    tool = load_unguarded(name)
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    answers.write(b"\n")
    for line in sys.stdin.buffer:
        member, text = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # nobody catches it: it ends this process, whatever that is at
        try:
            answer = ["done", _MEMBERS[member](getattr(tool, member)(text))]
        except ToolError as error:
            answer = ["refused", str(error)[:MAX_CHARACTERS]]
        except BaseException as error:
            answer = ["failed", _kind(error)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
