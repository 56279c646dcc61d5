"""The live view of a run in a notebook's cell. The only home of anywidget.

What the cell holds is HTML and text (`render.page`), displayed once and then brought up to date by
display id: at the end, and now and then before. The widget, one a run, carries the same to the
browser as messages, at most one a tick; its JavaScript puts a live view in the place of the HTML.
It is opened for runs that take longer than half a second, and tells nothing before a browser has
said hello. Where none does, the HTML is brought up to date every second instead.

Messages, as `tests/decisions/008-what-a-notebook-keeps.md` describes them::

    kernel ──▶ browser   key     head, failures; all statuses as bytes
                         delta   head, new failures; the statuses that changed, as ranges
                         answer  to one request
    browser ──▶ kernel   hello · rest · cancel · retry · detail   each with an id; may come twice
"""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4
from weakref import WeakValueDictionary

import anywidget
import traitlets

from ..engine.interrupts import start_thread
from ..engine.model import SHOWN_STATUSES, Failure, Snapshot, Statuses
from ..engine.recent import Line
from ..engine.series import Point
from . import picture, render, watch
from .cells import MOST, Cells, Range, packed
from .watch import Watched

__all__ = ["Bundle", "Output", "Page", "View", "answer"]

STATIC = Path(__file__).parent / "static"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"

HELLO = 3.0  # seconds that a browser has to say hello before the HTML moves without it
STATIC_EVERY = 1.0  # seconds between two states of the HTML where no browser shows the widget
SAVED_EVERY = 30.0  # the same where one does: for a notebook that is saved meanwhile
STILL = 1.0  # seconds after which a run in which nothing has changed says so
FAILURES = 200  # that a browser is told of
POINTS = 400  # of the plot in one message, and in the first
MOST_POINTS = 20_000
BELOW = 4  # ended runs that an output shows in full, of those that share it
LINES = 100  # that it shows of the others
SOON = 0.1  # seconds between two states of an output that runs share
KEPT = 20  # ended runs whose widgets stay, for a page that is loaded again

CANCELLED = SHOWN_STATUSES.index("cancelled")

Bundle = dict[str, Any]


class Output(Protocol):
    """A way to bring up to date what was displayed; the same for what took the same way."""

    def update(self, bundle: Bundle) -> None:
        """Replace it wherever it is displayed, from any thread."""


class Page(Protocol):
    """The notebook that shows runs."""

    mounts: bool  # whether a widget can reach the HTML of a cell's output

    def show(self, bundle: Bundle, display_id: str) -> Output:
        """Display something in the cell that runs now."""

    def cell(self) -> str:
        """Name the execution of the cell that runs now."""

    def watched(self) -> bool:
        """Tell whether a browser may show widgets; where none can, none must be made."""


class Model(anywidget.AnyWidget):
    """One run's widget; all that it carries goes in messages."""

    _esm = STATIC / "view.js"
    _css = STATIC / "view.css"
    run = traitlets.Unicode("").tag(sync=True)
    name = traitlets.Unicode("").tag(sync=True)
    mounts = traitlets.Bool(default_value=True).tag(sync=True)

    def __init__(self, receive: Callable[[dict[str, Any]], None], **traits: Any) -> None:
        # Before the comm is opened: a browser may speak as soon as it is.
        self.on_msg(lambda _widget, content, _buffers: receive(content))
        super().__init__(**traits)

    def close(self) -> None:
        """Close the widget with the one that ipywidgets has made beside it."""
        self.layout.close()
        super().close()


_views: WeakValueDictionary[str, View] = WeakValueDictionary()  # by id
_kept: deque[View] = deque()  # ended, and their widgets are open
# What is kept of ended runs so that the button can run them again though no variable has them.
_retryable: deque[object] = deque(maxlen=3)


