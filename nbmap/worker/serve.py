"""A lease's loop on the far side: chunks in, attempts, events out.

Three threads meet here::

    loop's thread  ── receive() ──▶  inbox  ──▶  lease's thread: run(), one input at a time
                                                     │  outcomes collect, flush() sends them
    keeper's thread (one a process)  ── look() ──────┘  what must not wait for the running input:
        late outcomes, start marks, prints; handing back what a slow input would hold up;
        giving way to other people's tasks; a paused or leaving worker

Inputs of the current chunk wait in a deque. Taking from its left (to run) and from its right (to
hand back) are atomic, so an input is either run or handed back, never both.

Stopping a running function raises `Stopped` in its thread, or cancels its coroutine. That may only
ever hit the input it is meant for: it is raised under `_gate`, which the thread takes to say which
input it is at, and what was raised but not delivered by the end of the input is cleared (`_fence`).
Our own code that user code calls (an output of a generator is taken, an input waits for a run of
its own) runs with `_inside` False: it is not interrupted in the middle, it raises at its end.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import cloudpickle

from ..engine.model import (
    ALONE,
    ASKED,
    CALL,
    DEAD,
    FOREIGN,
    LEAVING,
    OUTPUT_COST,
    UNPICKLABLE,
    Answer,
    Aside,
    Ask,
    Back,
    Bye,
    Credit,
    Done,
    Failure,
    Grant,
    Hello,
    Hold,
    Load,
    Mark,
    Message,
    Out,
    Pack,
    Paused,
    Print,
    Quit,
    Recall,
    Resume,
    Stop,
    Work,
    Yield,
    size_of,
)
from ..engine.pickling import dump, join, load, load_or_error, pack_plain, parts, unpack
from . import attempt, capture, gpus, standin
from .coroutines import Coroutines
from .nested import Nested, Waiting

FLUSH = 0.004  # seconds that an outcome may wait for others
FLUSH_BYTES = 256 << 10
WINDOW = 32 << 20  # bytes sent that the near side has not told to have received
LOOK = 0.008  # how often the keeper looks while inputs run
REST = 0.05  # and while none does
LATE_PRINTS = 6  # looks that prints of a running input may wait
HELD = 1.0  # seconds before a busy lease gives way
PATIENCE = 0.1  # seconds that a generator waits for its consumer before it gives its place up
# Seconds after which a coroutine that was cancelled is stopped as functions are: where it blocks the
# loop, and so could not hear of it; and where it goes on nevertheless.
DEAF = 0.25
STUBBORN = 5.0
OPEN = 15.0  # seconds that a lease waits for the near side to come
FUNCTIONS = 16  # that a process keeps though no lease refers to them

_clock = time.perf_counter
_numbers = count(1)


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

    def waiting(self) -> list[str]:
        """Return of each task that waits for a thread here whose it is."""

    def aside(self) -> None:
        """Let another task have the place of the one whose thread calls this."""


class Process:
    """What the leases of one process share: loaded functions, and the keeper."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.boot = uuid.uuid4().hex
        self.leases: dict[str, Lease] = {}
        self._lock = threading.RLock()
        self._blobs: OrderedDict[str, Any] = OrderedDict()  # digest -> Load, or what it holds
        self._users: dict[str, set[str]] = {}
        self._loading: dict[str, threading.Lock] = {}  # functions that are being unpickled
        self._keeping = False
        standin.install()

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

    def has(self, digest: str) -> bool:
        """Tell whether a function has been loaded."""
        with self._lock:
            return not isinstance(self._blobs[digest], Load)

    def function(self, digest: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return a function and its constant arguments; loaded once a process."""
        with self._lock:
            entry = self._blobs[digest]
            self._blobs.move_to_end(digest)
            if not isinstance(entry, Load):
                return entry  # type: ignore[no-any-return]
            loading = self._loading.setdefault(digest, threading.Lock())
        with loading:  # not under the other lock, which the worker's event loop takes
            entry = self._blobs.get(digest, entry)
            if isinstance(entry, Load):
                for name, text in entry.sources.items():
                    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
                entry = load(entry.frames)
                with self._lock:
                    self._blobs[digest] = entry
                    self._loading.pop(digest, None)
            return entry  # type: ignore[no-any-return]

    def _keep(self) -> None:
        while True:
            with self._lock:
                leases = list(self.leases.values())
                if not leases:
                    self._keeping = False
                    return
            status, waiting = self.host.status(), self.host.waiting()
            for lease in leases:
                other = next((owner for owner in waiting if owner != lease.owner), None)
                if lease.look(status, give_way=other is not None) and other is not None:
                    waiting.remove(other)
            time.sleep(LOOK if any(lease.busy for lease in leases) else REST)


class Lease:
    """One slot of a worker, held for handles; runs one input at a time."""

    def __init__(
        self, name: str, process: Process, uuids: Sequence[str] = (), owner: str = ""
    ) -> None:
        self.id = name
        self.owner = owner or name  # to whose tasks it does not give way
        self.gpus = list(uuids)  # that its inputs have to themselves
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
        self._tries: dict[int, int] = {}  # attempts of those that were tried before
        self._began = 0.0
        self._sent = 0  # outcomes of the inputs before this one were sent
        self._spent = 0  # bytes of outputs
        self._ran = 0
        self._marked = -1
        # outcomes not sent yet: a lease's and the keeper's thread both send
        self._out: list[Any] = []
        self._out_lock = threading.RLock()
        self._back_lock = threading.Lock()  # what is handed back goes before the chunk's end
        self._flushed = 0.0
        self._unacknowledged = 0
        self._room = threading.Condition()
        self._told_at = 0.0  # when the last input ended whose outcome was sent
        # outputs of generators not sent yet: [input, number of the first, bytes, outputs]
        self._yields: list[list[Any]] = []
        self._yielded = 0  # outputs of the running generator
        self._pending = 0  # bytes of outputs not sent
        self._held = 0  # the chunk whose generator is to let another input have its place
        self._granted = 0  # bytes that the current chunk's generators may spend
        # the running input
        self._gate = threading.Lock()
        self._at = -1
        self._at_since = 0.0
        self._inside = False  # the thread is in user code, where a Stopped may be raised
        self._asked = False  # it was asked to stop
        self._asked_at = 0.0
        self._expired = False  # because of its timeout
        self._coroutines = Coroutines()
        self._asides = 0  # how many of its threads wait
        self._still = False  # its own time does not go on
        self._still_since = 0.0
        self._parted = False  # an input of it stood aside, so it runs no other chunk
        self._left = False  # its place was given to another task, once for all
        self._resumed = threading.Event()
        self.nested = Nested(self)
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
            if self._parted:  # it was sent when that was not known: another lease has the place
                self._hand_back_waiting()
        elif isinstance(message, Load):
            self.process.store(self, message)
        elif isinstance(message, Credit):
            with self._room:
                self._unacknowledged -= message.nbytes
                self._room.notify_all()
        elif isinstance(message, Grant):
            with self._room:
                if self._current is not None and self._current[0].chunk == message.chunk:
                    self._granted += message.nbytes
                    self._room.notify_all()
        elif isinstance(message, Hold):
            self._held = message.chunk
        elif isinstance(message, Answer):
            self.nested.receive(message)
        elif isinstance(message, Resume):
            self._resumed.set()
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
        self._resumed.set()
        with self._room:
            self._room.notify_all()

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
        if self._at < 0 or self._asked:
            return
        self._asked, self._asked_at = True, _clock()
        if self._inside and not self._coroutines.cancel():
            self._interrupt()
        self._resumed.set()

    def _interrupt(self) -> None:
        self._asked_at = float("inf")  # once is enough
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
            capture.enter(self._printed, self._named)
            standin.enter(self)
            try:
                while not self._ending:
                    work = self._inbox.get()
                    if work is not None:
                        self._serve(work)
            finally:
                self._coroutines.close()
                standin.leave()
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
        self._yields, self._pending, self._granted = [], 0, work.credit
        self._tries = {index: attempt for index, attempt in work.tries}  # noqa: C416
        with self._gate:
            self._current = (work, todo)
            if (work.chunk, -1) in self._unwanted:
                todo.clear()
        self.busy = True
        self._began = self._told_at = started = _clock()
        new = not self.process.has(work.digest)
        try:
            function, kwargs = self.process.function(work.digest)
        except BaseException as error:
            self._refuse(work, todo, error)
        else:
            if new:  # other processes wait to hear that it can be loaded
                self._mark(work, work.start, wait=True)
            call = attempt.caller(function, kwargs, work.style, self._coroutines)
            started = self._began = self._told_at = _clock()
            self._run_inputs(work, todo, call, function)
        seconds = _clock() - started
        self.flush()
        self.busy = False
        with self._gate:
            self._current = None
            self._unwanted = {pair for pair in self._unwanted if pair[0] != work.chunk}
        with self._back_lock:
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
            if work.careful or work.timeout:  # it may have to be ended from the near side
                self._mark(work, index, wait=True)
            value = values[at]
            told = value if plain else attempt.UNKNOWN
            outcome: Any
            try:
                with self._gate:
                    unwanted = self._unwanted and (work.chunk, index) in self._unwanted
                    if work.timeout:
                        self._at_since = _clock()
                    self._at = -1 if unwanted else index
                    self._inside = not unwanted
                if unwanted:
                    outcome = attempt.cancelled(index, told)
                else:
                    loaded = value if plain else load_or_error(value)
                    if work.style == CALL:
                        loaded = attempt.Arguments.of(loaded)
                    told = loaded
                    if work.stream:
                        self._yielded = 0
                        outcome = attempt.iterate(
                            call, index, loaded, function, self._emit, self._coroutines
                        )
                    else:
                        outcome = attempt.run(call, index, loaded, function)
                    if self.gpus and type(outcome) is not Failure and gpus.is_dead():
                        outcome = attempt.dead_on_gpu(index, told)
                with self._gate:
                    self._at, self._inside = -1, False
            except attempt.Stopped:
                if self._expired:
                    outcome = attempt.timed_out(index, told, work.timeout)
                else:
                    outcome = attempt.cancelled(index, told)
            if self._asked:
                self._fence()
            values[at] = value = told = loaded = None  # what it prints when it goes is its own
            if self._text is not None:
                self._send_prints(index, last=True)
            if self.gpus and type(outcome) is Failure:
                self._clean_up()
            out.append(outcome)
            self._ran += 1
            now = self._at_since = _clock()
            big = type(outcome) is attempt.Pickled and sum(map(len, outcome)) > FLUSH_BYTES
            if now - self._flushed > FLUSH or big:
                self.flush(now, wait=True)

    def _clean_up(self) -> None:
        """After a failure: give the GPU's memory back; end where CUDA is dead in this process.

        All later inputs would fail here, whatever they do.
        """
        gpus.tidy()
        if gpus.is_dead():
            self.end(DEAD)

    def explain(self, error: BaseException) -> None:
        """Note beside an exception what can't be known later: how full the GPU is now."""
        if self.gpus and gpus.is_out_of_memory(error) and (told := gpus.memory_in_words(self.gpus)):
            error.add_note(told)

    # -- what user code calls, on the lease's thread or another one of the input's

    def devices(self) -> list[tuple[int, str, str, int | None]]:
        """Return the GPUs that the lease has: CUDA's number, UUID, name and bytes of memory."""
        if not self.gpus:
            return []
        told = gpus.look()
        mine = [gpu for gpu in enumerate(told["gpus"]) if gpu[1][0] in self.gpus]
        if not mine:
            raise RuntimeError(told["why"] or "the GPUs of this input do not answer any more")
        return [(at, uuid, name, memory) for at, (uuid, name, memory, _) in mine]

    def _emit(self, output: Any) -> None:
        """Take an output of the running generator; wait while its consumer has enough."""
        with self._gate:
            self._inside = False
        index = self._at
        kind = type(output)
        nbytes = OUTPUT_COST
        if kind is attempt.Pickled:
            nbytes += sum(map(len, output))
        elif kind is str or kind is bytes:
            nbytes += len(output)
        with self._out_lock:
            last = self._yields[-1] if self._yields else None
            if last is None or last[0] != index:
                last = [index, self._yielded, 0, []]
                self._yields.append(last)
            last[2] += nbytes
            last[3].append(output)
            self._yielded += 1
            self._pending += nbytes
            self._spent += nbytes
        del output, last
        now = _clock()
        if now - self._flushed > FLUSH or self._pending > FLUSH_BYTES:
            self.flush(now, wait=True)
        if self._spent > self._granted:
            self._await_grant()
        elif self._held and self._current is not None and self._held == self._current[0].chunk:
            self._held = 0
            self.flush(wait=True)
            with self.aside():
                pass  # others that wait for a place come before it gets one again
        self._go_on()

    def _go_on(self) -> None:
        """Go back to user code, or raise what it was asked meanwhile."""
        with self._gate:
            self._inside = not self._asked
        if self._asked:
            raise attempt.Stopped

    def _await_grant(self) -> None:
        self.flush(wait=True)
        if not self._granted_within(PATIENCE):
            with self.aside():
                while not self._granted_within(PATIENCE):
                    pass

    def _granted_within(self, seconds: float) -> bool:
        def ready() -> bool:
            return self._spent <= self._granted or self._asked

        with self._room:
            return self._room.wait_for(ready, seconds)

    @contextmanager
    def aside(self) -> Iterator[Waiting]:
        """Give up the place of the running input while it waits for something."""
        waiting = Waiting()
        current = self._current
        assert current is not None
        with self._gate:
            self._asides += 1
            first = self._asides == 1
            if not self._still:
                self._still, self._still_since = True, _clock()
        if first:
            self._parted = True
            self._hand_back_rest()
            self._hand_back_waiting()
            self._send(Aside(current[0].chunk, waits=True))
            if threading.get_ident() == self._thread:
                self._leave_place()
            else:  # a coroutine waits, in a thread beside its loop
                self._coroutines.call(self._leave_place)
        try:
            yield waiting
        finally:
            with self._gate:
                self._asides -= 1
                last = self._asides == 0
            if last:
                self._resumed.clear()
                if not self._asked:
                    self._send(Aside(current[0].chunk, waits=False, now=waiting.in_vain))
                    if not waiting.in_vain:
                        self._resumed.wait()
            with self._gate:
                if not self._asides and self._still:  # a timeout is for the function's own time
                    self._still = False
                    self._at_since += _clock() - self._still_since

    def _leave_place(self) -> None:
        """Let Dask start another task in this one's place; on the lease's thread."""
        if not self._left:
            self._left = True
            self.process.host.aside()

    def ask(self, request: Any) -> int:
        """Have the near side make a run for the running input; return the request's number."""
        current, index = self._current, self._at
        if current is None or index < 0:
            msg = "the input has ended; a handle can be used while it runs"
            raise RuntimeError(msg)
        number = next(_numbers)
        self.nested.add(number)
        self._send(Ask(current[0].chunk, index, number, frames=dump(request)))
        return number

    def took(self, number: int, taken: int) -> None:
        """Tell how much of a run that was asked for has been taken."""
        if (current := self._current) is not None:
            self._send(Ask(current[0].chunk, self._at, number, taken))

    def withdraw(self, number: int) -> None:
        """Cancel a run that was asked for."""
        if (current := self._current) is not None:
            self._send(Ask(current[0].chunk, self._at, -number))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run our own code in the middle of the user's: it is not interrupted."""
        with self._gate:
            self._inside = False
        try:
            yield
        finally:
            self._go_on()

    @property
    def stopping(self) -> bool:
        """Whether the running input was asked to stop."""
        return self._asked

    def here(self) -> tuple[int, int]:
        """Return the index and the attempt of the running input."""
        current, index = self._current, self._at
        if current is None or index < 0:
            msg = "no input runs in this thread"
            raise RuntimeError(msg)
        return index, self._tries.get(index, 1)

    def _named(self) -> object:
        """Name the running input; the index of a call is always 0."""
        current = self._current
        return (current[0].chunk if current else -1, self._at)

    def _fence(self) -> None:
        """Clear a Stopped that was raised for an input and has not arrived; none can after this."""
        while True:
            try:
                with self._gate:
                    self._at, self._inside = -1, False
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
                    self._asked = self._expired = self._still = False
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
            self._out.append(attempt.failure(error, index, UNPICKLABLE, attempt.UNKNOWN, prefix))
            self._ran += 1

    # -- sending, from the lease's and the keeper's thread

    def _send(self, message: Message, *, wait: bool = False) -> None:
        if self._link is not None:
            self._link.send(message, wait=wait)

    def flush(self, now: float = 0.0, *, wait: bool = False) -> None:
        """Send the outputs and outcomes that are there."""
        with self._out_lock:
            current, count = self._current, len(self._out)
            self._flushed = now or _clock()
            if current is None or not (count or self._yields):
                return
            work, nbytes = current[0], 0
            for index, first, size, outputs in self._yields:
                packed = _packed(outputs)
                nbytes += packed.nbytes
                told = (work.chunk, index, first, len(outputs), size, packed.counts, packed.frames)
                self._send(Yield(*told))
            self._yields, self._pending = [], 0
            if count:
                outcomes = self._out[:count]
                del self._out[:count]
                seconds, self._told_at = self._at_since - self._told_at, self._at_since
                message = _outcomes(work.chunk, self._sent, outcomes, max(0.0, seconds))
                self._sent += count
                size = size_of(message.frames)
                nbytes += size
                if not work.stream:
                    self._spent += size
                self._send(message)
        with self._room:
            self._unacknowledged += nbytes
            while wait and self._unacknowledged > WINDOW and not (self._asked or self._ending):
                self._room.wait(PATIENCE)
        if not work.stream and self._spent > work.credit:
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
        with self._back_lock:
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

    def look(self, status: str, *, give_way: bool) -> bool:
        """Do what must not wait for the running input; return whether the lease gives way."""
        if not self._opened.is_set() or self._ending:
            return False
        now = _clock()
        if status != self._status:
            self._status = status
            if status == LEAVING:
                self._leave()
                return False
            self._send(Paused(status == "paused"))
        if status == "paused":
            self._hand_back_waiting()
            self._hand_back_rest()
        if give_way and (not self.busy or now - self._since > HELD):
            self._ending = FOREIGN
            self._hand_back_rest()
            self._inbox.put(None)
            return True
        if (current := self._current) is None:
            return False
        work, at = current[0], self._at  # in this order: a mark of an ended chunk is ignored
        if now - self._flushed > FLUSH and (self._out or self._yields):
            self.flush(now)
        if self._asked or (work.timeout and now - self._at_since > work.timeout):
            self._overdue(work, at, now)
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
        return False

    def _overdue(self, work: Work, at: int, now: float) -> None:
        """Stop an input that has used its time up, or that did not hear that it is to stop."""
        with self._gate:
            if self._at != at or at < 0:
                return
            if self._asked:
                patience = STUBBORN if self._coroutines.heard else DEAF
                if self._inside and now - self._asked_at > patience:
                    self._interrupt()
            elif not self._still and now - self._at_since > work.timeout:
                self._expired = True
                self._raise_stopped()

    def _leave(self) -> None:
        """The worker retires: say so before it goes, so that nobody is blamed for the loss."""
        self._ending = LEAVING
        self._hand_back_rest()
        self._hand_back_waiting()
        self._send(Bye(LEAVING))
        self._inbox.put(None)


def _packed(outcomes: list[Any]) -> Pack:
    """Pack outputs: scalars together, and otherwise each by itself."""
    if attempt.Pickled not in set(map(type, outcomes)):
        return pack_plain(outcomes)
    return join([o if type(o) is attempt.Pickled else [pickle.dumps(o, 5)] for o in outcomes])


def _outcomes(chunk: int, start: int, outcomes: list[Any], seconds: float) -> Out:
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
    return Out(chunk, start, n, seconds, packed.counts, told, packed.frames)
