"""What is known of one run: events in, effects out.

This is the idea of the program. Everything that happens to a run - inputs were read, a lease has
room, outcomes came, a worker died, the user cancelled - is an event; `RunState.handle` is the only
thing that changes the state, and it answers with effects, what the driver has to do about it.
There is no clock, thread, I/O or Dask in here, so that every history can be tried in a test.

An input goes ``waiting → sent → running → done | failed | cancelled``. The last three are final.
State is columnar: a byte an input, and ranges everywhere else; an event describes a range, so that
its cost does not grow with the number of inputs that it tells of.

Blame, when a process dies: what had certainly not started waits again and nobody is blamed. What
may have been running (the suspects) is next tried by itself, as a *careful* chunk: one that has its
process to itself and whose starts are on the wire before its inputs run. If a process dies again,
the input that had started last is to blame, exactly. `worker_losses` such deaths make it `lost`.
Where processes die before anything ran, a chunk without inputs comes first, when no other is under
way: if its process dies too, the function can't be loaded, and no input ever runs.

An input of a generator (`stream`) has outputs before it has an outcome. What a lease may send of
them is bounded by credit: what it has spent is granted again as long as the run is not full of
outputs that nobody took. They are handed out as they come, so a consumer never waits for one that
is held back.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from .model import CANCELLED, LOST, TIMEOUT, USER

WAITING, SENT, DONE, FAILED, STOPPED = range(5)  # of one input; running is told by its chunk
_FINAL = bytes((DONE, FAILED, STOPPED))

# Sizes that hold for every run; there is no option to tune them.
TARGET = 0.02  # seconds of work that a chunk should be
BUDGET = 3 * TARGET  # after which a lease hands back what it has not started
AHEAD = 0.04  # inputs that take longer are not sent ahead: a round trip is nothing to them
GROWTH = 8  # how much larger than the last chunk the next may be
CHUNK_INPUTS = 50_000
CHUNK_BYTES = 4 << 20
READY_BYTES = 64 << 20  # of inputs read and not sent yet
OUTPUT_BYTES = 64 << 20  # of outputs that a consumer (keep=False) has not taken yet
WINDOW_INPUTS = 20_000  # read ahead of a consumer (keep=False), at most
CAREFUL_INPUTS = 256
UNLOADABLE = 3  # processes that may die before it is the function that can't be loaded
TRIM = 1 << 16


# --- events ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Read:
    """`n` more inputs were read, in `nbytes`.

    With `refused` they can't be pickled; with `taken` they are done, in an earlier run.
    """

    n: int
    nbytes: int
    refused: bool = False
    taken: bool = False


@dataclass(slots=True)
class End:
    """There are no more inputs."""


@dataclass(slots=True)
class Offer:
    """A lease has room for a chunk. `ahead`: it is still busy; `alone`: its process is not."""

    lease: str
    chunk: int
    slots: int
    ahead: bool = False
    alone: bool = False


@dataclass(slots=True)
class Began:
    """Input `index` has started."""

    chunk: int
    index: int


@dataclass(slots=True)
class Got:
    """Outcomes of `n` inputs from `start` on; `failed` are (index, kind)."""

    chunk: int
    start: int
    n: int
    failed: tuple[tuple[int, str], ...] = ()
    nbytes: int = 0


@dataclass(slots=True)
class Yielded:
    """Outputs of input `index` came, of `nbytes`; `new` of them nobody has had before."""

    chunk: int
    index: int
    nbytes: int
    new: int


@dataclass(slots=True)
class Again:
    """The time is over that input `index` had to wait before it is tried again."""

    index: int


@dataclass(slots=True)
class Overdue:
    """Input `index` has used up its timeout, or was cancelled, and did not end when it was asked."""

    chunk: int
    index: int


@dataclass(slots=True)
class Returned:
    """The inputs from `start` to the end of the chunk were handed back, not started."""

    chunk: int
    start: int


@dataclass(slots=True)
class Ended:
    """A lease has finished with a chunk: `ran` inputs in `seconds`."""

    chunk: int
    ran: int
    seconds: float


@dataclass(slots=True)
class Lost:
    """The lease of a chunk is gone.

    `died`: its process is dead. `current`: the lease was at this chunk, the others only waited
    there. `alone`: no other lease of the process had an input running. `charge`: whether the death
    may have been an input's doing; otherwise it was ours. `begun`: whether inputs may have started;
    those of a lease that has said Bye have not. `death`: a number that the leases share which ended
    together with their process; 0 is another one each time.
    """

    chunk: int
    died: bool
    current: bool = True
    alone: bool = False
    charge: bool = True
    begun: bool = True
    death: int = 0


@dataclass(slots=True)
class Cancel:
    """The user cancels one input, or with -1 the run."""

    index: int = -1


@dataclass(slots=True)
class GraceOver:
    """What was asked to stop has had its time."""


@dataclass(slots=True)
class Handed:
    """`n` more outcomes of `nbytes` were handed to the consumer."""

    n: int
    nbytes: int


@dataclass(slots=True)
class Await:
    """Somebody waits for an outcome that a full store (`keep_bytes`) holds up."""


@dataclass(slots=True)
class KeepBytes:
    """So many bytes of outputs may be kept that nobody was handed."""

    nbytes: int


@dataclass(slots=True)
class Break:
    """The cluster is gone; nothing more will come."""


Event = (
    Read
    | End
    | Offer
    | Began
    | Got
    | Yielded
    | Again
    | Overdue
    | Returned
    | Ended
    | Lost
    | Cancel
    | GraceOver
    | Handed
    | Await
    | KeepBytes
    | Break
)


# --- effects ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """Send the inputs `start` to `stop` to a lease as a chunk."""

    lease: str
    chunk: int
    start: int
    stop: int
    budget: float
    credit: int
    careful: bool


@dataclass(slots=True)
class Halt:
    """Ask a lease to stop input `index` of a chunk, or with -1 all of it."""

    lease: str
    chunk: int
    index: int


@dataclass(slots=True)
class Grant:
    """Let the generators of a chunk yield `nbytes` more."""

    lease: str
    chunk: int
    nbytes: int


@dataclass(slots=True)
class Later:
    """Input `index` is to be tried again in `seconds`."""

    index: int
    seconds: float


@dataclass(slots=True)
class Accept:
    """The outcomes of `start` to `stop`, of the event just handled, count."""

    start: int
    stop: int


@dataclass(slots=True)
class Settle:
    """The inputs `start` to `stop` ended without an outcome of their own: lost, cancelled, overdue.

    With `unloadable` they are lost because every process dies that loads the function.
    """

    start: int
    stop: int
    kind: str
    unloadable: bool = False


@dataclass(slots=True)
class Allow:
    """Inputs may be read until `upto` have been."""

    upto: int


@dataclass(slots=True)
class StopReading:
    """No input will be needed any more."""


@dataclass(slots=True)
class Finish:
    """The run has ended: finished, cancelled, stopped or broken."""

    status: str


Effect = Send | Halt | Grant | Later | Accept | Settle | Allow | StopReading | Finish


# --- the state -------------------------------------------------------------------------------


@dataclass(slots=True)
class Flight:
    """A chunk that is with a lease: outcomes came up to `pos`; `cur` was last known to run."""

    lease: str
    pos: int
    stop: int
    cur: int
    nbytes: int
    careful: bool
    halted: bool = False
    owed: int = 0  # bytes of outputs that came and were not granted again
    seen: bool = False  # a start mark came, so that cur is a fact


@dataclass(slots=True)
class RunState:
    """One run; `handle` is its only door.

    Args:
        total: number of inputs, where known.
        keep: whether all outcomes are kept, so that no consumer is waited for.
        slots: leases that the run may expect, for how far to read ahead before any is there.
        worker_losses: deaths of a process that an input may cause before it is lost.
        too_many: tells from (failed, finished) whether the run is to be stopped.
        keep_bytes: bytes of outputs that may wait to be handed out before the run pauses.
        stream: whether the function is a generator's.
        single: whether a chunk has to be one input, as it has a timeout.
        retries: how often an input is tried again after a failure of the user's or a timeout.
        delay: tells from the number of a retry, from 1, how many seconds it waits.
    """

    total: int | None = None
    keep: bool = True
    slots: int = 1
    worker_losses: int = 2
    too_many: Callable[[int, int], bool] | None = None
    keep_bytes: int = OUTPUT_BYTES
    stream: bool = False
    single: bool = False
    retries: int = 0
    delay: Callable[[int], float] = float  # the number itself; a run says otherwise

    status: str = "running"
    column: bytearray = field(default_factory=bytearray)  # status of the inputs from base on
    base: int = 0
    read: int = 0
    ended: bool = False
    ready: list[tuple[int, int]] = field(default_factory=list)  # ranges that wait, ascending
    suspects: list[tuple[int, int]] = field(default_factory=list)
    flights: dict[int, Flight] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    extra: dict[int, int] = field(default_factory=dict)  # attempts beyond the first
    tried: dict[int, int] = field(default_factory=dict)  # retries that were used up
    later: set[int] = field(default_factory=set)  # that wait for their time to be tried again
    doomed: set[int] = field(default_factory=set)  # to be cancelled as soon as they wait here
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    handed: int = 0
    skipped: int = 0  # of those, inputs that were never read
    unread_bytes: int = 0  # of outputs that nobody was handed yet
    awaited: bool = False  # somebody waits though the run is full
    ready_count: int = 0
    per: float | None = None  # seconds an input, lately
    size: int = 1  # inputs that the next chunk may have
    weight: float = 0.0  # bytes an input
    ending: str = ""  # the status that a cancelled or stopped run is going to have
    allowed: int = 0
    loaded: bool = False  # the function could be loaded somewhere
    unstarted: int = 0  # processes that died before that
    last_death: int = 0  # the number of the last of them
    unloadable: bool = False

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; return what has to be done about it, in order."""
        effects: list[Effect] = []
        if self.status == "running":
            _HANDLERS[type(event)](self, event, effects)
            if self.status == "running":
                self._conclude(effects)
        return effects

    # -- reading

    def _on_read(self, event: Read, out: list[Effect]) -> None:
        if self.ended:  # what was under way when the run was stopped
            return
        start, self.read = self.read, self.read + event.n
        if event.refused:
            self.column += bytes([FAILED]) * event.n
            self.failed += event.n
            self._check_failures(out)
            return
        if event.taken:
            self.column += bytes([DONE]) * event.n
            self.done += event.n
            return
        self.column += bytes(event.n)
        if self.total is not None and self.read > self.total:
            self.total = None  # there are more than the length said
        if self.unloadable:
            self._fail(start, self.read, out)
            return
        share = event.nbytes / event.n
        self.weight = share if not self.weight else 0.5 * (self.weight + share)
        self._wait(start, self.read)
        self._cancel_doomed(start, self.read, out)

    def _on_end(self, _event: End, _out: list[Effect]) -> None:
        self.ended = True
        self.total = self.read

    # -- sending

    def _on_offer(self, event: Offer, out: list[Effect]) -> None:
        self.slots = max(1, event.slots)
        if self.ending:
            return
        if self.unstarted and not self.loaded and (self.suspects or self.ready):
            # Where inputs were handed back while it took long to load, there are no suspects.
            if event.alone == bool(self.suspects) and not self.flights:
                # Others that load it now would tell as much.
                start = (self.suspects or self.ready)[0][0]
                self._send(event, start, start, out, careful=True)
            return
        if event.alone:
            if self.suspects:
                start, stop = self.suspects.pop(0)
                if stop - start > CAREFUL_INPUTS:
                    self.suspects.insert(0, (start + CAREFUL_INPUTS, stop))
                    stop = start + CAREFUL_INPUTS
                self._send(event, start, stop, out, careful=True)
            return
        if not self.ready or (event.ahead and not self._worth_sending_ahead()):
            return
        start, stop = self.ready[0]
        if not self._room_for(start):
            return
        stop = min(stop, start + self._chunk_inputs())
        if stop == self.ready[0][1]:
            del self.ready[0]
        else:
            self.ready[0] = (stop, self.ready[0][1])
        self.ready_count -= stop - start
        self._send(event, start, stop, out, careful=False)

    def _worth_sending_ahead(self) -> bool:
        return not self.single and self.per is not None and self.per < AHEAD

    def _chunk_inputs(self) -> int:
        """Return how many inputs the next chunk may have, within time, bytes and a fair share."""
        if self.single:
            return 1
        left = self.ready_count
        if self.total is not None:
            left += self.total - self.read
        share = ceil(left / (2 * self.slots))
        size = min(self.size, CHUNK_INPUTS, share)
        if self.weight:
            size = min(size, int(CHUNK_BYTES / self.weight))
        return max(1, size)

    def _room_for(self, start: int) -> bool:
        """Hold back while there is too much that nobody took; never what somebody waits for.

        The lowest input that has no outcome may always go, so that whatever waits for it can't
        starve it; where outputs are kept only if somebody does wait.
        """
        if not self.full:
            return True
        if not self.awaited if self.keep else self.stream:
            return False
        return all(start < flight.pos for flight in self.flights.values())

    def _send(
        self, offer: Offer, start: int, stop: int, out: list[Effect], *, careful: bool
    ) -> None:
        self.column[start - self.base : stop - self.base] = bytes([SENT]) * (stop - start)
        credit = OUTPUT_BYTES // (4 if self.keep else 2 * max(1, self.slots))
        self.flights[offer.chunk] = Flight(offer.lease, start, stop, start, credit, careful)
        budget = 3600.0 if careful else BUDGET
        out.append(Send(offer.lease, offer.chunk, start, stop, budget, credit, careful))

    # -- what comes back

    def _on_began(self, event: Began, _out: list[Effect]) -> None:
        if (flight := self.flights.get(event.chunk)) is not None:
            self.loaded = True
            flight.cur = max(flight.cur, event.index)
            flight.seen = True

    def _on_got(self, event: Got, out: list[Effect]) -> None:
        flight = self.flights.get(event.chunk)
        if flight is None:  # of a lease that was given up, or after the grace
            return
        self.loaded = True
        stop = event.start + event.n
        if event.start != flight.pos or stop > flight.stop:
            msg = f"outcomes {event.start}-{stop} do not follow {flight.pos} of {flight.stop}"
            raise AssertionError(msg)
        column, base = self.column, self.base
        column[event.start - base : stop - base] = bytes([DONE]) * event.n
        self.done += event.n
        start = event.start
        for index, kind in event.failed:
            self.done -= 1
            if self._try_again(index, kind, out):
                if start < index:
                    out.append(Accept(start, index))
                start = index + 1
            elif kind == CANCELLED:
                column[index - base] = STOPPED
                self.cancelled += 1
            else:
                column[index - base] = FAILED
                self.failed += 1
        if self.doomed:
            self.doomed.difference_update(range(event.start, stop))
        flight.pos = stop
        if flight.cur < stop:
            flight.cur, flight.seen = stop, False
        self.unread_bytes += event.nbytes
        if start < stop:
            out.append(Accept(start, stop))
        if event.failed:
            self._check_failures(out)

    def _try_again(self, index: int, kind: str, out: list[Effect]) -> bool:
        """Have a failed input wait for another attempt, if it has one left."""
        used = self.tried.get(index, 0)
        wanted = kind in {USER, TIMEOUT} and used < self.retries
        if not wanted or self.ending or index in self.doomed:
            return False
        self.tried[index] = used + 1
        self.extra[index] = self.extra.get(index, 0) + 1
        self.column[index - self.base] = WAITING
        self.later.add(index)
        out.append(Later(index, self.delay(used + 1)))
        return True

    def _on_again(self, event: Again, _out: list[Effect]) -> None:
        if event.index in self.later:
            self.later.discard(event.index)
            self._wait(event.index, event.index + 1)

    def _on_yielded(self, event: Yielded, out: list[Effect]) -> None:
        flight = self.flights.get(event.chunk)
        if flight is None:
            return
        self.loaded = True
        if event.index >= flight.cur:
            flight.cur, flight.seen = event.index, True
        self.unread_bytes += event.new
        flight.owed += event.nbytes
        self._grant(out)

    def _grant(self, out: list[Effect]) -> None:
        """Grant again what was spent, in pieces that are worth a message."""
        flights = list(self.flights.items())
        if self.full:  # of those that somebody waits for, the lowest may go on
            flights = [min(flights, key=lambda f: f[1].pos)] if self.awaited and flights else []
        for chunk, flight in flights:
            if flight.owed >= flight.nbytes // 4 and flight.owed:
                out.append(Grant(flight.lease, chunk, flight.owed))
                flight.owed = 0

    def _on_overdue(self, event: Overdue, out: list[Effect]) -> None:
        flight = self.flights.get(event.chunk)
        if flight is None or not flight.pos <= event.index < flight.stop:
            return
        del self.flights[event.chunk]
        if flight.halted:
            self._settle(flight.pos, flight.stop, out)
            return
        for start, stop in ((flight.pos, event.index), (event.index + 1, flight.stop)):
            self._count(start, stop)  # its lease may be at them yet
            self._wait(start, stop, suspect=flight.careful)
            self._cancel_doomed(start, stop, out)
        if event.index in self.doomed:
            self.doomed.discard(event.index)
            self._settle(event.index, event.index + 1, out)
        elif not self._try_again(event.index, TIMEOUT, out):
            self.column[event.index - self.base] = FAILED
            self.failed += 1
            out.append(Settle(event.index, event.index + 1, TIMEOUT))
        self._check_failures(out)

    def _check_failures(self, out: list[Effect]) -> None:
        if self.too_many and not self.ending:
            finished = self.done + self.failed
            if self.too_many(self.failed, finished):
                self._stop("stopped", out)

    def _on_returned(self, event: Returned, out: list[Effect]) -> None:
        flight = self.flights.get(event.chunk)
        if flight is None or flight.halted:
            return
        start = max(event.start, flight.pos)
        if start < flight.stop:
            stop, flight.stop = flight.stop, start
            self._wait(start, stop, suspect=flight.careful)
            self._cancel_doomed(start, stop, out)

    def _on_ended(self, event: Ended, out: list[Effect]) -> None:
        flight = self.flights.pop(event.chunk, None)
        if flight is None:
            return
        self.loaded = True
        if event.ran:
            per = max(event.seconds / event.ran, 1e-8)
            self.per = per if self.per is None else 0.5 * (self.per + per)
            if not flight.careful:
                grown = max(self.size // 2, event.ran * GROWTH)
                self.size = max(1, min(CHUNK_INPUTS, int(TARGET / self.per), grown))
        if flight.pos < flight.stop:
            if flight.halted:
                self._settle(flight.pos, flight.stop, out)
            else:  # a lease that ends in the middle has handed back before; be safe
                self._wait(flight.pos, flight.stop, suspect=flight.careful)
                self._cancel_doomed(flight.pos, flight.stop, out)

    def _on_lost(self, event: Lost, out: list[Effect]) -> None:
        flight = self.flights.pop(event.chunk, None)
        if flight is None:
            return
        if event.died and event.current and event.charge and not self.loaded:
            self.unstarted += not event.death or event.death != self.last_death
            self.last_death = event.death
            if flight.pos == flight.stop and self.unstarted >= UNLOADABLE:
                self._fail_all(out)
        if flight.pos >= flight.stop:
            return
        if flight.halted:
            self._settle(flight.pos, flight.stop, out)
            return
        self._lose(event, flight, out)
        self._cancel_doomed(flight.pos, flight.stop, out)

    def _lose(self, event: Lost, flight: Flight, out: list[Effect]) -> None:
        if event.begun:
            # What has begun and was not told of can't be known, behind the chunk that was current
            # neither: its end may have been lost. Of what ran twice two attempts have to be shown.
            exact = event.died and event.current and flight.careful
            self._count(flight.pos, flight.cur + 1 if exact else flight.stop)
        if not (event.died and event.current):
            # Behind a chunk whose end may have died untold with the process it may have run too.
            self._wait(flight.pos, flight.stop, suspect=flight.careful or event.died)
            return
        # A careful chunk marks every start, so only the one at cur can have been running.
        last = flight.cur + 1 if flight.careful else flight.stop
        if flight.pos < flight.cur:
            self._wait(flight.pos, flight.cur)
        if last < flight.stop:
            self._wait(last, flight.stop, suspect=True)
        if not event.charge or (flight.careful and not flight.seen):
            self._wait(flight.cur, last, suspect=True)
            return
        # Its start must be known, and nothing behind it: what was done may have died untold.
        behind = any(other.lease == flight.lease for other in self.flights.values())
        exact = event.alone and flight.seen and last - flight.cur == 1 and not behind
        self._blame(flight.cur, last, out, exact=exact)

    def _blame(self, start: int, stop: int, out: list[Effect], *, exact: bool) -> None:
        for index in range(start, stop):
            deaths = self.deaths.get(index, 0) + 1
            # One of several that may have done it is never given up for it: next it runs alone.
            self.deaths[index] = deaths if exact else min(deaths, self.worker_losses - 1)
            if self.deaths[index] >= self.worker_losses:
                # A start may have died untold with its process; each death was an attempt.
                self.extra[index] = max(self.extra.get(index, 0), self.deaths[index])
                self._wait(start, index, suspect=True)
                start = index + 1
                self.column[index - self.base] = FAILED
                self.failed += 1
                out.append(Settle(index, index + 1, LOST))
        self._wait(start, stop, suspect=True)
        self._check_failures(out)

    def _fail_all(self, out: list[Effect]) -> None:
        """Fail what has no outcome yet: every process dies that loads the function."""
        if self.ending:
            return
        self.unloadable = True
        ranges = self.ready + self.suspects + [(index, index + 1) for index in self.later]
        ranges += [(f.pos, f.stop) for f in self.flights.values() if f.pos < f.stop]
        out += [Halt(flight.lease, chunk, -1) for chunk, flight in self.flights.items()]
        self.ready, self.suspects, self.ready_count = [], [], 0
        self.later.clear()
        self.flights.clear()
        for start, stop in sorted(ranges):
            self._fail(start, stop, out)
        self._check_failures(out)

    def _fail(self, start: int, stop: int, out: list[Effect]) -> None:
        self.column[start - self.base : stop - self.base] = bytes([FAILED]) * (stop - start)
        self.failed += stop - start
        out.append(Settle(start, stop, LOST, unloadable=True))

    # -- the consumer and the user

    def _on_handed(self, event: Handed, out: list[Effect]) -> None:
        self.handed += event.n
        self.unread_bytes = max(0, self.unread_bytes - event.nbytes)
        self.awaited = False
        if self.stream:
            self._grant(out)
        while (
            not self.keep
            and len(self.column) > TRIM
            and not self.column[:TRIM].translate(None, _FINAL)
        ):
            del self.column[:TRIM]
            self.base += TRIM

    def _on_await(self, _event: Await, out: list[Effect]) -> None:
        self.awaited = self.keep
        if self.stream:
            self._grant(out)

    def _on_keep_bytes(self, event: KeepBytes, out: list[Effect]) -> None:
        self.keep_bytes = event.nbytes
        if self.stream:
            self._grant(out)

    def _on_cancel(self, event: Cancel, out: list[Effect]) -> None:
        if event.index < 0:
            self._stop("cancelled", out)
        elif event.index >= self.read:
            if not self.ended and (self.total is None or event.index < self.total):
                self.doomed.add(event.index)
                # It is settled when it is read; a sized run that keeps all can read it now.
                if self.keep and self.total is not None and event.index >= self.allowed:
                    self.allowed = event.index + 1
                    out.append(Allow(self.allowed))
        elif event.index >= self.base:
            self._cancel_one(event.index, out)

    def _cancel_one(self, index: int, out: list[Effect]) -> None:
        status = self.column[index - self.base]
        if status == WAITING:
            for ranges in (self.ready, self.suspects):
                for at, (start, stop) in enumerate(ranges):
                    if start <= index < stop:
                        ranges[at : at + 1] = [
                            r for r in ((start, index), (index + 1, stop)) if r[0] < r[1]
                        ]
                        self.ready_count -= ranges is self.ready
            self.later.discard(index)
            self._settle(index, index + 1, out)
        elif status == SENT:
            for chunk, flight in self.flights.items():
                if flight.pos <= index < flight.stop:
                    self.doomed.add(index)  # for the case that it comes back without an outcome
                    out.append(Halt(flight.lease, chunk, index))

    def _cancel_doomed(self, start: int, stop: int, out: list[Effect]) -> None:
        """Cancel what was asked to be, of a range that waits (again)."""
        for index in [i for i in self.doomed if start <= i < stop]:
            self.doomed.discard(index)
            if self.column[index - self.base] == WAITING:
                self._cancel_one(index, out)

    def _stop(self, status: str, out: list[Effect]) -> None:
        """Stop the run: what waits at once, what is with a lease by asking."""
        if self.ending:
            return
        self.ending = status
        out.append(StopReading())
        self.ended = True
        if self.total is not None and self.read < self.total:
            self.skipped = self.total - self.read  # no byte for each: there may be a billion
            self.cancelled += self.skipped
        waiting, self.ready, self.suspects = self.ready + self.suspects, [], []
        waiting += [(index, index + 1) for index in self.later]
        self.later.clear()
        self.ready_count = 0
        for start, stop in sorted(waiting):
            self._settle(start, stop, out)
        for chunk, flight in self.flights.items():
            flight.halted = True
            out.append(Halt(flight.lease, chunk, -1))

    def _on_grace_over(self, _event: GraceOver, out: list[Effect]) -> None:
        if self.ending:
            for chunk in list(self.flights):
                flight = self.flights.pop(chunk)
                if flight.pos < flight.stop:
                    self._settle(flight.pos, flight.stop, out)

    def _on_break(self, _event: Break, out: list[Effect]) -> None:
        out.append(StopReading())
        self._finish("broken", out)

    # -- shared

    def _count(self, start: int, stop: int) -> None:
        """Count an attempt of each input of a range that is going to be tried again."""
        for index in range(start, stop):
            self.extra[index] = self.extra.get(index, 0) + 1

    def _wait(self, start: int, stop: int, *, suspect: bool = False) -> None:
        """Let a range wait (again), joined with the ranges that it touches."""
        if start >= stop:
            return
        self.column[start - self.base : stop - self.base] = bytes(stop - start)
        if suspect:
            insort(self.suspects, (start, stop))
            return
        self.ready_count += stop - start
        if self.ready and self.ready[-1][1] == start:
            self.ready[-1] = (self.ready[-1][0], stop)
            return
        insort(self.ready, (start, stop))

    def _settle(self, start: int, stop: int, out: list[Effect]) -> None:
        if start >= stop:
            return
        self.column[start - self.base : stop - self.base] = bytes([STOPPED]) * (stop - start)
        self.cancelled += stop - start
        out.append(Settle(start, stop, CANCELLED))

    def _conclude(self, out: list[Effect]) -> None:
        if self.ended and self.settled == self.read + self.skipped and not self._busy():
            self._finish(self.ending or "finished", out)
            return
        upto = self._may_read()
        if not self.ended and upto > self.allowed:
            self.allowed = upto
            out.append(Allow(upto))

    def _busy(self) -> bool:
        return any(flight.pos < flight.stop for flight in self.flights.values())

    def _finish(self, status: str, out: list[Effect]) -> None:
        self.status = status
        out.append(Finish(status))

    def _may_read(self) -> int:
        """Return up to which number inputs may be read: enough for every slot, no more."""
        ready = max(2 * self.slots, 3 * self.slots * self.size)
        if self.weight:
            ready = min(ready, max(2 * self.slots, int(READY_BYTES / self.weight)))
        upto = self.read - self.ready_count + ready
        if not self.keep:
            window = min(WINDOW_INPUTS, max(4 * self.slots, 6 * self.slots * self.size))
            upto = min(upto, self.handed + window)
        # One more than there are: the reader has to meet the end.
        return upto if self.total is None else min(upto, self.total + 1)

    # -- for those who look

    @property
    def settled(self) -> int:
        """Number of inputs that have ended."""
        return self.done + self.failed + self.cancelled

    @property
    def full(self) -> bool:
        """Whether the run pauses for outputs that nobody was handed."""
        return self.unread_bytes >= self.keep_bytes

    @property
    def waiting(self) -> int:
        """Number of inputs that wait, those that were not read yet among them."""
        unread = max(0, self.total - self.read) if self.total is not None else 0
        suspects = sum(stop - start for start, stop in self.suspects)
        return self.ready_count + suspects + len(self.later) + (0 if self.ending else unread)

    def counts(self) -> dict[str, int]:
        """Return the number of inputs in each status."""
        leases = {f.lease for f in self.flights.values() if f.pos < f.stop}
        away = sum(f.stop - f.pos for f in self.flights.values())
        return {
            "waiting": self.waiting,
            "sent": away - len(leases),
            "running": len(leases),
            "done": self.done,
            "failed": self.failed,
            "cancelled": self.cancelled,
        }

    def attempts(self, index: int) -> int:
        """Return how many times an input has been tried."""
        return 1 + self.extra.get(index, 0)


_HANDLERS: dict[type, Callable[[RunState, Any, list[Effect]], None]] = {
    Read: RunState._on_read,  # noqa: SLF001
    End: RunState._on_end,  # noqa: SLF001
    Offer: RunState._on_offer,  # noqa: SLF001
    Began: RunState._on_began,  # noqa: SLF001
    Got: RunState._on_got,  # noqa: SLF001
    Yielded: RunState._on_yielded,  # noqa: SLF001
    Again: RunState._on_again,  # noqa: SLF001
    Overdue: RunState._on_overdue,  # noqa: SLF001
    Returned: RunState._on_returned,  # noqa: SLF001
    Ended: RunState._on_ended,  # noqa: SLF001
    Lost: RunState._on_lost,  # noqa: SLF001
    Cancel: RunState._on_cancel,  # noqa: SLF001
    GraceOver: RunState._on_grace_over,  # noqa: SLF001
    Handed: RunState._on_handed,  # noqa: SLF001
    Await: RunState._on_await,  # noqa: SLF001
    KeepBytes: RunState._on_keep_bytes,  # noqa: SLF001
    Break: RunState._on_break,  # noqa: SLF001
}
