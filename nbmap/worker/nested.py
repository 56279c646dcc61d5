"""The runs that inputs of one lease have asked for, as the far side sees them.

An input that uses a handle sends an Ask; the near side makes the run, and its outputs come back as
Answers: any number of OUTPUT, then RAISED or OVER. They are kept until the run's object is
dropped. The input gives its place up while it waits for one, so that a run that waits for another
never holds the slot that the other one needs.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..engine.model import Answer, Frames
from ..engine.pickling import load

LOOK = 0.1  # seconds after which who waits looks whether he is to stop


class Waiting:
    """One time that an input waits; `in_vain` if nothing came in the time that it had."""

    in_vain = False


class Place(Protocol):
    """The place of an input: its lease."""

    @property
    def stopping(self) -> bool:
        """Whether the input was asked to stop."""

    def aside(self) -> AbstractContextManager[Waiting]:
        """Give the place up meanwhile."""

    def took(self, number: int, taken: int) -> None:
        """Tell how much of a run was taken."""

    def apart(self) -> AbstractContextManager[None]:
        """Run code of ours in the middle of the user's."""


class Nested:
    """What has come of each run, by the number of its Ask."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._changed = threading.Condition()
        self._items: dict[int, list[tuple[str, Frames]]] = {}
        self._taken: dict[int, int] = {}

    def add(self, number: int) -> None:
        """Expect answers."""
        self._items[number] = []

    def drop(self, number: int) -> None:
        """Expect no more answers."""
        self._items.pop(number, None)
        self._taken.pop(number, None)

    def receive(self, message: Answer) -> None:
        """Take an answer; never blocks."""
        with self._changed:
            items = self._items.get(message.number)
            if items is not None:
                items.append((message.kind, message.frames))
                self._changed.notify_all()

    def there(self, number: int) -> int:
        """Return how many answers have come."""
        return len(self._items.get(number, ()))

    def take(self, number: int, position: int, timeout: float | None = None) -> tuple[str, Any]:
        """Wait for an answer; return what it is and what it holds.

        Args:
            number: of the Ask.
            position: of the answer, from 0.
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: nothing came in that time.
        """
        items = self._items[number]
        with self._place.apart():
            if len(items) <= position and timeout != 0:
                with self._place.aside() as waiting:
                    self._wait(items, position, timeout)
                    # What it waits for may hold the place that it would have to wait for then.
                    waiting.in_vain = len(items) <= position
        if number > 0 and position >= self._taken.get(number, 0) and len(items) > position:
            self._taken[number] = position + 1
            self._place.took(number, position + 1)
        if len(items) <= position:
            msg = f"nothing came within {timeout:g} s"
            raise TimeoutError(msg)
        kind, frames = items[position]
        return kind, load(frames) if frames else None

    def _wait(self, items: list[Any], position: int, timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while len(items) <= position and not self._place.stopping:
            left = LOOK if until is None else min(LOOK, until - time.monotonic())
            if left <= 0:
                return
            with self._changed:
                self._changed.wait_for(lambda: len(items) > position, left)
