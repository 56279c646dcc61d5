"""A lease's loop on the far side: chunks in, attempts, events out.

Three threads meet here::

    loop's thread  ── receive() ──▶  inbox  ──▶  lease's thread: run(), one input at a time
                                                     │  outcomes collect, flush() sends them
    keeper's thread (one a process)  ── look() ──────┘  what must not wait for the running input:
        late outcomes, start marks, prints; handing back what a slow input would hold up;
        giving way to other people's tasks; a paused or leaving worker

Inputs of the current chunk wait in a deque. Taking from its left (to run) and from its right (to
hand back) are atomic, so an input is either run or handed back, never both.

Stopping a running function raises `Stopped` in its thread. That may only ever hit the input it is
meant for: it is raised under `_gate`, which the thread takes to say which input it is at, and what
was raised but not delivered by the end of the input is cleared (`_fence`).
"""

from __future__ import annotations

import ctypes
import linecache
import os
import pickle
import sys
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import cloudpickle

from ..engine.model import (
    ALONE,
    ASKED,
    FOREIGN,
    LEAVING,
    UNPICKLABLE,
    Back,
    Bye,
    Credit,
    Done,
    Failure,
    Hello,
    Load,
    Mark,
    Message,
    Out,
    Pack,
    Paused,
    Print,
    Quit,
    Recall,
    Stop,
    Work,
    size_of,
)
from ..engine.pickling import join, load, load_or_error, pack_plain, parts, unpack
from . import attempt, capture

FLUSH = 0.004  # seconds that an outcome may wait for others
FLUSH_BYTES = 256 << 10
WINDOW = 32 << 20  # bytes sent that the near side has not told to have received
LOOK = 0.008  # how often the keeper looks while inputs run
REST = 0.05  # and while none does
LATE_PRINTS = 6  # looks that prints of a running input may wait
HELD = 1.0  # seconds before a busy lease gives way
OPEN = 15.0  # seconds that a lease waits for the near side to come
FUNCTIONS = 16  # that a process keeps though no lease refers to them

_clock = time.perf_counter


class Link(Protocol):
    """The far end of a lease's stream."""

    def send(self, message: Message, *, wait: bool = False) -> None:
        """Send from any thread; with `wait` return when it is on the wire."""

    def close(self) -> None:
        """Close when everything was sent."""


class Host(Protocol):
    """What a lease asks about the process that it is in."""

    name: str

    def status(self) -> str:
        """Return running, paused or leaving."""

    def foreign(self) -> int:
        """Return how many tasks of other people wait for a thread here."""


class Process:
    """What the leases of one process share: loaded functions, and the keeper."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.boot = uuid.uuid4().hex
        self.leases: dict[str, Lease] = {}
        self._lock = threading.RLock()
        self._blobs: OrderedDict[str, Any] = OrderedDict()  # digest -> Load, or what it holds
        self._users: dict[str, set[str]] = {}
        self._keeping = False

    def add(self, lease: Lease) -> None:
        """Register a lease and have it looked after."""
        with self._lock:
            self.leases[lease.id] = lease
            if not self._keeping:
                self._keeping = True
                threading.Thread(target=self._keep, name="nbmap-keeper", daemon=True).start()

    def remove(self, lease: Lease) -> None:
        """Forget a lease, and the functions that nobody has used for longest."""
        with self._lock:
            self.leases.pop(lease.id, None)
            for users in self._users.values():
                users.discard(lease.id)
            idle = [digest for digest in self._blobs if not self._users.get(digest)]
            for digest in idle[:-FUNCTIONS]:
                del self._blobs[digest]
                self._users.pop(digest, None)

    def known(self, lease: Lease) -> list[str]:
        """Return the functions that need not be sent to this lease; they stay while it lives."""
        with self._lock:
            for digest in self._blobs:
                self._users.setdefault(digest, set()).add(lease.id)
            return list(self._blobs)

    def store(self, lease: Lease, message: Load) -> None:
        """Keep a function for the chunks that will name it."""
        with self._lock:
            self._blobs.setdefault(message.digest, message)
            self._blobs.move_to_end(message.digest)
            self._users.setdefault(message.digest, set()).add(lease.id)

    def function(self, digest: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return a function and its constant arguments; loaded once a process."""
        with self._lock:
            entry = self._blobs[digest]
            if isinstance(entry, Load):
                for name, text in entry.sources.items():
                    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
                entry = load(entry.frames)
                self._blobs[digest] = entry
            self._blobs.move_to_end(digest)
            return entry  # type: ignore[no-any-return]

    def _keep(self) -> None:
        while True:
            with self._lock:
                leases = list(self.leases.values())
                if not leases:
                    self._keeping = False
                    return
            status, foreign = self.host.status(), self.host.foreign()
            for lease in leases:
                foreign -= lease.look(status, give_way=foreign > 0)
            time.sleep(LOOK if any(lease.busy for lease in leases) else REST)


