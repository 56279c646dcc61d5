"""One run's loop: feeds the state what happens, and does what it asks for.

Threads of a run::

    reader   runs the user's iterators; a blocking one holds up nothing (`reading`)
    pickler  pickles what was read (for lists and the like the reader does it; `reading`)
    engine   the engine's loop (shared): owns the state, talks to the transport; no user code
    opener   unpickles outputs that are not scalars, started when the first one comes
    callers  the user's threads: wait for outcomes and take them (`outcomes`), cancel

An outcome counts when its output could be unpickled, since a final status never changes.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Any, Protocol

from . import state
from .memory import kept_bytes
from .model import (
    CANCELLED,
    LOST,
    TIMEOUT,
    UNPICKLABLE,
    Ask,
    Back,
    Blob,
    Done,
    Failure,
    Grant,
    Mark,
    Message,
    Out,
    Pack,
    Print,
    Snapshot,
    Statuses,
    Work,
    Yield,
    size_of,
)
from .outcomes import EMPTY, Outcomes, Sealed
from .pickling import Unloadable, concat, cut, load_or_error, parts, safe_repr, unpack
from .reading import Reader, Refused, pickle_inputs
from .seen import Seen, Texts
from .streams import Segment, Streams
from .transport import ENDED, Fate, Loss, Transport

PROMPT = 0.1  # seconds that a function which was asked to stop keeps its place
SECOND = 1.0  # seconds of grace for an input that had all of it once
KEPT_INPUTS = 64 << 20  # bytes of inputs that are kept though they are done
SETTLED = 2.0  # seconds after which a run has the leases that it is going to have
# From the state's bytes to those of a view: what was sent and not started waits.
_SHOWN = bytes.maketrans(
    bytes((state.WAITING, state.SENT, state.DONE, state.FAILED, state.STOPPED)),
    bytes((0, 0, 2, 3, 4)),
)
_RUNNING = 1
EMPTY_PACK = Pack(0, [], [])

_numbers = count(1)
_clock = time.monotonic


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all runs of a handle.

    Args:
        handle: whose runs share `limit`.
        name: for views.
        limit: inputs of the handle that may run at once, or None.
        worker_losses: deaths that an input may cause.
        grace: seconds that a function has to stop when asked.
        timeout: seconds that an attempt may take; 0 for as long as it likes.
        retries: attempts after the first.
        delay: tells how many seconds the n-th retry waits.
        stream: whether the function is a generator's.
        gpu: what its inputs run on (`cluster.gpu.GPURequest`), or None.
        patience: seconds that a run waits until the cluster has that.
    """

    handle: Hashable
    name: str
    limit: int | None = None
    worker_losses: int = 2
    grace: float = 5.0
    timeout: float = 0.0
    retries: int = 0
    delay: Callable[[int], float] = float
    stream: bool = False
    gpu: Any = None
    patience: float = 0.0


class Child(Protocol):
    """A run that an input has made; a detached one outlives it."""

    detached: bool

    def cancel(self) -> None:
        """Cancel it."""


