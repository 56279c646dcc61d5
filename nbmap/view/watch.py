"""Shows runs while they run: asks each for a snapshot and hands it to a display.

In a script or terminal a thread does it, ten times a second. In a notebook's kernel no thread of
ours prints anything, because what it prints lands under whatever cell runs at that moment: there
the thread that waits for the run does it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from ..engine.model import Snapshot
from .terminal import Display, open_display

logger = logging.getLogger("nbmap")

FIRST = 0.5  # seconds before a run is shown
EVERY = 0.1
SETTLE = 2.0  # seconds that the end of a run waits for its last line


class Watched(Protocol):
    """What is asked of a run."""

    name: str
    on_print: Callable[[int, str, str], None] | None
    on_wait: Callable[[], None] | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""

    def snapshot(self) -> Snapshot:
        """Return its picture."""


class Watch:
    """One run that is shown."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.display: Display = open_display(name=run.name)
        self.prints: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.began = time.monotonic()
        self.closed = threading.Event()

    def look(self) -> None:
        """Forward what was printed, and show where the run stands."""
        over = self.run.over
        while True:
            try:
                self.display.printed(*self.prints.get_nowait())
            except Empty:
                break
        if self.closed.is_set():
            return
        if over:
            self.display.close(self.run.snapshot())
            self.closed.set()
        elif time.monotonic() - self.began > FIRST:
            self.display.update(self.run.snapshot())


_lock = threading.Lock()
_watches: dict[int, Watch] = {}  # by the id of the run, which each Watch keeps alive
_thread: threading.Thread | None = None
_wake = threading.Event()


def begin(run: Watched) -> None:
    """Show a run from now on."""
    global _thread
    watch = Watch(run)
    with _lock:
        _watches[id(run)] = watch
        if in_kernel():
            run.on_wait = watch.look
            return
        run.on_print = lambda *printed: watch.prints.put(printed)
        if _thread is None:
            _thread = threading.Thread(target=_loop, name="nbmap-view", daemon=True)
            _thread.start()


def begin_quietly(run: Watched) -> None:
    """Forward what a single call prints, in a script; show nothing else of it."""
    if in_kernel():
        return

    def first(index: int, stream: str, text: str) -> None:
        begin(run)
        assert run.on_print is not None
        run.on_print(index, stream, text)

    run.on_print = first


def settle(run: Watched) -> None:
    """Return when the end of a run has been shown, so that it stands before what comes next."""
    watch = _watches.get(id(run))
    if watch is None or threading.current_thread() is _thread:
        return
    if run.on_wait is not None:
        watch.look()
        _watches.pop(id(run), None)
    else:
        _wake.set()
        watch.closed.wait(SETTLE)


def _loop() -> None:
    global _thread
    while True:
        _wake.wait(EVERY)
        _wake.clear()
        for key, watch in list(_watches.items()):
            try:
                watch.look()
            except Exception:
                logger.exception("a run can't be shown")
                watch.closed.set()
            if watch.closed.is_set():
                _watches.pop(key, None)
        with _lock:
            if not _watches:
                _thread = None
                return


def in_kernel() -> bool:
    """Tell whether this process is a notebook's kernel."""
    app = sys.modules.get("ipykernel.kernelapp")
    return app is not None and bool(app.IPKernelApp.initialized())
