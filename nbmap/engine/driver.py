"""One run's loop: reads inputs, feeds the state, does what it asks for, keeps the outcomes.

Threads of a run::

    reader   runs the user's iterators; a blocking one holds up nothing
    pickler  pickles what was read (for lists and the like the reader does it)
    engine   the engine's loop (shared): owns the state, talks to the transport; no user code
    opener   unpickles outputs that are not scalars, started when the first one comes
    callers  the user's threads: wait on `changed`, take outcomes, cancel

An outcome counts when its output could be unpickled, since a final status never changes. Scalars
can't fail to load, so their batches stay sealed until somebody takes one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from queue import Empty as NothingThere
from queue import SimpleQueue
from typing import Any

from . import state
from .model import (
    CANCELLED,
    LOST,
    UNPICKLABLE,
    Back,
    Blob,
    Done,
    Failure,
    FailureLine,
    Mark,
    Message,
    Out,
    Pack,
    Print,
    Snapshot,
    Statuses,
    Work,
    size_of,
)
from .pickling import (
    Unloadable,
    are_plain,
    concat,
    cut,
    dump,
    join,
    load_or_error,
    near_only,
    pack_plain,
    parts,
    safe_repr,
    shorten,
    unpack,
)
from .transport import Loss, Transport

READ_AT_ONCE = 5_000
TAKE_AT_ONCE = 10_000
LOOK = 0.5  # seconds after which who waits looks around
PRINTS = 16 << 20  # characters of prints that a run keeps
FAILURES = 1000  # failures that a run keeps for its view, whether or not it keeps outcomes
# From the state's bytes to those of a view: what was sent and not started waits.
_SHOWN = bytes.maketrans(
    bytes((state.WAITING, state.SENT, state.DONE, state.FAILED, state.STOPPED)),
    bytes((0, 0, 2, 3, 4)),
)
_RUNNING = 1

_numbers = count(1)
_clock = time.monotonic


class Empty:
    """Stands where an input has no outcome yet."""


EMPTY = Empty()
_END = object()  # what `next` returns at the end of the inputs


@dataclass(frozen=True, slots=True)
class _End:
    """The end of the inputs, with what their iterator raised."""

    error: BaseException | None


@dataclass(slots=True)
class Sealed:
    """A batch of scalars that nobody has looked at: the outputs of the inputs from `start` on."""

    start: int
    n: int
    frame: Any

    def open(self) -> list[Any]:
        """Unpickle the batch."""
        return unpack(Pack(self.n, None, [self.frame]))


class Driver:
    """Drives one run from its first input to its last outcome.

    Args:
        transport: what holds the leases.
        blob: the function.
        style: how an input becomes arguments (`model.EACH`, `SPREAD`, `CALL`).
        inputs: the inputs, read on a thread of the run's own.
        total: their number, where known.
        keep: whether outcomes are kept or dropped once they are handed out.
        name: of the handle, for views.
        handle: whose runs share `limit`.
        limit: inputs of the handle that may run at once, or None.
        worker_losses: deaths that an input may cause.
        grace: seconds that a function has to stop when asked.
        too_many: tells from (failed, finished) whether to stop the run.
    """

    def __init__(
        self,
        transport: Transport,
        blob: Blob,
        style: int,
        inputs: Iterator[Any],
        *,
        total: int | None,
        keep: bool,
        name: str,
        handle: Hashable,
        limit: int | None,
        worker_losses: int,
        grace: float,
        too_many: Callable[[int, int], bool] | None,
    ) -> None:
        self.transport = transport
        self.blob = blob
        self.handle = handle
        self.limit = limit
        self.name = name
        self.number = next(_numbers)
        self.keep = keep
        self.error: BaseException | None = None  # what ended the run, or its input iterator
        self.broken: BaseException | None = None
        self.changed = threading.Condition()
        self.owner: object = None  # kept alive with the run
        self.front: object = None  # what the user has of it, kept alive until the run has ended
        self.on_print: Callable[[int, str, str], None] | None = None  # on the engine's thread
        self.on_wait: Callable[[], None] | None = None  # called now and then by those who wait
        self.singled: set[int] = set()  # inputs cancelled one by one
        self._style = style
        self._inputs = inputs
        self._grace = grace
        slots = max(1, limit or transport.slots())
        keep_bytes = kept_bytes() if keep else state.OUTPUT_BYTES
        self._state = state.RunState(
            total, keep, slots, worker_losses, too_many, keep_bytes=keep_bytes
        )
        # outcomes; `changed` guards them
        self._slots: list[Any] = []
        self._base = 0  # index of the first slot
        self._arrivals: deque[tuple[int, int]] = deque()  # (start, n), in order of completion
        self._unread = 0  # accepted and not handed out yet
        self._taken = bytearray()  # of a run that keeps outputs: which were handed out
        self._untold = (0, 0)  # handed out, and the state does not know: number, bytes
        self._waiters = 0
        # inputs that may have to be sent (again), on the engine's thread
        self._packs: dict[int, list[Any]] = {}  # start -> [pack, inputs without an outcome]
        self._starts: list[int] = []
        # reading
        self._permit = threading.Condition()
        self._allowed = 0
        self._stop_reading = False
        self._raw: SimpleQueue[Any] = SimpleQueue()  # read, not pickled yet
        # opening
        self._mail: SimpleQueue[Any] | None = None
        # what views show
        self.prints: dict[int, list[str]] = {}  # of each input, as they came
        self.first_failures: list[Failure] = []  # in order of arrival
        self._printed = 0
        self._made = _clock()
        self._ended: float | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=40)
        self._newest: deque[FailureLine] = deque(maxlen=5)
        self._loss_reasons: dict[int, tuple[str, str]] = {}

    # -- starting

    def start(self) -> None:
        """Begin: read on a thread, and have the transport work for this run."""
        self.transport.engine.call(self._begin, True)

    def start_with(self, items: list[Any]) -> None:
        """Begin with inputs that are at hand, pickled in the caller's thread."""
        segments = list(_pickle(items))
        self.transport.engine.call(self._begin_with, segments)

    def _begin(self, reading: bool) -> None:
        if reading:
            thread = threading.Thread(target=self._read, name="nbmap-reader", daemon=True)
            thread.start()
        self._apply(self._state.handle(state.Handed(0, 0)))
        if not self.over:
            self.transport.add(self)

    def _begin_with(self, segments: list[Any]) -> None:
        self._allowed = 1 << 62
        self._take_read(segments, None, ended=True)
        if not self.over:
            self.transport.add(self)

    # -- the reader's thread, and the pickler's

    def _read(self) -> None:
        """Read the inputs as far as they may be read, and have them pickled."""
        if type(self._inputs) in _BUILTIN:
            self._read_builtin()
            return
        # Next to the user's iterator, which may block at any item, another thread pickles what
        # is there: an item must not wait for the one after it.
        threading.Thread(target=self._pickle_raw, name="nbmap-pickler", daemon=True).start()
        read, allowed, error = 0, 0, None
        try:
            while True:
                if read >= allowed:
                    allowed = self._await_permit(read)
                    if allowed < 0:
                        break
                item = next(self._inputs, _END)
                if item is _END:
                    break
                self._raw.put(item)
                read += 1
        except BaseException as raised:
            error = raised
        self._inputs = iter(())  # the user's iterators are not ours any more
        self._raw.put(_End(error))

    def _read_builtin(self) -> None:
        """Read a list, a range and the like: no code of the user's runs, so it is fast."""
        read, error, ended = 0, None, False
        while not ended:
            allowed = self._await_permit(read)
            if allowed < 0:
                return
            n = min(allowed - read, READ_AT_ONCE)
            items: list[Any] = []
            try:
                items = list(islice(self._inputs, n))
            except RuntimeError as raised:  # a dict or set that changed meanwhile
                error = raised
            read += len(items)
            ended = len(items) < n
            self.transport.engine.call(self._take_read, list(_pickle(items)), error, ended)

    def _await_permit(self, read: int) -> int:
        """Wait until more than `read` inputs may be read; return how many, -1 to stop."""
        with self._permit:
            while self._allowed <= read and not self._stop_reading:
                self._permit.wait()
            return -1 if self._stop_reading else self._allowed

    def _pickle_raw(self) -> None:
        """Pickle what was read, as much at once as is there."""
        while True:
            items = [self._raw.get()]
            while len(items) < READ_AT_ONCE and not isinstance(items[-1], _End):
                try:
                    items.append(self._raw.get_nowait())
                except NothingThere:
                    break
            end = items.pop() if isinstance(items[-1], _End) else None
            error = end.error if end else None
            segments = list(_pickle(items))
            del items
            self.transport.engine.call(self._take_read, segments, error, end is not None)
            if end is not None:
                return

    # -- the engine's thread: events in

    def _take_read(
        self, segments: list[Pack | Failure], error: BaseException | None, ended: bool
    ) -> None:
        for segment in segments:
            if self._state.ended:
                break
            start = self._state.read
            if isinstance(segment, Pack):
                self._packs[start] = [segment, segment.n]
                self._starts.append(start)
                with self.changed:
                    self._slots.extend([EMPTY] * segment.n)
                self._apply(self._state.handle(state.Read(segment.n, segment.nbytes)))
            else:
                segment.index = start
                with self.changed:
                    self._slots.append(EMPTY)
                effects = self._state.handle(state.Read(1, 0, refused=True))
                self._store(start, [segment])
                self._apply(effects)
        if ended and not self._state.ended:
            self.error = error
            self._apply(self._state.handle(state.End()))
        if not self.over:
            self.transport.wake()

    def wanted(self) -> int:
        """Return how many leases the run could use now."""
        counts = self._state
        left = counts.ready_count + len(counts.suspects)
        if counts.total is not None and not counts.ended:
            left += counts.total - counts.read
        leases = len({f.lease for f in counts.flights.values()})
        return 0 if counts.ending else left + leases

    def has_suspects(self) -> bool:
        """Tell whether inputs wait for a process to themselves."""
        return bool(self._state.suspects)

    def offer(self, lease: str, chunk: int, slots: int, *, ahead: bool, alone: bool) -> Work | None:
        """Return a chunk for a lease that has room, or None."""
        work = None
        effects = self._state.handle(state.Offer(lease, chunk, slots, ahead, alone))
        for effect in effects:
            if isinstance(effect, state.Send):
                packed = self._packed(effect.start, effect.stop)
                work = Work(
                    chunk,
                    self.blob.digest,
                    self._style,
                    effect.start,
                    packed.n,
                    packed.counts,
                    effect.budget,
                    effect.credit,
                    effect.careful,
                    packed.frames,
                )
        self._apply(effects)
        return work

    def receive(self, message: Message, worker: str) -> None:
        """Take what a lease sent about one of the run's chunks, in order."""
        if self.over:
            return
        if self._mail is None:
            if not (isinstance(message, Out) and message.counts is not None):
                self._process(message, worker, None)
                return
            self._mail = SimpleQueue()
            threading.Thread(target=self._open, name="nbmap-opener", daemon=True).start()
        self._mail.put((message, worker))

    def lost(self, loss: Loss) -> None:
        """Learn that a chunk's lease is gone, after what it had sent."""
        if self._mail is None:
            self._lose(loss)
        else:
            self._mail.put((loss, ""))

    def fail(self, error: BaseException) -> None:
        """End the run: nothing more will come."""
        if not self.over:
            self.broken = error
            self._apply(self._state.handle(state.Break()))

    # -- the opener's thread

    def _open(self) -> None:
        mail = self._mail
        assert mail is not None
        while True:
            batch = [mail.get()]
            while not mail.empty() and len(batch) < 64:
                batch.append(mail.get())
            opened: list[Any] = []
            for item in batch:
                if item is None:
                    self.transport.engine.call(self._process_opened, opened)
                    return
                message, worker = item
                values = None
                if isinstance(message, Out) and message.counts is not None:
                    packed = Pack(message.n, list(message.counts), message.frames)
                    failed = {plain[0] - message.start for plain in message.failures}
                    values = [
                        None if at in failed else load_or_error(frames)
                        for at, frames in enumerate(parts(packed))
                    ]
                opened.append((message, worker, values))
            self.transport.engine.call(self._process_opened, opened)

    def _process_opened(self, opened: list[Any]) -> None:
        for message, worker, values in opened:
            if isinstance(message, Loss):
                self._lose(message)
            else:
                self._process(message, worker, values)
        if not self.over:
            self.transport.wake()

    # -- the engine's thread: messages to events

    def _process(self, message: Message, worker: str, values: list[Any] | None) -> None:
        if isinstance(message, Out):
            self._outcomes(message, worker, values)
        elif isinstance(message, Mark):
            self._apply(self._state.handle(state.Began(message.chunk, message.index)))
        elif isinstance(message, Print):
            self._print(message)
        elif isinstance(message, Back):
            self._apply(self._state.handle(state.Returned(message.chunk, message.start)))
        elif isinstance(message, Done):
            ended = state.Ended(message.chunk, message.ran, message.seconds)
            self._apply(self._state.handle(ended))

    def _outcomes(self, message: Out, worker: str, values: list[Any] | None) -> None:
        if message.chunk not in self._state.flights:
            return  # of a lease that was given up, or after the grace
        failures = _failures(message)
        if values is not None:
            for at, value in enumerate(values):
                if type(value) is Unloadable:
                    text = f"the output can't be unpickled here: {safe_repr(value.error)}"
                    kind = type(value.error).__name__
                    index = message.start + at
                    told = load_repr(self._packed(index, index + 1))
                    failures.append(Failure(index, UNPICKLABLE, kind, text, input=told))
        for failure in failures:
            failure.worker = worker
            failure.attempts = self._state.attempts(failure.index)
        nbytes = size_of(message.frames)
        got = state.Got(
            message.chunk,
            message.start,
            message.n,
            tuple((failure.index, failure.kind) for failure in failures),
            nbytes,
        )
        effects = self._state.handle(got)
        if any(isinstance(effect, state.Accept) for effect in effects):
            if values is None and not failures:
                sealed = Sealed(message.start, message.n, message.frames[0])
                self._store(message.start, [sealed] * message.n)
            else:
                if values is None:
                    values = unpack(Pack(message.n, None, message.frames[:1]))
                for failure in failures:
                    values[failure.index - message.start] = failure
                self._store(message.start, values)
        self._apply(effects)

    def _print(self, message: Print) -> None:
        text = message.text
        if message.dropped:
            text = f"\n…[{message.dropped} characters left out]…\n{text}"
        if self._printed < PRINTS:
            self._printed += len(text)
            self.prints.setdefault(message.index, []).append(text)
        if self.on_print is not None:
            self.on_print(message.index, message.stream, text)

    def _lose(self, loss: Loss) -> None:
        flight = self._state.flights.get(loss.chunk)
        if flight is not None:
            for index in range(flight.pos, min(flight.stop, flight.pos + 1000)):
                self._loss_reasons[index] = (loss.reason, loss.worker)
        lost = state.Lost(loss.chunk, loss.died, loss.current, loss.alone)
        self._apply(self._state.handle(lost))

    # -- the engine's thread: effects out

    def _apply(self, effects: list[state.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, state.Accept):
                self._release(effect.start, effect.stop)
            elif isinstance(effect, state.Settle):
                self._settle(effect)
            elif isinstance(effect, state.Allow):
                with self._permit:
                    self._allowed = effect.upto
                    self._permit.notify()
            elif isinstance(effect, state.StopReading):
                with self._permit:
                    self._stop_reading = True
                    self._permit.notify()
                self._raw.put(_End(None))  # the iterator may block for ever, the pickler not
            elif isinstance(effect, state.Halt):
                self.transport.halt(effect.lease, effect.chunk, effect.index)
            elif isinstance(effect, state.Finish):
                self._finish()

    def _settle(self, effect: state.Settle) -> None:
        if effect.kind == LOST:
            index = effect.start
            reason, worker = self._loss_reasons.pop(index, ("", ""))
            packed = self._packed(index, index + 1)
            value = load_repr(packed)
            failure = Failure(index, LOST, "WorkerLost", reason, input=value, worker=worker)
            failure.attempts = self._state.attempts(index) - 1  # the next one is not to be
            outcomes: list[Any] = [failure]
        else:
            outcomes = [_CANCELLED] * (effect.stop - effect.start)
        self._store(effect.start, outcomes)
        self._release(effect.start, effect.stop)

    def _store(self, start: int, outcomes: list[Any]) -> None:
        for outcome in outcomes if type(outcomes[0]) is not Sealed else ():
            if type(outcome) is Failure and outcome.kind != CANCELLED:
                self._newest.append(line_of(outcome))
                if len(self.first_failures) < FAILURES:
                    self.first_failures.append(outcome)
        with self.changed:
            at = start - self._base
            self._slots[at : at + len(outcomes)] = outcomes
            self._arrivals.append((start, len(outcomes)))
            self._unread += len(outcomes)
            if self._waiters:
                self.changed.notify_all()

    def _finish(self) -> None:
        self._ended = _clock()
        self.transport.remove(self)
        if self._mail is not None:
            self._mail.put(None)
        with self._permit:
            self._stop_reading = True
            self._permit.notify()
        self._packs.clear()
        self._starts.clear()
        self.front = None
        with self.changed:
            self.changed.notify_all()

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start of a pack, from, to) of the packs that hold a range of inputs."""
        at = bisect_right(self._starts, start) - 1
        while 0 <= at < len(self._starts) and self._starts[at] < stop:
            first = self._starts[at]
            last = first + self._packs[first][0].n
            if last > start:
                yield first, max(start, first) - first, min(stop, last) - first
            at += 1

    def _packed(self, start: int, stop: int) -> Pack:
        pieces = [cut(self._packs[p][0], a, b) for p, a, b in self._pieces(start, stop)]
        return concat(pieces)

    def _release(self, start: int, stop: int) -> None:
        """Drop the inputs that need not be sent again."""
        for first, a, b in list(self._pieces(start, stop)):
            entry = self._packs[first]
            entry[1] -= b - a
            if entry[1] <= 0:
                del self._packs[first]
                del self._starts[bisect_right(self._starts, first) - 1]

    # -- the callers' threads

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._ended is not None

    @property
    def status(self) -> str:
        """running, finished, cancelled, stopped or broken."""
        return self._state.status

    @property
    def ending(self) -> str:
        """The status that the run has, or is going to have when all has been stopped."""
        return self._state.ending or self._state.status

    @property
    def total(self) -> int | None:
        """Number of inputs, where known."""
        return self._state.total

    def counts(self) -> dict[str, int]:
        """Return the number of inputs in each status."""
        return dict(self.transport.engine.wait_for(self._state.counts))

    def cancel(self, index: int = -1) -> None:
        """Cancel one input, or all."""
        if index >= 0:
            self.singled.add(index)
        self.transport.engine.call(self._cancel, index)

    def _cancel(self, index: int) -> None:
        if self.over:
            return
        self._apply(self._state.handle(state.Cancel(index)))
        if self._state.ending:
            self.transport.engine.loop.call_later(self._grace, self._grace_over)

    def _grace_over(self) -> None:
        self._apply(self._state.handle(state.GraceOver()))

    def set_keep_bytes(self, nbytes: int) -> None:
        """Change how many bytes of outputs may wait to be handed out."""
        self._state.keep_bytes = nbytes
        self.transport.engine.call(self._note, state.KeepBytes(nbytes))

    @property
    def keep_bytes(self) -> int:
        """Bytes of outputs that may wait to be handed out before the run pauses."""
        return self._state.keep_bytes

    def _note(self, event: state.Event) -> None:
        self._apply(self._state.handle(event))
        if not self.over:
            self.transport.wake()

    def known(self) -> int:
        """Return how many inputs there are, as far as they were read."""
        return self._base + len(self._slots)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run."""
        return self._wait_until(lambda: self.over, timeout)

    def _wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        until = None if timeout is None else _clock() + timeout
        while True:
            with self.changed:
                if ready():
                    return True
                if self._state.full:
                    self.transport.engine.call(self._note, state.Await())
                left = None if until is None else until - _clock()
                if left is not None and left <= 0:
                    return False
                pause = LOOK if left is None else min(left, LOOK)
                self._waiters += 1
                try:
                    if self.changed.wait_for(ready, pause):
                        return True
                finally:
                    self._waiters -= 1
            if self.on_wait is not None:
                self.on_wait()

    def get(self, index: int, timeout: float | None = None) -> Any:
        """Wait for the outcome of one input: its output, or a Failure; EMPTY if none will come."""

        def ready() -> bool:
            return self.over or self._has(index)

        self._wait_until(ready, timeout)
        with self.changed:
            return self._opened(index) if self._has(index) else EMPTY

    def _has(self, index: int) -> bool:
        at = index - self._base
        return 0 <= at < len(self._slots) and self._slots[at] is not EMPTY

    def _opened(self, index: int) -> Any:
        at = index - self._base
        slot = self._slots[at]
        if type(slot) is Sealed:
            first = slot.start - self._base
            values = slot.open()
            self._slots[max(0, first) : first + slot.n] = values[max(0, -first) :]
            return self._slots[at]
        return slot

    def take(self, position: int) -> tuple[int, list[Any]]:
        """Wait for outcomes in input order from `position` on.

        Returns their position and as many as are there; none when the run has ended.
        """
        self._wait_until(lambda: self.over or self._has(position))
        with self.changed:
            end = self._base + len(self._slots)
            while self.over and position < end and not self._has(position):
                position += 1  # a broken run has gaps
            stop = position
            while stop - position < TAKE_AT_ONCE and self._has(stop):
                slot = self._slots[stop - self._base]
                stop = slot.start + slot.n if type(slot) is Sealed else stop + 1
                self._opened(stop - 1)
            out = self._slots[position - self._base : stop - self._base]
            return position, out

    def take_arrivals(self, position: int) -> tuple[int, list[tuple[int, Any]]]:
        """Wait for outcomes in order of completion.

        Args:
            position: how many ranges of them were taken before; ignored where none are kept.

        Returns:
            The next position and (index, outcome) pairs; none when the run has ended.
        """
        if not self.keep:
            position = 0
        self._wait_until(lambda: self.over or len(self._arrivals) > position)
        with self.changed:
            if len(self._arrivals) <= position:
                return position, []
            start, n = self._arrivals[position]
            return position + 1, [(i, self._opened(i)) for i in range(start, start + n)]

    def handed(self, start: int, n: int, *, arrived: bool = False) -> None:
        """Tell that outcomes were handed out; a run that keeps none drops them.

        Args:
            start: the first input.
            n: how many.
            arrived: they were taken in order of completion.
        """
        with self.changed:
            if self.keep:  # each counts once, however often it is read
                first, stop = start, start + n
                self._taken += bytes(max(0, stop - len(self._taken)))
                n = self._taken.count(0, first, stop)
                self._taken[first:stop] = b"\1" * (stop - first)
            waiting = max(0, self._state.unread_bytes - self._untold[1])
            nbytes = waiting * n // self._unread if self._unread else 0
            self._unread -= n
            if not self.keep:
                if arrived:
                    self._arrivals.popleft()
                    at = start - self._base
                    self._slots[at : at + n] = [None] * n
                    self._drop_front()
                else:
                    self._arrivals.clear()
                    del self._slots[: start + n - self._base]
                    self._base = start + n
            if not n:
                return
            if self.keep:  # nothing depends on it before the store is half full
                self._untold = (self._untold[0] + n, self._untold[1] + nbytes)
                if 2 * self._state.unread_bytes < self._state.keep_bytes:
                    return
                (n, nbytes), self._untold = self._untold, (0, 0)
        self.transport.engine.call(self._note, state.Handed(n, nbytes))

    def _drop_front(self) -> None:
        """Forget the slots that are behind every outcome that may still come, in large steps."""
        floor = min([start for start, _ in self._arrivals], default=self._base + len(self._slots))
        with contextlib.suppress(ValueError):
            floor = min(floor, self._base + self._slots.index(EMPTY))
        if floor - self._base > state.TRIM:
            del self._slots[: floor - self._base]
            self._base = floor

    # -- what views and people ask

    def printed(self, index: int) -> str:
        """Return what an input wrote to stdout and stderr."""
        return "".join(self.prints.get(index, []))

    def failures(self) -> list[Failure]:
        """Return the failures so far, in input order, without what was cancelled."""
        with self.changed:
            return [s for s in self._slots if type(s) is Failure and s.kind != CANCELLED]

    def snapshot(self) -> Snapshot:
        """Return the plain picture of the run; on any thread but the engine's."""
        picture: Snapshot = self.transport.engine.wait_for(self._snapshot)
        return picture

    def statuses(self) -> Statuses:
        """Return how far each input is; on any thread but the engine's."""
        base, column, running = self.transport.engine.wait_for(self._statuses)
        shown = bytearray(column.translate(_SHOWN))
        for index in running:
            shown[index - base] = _RUNNING
        return Statuses(base, bytes(shown))

    def _statuses(self) -> tuple[int, bytes, list[int]]:
        s = self._state
        running: dict[str, int] = {}  # a lease runs one input, of the first chunk that it has
        for flight in s.flights.values():
            if flight.pos < flight.stop:
                running.setdefault(flight.lease, min(flight.cur, flight.stop - 1))
        return s.base, bytes(s.column), [i for i in running.values() if i >= s.base]

    def _snapshot(self) -> Snapshot:
        s = self._state
        counts = s.counts()
        now = self._ended or _clock()
        elapsed = now - self._made
        if not self.over:
            self._samples.append((now, s.settled))
        then, before = self._samples[0] if self._samples else (self._made, 0)
        if self.over or now - then < 1e-3:
            then, before = self._made, 0
        rate = (s.settled - before) / max(now - then, 1e-6)
        slots = len({f.lease for f in s.flights.values()})
        return Snapshot(
            name=self.name,
            number=self.number,
            status=s.status,
            total=s.total,
            elapsed=elapsed,
            rate=rate,
            slots=slots,
            note=self._remark(slots),
            failures=tuple(self._newest),
            **counts,
        )

    def _remark(self, slots: int) -> str:
        if self.over:
            return ""
        if self.keep and self._state.full:
            megabytes = self._state.unread_bytes >> 20
            return (
                f"paused: {megabytes} MB of outputs wait to be taken; iterate, "
                "use keep=False, or raise run.keep_bytes"
            )
        if self.transport.trouble:
            return self.transport.trouble
        since = self.transport.waiting_since
        if since is not None and _clock() - since > 1:
            return f"waiting for workers for {_clock() - since:.0f} s"
        have = sum(h.state in {"open", "paused"} for h in self.transport.leases.values())
        if self.limit and slots and have < self.limit <= self.wanted():
            return f"{have} of {self.limit}: the cluster has {have} slots"
        return ""


