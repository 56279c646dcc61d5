"""The newest outputs of a run as text, for views: a bounded number of lines, for bounded work.

Not every output is looked at where they come fast. Those that are not scalars are written on the
run's opener thread, since their `__repr__` is the user's code.
"""

from __future__ import annotations

import reprlib
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from .pickling import type_name

LINES = 200  # that are kept
EACH = 10  # outputs of one message that are looked at, the last ones
EVERY = 0.01  # seconds between two messages that are looked at, where many come
BURST = 100  # messages that are looked at in a row
SHARE = 50  # times as long as they took, looks pay for: they have a fiftieth of the time

Line = tuple[int, int, str]  # its number from 1 on, the input, the text


class Recent:
    """Lines in the order in which outputs came; written by one thread at a time."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=LINES)
        self._number = 0
        self._credit = float(BURST)
        self._at = time.monotonic()

    def due(self) -> bool:
        """Tell whether a message is to be looked at now."""
        now = time.monotonic()
        self._credit = min(float(BURST), self._credit + (now - self._at) / EVERY)
        self._at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def written(self, values: Sequence[Any]) -> list[tuple[int, str]]:
        """Return the last of some outputs as text, each with its place among them."""
        began = time.monotonic()
        first = max(0, len(values) - EACH)
        texts = [(first + at, brief(value)) for at, value in enumerate(values[first:])]
        took = time.monotonic() - began
        self._credit -= max(0.0, SHARE * took / EVERY - 1)
        return texts

    def add(self, index: int, text: str) -> None:
        """Take one output of an input."""
        self._number += 1
        self.lines.append((self._number, index, text))

    def since(self, number: int) -> list[Line]:
        """Return the lines behind that of a number."""
        return [line for line in self.lines.copy() if line[0] > number]


class _Brief(reprlib.Repr):
    """Shortens what is long; a dictionary keeps its order."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 120, 120, 40
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        items = islice(x.items(), self.maxdict)
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in items]
        more = ["..."] if len(x) > self.maxdict else []
        return "{" + ", ".join(parts + more) + "}"


_brief = _Brief()


def brief(value: Any) -> str:
    """Return a short repr of anything, also of what raises in its own `__repr__`."""
    try:
        return _brief.repr(value)
    except BaseException as error:
        return f"<{type_name(value)} whose repr raises {type_name(error)}>"
