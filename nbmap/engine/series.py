"""The numbers among outputs, for views: of a generator a curve for each input, thinned out.

Of a plain function all inputs are one curve, whose points come as they end. A number is a point; of
a dictionary each number that it holds, by its key. Bounded: so many keys, so many inputs, so many
points of each; a curve with more loses every other one.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from typing import Any

KEYS = 8  # that are kept, in the order in which they come
CURVES = 1000  # of each, the first
POINTS = 256  # of each curve
NEWEST = 2000  # points that a view may ask for; it gets all where it was slower
COUNTERS = frozenset({"epoch", "step", "iteration", "batch", "i", "n", "t"})
ALL = -1  # stands for the input where a curve is that of all
POINTS_OF_ALL = 1000  # of such a curve
VALUE = "value"  # stands for the key of a number that is not in a dictionary

Point = tuple[int, int, int, int, float]  # its number from 1 on, key, input, x, y


@dataclass(slots=True)
class Curve:
    """One input's numbers: x is which output it was; of all inputs, which input."""

    most: int = POINTS
    x: array[int] = field(default_factory=lambda: array("Q"))
    y: array[float] = field(default_factory=lambda: array("d"))
    step: int = 1  # of so many points one is kept
    seen: int = 0

    def add(self, x: int, y: float) -> None:
        """Take a point."""
        if self.seen % self.step == 0:
            self.x.append(x)
            self.y.append(y)
            if len(self.x) > self.most:
                self.x, self.y, self.step = self.x[::2], self.y[::2], 2 * self.step
        self.seen += 1


class Series:
    """The curves of a run; written by one thread.

    Args:
        by_input: one curve of all inputs, as of a plain function.
    """

    def __init__(self, *, by_input: bool = False) -> None:
        self.by_input = by_input
        self.keys: list[str] = []
        self.curves: dict[tuple[int, int], Curve] = {}  # by key and input
        self._counts: list[int] = []  # of curves, by key
        self._newest: deque[Point] = deque(maxlen=NEWEST)
        self._number = 0

    def add(self, index: int, x: int, output: Any) -> None:
        """Take what input `index` has yielded as its output `x`, if there are numbers in it."""
        if self.by_input:
            index, x = ALL, index
        if type(output) is dict:
            for key, value in islice(output.items(), 2 * KEYS):
                if type(key) is str and (number := _number(value)) is not None:
                    self._add(key, index, x, number)
        elif (number := _number(output)) is not None:
            self._add(VALUE, index, x, number)

    def _add(self, key: str, index: int, x: int, y: float) -> None:
        if key not in self.keys:
            if len(self.keys) == KEYS:
                return
            self.keys.append(key)
            self._counts.append(0)
        at = self.keys.index(key)
        curve = self.curves.get((at, index))
        if curve is None:
            if self._counts[at] == CURVES:
                return
            self._counts[at] += 1
            most = POINTS_OF_ALL if self.by_input else POINTS
            curve = self.curves[at, index] = Curve(most)
        curve.add(x, y)
        self._number += 1
        self._newest.append((self._number, at, index, x, y))

    @property
    def number(self) -> int:
        """How many points there have been."""
        return self._number

    def since(self, number: int) -> list[Point] | None:
        """Return the points behind that of a number; None where they are too many."""
        if number < self._number - NEWEST:
            return None
        return [point for point in self._newest.copy() if point[0] > number]

    def whole(self, most: int) -> list[tuple[int, int, list[int], list[float]]]:
        """Return all curves as (key, input, x, y), with at most so many points together."""
        curves = self.curves.copy()
        step = max(1, -(-sum(len(curve.x) for curve in curves.values()) // most))
        told = []
        for (key, index), curve in curves.items():
            x, y = curve.x[::step].tolist(), curve.y[::step].tolist()
            n = min(len(x), len(y))  # a point may just be coming
            told.append((key, index, x[:n], y[:n]))
        return told

    def shown(self) -> int:
        """Return the key that is shown first: one that does not just count."""
        told = (at for at, key in enumerate(self.keys) if key.lower() not in COUNTERS)
        return next(told, 0)


def _number(value: Any) -> float | None:
    """Return a number as such; None for anything else. Runs no code of the user's."""
    kind = type(value)
    plain = kind is float or kind is int
    if not plain and not (kind.__module__ == "numpy" and issubclass(kind, Real)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
