"""Waiting and starting threads so that an interrupt at any instant leaves nothing broken.

An interrupt that comes while `threading.Condition` or `Event` are taking their lock leaves it taken
for ever, and whoever wants to wake them stuck. `Thread.start` waits for its thread by an `Event`, so
an interrupted one may never run. What the user's threads wait for and start goes by these instead.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable
from typing import Any


class Gate:
    """Has one thread wait until another lets it pass; a bare lock is taken in one step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def open(self) -> None:
        """Let who waits pass, or who waits next; from any thread."""
        with contextlib.suppress(RuntimeError):  # it is open
            self._lock.release()

    def shut(self) -> None:
        """Have the next one wait."""
        self._lock.acquire(blocking=False)

    def wait(self, seconds: float) -> bool:
        """Wait until it is open, no longer than that, and tell whether it was; it is shut then."""
        return self._lock.acquire(timeout=seconds)


def start_thread(name: str, target: Callable[..., object], *args: Any) -> None:
    """Have a function called on a thread of its own, which ends with the process."""
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    _thread.start_new_thread(_start, (thread,))


def _start(thread: threading.Thread) -> None:
    with contextlib.suppress(RuntimeError):  # the process ends
        thread.start()