class Lease:
    """One slot of a worker, held for handles; runs one input at a time."""

    def __init__(self, name: str, process: Process) -> None:
        self.id = name
        self.process = process
        self.busy = False
        self._link: Link | None = None
        self._opened = threading.Event()
        self._inbox: SimpleQueue[Work | None] = SimpleQueue()
        self._ending = ""  # why, as soon as the lease is to end
        self._since = _clock()
        self._status = "running"
        # of the current chunk
        self._current: tuple[Work, deque[int]] | None = None  # with the positions not started
        self._began = 0.0
        self._sent = 0  # outcomes of the inputs before this one were sent
        self._spent = 0  # bytes of outputs
        self._ran = 0
        self._marked = -1
        # outcomes not sent yet: a lease's and the keeper's thread both send
        self._out: list[Any] = []
        self._out_lock = threading.RLock()
        self._flushed = 0.0
        self._unacknowledged = 0
        self._room = threading.Condition()
        # the running input
        self._gate = threading.Lock()
        self._at = -1
        self._at_since = 0.0
        self._asked = False  # a Stopped was raised for it
        self._unwanted: set[tuple[int, int]] = set()  # (chunk, index or -1) asked to be stopped
        self._thread = 0
        self._text: capture.Text | None = None
        self._text_age = 0
        self._text_lock = threading.Lock()

    # -- the loop's thread

    def open(self, link: Link) -> None:
        """Begin: the near side is there."""
        self._link = link
        python = ".".join(map(str, sys.version_info[:2]))
        known = self.process.known(self)
        pickler = cloudpickle.__version__
        link.send(
            Hello(os.getpid(), self.process.boot, self.process.host.name, python, pickler, known)
        )
        self._opened.set()

    def receive(self, message: Message) -> None:
        """Take one message of the near side; never blocks."""
        if isinstance(message, Work):
            self._inbox.put(message)
        elif isinstance(message, Load):
            self.process.store(self, message)
        elif isinstance(message, Credit):
            with self._room:
                self._unacknowledged -= message.nbytes
                self._room.notify()
        elif isinstance(message, Stop):
            self._stop(message)
        elif isinstance(message, Recall):
            self._hand_back_waiting()
            self._hand_back_rest()
        elif isinstance(message, Quit):
            self.end(ASKED)

    def end(self, reason: str = ASKED) -> None:
        """End the lease; what runs is stopped. Also called when the stream is gone."""
        self._ending = self._ending or reason
        self._hand_back_rest()
        with self._gate:
            self._raise_stopped()
        self._inbox.put(None)
        with self._room:
            self._room.notify()

    def _stop(self, message: Stop) -> None:
        with self._gate:
            self._unwanted.add((message.chunk, message.index))
            current = self._current is not None and self._current[0].chunk == message.chunk
            if current and message.index < 0:
                assert self._current is not None
                self._current[1].clear()
                self._raise_stopped()
            if current and self._at == message.index:
                self._raise_stopped()
                return
            if current and self._current is not None:
                ended = self._current[0].start + self._ran
                if message.index < ended:
                    return
        if message.index >= 0:  # it has not started: it goes back, and is cancelled there at once
            self._hand_back_rest()
            self._hand_back_waiting()

    def _raise_stopped(self) -> None:
        """Stop the running input; `_gate` is held, so it is still the one that was meant."""
        if self._at >= 0 and not self._asked:
            self._asked = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(attempt.Stopped)
            )

    # -- the lease's thread

    def run(self) -> str:
        """Serve until the lease ends; return why. This is the body of the Dask task."""
        self._thread = threading.get_ident()
        self.process.add(self)
        try:
            if not self._opened.wait(OPEN):
                return ALONE
            assert self._link is not None
            capture.enter(self._printed, lambda: self._at)
            try:
                while not self._ending:
                    work = self._inbox.get()
                    if work is not None:
                        self._serve(work)
            finally:
                capture.leave()
            self._hand_back_waiting()
            self._send(Bye(self._ending))
            self._link.close()
            return self._ending
        finally:
            self.process.remove(self)

    def _serve(self, work: Work) -> None:
        self._sent, self._spent, self._ran, self._marked = work.start, 0, 0, -1
        self._out, todo = [], deque(range(work.n))
        with self._gate:
            self._current = (work, todo)
            if (work.chunk, -1) in self._unwanted:
                todo.clear()
        self.busy = True
        self._began = started = _clock()
        try:
            function, kwargs = self.process.function(work.digest)
        except BaseException as error:
            self._refuse(work, todo, error)
        else:
            call = attempt.caller(function, kwargs, work.style)
            started = self._began = _clock()
            self._run_inputs(work, todo, call, function)
        seconds = _clock() - started
        self.flush()
        self.busy = False
        with self._gate:
            self._current = None
            self._unwanted = {pair for pair in self._unwanted if pair[0] != work.chunk}
        self._send(Done(work.chunk, self._ran, seconds))

    def _run_inputs(
        self, work: Work, todo: deque[int], call: Callable[[Any], Any], function: Any
    ) -> None:
        packed = Pack(work.n, work.counts, work.frames)
        plain = packed.counts is None
        values = unpack(packed) if plain else list(parts(packed))
        start, out = work.start, self._out
        self._at_since = self._began
        while not self._ending:
            try:
                at = todo.popleft()
            except IndexError:
                return
            index = start + at
            if work.careful:
                self._mark(work, index, wait=True)
            value = values[at]
            outcome: Any
            try:
                with self._gate:
                    unwanted = self._unwanted and (work.chunk, index) in self._unwanted
                    self._at = -1 if unwanted else index
                if unwanted:
                    outcome = attempt.cancelled(index, value if plain else "?")
                else:
                    loaded = value if plain else load_or_error(value)
                    outcome = attempt.run(call, index, loaded, function)
                with self._gate:
                    self._at = -1
            except attempt.Stopped:
                outcome = attempt.cancelled(index, value if plain else "?")
            if self._asked:
                self._fence()
            if self._text is not None:
                self._send_prints(index, last=True)
            out.append(outcome)
            self._ran += 1
            now = self._at_since = _clock()
            big = type(outcome) is attempt.Pickled and sum(map(len, outcome)) > FLUSH_BYTES
            if now - self._flushed > FLUSH or big:
                self.flush(now, wait=True)

    def _fence(self) -> None:
        """Clear a Stopped that was raised for an input and has not arrived; none can after this."""
        while True:
            try:
                with self._gate:
                    self._at = -1
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
                    self._asked = False
            except attempt.Stopped:
                continue
            return

    def _refuse(self, work: Work, todo: deque[int], error: BaseException) -> None:
        """Fail every input of a chunk whose function can't be loaded here."""
        prefix = "the function can't be loaded on the worker: "
        while True:
            try:
                index = work.start + todo.popleft()
            except IndexError:
                return
            self._out.append(attempt.failure(error, index, UNPICKLABLE, "?", prefix))

    # -- sending, from the lease's and the keeper's thread

    def _send(self, message: Message, *, wait: bool = False) -> None:
        if self._link is not None:
            self._link.send(message, wait=wait)

    def flush(self, now: float = 0.0, *, wait: bool = False) -> None:
        """Send the outcomes that are there."""
        with self._out_lock:
            current, count = self._current, len(self._out)
            self._flushed = now or _clock()
            if current is None or not count:
                return
            work = current[0]
            outcomes = self._out[:count]
            del self._out[:count]
            message = _outcomes(work.chunk, self._sent, outcomes)
            self._sent += count
            nbytes = size_of(message.frames)
            self._spent += nbytes
            self._send(message)
        with self._room:
            self._unacknowledged += nbytes
            while wait and self._unacknowledged > WINDOW and not self._ending:
                self._room.wait()
        if self._spent > work.credit:
            self._hand_back_rest()

    def _mark(self, work: Work, index: int, *, wait: bool = False) -> None:
        if self._marked < index:
            self._marked = index
            self._send(Mark(work.chunk, index), wait=wait)

    def _printed(self, stream: str, text: str) -> None:
        """Take what the running input writes; between inputs it has no owner and is dropped."""
        with self._text_lock:
            if self._text is None:
                self._text = capture.Text()
                self._text_age = 0
            self._text.add(stream, text)

    def _send_prints(self, index: int, *, last: bool) -> None:
        with self._text_lock:
            current, text = self._current, self._text
            if text is None or current is None:
                return
            pieces = text.take(last=last)
            if last:
                self._text = None
            for stream, piece, dropped in pieces:
                self._send(Print(current[0].chunk, index, stream, piece, dropped))

    def _hand_back_rest(self) -> None:
        """Hand back what the current chunk has not started."""
        if (current := self._current) is None:
            return
        (work, todo), first = current, -1
        while True:
            try:
                first = todo.pop()
            except IndexError:
                break
        if first >= 0:
            self._send(Back(work.chunk, work.start + first))

    def _hand_back_waiting(self) -> None:
        """Hand back the chunks that wait behind the current one."""
        while True:
            try:
                work = self._inbox.get_nowait()
            except Empty:
                return
            if work is not None:
                self._send(Back(work.chunk, work.start))
                self._send(Done(work.chunk, 0, 0.0))

    # -- the keeper's thread

    def look(self, status: str, *, give_way: bool) -> int:
        """Do what must not wait for the running input; return 1 where the lease gives way."""
        if not self._opened.is_set() or self._ending:
            return 0
        now = _clock()
        if status != self._status:
            self._status = status
            if status == LEAVING:
                self._leave()
                return 0
            self._send(Paused(status == "paused"))
        if status == "paused":
            self._hand_back_waiting()
            self._hand_back_rest()
        if give_way and (not self.busy or now - self._since > HELD):
            self._ending = FOREIGN
            self._hand_back_rest()
            self._inbox.put(None)
            return 1
        if (current := self._current) is None:
            return 0
        work, at = current[0], self._at  # in this order: a mark of an ended chunk is ignored
        if now - self._flushed > FLUSH and self._out:
            self.flush(now)
        if at >= 0 and now - self._at_since > LOOK:
            self._mark(work, at)
        if self._text is not None:
            self._text_age += 1
            if self._text_age > LATE_PRINTS and at >= 0:
                self._text_age = 0
                self._send_prints(at, last=False)
        if now - self._began > work.budget:
            self._hand_back_rest()
            self._hand_back_waiting()
        return 0

    def _leave(self) -> None:
        """The worker retires: say so before it goes, so that nobody is blamed for the loss."""
        self._ending = LEAVING
        self._hand_back_rest()
        self._hand_back_waiting()
        self._send(Bye(LEAVING))
        self._inbox.put(None)


def _outcomes(chunk: int, start: int, outcomes: list[Any]) -> Out:
    failures: list[Failure] = []
    pickled = False
    for at, outcome in enumerate(outcomes):
        kind = type(outcome)
        if kind is attempt.Pickled:
            pickled = True
        elif kind is Failure:
            failures.append(outcome)
            outcomes[at] = None
    if pickled:
        failed = {failure.index - start for failure in failures}
        packed = join(
            [
                o if type(o) is attempt.Pickled else [] if at in failed else [pickle.dumps(o, 5)]
                for at, o in enumerate(outcomes)
            ]
        )
    else:
        packed = pack_plain(outcomes)
    for failure in failures:
        packed.frames.extend(failure.pickled)
    told = [failure.plain() for failure in failures]
    n = len(outcomes)
    return Out(chunk, start, n, 0, True, packed.counts, told, packed.frames)
