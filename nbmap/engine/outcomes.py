"""Keeps the outcomes of one run, and hands them to the user's threads that wait for them.

Scalars can't fail to load, so their batches stay sealed until somebody takes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import state
from .interrupts import Gate
from .model import CANCELLED, Failure, Pack
from .pickling import unpack

TAKE_AT_ONCE = 10_000
LOOK = 0.5  # seconds after which who waits looks around

_clock = time.monotonic


class Empty:
    """Stands where an input has no outcome yet."""


EMPTY = Empty()


@dataclass(slots=True)
class Sealed:
    """A batch of scalars that nobody has looked at: the outputs of the inputs from `start` on."""

    start: int
    n: int
    frame: Any

    def open(self) -> list[Any]:
        """Unpickle the batch."""
        return unpack(Pack(self.n, None, [self.frame]))


class Source(Protocol):
    """What is asked of the run that the outcomes come from; on any thread."""

    on_wait: Callable[[], None] | None  # called now and then by those who wait

    @property
    def over(self) -> bool:
        """Whether it has ended."""

    @property
    def full(self) -> bool:
        """Whether it pauses, since the outputs that wait to be handed out are too many."""

    @property
    def unread_bytes(self) -> int:
        """Bytes of outputs that wait to be handed out, as far as its state was told."""

    @property
    def keep_bytes(self) -> int:
        """Bytes of outputs that may wait to be handed out before it pauses."""

    def check(self) -> None:
        """Raise where nothing will ever come, as this process was forked from the run's."""

    def check_modules(self) -> None:
        """Raise after a reload of nbmap's modules."""

    def tell(self, event: state.Event) -> None:
        """Have its state handle an event, soon."""


