"""Progress where there is no notebook: a bar in a terminal, lines in a log. The only home of rich.

rich lays a frame out; placing it is ours, because rich's live display has three faults here. It
moves what is printed to stdout over to stderr, wrapped at the width of the terminal; it puts
back the sys.stdout that it found when it began, which breaks one that was replaced in between
(`contextlib.redirect_stdout`); and it hides the cursor, which stays hidden when the process is
killed. So a frame is text without a last newline, and before anything else is written to the
terminal it is wiped.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from . import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console
    from rich.table import Table

    from ..engine.model import Snapshot

__all__ = ["Bar", "Display", "LogLines", "open_display"]

_FAILURES = 5  # shown of each run, then counted
_HELD = 65536  # characters of an unfinished line that are kept for its end
_FRAME = 0.05  # seconds between two frames when more is asked for


class Display(Protocol):
    """What a run tells of itself; any method may be called from any thread."""

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now; called at most ten times a second, after 0.5 s at first."""

    def printed(self, index: int, stream: str, text: str) -> None:
        """Forward what input `index` wrote to "stdout" or "stderr"."""

    def close(self, snapshot: Snapshot) -> None:
        """Show how the run ended; a short one without failures leaves nothing."""


def open_display(*, name: str) -> Display:
    """Return a bar when stderr is a terminal that can draw one, and lines for a log otherwise."""
    dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    return Bar(name) if _is_terminal(sys.stderr) and not dumb else LogLines()


class Bar:
    """One run's row among the bars of this process."""

    def __init__(self, name: str) -> None:
        self.name = render.plain(name, None)
        self._lock = threading.RLock()
        self._story = _Story()
        self._prints = _Prints()
        self._drawn = False
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Draw the run's row, and failures that are new above it."""
        with self._lock:
            if not self._closed:
                self._drawn = True
                _bars.draw(self, snapshot, self._story.news(snapshot))

    def printed(self, index: int, stream: str, text: str) -> None:
        """Forward whole lines above the bar."""
        self._prints.feed(index, stream, text)

    def close(self, snapshot: Snapshot) -> None:
        """Replace the run's row by its summary."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._prints.end()
            lines = self._story.ending(snapshot, shown=self._drawn)
            if self._drawn:
                _bars.remove(self, lines)
            elif lines:
                _write(sys.stderr, lines)


class LogLines:
    """One run in a log: a line every 10 % or 10 s, failures as they come, and a summary."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._story = _Story()
        self._prints = _Prints()
        self._updated = False
        self._closed = False
        self._tenth = 0
        self._last = clock()

    def update(self, snapshot: Snapshot) -> None:
        """Write a line if one is due."""
        with self._lock:
            if self._closed:
                return
            self._updated = True
            lines = self._story.news(snapshot)
            now, tenth = self._clock(), self._tenth
            if snapshot.total:
                ended = snapshot.done + snapshot.failed + snapshot.cancelled
                tenth = 10 * ended // snapshot.total
            # The last tenth is the summary's.
            due = self._tenth < tenth < 10 or now >= self._last + 10
            if due and snapshot.status == "running":
                self._tenth, self._last = tenth, now
                lines.append(render.summary(snapshot))
            if lines:
                _write(sys.stderr, lines)

    def printed(self, index: int, stream: str, text: str) -> None:
        """Forward whole lines."""
        self._prints.feed(index, stream, text)

    def close(self, snapshot: Snapshot) -> None:
        """Write the summary."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._prints.end()
            lines = self._story.ending(snapshot, shown=self._updated)
            if lines:
                _write(sys.stderr, lines)


class _Story:
    """Which lines of a run were told already."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def news(self, snapshot: Snapshot) -> list[str]:
        """Return the failures that are new, until enough of them were shown."""
        new = [line for line in snapshot.failures if line.index not in self._told]
        new = new[: _FAILURES - len(self._told)]
        self._told.update(line.index for line in new)
        return [render.failure(line) for line in new]

    def ending(self, snapshot: Snapshot, *, shown: bool) -> list[str]:
        """Return the last lines; none for a run that was not `shown` and has no failures."""
        if not shown and not snapshot.failed:
            return []
        lines = [render.summary(snapshot), *self.news(snapshot)]
        more = snapshot.failed - len(self._told)
        if more > 0:
            lines.append(f"and {more:,} more: run.failures")
        return lines


