"""Stopping a run by Ctrl-C (or a notebook's stop button), SIGTERM or SIGHUP, between two units of its work."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

ECHO_SECONDS = 2.0
"""A launcher of several processes gives them the signal that the terminal has given them already."""


_aborted = False


def abort(*_: object) -> NoReturn:
    """End what is being done, at once. Also a handler of signals."""
    global _aborted
    _aborted = True
    raise KeyboardInterrupt


@contextmanager
def aborting() -> Iterator[None]:
    """Within the block Ctrl-C calls `abort`, unless somebody else handles it."""
    was_aborted()
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, abort)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def was_aborted() -> bool:
    """Whether that was asked for since the last call: libraries in other languages make errors of their own of it."""
    global _aborted
    found, _aborted = _aborted, False
    return found


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """The first SIGINT, SIGTERM or SIGHUP is remembered, a second one aborts at once (KeyboardInterrupt).

    Yields a function that gives the signal's number, or None if none has come. Only the main thread is told of signals:
    in another one nothing is remembered. One that is ignored (`nohup`, `&` in a script) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[int] = []
    launched, last = os.environ.get("WORLD_SIZE", "1") != "1", -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        echo, last = launched and time.monotonic() - last < ECHO_SECONDS, time.monotonic()
        # A terminal that is closed sends one, and the shell in it another.
        if echo or (received and number == signal.SIGHUP):
            return
        received.append(number)
        if len(received) > 1:
            abort()
        # Not by print or rich: the signal may have come while they were writing.
        with suppress(OSError):  # nobody reads it any more
            os.write(2, b"\nStopping when this unit of work is done. Ctrl-C again: at once, without saving.\n")

    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in every if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