def answer(run: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Act on a browser's request that came on the control channel; on any thread.

    Args:
        run: the id of a view.
        body: the request.

    Returns:
        The answer, or None where there is no such run any more.
    """
    view = _views.get(run)
    return None if view is None else view.answer(body)


class View:
    """One run in the notebook; the view thread updates it, requests come on other threads.

    Args:
        run: it.
        page: the notebook.
        under: shares the output of this one, below it and what is below it already.
        listed: it does so as one of many of a cell, of which none is the first.
    """

    def __init__(
        self, run: Watched, page: Page, under: View | None = None, *, listed: bool = False
    ) -> None:
        self.id = uuid4().hex
        self._above = under  # whose output this one is shown in, below it
        self._below: list[str] = []  # views that ran this one again
        self.top: View = self if under is None else under.top
        self._listed = False  # whether it heads a list, and is a line of it in the end
        self._shown: list[View] = [self]  # in its output, in full
        self._lines: deque[str] = deque(maxlen=LINES)  # the newest of those before
        self._folded = 0  # how many those are
        self._due = False  # its output is to be published soon
        self._run: Watched | None = run
        self._name = run.name
        self._prints = run.seen.prints
        self._failures = run.seen.failures
        self._takeovers = run.takeovers
        self._recent = run.seen.recent
        self._series = run.seen.series
        self._streams = run.streams
        self._page = page
        self._began = time.monotonic()
        self._lasts = False  # longer than a line is worth
        self._model: Model | None = None
        self._outputs: set[Output] = set()
        self._cell: str | None = None
        self._snapshot = run.snapshot()
        self._cells = Cells()
        self._front = run.front if run.keep else None  # by which it can be run again
        self._again: Callable[[], Any] = lambda: None  # returns that, while anybody keeps it
        self._remark = ""  # what has become of a request to run it again
        self._pictures = ""  # of its end
        self._publishing = threading.Lock()  # or an older state would come after a newer one
        self._lock = threading.Lock()  # of what is below and shared, never held while sending
        self._requests: set[str] = set()  # of those that are acted on once
        self._heard = False
        self._resting: set[str] = set()  # pages in which nobody sees it
        self._pages: set[str] = set()
        self._key_due = False
        self._ended = False
        self._told: tuple[Any, ...] = ()  # what the last message said
        self._told_at = 0.0
        self._told_failures = 0
        self._told_lines = 0  # the number of the last one
        self._told_points = 0
        self._seen_failures = 0
        self._published = self._began
        _views[self.id] = self
        if under is None:
            self.show()
        else:
            if listed:
                self._cell = page.cell()  # where it is shown already
            else:
                under._below.append(self.id)  # noqa: SLF001 - one of us
            self.top.take(self, listed=listed)

    # -- in the cell

    def show(self) -> None:
        """Display the run in the cell that runs now, unless it is there."""
        cell = self._page.cell()
        if cell == self._cell:
            return
        self._cell = cell
        snapshot = self._snapshot
        self._outputs.add(self._page.show(self._with_those_below(), self.id))
        if snapshot is not self._snapshot:  # which may have been the last, published before
            self.publish()

    def bundle(self) -> Bundle:
        """Return what the notebook keeps of it."""
        s = self._snapshot
        bundle: Bundle = {
            "text/plain": render.pages_text(s, self._failures),
            "text/html": render.page(
                s,
                self._failures,
                mount=self.id,
                clock=time.strftime("%H:%M:%S"),
                outputs=[(index, text) for _, index, text in self._recent.since(0)],
                pictures=self._pictures,
                unshown=not self._lasts,
            ),
        }
        if self._model is not None and not self._page.mounts and not self._ended:
            bundle[WIDGET_MIME] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self._model.model_id,
            }
        return bundle

    def publish(self) -> None:
        """Bring up to date what is displayed of it."""
        with self._publishing:
            self._published = time.monotonic()
            bundle = self._with_those_below()
            for output in list(self._outputs):
                output.update(bundle)
        if self.top is not self:
            self.top.publish_soon()

    def publish_soon(self) -> None:
        """Publish, but not for each of many short runs that share the output."""
        with self._lock:
            wait = self._published + SOON - time.monotonic()
            if self._due:
                return
            self._due = True

        def later() -> None:
            time.sleep(max(0.0, wait))
            self.flush()

        if wait > 0:
            start_thread("nbmap-publish", contextvars.copy_context().run, later)
        else:
            self.flush()

    def flush(self) -> None:
        """Publish what is to be published soon, now: at the end of a cell."""
        with self._lock:
            due, self._due = self._due, False
        if due:
            self.publish()

    def take(self, view: View, *, listed: bool) -> None:
        """Show another run below."""
        self._listed = self._listed or listed
        with self._lock:
            self._shown.append(view)
        self.publish_soon()

    def _with_those_below(self) -> Bundle:
        """Return what is shown where this was displayed: it, and those that share its output."""
        with self._lock:
            first = 0 if self._listed else 1
            while len(self._shown) > BELOW + first and (line := self._shown[first].last_line):
                self._shown.pop(first)
                self._lines.append(line)
                self._folded += 1
            shown, lines = list(self._shown), list(self._lines)
        bundle: Bundle = {"text/plain": "\n".join(lines), "text/html": ""}
        if lines:
            bundle["text/html"] = render.folded(lines, self._folded)
        for view in shown:
            other = view.bundle()
            bundle["text/plain"] += "\n" * bool(bundle["text/plain"]) + other["text/plain"]
            bundle["text/html"] += other["text/html"]
            if WIDGET_MIME in other:
                bundle[WIDGET_MIME] = other[WIDGET_MIME]
        return bundle

    # -- on the view thread

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""
        self._snapshot = snapshot
        if not self._lasts:
            self._lasts = True
            if self._is_watched():
                name = render.plain(self._name, 60)
                self._model = Model(self._receive, run=self.id, name=name, mounts=self._page.mounts)
            self.publish()
        now = time.monotonic()
        every = STATIC_EVERY
        if self._heard:
            self._tell()
            every = SAVED_EVERY
        elif self._model is not None and now - self._began < HELLO:
            return
        if now - self._published > every:
            self.publish()

    @property
    def last_line(self) -> str:
        """The line that is left of it; "" before it has ended."""
        return render.summary(self._snapshot) if self._ended else ""

    @property
    def is_live(self) -> bool:
        """Whether a browser has been given a widget for it."""
        return self._model is not None

    def _is_watched(self) -> bool:
        return self._page.watched() if self._above is None else self._above.is_live

    def printed(self, index: int, stream: str, text: str) -> None:
        """Prints stay with their input until somebody asks for them."""

    def close(self, snapshot: Snapshot) -> None:
        """Show how the run ended."""
        self._snapshot = snapshot
        self._may_retry()
        if self._model is None:
            self._look()
        else:
            self._tell()
            with self._lock:
                self._ended = True
                heard, rests = self._heard, self._rests
                key = self._key_due or (heard and rests)
            if key:  # a browser that said hello since, or hears the end though nobody looks
                self._send_key()
            if heard or time.monotonic() - self._began < HELLO:
                self._keep()
            else:
                self._model.close()
        self._pictures = picture.squares(self._cells.column) + picture.curves(self._series)
        self._ended = True
        self._run = None  # which may hold every output
        self.publish()
        if self._above is not None and self.id in self._above._below:  # noqa: SLF001 - one of us
            self._above.hear(snapshot)

    def hear(self, again: Snapshot) -> None:
        """Say how the run below has ended that ran this one again."""
        self._remark = (
            f"run again below: {render.line(again)}; the outputs are those of run.retried"
        )
        self._send_key()

    def _may_retry(self) -> None:
        """Keep the run where there is something to run again, for the button."""
        front, self._front = self._front, None
        s = self._snapshot
        if front is not None and s.total not in {s.done, 0}:
            self._again = weakref.ref(front)
            _retryable.append(front)

    def _keep(self) -> None:
        _kept.append(self)
        while len(_kept) > KEPT:
            old = _kept.popleft()
            if old._model is not None:  # noqa: SLF001 - one of us
                old._model.close()  # noqa: SLF001

    # -- messages

    def _look(self) -> list[Range] | None:
        """Learn how far each input is; return what has changed."""
        assert self._run is not None
        failed = [failure.index for failure in self._failures[self._seen_failures :]]
        self._seen_failures += len(failed)
        return self._cells.take(self._statuses(self._run), failed)

    def _tell(self) -> None:
        """Send what has changed since the last message; on the view thread."""
        changes = self._look()
        with self._lock:
            heard = self._heard and not self._rests
            key, self._key_due = self._key_due, False
        if not heard:
            return
        if key:
            self._send_key()
            return
        s, now = self._snapshot, time.monotonic()
        state = (s.status, s.total, s.done, s.failed, s.cancelled, s.running, s.note, s.gpus)
        new = self._failures[self._told_failures : FAILURES]
        lines = self._recent.since(self._told_lines)
        if (
            changes == []
            and not new
            and not lines
            and self._series.number == self._told_points
            and state == self._told
            and now - self._told_at < STILL
        ):
            return
        self._told, self._told_at = state, now
        self._told_failures += len(new)
        self._send_state("delta", new, changes, lines)

    def _plot(self, *, whole: bool) -> dict[str, Any] | None:
        """Return the points that are new, or all curves; None where there is nothing to tell."""
        series, told = self._series, self._told_points
        self._told_points = series.number
        if not self._told_points or (self._told_points == told and not whole):
            return None
        points = None if whole else series.since(told)
        return {
            "keys": [render.plain(key, 40) for key in series.keys],
            "shown": series.shown(),
            "by_input": series.by_input,
            "curves": series.whole(MOST_POINTS) if points is None else None,
            "points": [point[1:] for point in _thinned(points or [])],
        }

    def _statuses(self, run: Watched) -> Statuses:
        """Return how far each input is; what an ended run will not read is cancelled as well."""
        told, s = run.statuses(), self._snapshot
        unread = (s.total or 0) - told.base - len(told.column)
        if s.status == "running" or s.waiting or not 0 < unread <= MOST:
            return told
        return Statuses(told.base, told.column + bytes([CANCELLED]) * unread)

    def _send_key(self) -> None:
        known = self._failures[:FAILURES]
        self._told_failures = len(known)
        changes = Cells().take(Statuses(0, self._cells.column))
        self._send_state("key", known, changes, self._recent.since(0))

    def _send_state(
        self,
        kind: str,
        failures: list[Failure],
        changes: list[Range] | None,
        lines: list[Line],
    ) -> None:
        self._told_lines = lines[-1][0] if lines else self._told_lines
        message = {
            "type": kind,
            "head": self._head(),
            "failures": _shown(failures),
            "plot": self._plot(whole=kind == "key"),
            "outputs": [[index, render.plain(text)] for _, index, text in lines],
            "ranges": None if changes is None else len(changes),
        }
        self._send(message, [self._cells.column if changes is None else packed(changes)])

    def _send(self, message: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        if self._model is not None:
            self._model.send(message, buffers=list(buffers))

    def _head(self) -> dict[str, Any]:
        s = self._snapshot
        cells = max(s.total or 0, len(self._cells.column))
        return {
            "status": s.status,
            "total": s.total,
            "cells": cells if cells <= MOST else 0,
            "counts": [s.waiting + s.sent, s.running, s.done, s.failed, s.cancelled],
            "line": render.line(s),
            "note": render.plain(self._remark or s.note),
            "retry": self._again() is not None,
            "streams": self._streams,
            "below": self._below,
            "gpus": render.gpus(s),
        }

    # -- requests, on any thread

    def _receive(self, body: dict[str, Any]) -> None:
        """Act on a request that came as a comm message."""
        result = self.answer(body)
        self._send({"type": "answer", "rid": body.get("rid"), "result": result})

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Act on a request and return the answer; the same may come on two channels."""
        what = body.get("type")
        if what == "hello":
            self._welcome(str(body.get("rid")), str(body.get("page")))
        elif what == "rest":
            self._rest(str(body.get("rid")), str(body.get("page")))
        elif what == "cancel" and (run := self._run) is not None:
            index = body.get("index")
            run.cancel(index if isinstance(index, int) else -1)
        elif what == "retry":
            self._retry(str(body.get("rid")))
        elif what == "detail" and isinstance(index := body.get("index"), int):
            return self._detail(index)
        return {"ok": True}

    def _retry(self, rid: str) -> None:
        """Run again what was not done, shown below; on a thread, as that pickles user code."""
        with self._lock:
            if rid in self._requests:
                return
            self._requests.add(rid)

        def run_again() -> None:
            watch.under.set(self)
            front = self._again()
            try:
                if front is None:
                    self._remark = "the run is not kept any more: map the inputs again"
                else:
                    front.retry()
                    self._again = lambda: None
                    self._remark = "run again below; the outputs are those of run.retried"
            except Exception as error:
                self._remark = f"it can't be run again: {error}"
            self._send_key()

        start_thread("nbmap-retry", contextvars.copy_context().run, run_again)

    @property
    def _rests(self) -> bool:
        return self._pages == self._resting

    def _rest(self, rid: str, page: str) -> None:
        """Send no more to a page in which nobody sees it, if there is no other, until it says hello."""
        with self._lock:
            if rid not in self._requests:  # else it may have said hello since
                self._requests.add(rid)
                self._resting.add(page)

    def _welcome(self, rid: str, page: str) -> None:
        with self._lock:
            if rid in self._requests:
                return
            self._requests.add(rid)
            self._pages.add(page)
            self._resting.discard(page)
            self._heard = self._key_due = True
            ended = self._ended
        if ended:  # nobody else will send it
            self._send_key()

    def _detail(self, index: int) -> dict[str, str]:
        """Return what is known of one input, as text that is safe to show."""
        found = [failure for failure in self._failures if failure.index == index]
        marks = [
            f"attempt {attempt} took over at output {output}\n"
            for at, attempt, output in list(self._takeovers)
            if at == index
        ]
        return {
            "input": render.plain(found[0].input) if found else "",
            "printed": render.printed("".join([*marks, *self._prints.get(index, [])])),
            "traceback": render.traceback(found[0]) if found else "",
        }


def _thinned(points: list[Point]) -> list[Point]:
    """Leave points out where they are too many for one message."""
    return points[:: max(1, -(-len(points) // POINTS))]


def _shown(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    return [
        {
            "index": failure.index,
            "input": render.plain(failure.input),
            "type": render.plain(failure.type, 80),
            "message": render.plain(failure.message, 500) or failure.kind,
            "traceback": render.traceback(failure),
            "about": render.about(failure),
            "replay": f"run.replay({failure.index})",
        }
        for failure in failures
    ]
