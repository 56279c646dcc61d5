"""Keeps the outputs of generators, and hands them out in the order in which they come.

An input of a generator has an outcome like any other, whose value is nothing: its outputs came
before. Both stand in one log. An attempt that repeats what an earlier one had said already adds
nothing: output k of the second attempt stands for output k of the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import state
from .model import Failure, Pack
from .outcomes import Outcomes, Source
from .pickling import unpack


@dataclass(slots=True)
class Segment:
    """Some outputs of one input; scalars stay pickled until somebody takes them."""

    index: int
    n: int
    nbytes: int
    values: list[Any] | None
    frame: Any = None
    handed: bool = False

    def open(self) -> list[Any]:
        """Return the outputs."""
        if self.values is None:
            self.values = unpack(Pack(self.n, None, [self.frame]))
            self.frame = None
        return self.values


@dataclass(slots=True)
class Ends:
    """The outcomes of the inputs from `index` on: None, or a Failure."""

    index: int
    n: int
    values: list[Any]
    nbytes: int = 0
    handed: bool = False

    def open(self) -> list[Any]:
        """Return the failures among them, which are outputs too."""
        return [value for value in self.values if type(value) is Failure]


class Streams(Outcomes):
    """The outputs and outcomes of a run of generators."""

    def __init__(self, source: Source, *, keep: bool) -> None:
        super().__init__(source, keep=keep)
        self.takeovers: list[tuple[int, int, int]] = []  # input, attempt, its first new output
        self._log: deque[Segment | Ends] | list[Segment | Ends] = [] if keep else deque()
        self._had: dict[int, int] = {}  # outputs of each input that has no outcome yet
        self._of: dict[int, list[Segment]] = {}
        self._latest: dict[
            int, int
        ] = {}  # attempt that the last output came from, if not the first
        self._released = (
            0,
            0,
        )  # inputs and bytes that were handed out, and the state does not know

    # -- the engine's thread

    def add(self, index: int, seq: int, attempt: int, segment: Segment) -> int:
        """Take outputs `seq` on of an input; return the bytes of those that are new."""
        with self._lock:
            had = self._had.get(index, 0)
            known = min(segment.n, max(0, had - seq))
            if known == segment.n:
                return 0
            if known:
                segment.values = segment.open()[known:]
                segment.nbytes -= segment.nbytes * known // segment.n
                segment.n -= known
            self._had[index] = had + segment.n
            if attempt > 1 and self._latest.get(index) != attempt:
                self._latest[index] = attempt
                self.takeovers.append((index, attempt, had))
            self._log.append(segment)
            if self._keep:
                self._of.setdefault(index, []).append(segment)
            self._notify()
        return segment.nbytes

    def store(self, start: int, outcomes: list[Any]) -> None:
        """Take the ends of the inputs from `start` on: None, or a Failure."""
        with self._lock:
            for index in range(start, start + len(outcomes)):
                self._had.pop(index, None)
            self._log.append(Ends(start, len(outcomes), outcomes))
            super().store(start, outcomes)

    # -- the callers' threads

    def arrived(self, position: int) -> Callable[[], bool]:
        """Return what tells whether something came at a position, or nothing will."""
        return lambda: self._source.over or len(self._log) > (position if self._keep else 0)

    def take_arrivals(self, position: int) -> tuple[int, list[tuple[int, Any]]]:
        """Wait for what comes next: (index, output) pairs, of ends only the failures.

        Args:
            position: how many entries were taken before; ignored where none are kept.

        Returns:
            The next position and the pairs; the position as it was when the run has ended.
        """
        self._wait_until(self.arrived(position))
        with self._lock:
            at = position if self._keep else 0
            if len(self._log) <= at:
                return position, []
            entry = self._log[at]
            if isinstance(entry, Segment):
                return position + 1, [(entry.index, value) for value in entry.open()]
            ends = enumerate(entry.values, entry.index)
            return position + 1, [(i, value) for i, value in ends if type(value) is Failure]

    def handed_arrival(self, position: int) -> None:
        """Tell that the entry before a position was handed out; a run that keeps none drops it."""
        with self._lock:
            if self._keep:
                entry = self._log[position - 1]
            else:
                assert isinstance(self._log, deque)
                entry = self._log.popleft()
                if isinstance(entry, Ends):
                    at = entry.index - self._base
                    self._slots[at : at + entry.n] = [None] * entry.n
                    self._arrivals.popleft()
                    self._drop_front()
            self._release([entry])

    def outputs(self, index: int) -> list[Any]:
        """Return all outputs of an input that has ended, and count them as handed out."""
        with self._lock:
            segments = self._of.get(index, [])
            out = [value for segment in segments for value in segment.open()]
            self._release(segments)
            return out

    def taken_over(self, index: int, outputs: list[Any]) -> None:
        """Take the outputs that an input had in an earlier run; on the engine's thread."""
        with self._lock:
            segment = Segment(index, len(outputs), 0, outputs)
            self._log.append(segment)
            self._of[index] = [segment]

    def _release(self, entries: Any) -> None:
        n, nbytes = self._released
        for entry in entries:
            if not entry.handed:
                entry.handed = True
                n += entry.n if isinstance(entry, Ends) else 0
                nbytes += entry.nbytes
        self._released = (n, nbytes)
        # A message for each output would be more than the output itself.
        source = self._source
        often = nbytes > source.keep_bytes // 16 or (n and not self._keep) or source.full
        if often:
            self._released = (0, 0)
            source.tell(state.Handed(n, nbytes))