class Outcomes:
    """The outcomes of one run, in input order and in order of completion.

    Args:
        source: the run. It is not kept alive: a circle would keep its outputs until a collection.
        keep: whether outcomes are kept or dropped once they are handed out.
    """

    def __init__(self, source: Source, *, keep: bool) -> None:
        self._source: Source = weakref.proxy(source)
        self._keep = keep
        self._lock = threading.RLock()  # guards all that follows
        self._slots: list[Any] = []
        self._base = 0  # index of the first slot
        self._arrivals: deque[tuple[int, int]] = deque()  # (start, n), in order of completion
        self._unread = 0  # accepted and not handed out yet
        self._taken = bytearray()  # of a run that keeps outputs: which were handed out
        self._untold = (0, 0)  # handed out, and the state does not know: number, bytes
        self._listeners: list[Callable[[], None]] = []

    # -- the engine's thread

    def expect(self, n: int) -> None:
        """Make room for the outcomes of inputs that were read."""
        with self._lock:
            self._slots.extend([EMPTY] * n)

    def store(self, start: int, outcomes: list[Any]) -> None:
        """Keep the outcomes of the inputs from `start` on: outputs, failures, or its `Sealed`."""
        with self._lock:
            at = start - self._base
            self._slots[at : at + len(outcomes)] = outcomes
            self._arrivals.append((start, len(outcomes)))
            self._unread += len(outcomes)
            self._notify()

    def end(self) -> None:
        """Wake those who wait, since the run has ended."""
        with self._lock:
            self._notify()

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()

    # -- tasks of an event loop

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when something came or the run has ended; return how to stop it.

        It is called on whatever thread that happens, so it must not block.
        """
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return stop

    async def until(
        self,
        ready: Callable[[], bool],
        timeout: float | None = None,  # noqa: ASYNC109 - told by the result
    ) -> bool:
        """Wait until `ready`, which is asked with the lock held; tell whether it is."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        until = None if timeout is None else _clock() + timeout

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(event.set)

        self._source.check()
        stop = self.listen(wake)
        try:
            while True:
                event.clear()
                with self._lock:
                    if ready():
                        return True
                source = self._source
                if source.full:
                    source.tell(state.Await())
                left = LOOK if until is None else min(LOOK, until - _clock())
                if left <= 0:
                    return False
                # Not wait_for, which on Python 3.11 loses a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await event.wait()
                if source.on_wait is not None:
                    source.on_wait()
        finally:
            stop()

    # -- the callers' threads

    def known(self) -> int:
        """Return how many inputs there are, as far as they were read."""
        return self._base + len(self._slots)

    def failures(self) -> list[Failure]:
        """Return the failures so far, in input order, without what was cancelled."""
        with self._lock:
            return [s for s in self._slots if type(s) is Failure and s.kind != CANCELLED]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run, and tell whether it has ended."""
        return self._wait_until(self.over, timeout)

    def _wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        until = None if timeout is None else _clock() + timeout
        self._source.check_modules()
        with self._lock:
            if ready():
                return True
        source, gate = self._source, Gate()
        source.check()
        stop = self.listen(gate.open)
        try:
            while True:
                gate.shut()
                with self._lock:
                    if ready():
                        return True
                if source.full:
                    source.tell(state.Await())
                left = LOOK if until is None else min(LOOK, until - _clock())
                if left <= 0:
                    return False
                gate.wait(left)
                if source.on_wait is not None:
                    source.on_wait()
        finally:
            stop()

    def get(self, index: int, timeout: float | None = None) -> Any:
        """Wait for the outcome of one input: its output, or a Failure; EMPTY if none will come."""
        self._wait_until(self.ended(index), timeout)
        with self._lock:
            return self._opened(index) if self._has(index) else EMPTY

    def peek(self, index: int) -> Any:
        """Return what stands for an input now: its outcome, a `Sealed` or EMPTY."""
        with self._lock:
            at = index - self._base
            return self._slots[at] if 0 <= at < len(self._slots) else EMPTY

    def ended(self, index: int) -> Callable[[], bool]:
        """Return what tells whether an input has an outcome, or will have none."""
        return lambda: self._source.over or self._has(index)

    def arrived(self, position: int) -> Callable[[], bool]:
        """Return what tells whether something came at a position, or nothing will."""
        at = position if self._keep else 0
        return lambda: self._source.over or len(self._arrivals) > at

    def over(self) -> bool:
        """Tell whether the run has ended."""
        return self._source.over

    def _has(self, index: int) -> bool:
        at = index - self._base
        return 0 <= at < len(self._slots) and self._slots[at] is not EMPTY

    def _opened(self, index: int) -> Any:
        at = index - self._base
        slot = self._slots[at]
        if type(slot) is Sealed:
            first = slot.start - self._base
            values = slot.open()
            self._slots[max(0, first) : first + slot.n] = values[max(0, -first) :]
            return self._slots[at]
        return slot

    def take(self, position: int) -> tuple[int, list[Any]]:
        """Wait for outcomes in input order from `position` on.

        Returns their position and as many as are there; none when the run has ended.
        """
        self._wait_until(self.ended(position))
        with self._lock:
            end = self._base + len(self._slots)
            while self._source.over and position < end and not self._has(position):
                position += 1  # a broken run has gaps
            stop = position
            while stop - position < TAKE_AT_ONCE and self._has(stop):
                slot = self._slots[stop - self._base]
                stop = slot.start + slot.n if type(slot) is Sealed else stop + 1
                self._opened(stop - 1)
            out = self._slots[position - self._base : stop - self._base]
            return position, out

    def take_arrivals(self, position: int) -> tuple[int, list[tuple[int, Any]]]:
        """Wait for outcomes in order of completion.

        Args:
            position: how many ranges of them were taken before; ignored where none are kept.

        Returns:
            The next position and (index, outcome) pairs; the position as it was when the run has
            ended.
        """
        self._wait_until(self.arrived(position))
        with self._lock:
            at = position if self._keep else 0
            if len(self._arrivals) <= at:
                return position, []
            start, n = self._arrivals[at]
            return position + 1, [(i, self._opened(i)) for i in range(start, start + n)]

    def handed(self, start: int, n: int, *, arrived: bool = False) -> None:
        """Tell that outcomes were handed out; a run that keeps none drops them.

        Args:
            start: the first input.
            n: how many.
            arrived: they were taken in order of completion.
        """
        source = self._source
        with self._lock:
            if self._keep:  # each counts once, however often it is read
                first, stop = start, start + n
                self._taken += bytes(max(0, stop - len(self._taken)))
                n = self._taken.count(0, first, stop)
                self._taken[first:stop] = b"\1" * (stop - first)
            waiting = max(0, source.unread_bytes - self._untold[1])
            nbytes = waiting * n // self._unread if self._unread else 0
            self._unread -= n
            if not self._keep:
                if arrived:
                    self._arrivals.popleft()
                    at = start - self._base
                    self._slots[at : at + n] = [None] * n
                    self._drop_front()
                else:
                    self._arrivals.clear()
                    del self._slots[: start + n - self._base]
                    self._base = start + n
            if not n:
                return
            if self._keep:  # nothing depends on it before the store is half full
                self._untold = (self._untold[0] + n, self._untold[1] + nbytes)
                if 2 * source.unread_bytes < source.keep_bytes:
                    return
                (n, nbytes), self._untold = self._untold, (0, 0)
        source.tell(state.Handed(n, nbytes))

    def _drop_front(self) -> None:
        """Forget the slots that are behind every outcome that may still come, in large steps."""
        floor = min([start for start, _ in self._arrivals], default=self._base + len(self._slots))
        with contextlib.suppress(ValueError):
            floor = min(floor, self._base + self._slots.index(EMPTY))
        if floor - self._base > state.TRIM:
            del self._slots[: floor - self._base]
            self._base = floor
