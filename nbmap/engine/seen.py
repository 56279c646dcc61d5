"""What is kept of a run for people to look at, beside its outcomes: all of it bounded.

Prints and failures are kept for every run; outputs are looked at for views only, since that runs
the `__repr__` of users' objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from .model import CANCELLED, Failure, FailureLine, Frames, Pack, Print, Yield
from .pickling import unpack
from .recent import Recent
from .series import Series

PRINTS = 16 << 20  # characters of prints that a run keeps
FAILURES = 1000  # failures that a run keeps for its view, whether or not it keeps outcomes
FEW = 50  # outputs of a message that are always looked at for numbers; otherwise now and then
_NOT_KEPT = f"\n…[the inputs of this run have printed over {PRINTS >> 20} MB: no more is kept]…\n"

Texts = Sequence[tuple[int, str]]  # of some outputs of a message, by their place in it


class Seen:
    """What people see of one run; written on the engine's thread, but for `texts_of`.

    Args:
        streams: whether its function is a generator's.
    """

    def __init__(self, *, streams: bool) -> None:
        self.by_view = False  # outputs are looked at; where there is no view, for nobody
        self.prints: dict[int, list[str]] = {}  # of each input, as they came
        self.failures: list[Failure] = []  # the first, in order of arrival
        self.newest_failures: deque[FailureLine] = deque(maxlen=5)
        self.recent = Recent()  # the newest outputs
        self.series = Series(by_input=not streams)  # the numbers among outputs
        self._printed = 0

    # -- prints and failures

    def print(self, message: Print) -> str:
        """Keep what an input has printed, and return it."""
        text = message.text
        if message.dropped:
            text = f"\n…[{message.dropped} characters left out]…\n{text}"
        if self._printed < PRINTS:
            self._printed += len(text)
            self.prints.setdefault(message.index, []).append(text)
        elif (kept := self.prints.get(message.index)) is not None and kept[-1] is not _NOT_KEPT:
            kept.append(_NOT_KEPT)
        return text

    def printed(self, index: int) -> str:
        """Return what an input wrote to stdout and stderr, or that it is not known any more."""
        return "".join(self.prints.get(index, [_NOT_KEPT] if self._printed >= PRINTS else []))

    def take_over(self, before: Seen, start: int, stop: int) -> None:
        """Keep what inputs printed that are taken over from another run."""
        for index, text in before.prints.items():
            if start <= index < stop:
                self.prints[index] = text

    def failed(self, failure: Failure) -> None:
        """Keep a failure, if it is one of the first or of the last."""
        if failure.kind != CANCELLED:
            self.newest_failures.append(line_of(failure))
            if len(self.failures) < FAILURES:
                self.failures.append(failure)

    # -- outputs

    def texts_of(self, values: Sequence[Any]) -> Texts:
        """Return some outputs as text, where they are looked at now; this runs the user's code."""
        return self.recent.written(values) if self.by_view and self.recent.due() else ()

    def looked_at(self, n: int, frames: Frames) -> tuple[Sequence[Any], Texts]:
        """Unpickle outputs that are scalars, and return them with texts, where they are looked at."""
        if not (self.by_view and self.recent.due()):
            return (), ()
        values = unpack(Pack(n, None, frames[:1]))
        return values, [(at, text) for at, text in self.recent.written(values) if text != "None"]

    def returned(self, index: int, value: Any, text: str) -> None:
        """Note what a function has returned."""
        self.recent.add(index, text)
        self.series.add(index, 0, value)

    def yielded(
        self, message: Yield, n: int, first: int, values: list[Any] | None, texts: Texts
    ) -> None:
        """Note what a generator has yielded; before `first` it was known already."""
        look = values is None and self.recent.due()
        if not (look or texts or n <= FEW):
            return
        if values is None:
            values = unpack(Pack(n, None, message.frames[:1]))
            texts = self.recent.written(values) if look else ()
        for at, text in texts:
            if first <= at < n:
                self.recent.add(message.index, text)
        for at in range(first, n):
            self.series.add(message.index, message.seq + at, values[at])


def line_of(failure: Failure) -> FailureLine:
    """Return a failure as views show it."""
    f = failure
    return FailureLine(f.index, f.input, f.kind, f.type, f.message, f.attempts, f.worker)
