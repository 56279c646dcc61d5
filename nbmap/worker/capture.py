"""stdout, stderr, warnings and logging of each input, on the worker.

`sys.stdout` and `sys.stderr` are replaced once by a proxy that asks the current thread where its
text goes: a thread that runs a lease has a sink, all others write where they always did. Logging
writes to `sys.stderr` in the end, so it needs nothing of its own; text that C code or a child
process writes to file descriptor 1 passes by unseen.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TextIO

Sink = Callable[[str, str], None]  # (stream's name, text)

HEAD = 32 << 10  # characters kept from the start of what an input writes
TAIL = 32 << 10  # and from the end

_ALWAYS = ("always", None, Warning, None, 0)  # as simplefilter writes it

_showwarning: Callable[..., None] = warnings.showwarning
_thread = threading.local()
_lock = threading.Lock()
_users = 0


class _Proxy:
    """A text stream that writes to the current thread's sink, or else to the real stream."""

    def __init__(self, name: str, real: TextIO) -> None:
        self._name = name
        self._real = real

    def write(self, text: str) -> int:
        sink: Sink | None = getattr(_thread, "sink", None)
        if sink is None or not isinstance(text, str):
            return self._real.write(text)
        sink(self._name, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __iter__(self) -> Any:
        return iter(self._real)


def enter(sink: Sink, current: Callable[[], int] = int) -> None:
    """Send what the current thread writes to `sink`, until `leave`.

    Args:
        sink: takes (stream's name, text).
        current: returns the input that the thread is at; by default it stays at one.
    """
    global _users, _showwarning
    with _lock:
        _users += 1
        for name in ("stdout", "stderr"):
            if not isinstance(getattr(sys, name), _Proxy):
                setattr(sys, name, _Proxy(name, getattr(sys, name)))
        if warnings.showwarning is not _show:
            _showwarning = warnings.showwarning
            warnings.showwarning = _show
            warnings.simplefilter("always", append=True)
    _thread.sink = sink
    _thread.current = current
    _thread.shown = (-1, set())


def leave() -> None:
    """Undo `enter`; the last to leave puts the real streams back."""
    global _users
    _thread.sink = None
    with _lock:
        _users -= 1
        if _users:
            return
        for name in ("stdout", "stderr"):
            if isinstance(proxy := getattr(sys, name), _Proxy):
                setattr(sys, name, proxy._real)  # noqa: SLF001 - our own class
        if warnings.showwarning is _show:
            warnings.showwarning = _showwarning
            with contextlib.suppress(ValueError):
                warnings.filters.remove(_ALWAYS)  # type: ignore[attr-defined]
            warnings.simplefilter("default", append=True)  # what holds anyway; has it noticed


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning once an input, where Python would show it once a process.

    Python remembers for all threads together which it has shown. So the filter that comes last, and
    decides where no other does, says "always" while inputs run, and each input remembers for itself.
    """
    sink: Sink | None = getattr(_thread, "sink", None)
    if sink is None or file is not None:
        _showwarning(message, category, filename, lineno, file, line)
        return
    index, shown = _thread.shown
    if index != _thread.current():
        shown = set()
        _thread.shown = (_thread.current(), shown)
    key = (str(message), category, filename, lineno)
    if key not in shown:
        shown.add(key)
        sink("stderr", warnings.formatwarning(message, category, filename, lineno, line))


class Text:
    """What one input has written and was not sent yet, its middle cut out where it is too much."""

    def __init__(self) -> None:
        self.head: list[tuple[str, str]] = []
        self.tail: deque[tuple[str, str]] = deque()
        self.room = HEAD
        self.kept = 0  # characters in the tail
        self.dropped = 0

    def add(self, stream: str, text: str) -> None:
        """Take what was written to a stream."""
        text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates can't travel
        if self.room > 0:
            first, text = text[: self.room], text[self.room :]
            self.room -= len(first)
            self.head.append((stream, first))
        if text:
            self.tail.append((stream, text))
            self.kept += len(text)
            while self.kept > 2 * TAIL:
                self._shrink()

    def _shrink(self) -> None:
        """Drop the oldest of the tail, so that half of what it may have is left at least."""
        stream, text = self.tail[0]
        cut = min(len(text), self.kept - TAIL)
        self.kept -= cut
        self.dropped += cut
        if cut == len(text):
            self.tail.popleft()
        else:
            self.tail[0] = (stream, text[cut:])

    def take(self, *, last: bool) -> list[tuple[str, str, int]]:
        """Return (stream, text, characters dropped before it) to send; the tail only at the end."""
        out = [(stream, text, 0) for stream, text in _joined(self.head)]
        self.head = []
        if last and self.tail:
            while self.kept > TAIL:
                self._shrink()
            tail = _joined(self.tail)
            out += [(s, t, self.dropped if i == 0 else 0) for i, (s, t) in enumerate(tail)]
            self.tail.clear()
            self.kept = self.dropped = 0
        return out


def _joined(pieces: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join consecutive pieces of one stream: print() writes a line in two."""
    out: list[tuple[str, list[str]]] = []
    for stream, text in pieces:
        if out and out[-1][0] == stream:
            out[-1][1].append(text)
        else:
            out.append((stream, [text]))
    return [(stream, "".join(texts)) for stream, texts in out]
