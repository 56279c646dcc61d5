"""Shows runs while they run: asks each for a snapshot and hands it to a display.

One thread does it for all runs of the process, ten times a second. In a terminal a display draws a
bar, in a log it writes lines. In a notebook the display is given by `nbmap.notebook`: what the
thread does there is to update by display id what the cell's own thread has displayed, since what
another thread prints would land under whatever cell runs at that moment.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from ..engine.interrupts import Gate, start_thread
from ..engine.model import Snapshot, Statuses
from ..engine.seen import Seen
from .terminal import Display, open_display

logger = logging.getLogger("nbmap")

FIRST = 0.5  # seconds before a run is shown
FIRST_CALL = 2.0  # seconds before a single call is shown, in a notebook
EVERY = 0.1
THREAD = "nbmap-view"
SETTLE = 2.0  # seconds that the end of a run waits for its last line


class Watched(Protocol):
    """What is asked of a run."""

    name: str
    seen: Seen
    streams: bool  # whether its function is a generator's
    takeovers: list[tuple[int, int, int]]  # input, attempt, output that it took over at
    on_print: Callable[[int, str, str], None] | None
    on_wait: Callable[[], None] | None
    keep: bool
    front: object  # what the user has of it, until it has ended

    @property
    def over(self) -> bool:
        """Whether it has ended."""

    def snapshot(self) -> Snapshot:
        """Return its picture."""

    def statuses(self) -> Statuses:
        """Return how far each input is."""

    def cancel(self, index: int = -1) -> None:
        """Cancel it, or one of its inputs."""


class Notebook(Protocol):
    """What shows runs in a notebook's cells."""

    def open(self, run: Watched) -> Display:
        """Display a run in the cell that runs now."""

    def show_again(self, run: Watched) -> bool:
        """Display a run in the cell that runs now, if it is not there; tell whether it is."""


notebook: Notebook | None = None  # set by nbmap.notebook
# The view under which runs are shown that are made in this context, and not in a cell.
under: contextvars.ContextVar[object] = contextvars.ContextVar("nbmap_under", default=None)


class Watch:
    """One run that is shown."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.display = notebook.open(run) if notebook else open_display(name=run.name)
        self.prints: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.began = self.looked = time.monotonic()
        self.closed = Gate()
        self.closed.shut()
        # By its context a kernel knows to which cell an update belongs.
        self.context = contextvars.copy_context()

    def forward(self) -> None:
        """Pass on what was printed."""
        while True:
            try:
                self.display.printed(*self.prints.get_nowait())
            except Empty:
                return

    def look(self) -> None:
        """Show where the run stands."""
        self.looked = time.monotonic()
        self.context.run(self.display.update, self.run.snapshot())

    def close(self) -> None:
        """Show how the run ended."""
        self.forward()
        self.context.run(self.display.close, self.run.snapshot())
        self.closed.open()


_lock = threading.Lock()
_watches: dict[int, Watch] = {}  # by the id of the run, which each Watch keeps alive
_shows = False  # a thread does
_wake = Gate()


def begin(run: Watched) -> bool:
    """Show a run from now on, and tell whether that can be done; it goes on in any case."""
    global _shows
    run.seen.by_view = notebook is not None
    try:
        watch = Watch(run)
    except Exception:
        logger.exception("a run can't be shown")
        return False
    if notebook is None:
        run.on_print = lambda *printed: watch.prints.put(printed)
    with _lock:
        _watches[id(run)] = watch
        if not _shows:
            _shows = True
            start_thread(THREAD, _loop)
    return True


def begin_quietly(run: Watched) -> None:
    """Show a single call if it takes long, in a notebook; elsewhere pass on what it prints."""
    run.seen.by_view = notebook is not None
    if notebook is not None:
        began = time.monotonic()
        me = weakref.ref(run)  # a run that held itself would keep its output until a collection

        def waited() -> None:
            waiting = me()
            if waiting is not None and time.monotonic() - began > FIRST_CALL:
                waiting.on_wait = None
                begin(waiting)

        run.on_wait = waited
        return

    def first(index: int, stream: str, text: str) -> None:
        if begin(run) and run.on_print is not None:
            run.on_print(index, stream, text)

    run.on_print = first


def begin_unseen(run: Watched) -> None:
    """Pass on what a run prints that remote code has made; it has no cell that could show it."""
    if notebook is None:
        begin_quietly(run)


def show_again(run: Watched) -> bool:
    """Show a run in the notebook's cell that runs now; tell whether it is shown there."""
    return notebook is not None and notebook.show_again(run)


def settle(run: Watched) -> None:
    """Return when the end of a run has been shown, so that it stands before what comes next."""
    watch = _watches.get(id(run))
    if watch is None or threading.current_thread().name == THREAD:
        return
    _wake.open()
    if watch.closed.wait(SETTLE):
        watch.closed.open()  # for others that wait


def _loop() -> None:
    global _shows
    next_look = time.monotonic() + EVERY
    while True:
        _wake.wait(EVERY)
        _close_ended()
        # Who waits for the end of a run wakes this up; that must not show others more often.
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + EVERY
            _look_at_stalest()
        with _lock:
            if not _watches:
                _shows = False
                return


def _close_ended() -> None:
    """Show how runs ended that have, and pass on what the others have printed."""
    for key, watch in list(_watches.items()):
        try:
            if watch.run.over:
                watch.close()
                _watches.pop(key, None)
                continue
            watch.forward()
        except Exception as error:
            _give_up(key, watch, error)


def _look_at_stalest() -> None:
    """Show the run that was not shown for longest, if there is any.

    One at a time: what is sent to a browser must not grow with the number of runs.
    """
    now = time.monotonic()
    old = [watch for watch in list(_watches.values()) if now - watch.began > FIRST]
    if not old:
        return
    stalest = min(old, key=lambda watch: watch.looked)
    try:
        stalest.look()
    except Exception as error:
        _give_up(id(stalest.run), stalest, error)


def _give_up(key: int, watch: Watch, error: Exception) -> None:
    logger.error("a run can't be shown", exc_info=error)
    watch.closed.open()
    _watches.pop(key, None)


def in_kernel() -> bool:
    """Tell whether this process is a notebook's kernel."""
    app = sys.modules.get("ipykernel.kernelapp")
    return app is not None and bool(app.IPKernelApp.initialized())
