"""stdout, stderr, warnings and logging of each input, on the worker.

`sys.stdout` and `sys.stderr` are replaced once by streams that ask the current thread where its
text goes: a thread that runs a lease has a sink, all others write where they always did. Logging
writes to `sys.stderr` in the end, so it needs nothing of its own; text that C code, a child process
or a thread of the user's writes passes by unseen.

User code puts streams of its own in their place, most by `contextlib.redirect_stdout`. Python has
one `sys.stdout` for all threads: an input that redirects it would take the text of all others that
run in the process, and two of them that end in the order in which they began leave it redirected
for good. So while leases run, what such a thread assigns to `sys.stdout` counts for this thread,
and until the end of the input.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import ModuleType
from typing import Any, TextIO

Sink = Callable[[str, str], None]  # (stream's name, text)

HEAD = 32 << 10  # characters kept from the start of what an input writes
TAIL = 32 << 10  # and from the end

_ALWAYS = ("always", None, Warning, None, 0)  # as simplefilter writes it
_DEFAULT = ("default", None, Warning, None, 0)

_showwarning: Callable[..., None] = warnings.showwarning
_NAMES = ("stdout", "stderr")
_thread = threading.local()
_input: ContextVar[object] = ContextVar("nbmap_input", default=None)
_lock = threading.Lock()
_users = 0


class _Stream:
    """A text stream that writes to the current thread's sink, or else to the real stream."""

    def __init__(self, name: str, real: TextIO) -> None:
        self.name_ = name
        self.real = real

    def write(self, text: str) -> int:
        sink: Sink | None = getattr(_thread, "sink", None)
        if sink is None or not isinstance(text, str) or _outlived():
            return self.real.write(text)
        text = str.__str__(text)  # a subclass may have any methods
        sink(self.name_, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __iter__(self) -> Any:
        return iter(self.real)


class _Front:
    """What `print` finds: passes all on to what the current thread has for `sys.stdout`.

    Another object than the stream, since what the user puts in its place often writes on to it.
    """

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def write(self, text: str) -> Any:
        return _there(self.stream).write(text)

    def writelines(self, lines: Any) -> None:
        _there(self.stream).writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(_there(self.stream), name)

    def __iter__(self) -> Any:
        return iter(_there(self.stream))


class _Sys(ModuleType):
    """The class of `sys` while leases run: assigning its streams counts for the thread alone.

    Python itself looks into the module's dict, and finds a `_Front` there.
    """

    @property
    def stdout(self) -> Any:
        return _get("stdout")

    @stdout.setter
    def stdout(self, value: Any) -> None:
        _set("stdout", value)

    @property
    def stderr(self) -> Any:
        return _get("stderr")

    @stderr.setter
    def stderr(self, value: Any) -> None:
        _set("stderr", value)

    def __reduce__(self) -> Any:
        return importlib.import_module, ("sys",)  # cloudpickle knows modules by their exact class


def _get(name: str) -> Any:
    front = vars(sys)[name]
    if type(front) is not _Front:
        return front
    return front.stream.real if getattr(_thread, "sink", None) is None else _there(front.stream)


def _set(name: str, value: Any) -> None:
    front = vars(sys)[name]
    if type(front) is not _Front:
        vars(sys)[name] = value
    elif getattr(_thread, "sink", None) is None:
        front.stream.real = value
    elif value is front or value is front.stream:
        _thread.instead.pop(name, None)
    else:
        _thread.instead[name] = (_thread.current(), value)


def _there(stream: _Stream) -> Any:
    """Return what the current thread has for a stream: what its input has put there, or it."""
    instead = getattr(_thread, "instead", None)
    if not instead or stream.name_ not in instead:
        return stream
    index, value = instead[stream.name_]
    if index != _thread.current():  # an earlier input left it so
        del instead[stream.name_]
        return stream
    return value


def _outlived() -> bool:
    """Tell whether this is a coroutine's task of an input that has ended."""
    mine = _input.get()
    return mine is not None and mine != _thread.current()


def begin() -> None:
    """Have the tasks that this context makes from now on write for the current input only."""
    _input.set(_thread.current() if getattr(_thread, "sink", None) is not None else None)


def _forget() -> None:
    """Have what the current thread writes go where it always did; so in a child process, too."""
    _thread.sink = None
    _thread.instead = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def enter(sink: Sink, current: Callable[[], object] = int) -> None:
    """Send what the current thread writes to `sink`, until `leave`.

    Args:
        sink: takes (stream's name, text).
        current: names the input that the thread is at; by default it stays at one.
    """
    global _users, _showwarning
    with _lock:
        _users += 1
        for name in _NAMES:
            if type(vars(sys)[name]) is not _Front:
                vars(sys)[name] = _Front(_Stream(name, vars(sys)[name]))
        if type(sys) is ModuleType:
            sys.__class__ = _Sys
        if warnings.showwarning is not _show:
            _showwarning = warnings.showwarning
            warnings.showwarning = _show
            warnings.simplefilter("always", append=True)
    _thread.sink = sink
    _thread.current = current
    _thread.instead = {}
    _thread.shown = (None, set())


def leave() -> None:
    """Undo `enter`; the last to leave puts the real streams back."""
    global _users
    _forget()
    with _lock:
        _users -= 1
        if _users:
            return
        if type(sys) is _Sys:
            sys.__class__ = ModuleType  # type: ignore[assignment]
        for name in _NAMES:
            if type(front := vars(sys)[name]) is _Front:
                vars(sys)[name] = front.stream.real
        if warnings.showwarning is _show:
            warnings.showwarning = _showwarning
            with contextlib.suppress(ValueError):
                warnings.filters.remove(_ALWAYS)  # type: ignore[attr-defined]
            theirs = _DEFAULT in warnings.filters
            warnings.simplefilter("default", append=True)  # what holds anyway; has it noticed
            if not theirs:  # it would come before our filter when that is back
                warnings.filters.remove(_DEFAULT)  # type: ignore[attr-defined]


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