class Driver:
    """Drives one run from its first input to its last outcome.

    Args:
        transport: what holds the leases.
        rules: what holds for all runs of the handle.
        blob: the function.
        style: how an input becomes arguments (`model.EACH`, `SPREAD`, `CALL`).
        inputs: the inputs, read on a thread of the run's own.
        total: their number, where known.
        keep: whether outcomes are kept or dropped once they are handed out.
        too_many: tells from (failed, finished) whether to stop the run.
    """

    def __init__(
        self,
        transport: Transport,
        rules: Rules,
        blob: Blob,
        style: int,
        inputs: Iterator[Any],
        *,
        total: int | None,
        keep: bool,
        too_many: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.transport = transport
        self.rules = rules
        self.blob = blob
        self.handle = rules.handle
        self.limit = rules.limit
        self.streams = rules.stream
        self.gpu = rules.gpu
        self.patience = rules.patience
        self.name = rules.name
        self.number = next(_numbers)
        self.keep = keep
        self.error: BaseException | None = None  # what ended the run, or its input iterator
        self.broken: BaseException | None = None
        self.owner: object = None  # the handle, kept alive with the run
        self.loop: object = None  # the caller's event loop, where inputs are read in it
        self.sent: object = None  # the handles that its function refers to, likewise
        self.front: object = None  # what the user has of it, kept alive until the run has ended
        self.on_print: Callable[[int, str, str], None] | None = None  # on the engine's thread
        self.on_wait: Callable[[], None] | None = None  # called now and then by those who wait
        self.on_ask: Callable[[Driver, Ask], None] | None = None  # on the engine's thread
        self.singled: set[int] = set()  # inputs cancelled one by one
        self.children: dict[tuple[int, int], Child] = {}  # runs that inputs made, by chunk and Ask
        self.style = style
        self.kwargs: dict[str, Any] = {}  # the function's constant arguments
        self.too_many = too_many
        slots = max(1, rules.limit or transport.slots())
        self._state = state.RunState(
            total,
            keep,
            slots,
            rules.worker_losses,
            too_many,
            keep_bytes=kept_bytes() if keep else state.OUTPUT_BYTES,
            stream=rules.stream,
            single=rules.timeout > 0,
            retries=rules.retries,
            delay=rules.delay,
        )
        self.outcomes = (Streams if rules.stream else Outcomes)(self, keep=keep)
        # Of generators, where a further attempt took over: input, attempt, its first new output.
        self.takeovers: list[tuple[int, int, int]] = []
        if isinstance(self.outcomes, Streams):
            self.takeovers = self.outcomes.takeovers
        self.ledger: list[tuple[int, int, str, float]] = []  # input, how many, worker, seconds
        self._given_up: set[int] = set()  # chunks whose functions did not stop when asked
        self._still: list[str] = []  # workers where such functions go on
        self._unsure: set[int] = set()  # inputs whose grace was over when nobody knew who held on
        self._graced = False  # what was to stop has had its time
        self._spoiled: dict[int, Failure] = {}  # generators of which an output can't be loaded
        self._reader = Reader(transport.engine, inputs, keep=keep)
        self._before: Driver | None = None  # the run whose outcomes this one takes over
        self._offset = 0  # inputs that were taken over, which the reader does not know of
        self._refused: dict[int, Any] = {}  # inputs that could not be pickled
        self._unused: list[Pack | Refused] = []  # read when the run had been stopped
        self._kept = 0  # bytes of inputs that are kept though they are done
        # inputs that may have to be sent (again), on the engine's thread
        self._packs: dict[int, list[Any]] = {}  # start -> [pack, inputs without an outcome]
        self._starts: list[int] = []
        # opening
        self._mail: SimpleQueue[Any] | None = None
        self.seen = Seen(streams=rules.stream)
        self._made = _clock()
        self._ended: float | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=40)
        self._loss_reasons: dict[int, tuple[str, str]] = {}
        self._last_loss = ("", "")

    # -- starting

    def start(self) -> None:
        """Begin: read on a thread, and have the transport work for this run."""
        self.transport.engine.call(self._begin)

    def start_with(self, items: list[Any]) -> None:
        """Begin with inputs that are at hand, pickled in the caller's thread."""
        segments = list(pickle_inputs(items))
        self.transport.engine.call(self._begin_with, segments)

    def take_over(self, before: Driver) -> None:
        """Take over what an earlier run over the same inputs has done; before `start`."""
        self._before = before

    def _begin(self) -> None:
        if self._before is not None:
            self._begin_again(self._before)
        self._reader.start(self._take_read)
        self._apply(self._state.handle(state.Handed(0, 0)))
        if not self.over:
            self.transport.add(self)

    def _begin_again(self, before: Driver) -> None:
        self._before = None
        old = before._state
        index = 0
        while index < old.read:
            done, start = old.column[index] == state.DONE, index
            while index < old.read and (old.column[index] == state.DONE) == done:
                index += 1
            if done:
                self._take_done(before, start, index)
            else:
                self._take_read(list(before._inputs(start, index)), None, False)
        self._take_read(before._unused, None, False)
        self._offset = self._state.read

    def _take_done(self, before: Driver, start: int, stop: int) -> None:
        outcomes = [before.outcomes.peek(index) for index in range(start, stop)]
        self.outcomes.expect(stop - start)
        self._apply(self._state.handle(state.Read(stop - start, 0, taken=True)))
        for first, a, b in before._pieces(start, stop):
            self._packs[first + a] = [cut(before._packs[first][0], a, b), 0]
            self._starts.append(first + a)
        if isinstance(self.outcomes, Streams) and isinstance(before.outcomes, Streams):
            for index in range(start, stop):
                self.outcomes.taken_over(index, before.outcomes.outputs(index))
        self.outcomes.store(start, outcomes)
        self.seen.take_over(before.seen, start, stop)
        self.ledger += [row for row in before.ledger if start <= row[0] < stop]

    def _inputs(self, start: int, stop: int) -> Iterator[Pack | Refused]:
        """Yield inputs that have no output, as they were read."""
        while start < stop:
            if start in self._refused:
                yield from pickle_inputs([self._refused[start]])
                start += 1
                continue
            until = min((i for i in self._refused if start < i < stop), default=stop)
            yield self._packed(start, until)
            start = until

    def rest(self) -> Iterator[Any]:
        """Return the inputs that were never read; of a run that has ended."""
        return self._reader.rest

    def value(self, index: int) -> Any:
        """Return an input itself; EMPTY where it is not kept any more."""
        value: Any = self.transport.engine.wait_for(self._value, index)
        if isinstance(value, Pack):
            return unpack(value)[0]
        return value

    def _value(self, index: int) -> Any:
        if index in self._refused:
            return self._refused[index]
        pieces = list(self._pieces(index, index + 1))
        return self._packed(index, index + 1) if pieces else EMPTY

    def values(self) -> dict[int, Any]:
        """Return all inputs that are kept, by their index."""
        packs = self.transport.engine.wait_for(
            lambda: [(start, entry[0]) for start, entry in self._packs.items()]
        )
        out = dict(self._refused)
        for start, packed in packs:
            out.update(enumerate(unpack(packed), start))
        return out

    def tried(self) -> tuple[bytes, dict[int, int]]:
        """Return the state's byte for each input, and attempts beyond the first."""
        s = self._state
        told: tuple[bytes, dict[int, int]] = self.transport.engine.wait_for(
            lambda: (bytes(s.column), dict(s.extra))
        )
        return told

    def _begin_with(self, segments: list[Any]) -> None:
        self._take_read(segments, None, True)
        if not self.over:
            self.transport.add(self)

    # -- the engine's thread: events in

    def _take_read(
        self, segments: list[Pack | Refused], error: BaseException | None, ended: bool
    ) -> None:
        for segment in segments:
            if self._state.ended:
                self._unused.append(segment)
                continue
            start = self._state.read
            if isinstance(segment, Pack):
                self._packs[start] = [segment, segment.n]
                self._starts.append(start)
                self.outcomes.expect(segment.n)
                self._apply(self._state.handle(state.Read(segment.n, segment.nbytes)))
            else:
                segment.failure.index = start
                self._refused[start] = segment.item
                self.outcomes.expect(1)
                effects = self._state.handle(state.Read(1, 0, refused=True))
                self._store(start, [segment.failure])
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
        if counts.stream and counts.full and not counts.keep:
            left = 0
        elif counts.total is not None and not counts.ended:
            left += counts.total - counts.read
        leases = len({f.lease for f in counts.flights.values()})
        return 0 if counts.ending else left + leases

    @property
    def loaded(self) -> bool:
        """Whether the function could be loaded somewhere."""
        return self._state.loaded

    def has_suspects(self) -> bool:
        """Tell whether inputs wait for a process to themselves."""
        return bool(self._state.suspects)

    def offer(self, lease: str, chunk: int, slots: int, *, ahead: bool, alone: bool) -> Work | None:
        """Return a chunk for a lease that has room, or None."""
        work = None
        effects = self._state.handle(state.Offer(lease, chunk, slots, ahead, alone))
        for effect in effects:
            if isinstance(effect, state.Send):
                packed = EMPTY_PACK
                if effect.start < effect.stop:
                    packed = self._packed(effect.start, effect.stop)
                tries = self._tries(effect.start, effect.stop)
                work = Work(
                    chunk,
                    self.blob.digest,
                    self.style,
                    effect.start,
                    packed.n,
                    packed.counts,
                    effect.budget,
                    effect.credit,
                    effect.careful,
                    self.rules.stream,
                    self.rules.timeout,
                    tries,
                    packed.frames,
                )
        self._apply(effects)
        return work

    def _tries(self, start: int, stop: int) -> list[list[int]]:
        """Return [input, attempt] of those that were tried before."""
        extra = self._state.extra
        return [[i, 1 + extra[i]] for i in range(start, stop) if i in extra] if extra else []

    def gave_up(self, chunk: int) -> bool:
        """Tell whether nobody waits for a chunk any more, though it has not ended."""
        return chunk in self._given_up

    def receive(self, message: Message, worker: str) -> None:
        """Take what a lease sent about one of the run's chunks, in order."""
        if self.over:
            return
        if self._mail is None:
            if not (isinstance(message, (Out, Yield)) and message.counts is not None):
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
            try:
                self._apply(self._state.handle(state.Break()))
            finally:
                if not self.over:  # the state does not know it, after a reload of its module
                    self._state.status = "broken"
                    self._finish()

    def move(self, transport: Transport) -> None:
        """Use another transport from now on; nothing was sent yet."""
        self.transport = transport
        if not self.over:
            transport.add(self)

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
                values: list[Any] | None = None
                texts: Texts = ()
                if isinstance(message, (Out, Yield)) and message.counts is not None:
                    packed = Pack(message.n, list(message.counts), message.frames)
                    failed = set()
                    if isinstance(message, Out):
                        failed = {plain[0] - message.start for plain in message.failures}
                    values = [
                        None if at in failed else load_or_error(frames)
                        for at, frames in enumerate(parts(packed))
                    ]
                    texts = self.seen.texts_of(values)  # here, since it runs the user's code
                opened.append((message, worker, values, texts))
            self.transport.engine.call(self._process_opened, opened)

    def _process_opened(self, opened: list[Any]) -> None:
        for message, worker, values, texts in opened:
            if isinstance(message, Loss):
                self._lose(message)
            else:
                self._process(message, worker, values, texts)
        if not self.over:
            self.transport.wake()

    # -- the engine's thread: messages to events

    def _process(
        self,
        message: Message,
        worker: str,
        values: list[Any] | None,
        texts: Texts = (),
    ) -> None:
        if isinstance(message, Out):
            self._outcomes(message, worker, values, texts)
        elif isinstance(message, Yield):
            self._outputs(message, worker, values, texts)
        elif isinstance(message, Mark):
            self._began(message)
        elif isinstance(message, Ask):
            if self.on_ask is not None and message.chunk in self._state.flights:
                self.on_ask(self, message)
        elif isinstance(message, Print):
            self._print(message)
        elif isinstance(message, Back):
            self._apply(self._state.handle(state.Returned(message.chunk, message.start)))
        elif isinstance(message, Done):
            self._drop_children(message.chunk)
            ended = state.Ended(message.chunk, message.ran, message.seconds)
            self._apply(self._state.handle(ended))

    def _outcomes(
        self,
        message: Out,
        worker: str,
        values: list[Any] | None,
        texts: Texts,
    ) -> None:
        if message.chunk not in self._state.flights:
            return  # of a lease that was given up, or after the grace
        failures = _failures(message)
        if values is not None:
            for at, value in enumerate(values):
                if type(value) is Unloadable:
                    failures.append(self._unloadable(message.start + at, value))
        failures = [self._spoiled.pop(failure.index, failure) for failure in failures]
        if self._spoiled:  # it was asked to stop, and ended before it heard of that
            spoiled = [i for i in self._spoiled if message.start <= i < message.start + message.n]
            failures += [self._spoiled.pop(index) for index in spoiled]
        for failure in failures:
            failure.worker = worker
            failure.attempts = self._state.attempts(failure.index)
        got = state.Got(
            message.chunk,
            message.start,
            message.n,
            tuple(sorted((failure.index, failure.kind) for failure in failures)),
            0 if self.rules.stream else size_of(message.frames),
        )
        effects = self._state.handle(got)
        told: Sequence[Any] = values or ()
        if self.rules.stream:
            texts = ()  # what a generator returns is nobody's
        elif values is None:
            told, texts = self.seen.looked_at(message.n, message.frames)
        if self.keep:
            self.ledger.append((message.start, message.n, worker, message.seconds))
        if values is None and not failures and not self.rules.stream:
            values = [Sealed(message.start, message.n, message.frames[0])] * message.n
        elif values is None:
            values = unpack(Pack(message.n, None, message.frames[:1]))
        for failure in failures:
            values[failure.index - message.start] = failure
        for effect in effects:
            if isinstance(effect, state.Accept):
                start, stop = effect.start - message.start, effect.stop - message.start
                self._store(effect.start, values[start:stop])
                for at, text in texts:
                    if start <= at < stop and type(values[at]) is not Failure:
                        self.seen.returned(message.start + at, told[at], text)
        self._apply(effects)

    def _unloadable(self, index: int, value: Unloadable) -> Failure:
        text = f"the output can't be unpickled here: {safe_repr(value.error)}"
        kind = type(value.error).__name__
        told = load_repr(self._packed(index, index + 1))
        return Failure(index, UNPICKLABLE, kind, text, input=told)

    def _outputs(
        self,
        message: Yield,
        worker: str,
        values: list[Any] | None,
        texts: Texts,
    ) -> None:
        """Take outputs of a generator."""
        flight = self._state.flights.get(message.chunk)
        if flight is None or not isinstance(self.outcomes, Streams):
            return
        index, new = message.index, 0
        bad = [at for at, value in enumerate(values or ()) if type(value) is Unloadable]
        if bad and values is not None:  # those before it came first
            failure = self._unloadable(index, values[bad[0]])
            failure.worker = worker
            values = values[: bad[0]]
            self.transport.halt(flight.lease, message.chunk, index)
        if index not in self._spoiled:
            n = message.n if values is None else len(values)
            frame = message.frames[0] if values is None else None
            segment = Segment(index, n, message.nbytes * n // message.n, values, frame)
            attempt = self._state.attempts(index)
            new = self.outcomes.add(index, message.seq, attempt, segment) if n else 0
            if new and self.seen.by_view:
                self.seen.yielded(message, n, n - segment.n, values, texts)
        if bad:
            self._spoiled.setdefault(index, failure)
        yielded = state.Yielded(message.chunk, index, message.nbytes, new)
        self._apply(self._state.handle(yielded))

    def _began(self, message: Mark) -> None:
        new = not self._state.loaded
        self._apply(self._state.handle(state.Began(message.chunk, message.index)))
        if new and not self.over:  # other processes have waited for this
            self.transport.wake()
        if self.rules.timeout:
            self._watch(message.chunk, message.index, _clock())

    def _watch(self, chunk: int, index: int, began: float) -> None:
        """Give the outcome of an input that does not stop; the lease is taken until it ends."""
        flight = self._state.flights.get(chunk)
        if self.over or flight is None or not flight.pos <= index < flight.stop:
            return
        own = _clock() - began - self.transport.still(flight.lease)
        grace = self.rules.grace if index not in self._unsure else min(self.rules.grace, SECOND)
        left = self.rules.timeout + grace - own
        if left > 0:
            self.transport.engine.loop.call_later(left, self._watch, chunk, index, began)
            return
        self._give_up(chunk, index)

    def _give_up(self, chunk: int, index: int) -> None:
        """Give an input's outcome though it goes on, and end its process where that can be done."""
        self._given_up.add(chunk)
        self.transport.force([chunk], lambda fates: self._given(chunk, index, fates[chunk]))

    def _given(self, chunk: int, index: int, fate: Fate) -> None:
        flight = self._state.flights.get(chunk)
        if self.over or flight is None or not flight.pos <= index < flight.stop:
            return
        if not fate.sure and index not in self.singled:
            self._unsure.add(index)
            return  # its process is ended or left; then it is tried alone
        self._goes_on(fate)
        self._apply(self._state.handle(state.Overdue(chunk, index)))
        if not self.over:
            self.transport.wake()

    def _goes_on(self, fate: Fate) -> None:
        """Note where a function goes on whose outcome was given."""
        if fate.where:
            self._still.append(fate.where)

    def _again(self, index: int) -> None:
        if not self.over:
            self._apply(self._state.handle(state.Again(index)))
            self.transport.wake()

    def _drop_children(self, chunk: int) -> None:
        """Cancel the runs that the inputs of a chunk have left: nobody can take their outputs."""
        for key, child in list(self.children.items()):
            if key[0] == chunk and not child.detached:
                child.cancel()

    def _print(self, message: Print) -> None:
        text = self.seen.print(message)
        if self.on_print is not None:
            self.on_print(message.index, message.stream, text)

    def _lose(self, loss: Loss) -> None:
        flight = self._state.flights.get(loss.chunk)
        self._last_loss = (loss.reason, loss.worker)
        if flight is not None:
            for index in range(flight.pos, min(flight.stop, flight.pos + 1000)):
                self._loss_reasons[index] = (loss.reason, loss.worker)
        self._drop_children(loss.chunk)  # the next attempt makes runs of its own
        known = loss.died, loss.current, loss.alone, loss.charge, loss.begun, loss.death
        self._apply(self._state.handle(state.Lost(loss.chunk, *known)))

    # -- the engine's thread: effects out

    def _apply(self, effects: list[state.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, state.Accept):
                self._release(effect.start, effect.stop)
            elif isinstance(effect, state.Settle):
                self._settle(effect)
            elif isinstance(effect, state.Allow):
                self._reader.allow(effect.upto - self._offset)
            elif isinstance(effect, state.StopReading):
                self._reader.stop()
                self._is_ending()
            elif isinstance(effect, state.Halt):
                self.transport.halt(effect.lease, effect.chunk, effect.index)
            elif isinstance(effect, state.Grant):
                self.transport.answer(effect.chunk, Grant(effect.chunk, effect.nbytes))
            elif isinstance(effect, state.Later):
                call_later = self.transport.engine.loop.call_later
                call_later(effect.seconds, self._again, effect.index)
            elif isinstance(effect, state.Finish):
                self._finish()

    def _settle(self, effect: state.Settle) -> None:
        if effect.kind == LOST:
            indices = range(effect.start, effect.stop)
            outcomes: list[Any] = [self._lost(i, effect.unloadable) for i in indices]
        elif effect.kind == TIMEOUT:
            index = effect.start
            text = f"it took longer than timeout={self.rules.timeout:g} s, and went on when stopped"
            if self._still:
                text += f"; it still runs on {self._still[-1]}"
            failure = Failure(index, TIMEOUT, "InputTimeout", text)
            failure.input = load_repr(self._packed(index, index + 1))
            failure.attempts = self._state.attempts(index)
            outcomes = [failure]
        else:
            outcomes = [_CANCELLED] * (effect.stop - effect.start)
        self._store(effect.start, outcomes)
        self._release(effect.start, effect.stop)

    def _lost(self, index: int, unloadable: bool) -> Failure:
        reason, worker = self._loss_reasons.pop(index, self._last_loss)
        attempts = self._state.attempts(index) - 1  # the next one is not to be
        if unloadable:
            reason = f"every worker dies that loads the function: {reason}"
            attempts += 1
        value = load_repr(self._packed(index, index + 1))
        failure = Failure(index, LOST, "WorkerLost", reason, input=value, worker=worker)
        failure.attempts = attempts
        return failure

    def _store(self, start: int, outcomes: list[Any]) -> None:
        for outcome in outcomes if type(outcomes[0]) is not Sealed else ():
            if type(outcome) is Failure:
                self.seen.failed(outcome)
        self.outcomes.store(start, outcomes)

    def _finish(self) -> None:
        self._ended = _clock()
        self.transport.remove(self)
        if self._mail is not None:
            self._mail.put(None)
        self._reader.stop()
        if not self.keep:
            self._packs.clear()
            self._starts.clear()
        self.front = None
        self.outcomes.end()

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
        """Drop the inputs that need not be sent again.

        A run that keeps its outputs keeps the inputs of what failed, for a retry, and as many of
        the others as a bound allows, for a replay.
        """
        for first, a, b in list(self._pieces(start, stop)):
            entry = self._packs[first]
            entry[1] -= b - a
            if self.keep:
                base = self._state.base
                column = self._state.column[first + a - base : first + b - base]
                entry[1] += len(column) - column.count(state.DONE)
            if entry[1] > 0:
                continue
            if self.keep and self._kept + entry[0].nbytes <= KEPT_INPUTS:
                self._kept += entry[0].nbytes
                continue
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

    def cancel(self, index: int = -1, *, now: bool = False) -> None:
        """Cancel one input, or all; with `now` what runs gets no time to stop."""
        if index >= 0:
            self.singled.add(index)
        self.transport.engine.call(self._cancel, index, now)

    def _cancel(self, index: int, now: bool = False) -> None:
        if self.over:
            return
        self._apply(self._state.handle(state.Cancel(index)))
        if index >= 0:
            self._later(self.rules.grace, self._cancel_over, index)
        elif now:
            self._grace_over()

    def _later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        self.transport.engine.loop.call_later(seconds, function, *args)

    def _cancel_over(self, index: int) -> None:
        """Settle a cancelled input that has not stopped within the grace."""
        if self.over:
            return
        for chunk, flight in self._state.flights.items():
            if flight.pos <= index < flight.stop:
                self._give_up(chunk, index)
                return

    def _is_ending(self) -> None:
        """Have what the run has left come to its end, within the grace."""
        for child in list(self.children.values()):
            child.cancel()
        self._later(PROMPT, self._stop_waiting)
        self._later(self.rules.grace, self._grace_over)

    def _stop_waiting(self) -> None:
        """Let others have leases in the place of those whose functions do not stop at once."""
        if not self.over:
            self._given_up.update(self._state.flights)
            self.transport.wake()

    def _grace_over(self) -> None:
        if not self.over and not self._graced:
            self._graced = True
            chunks = list(self._state.flights)
            self._given_up.update(chunks)
            self.transport.force(chunks, self._end_grace)

    def _end_grace(self, fates: dict[int, Fate]) -> None:
        if not self.over:
            for chunk in self._state.flights:
                self._goes_on(fates.get(chunk, ENDED))
            self._apply(self._state.handle(state.GraceOver()))

    def set_keep_bytes(self, nbytes: int) -> None:
        """Change how many bytes of outputs may wait to be handed out."""
        self._state.keep_bytes = nbytes
        self.tell(state.KeepBytes(nbytes))

    @property
    def keep_bytes(self) -> int:
        """Bytes of outputs that may wait to be handed out before the run pauses."""
        return self._state.keep_bytes

    @property
    def full(self) -> bool:
        """Whether the run pauses, since the outputs that wait to be handed out are too many."""
        return self._state.full

    @property
    def unread_bytes(self) -> int:
        """Bytes of outputs that wait to be handed out, as far as the state was told."""
        return self._state.unread_bytes

    def check(self) -> None:
        """Raise in a process that was forked from the run's."""
        self.transport.engine.check()

    def check_modules(self) -> None:
        """Raise after a reload of nbmap's modules."""
        self.transport.engine.check_modules()

    def tell(self, event: state.Event) -> None:
        """Have the state handle an event, soon."""
        self.transport.engine.call(self._note, event)

    def _note(self, event: state.Event) -> None:
        self._apply(self._state.handle(event))
        if not self.over:
            self.transport.wake()

    # -- what views and people ask

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
            self._samples.append((now, s.done + s.failed))
        then, before = self._samples[0] if self._samples else (self._made, 0)
        if self.over or now - then < 1e-3:
            then, before = self._made, 0
        rate = (s.done + s.failed - before) / max(now - then, 1e-6)
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
            failures=tuple(self.seen.newest_failures),
            gpus=() if self.over else self.transport.use(self),
            **counts,
        )

    def _remark(self, slots: int) -> str:
        if self._still:
            where = ", ".join(dict.fromkeys(self._still))
            return f"{len(self._still)} did not stop when asked, and may still run on {where}"
        if self.over:
            return self.transport.lasting
        silent = self.transport.silent_workers()
        for lease in {flight.lease for flight in self._state.flights.values()} if silent else ():
            worker = self.transport.leases[lease].worker if lease in self.transport.leases else ""
            if worker in silent:
                return f"the worker {worker} has been silent for {silent[worker]:.0f} s"
        if self.keep and self._state.full:
            megabytes = self._state.unread_bytes >> 20
            return (
                f"paused: {megabytes} MB of outputs wait to be taken; iterate, "
                "use keep=False, or raise run.keep_bytes"
            )
        if self._state.full:
            return "paused until the outputs that are there are taken"
        if remark := self.transport.remark(self):
            return remark
        since = self.transport.waiting_since
        if since is not None and _clock() - since > 1:
            return f"waiting for workers for {_clock() - since:.0f} s"
        have = self.transport.held(self)
        settled = _clock() - self._made > SETTLED  # before, leases may be on their way
        if self.limit and settled and slots and have < self.limit <= self.wanted():
            return f"{have} of {self.limit}: the cluster has {have} {self.transport.places}"
        return ""


_CANCELLED = Failure(-1, CANCELLED, "InputCancelled", "cancelled")


def _failures(message: Out) -> list[Failure]:
    at = sum(message.counts) if message.counts is not None else 1
    failures = []
    for index, kind, name, text, traceback, stack, value, count_ in message.failures:
        frames = list(message.frames[at : at + count_])
        at += count_
        told = [list(frame) for frame in stack]
        failures.append(Failure(index, kind, name, text, traceback, told, value, pickled=frames))
    return failures


def load_repr(packed: Pack) -> str:
    """Return the repr of a scalar input; of others only what can be told without loading them."""
    if packed.counts is None:
        return safe_repr(unpack(packed)[0])
    return f"<{packed.nbytes} bytes>"