class _Prints:
    """What the inputs of one run print: whole lines go on at once, the rest waits for its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[int, str], str] = {}
        self._ended = False

    def feed(self, index: int, stream: str, text: str) -> None:
        """Forward the lines that `text` ends."""
        key = index, stream
        with self._lock:
            *lines, rest = (self._held.pop(key, "") + text).split("\n")
            if rest and (self._ended or len(rest) > _HELD):
                lines.append(rest)
            elif rest:
                self._held[key] = rest
        # Not under the lock: sys.stdout may be somebody's object with a lock of its own.
        self._forward(index, stream, lines)

    def end(self) -> None:
        """Forward what never got its newline, and hold nothing back from now on."""
        with self._lock:
            self._ended = True
            held, self._held = self._held, {}
        for (index, stream), rest in held.items():
            self._forward(index, stream, [rest])

    def _forward(self, index: int, stream: str, lines: list[str]) -> None:
        if lines:
            to = sys.stderr if stream == "stderr" else sys.stdout
            _write(to, [f"[{index}] {self._shown(line)}" for line in lines])

    @staticmethod
    def _shown(line: str) -> str:
        # A remote bar rewrites its line after each carriage return: the last state is the line.
        line = line.rstrip("\r").rpartition("\r")[2]
        return render.plain(line.expandtabs(), None)


class _Bars:
    """The bars of this process on its terminal: one frame, a row for each run.

    `_lock` guards the terminal's state. Only the terminal itself is written to under it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._terminal: TextIO | None = None
        self._console: Console | None = None
        self._rows: dict[Bar, Snapshot] = {}
        self._height = 0  # of the frame on the terminal now
        self._drawn = 0.0  # when it was drawn
        self._midline = False  # somebody's unfinished line is where a frame would go
        self._registered = False
        self._left = False  # the process is ending

    def draw(self, bar: Bar, snapshot: Snapshot, lines: list[str]) -> None:
        """Make a row or bring it up to date, and put lines above the frame."""
        with self._lock:
            if self._left:
                return
            if not self._rows:
                self._begin()
            self._rows[bar] = snapshot
            self._watch()
            if lines:
                self._above(lines)
            elif not self._height or time.monotonic() >= self._drawn + _FRAME:
                self._show()

    def remove(self, bar: Bar, lines: list[str]) -> None:
        """Take a row away and leave lines in its place."""
        with self._lock:
            self._rows.pop(bar, None)
            self._above(lines)
            if not self._rows:
                self._unwatch()

    def write(self, stream: TextIO, text: str) -> int:
        """Write somebody's text to a stream on this terminal, the frame out of its way."""
        # A forked child has no frame, and a lock that nobody may ever release.
        if not self._rows or os.getpid() != self._pid:
            return stream.write(text)
        with self._lock:
            self._wipe()
            try:
                count = stream.write(text)
                stream.flush()
            finally:
                if text:
                    self._midline = not text.endswith("\n")
            # A loop that prints keeps the frame away until the next update, else it would crawl.
            if time.monotonic() >= self._drawn + _FRAME:
                self._show()
            return count

    def _begin(self) -> None:
        from rich.console import Console

        self._terminal = _beneath(sys.stderr)
        self._midline = False
        # rich writes to its console's file even where it only captures.
        nowhere = io.TextIOWrapper(io.BytesIO(), getattr(self._terminal, "encoding", None))
        self._console = Console(
            file=nowhere, force_terminal=True, force_jupyter=False, highlight=False
        )
        if not self._registered:
            self._registered = True
            atexit.register(self._leave)

    def _above(self, lines: Iterable[str]) -> None:
        self._wipe()
        if self._midline:
            self._send("\n")
            self._midline = False
        _write(self._terminal, lines)
        self._show()

    def _show(self) -> None:
        if not self._rows or self._console is None or self._midline:
            return
        self._wipe()
        with self._console.capture() as frame:
            self._console.print(self._frame(*self._console.size))
        text = frame.get().rstrip("\n")
        self._send(text)
        self._height = text.count("\n") + 1
        self._drawn = time.monotonic()

    def _frame(self, width: int, height: int) -> Table:
        from rich.cells import cell_len
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        rows = list(self._rows.items())
        if len(rows) >= height:  # a frame that scrolls can't be wiped
            rows = rows[: max(height - 1, 1)]
        # Widths are given: left to itself, rich gives up the bar first, then a third of each.
        name = min(max(cell_len(bar.name) for bar, _ in rows), max(width // 4, 8))
        long = 20 if width >= 100 else 10
        rest = max(width - name - long - 2, 1)
        table = Table.grid(
            Column(width=name, no_wrap=True),
            Column(width=long),
            Column(width=rest, no_wrap=True),
            padding=(0, 1),
        )
        for bar, s in rows:
            ended = s.done + s.failed + s.cancelled
            shape = ProgressBar(total=s.total, completed=ended, width=long)
            table.add_row(Text(bar.name), shape, Text(render.brief(s)))
        return table

    def _wipe(self) -> None:
        if self._height:
            self._send("\r\x1b[2K" + "\x1b[1A\x1b[2K" * (self._height - 1))
            self._height = 0

    def _send(self, text: str) -> None:
        if self._terminal is not None:
            with contextlib.suppress(Exception):  # a terminal that went away ends no run
                self._terminal.write(text)
                self._terminal.flush()

    def _watch(self) -> None:
        # At each update, as other code replaces these streams too. A stream that leads
        # elsewhere is left alone.
        if not isinstance(sys.stderr, _Above) and _is_terminal(sys.stderr):
            sys.stderr = cast("TextIO", _Above(sys.stderr, self))
        if not isinstance(sys.stdout, _Above) and _is_terminal(sys.stdout):
            sys.stdout = cast("TextIO", _Above(sys.stdout, self))

    def _unwatch(self) -> None:
        # One that somebody else has put away by now stays theirs: it only passes text on.
        if isinstance(sys.stderr, _Above):
            sys.stderr = sys.stderr.beneath
        if isinstance(sys.stdout, _Above):
            sys.stdout = sys.stdout.beneath

    def _leave(self) -> None:
        if os.getpid() == self._pid:
            with self._lock:
                self._wipe()
                self._unwatch()
                self._rows.clear()
                self._left = True


class _Above:
    """Stands for sys.stdout or sys.stderr while there are bars on the terminal it leads to."""

    def __init__(self, beneath: TextIO, bars: _Bars) -> None:
        self.beneath = beneath
        self._bars = bars

    def write(self, text: str) -> int:
        return self._bars.write(self.beneath, text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> object:
        return getattr(self.beneath, name)


_bars = _Bars()


def _beneath(stream: TextIO) -> TextIO:
    return stream.beneath if isinstance(stream, _Above) else stream


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except Exception:  # closed, detached, or an object without isatty
        return False


def _write(stream: TextIO | None, lines: Iterable[str]) -> None:
    """Write whole lines at once; a stream that is gone, closed or broken ends no run."""
    if stream is None:  # as under pythonw
        return
    text = "".join([line + "\n" for line in lines])
    with contextlib.suppress(Exception):
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