_CANCELLED = Failure(-1, CANCELLED, "InputCancelled", "cancelled")


_EMPTIES: tuple[Iterable[Any], ...] = ([], (), range(0), range(1 << 70), {}, set(), "", b"")
_BUILTIN = {type(iter(empty)) for empty in _EMPTIES}


def _pickle(items: list[Any]) -> Iterator[Pack | Failure]:
    """Pickle inputs; a Failure stands for each that can't be."""
    if not items:
        return
    if are_plain(items):
        yield pack_plain(items)
        return
    frames, near = [], near_only()
    for item in items:
        try:
            frames.append(dump(item, near))
        except BaseException as error:
            if frames:
                yield join(frames)
                frames = []
            text = f"the input can't be pickled: {shorten(str(error), 500)}"
            yield Failure(-1, UNPICKLABLE, type(error).__name__, text, input=safe_repr(item))
    if frames:
        yield join(frames)


def _failures(message: Out) -> list[Failure]:
    at = sum(message.counts) if message.counts is not None else 1
    failures = []
    for index, kind, name, text, traceback, stack, value, count_ in message.failures:
        frames = list(message.frames[at : at + count_])
        at += count_
        told = [list(frame) for frame in stack]
        failures.append(Failure(index, kind, name, text, traceback, told, value, pickled=frames))
    return failures


def line_of(failure: Failure) -> FailureLine:
    """Return a failure as views show it."""
    f = failure
    return FailureLine(f.index, f.input, f.kind, f.type, f.message, f.attempts, f.worker)


def load_repr(packed: Pack) -> str:
    """Return the repr of a scalar input; of others only what can be told without loading them."""
    if packed.counts is None:
        return safe_repr(unpack(packed)[0])
    return f"<{packed.nbytes} bytes>"


def kept_bytes() -> int:
    """Return the quarter of this process's memory that kept outputs may take."""
    return memory_limit() // 4


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the cgroup's limit, or the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:  # noqa: PTH123
            limits.append(int(file.read()))
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)
