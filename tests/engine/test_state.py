"""Histories of a run, made up by hypothesis and played on a small cluster of the test's own."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from nbmap.engine import state
from nbmap.engine.model import CANCELLED, LOST, TIMEOUT, USER
from nbmap.engine.state import RunState

INPUTS = 150  # of one history


@dataclass
class Chunk:
    """A chunk as the worker sees it; near and far know different things of it."""

    id: int
    start: int
    stop: int
    careful: bool
    at: int  # the next input to start
    sent: int  # outcomes before this one were written to the stream
    running: int | None = None
    outcomes: list = field(default_factory=list)  # None or the kind of failure
    unwanted: set = field(default_factory=set)
    ran: int = 0
    credit: int = 0  # bytes that its generators may still spend
    paused: bool = False


@dataclass
class Lease:
    name: str
    process: int
    far: deque = field(default_factory=deque)  # chunks that it has
    near: list = field(default_factory=list)  # chunks that it has as far as is known here
    wire: deque = field(default_factory=deque)  # events on their way here
    stops: list = field(default_factory=list)  # requests on their way there


class Cluster:
    """Processes with leases, a reader and a consumer around one RunState.

    Whatever is written on a stream arrives in order, late, or with the loss of the stream not at
    all. What the effects say is checked as it comes.
    """

    def __init__(self, run, *, processes, leases, ordered=True):
        self.run = run
        self.ordered = ordered
        self.leases = []
        self.chunk = 0
        self.names = 0
        self.allowed = 0
        self.read = 0
        self.total = run.total
        self.ended = False
        self.finals = {}  # index -> status
        self.handed = 0
        self.cancelled_all = False
        self.singled = set()
        self.finished = []
        self.deaths = 0
        self.starts = Counter()  # of each input, on whatever worker
        self.later = set()  # inputs that are to be tried again
        self.grants = 0
        self.sends = []
        self.solo = {}  # process -> chunk
        self.given_up = []  # leases that are gone from here and go on where they are
        for process in range(processes):
            for _ in range(leases):
                self.add_lease(process)
        self.feed(state.Handed(0, 0))

    def add_lease(self, process):
        self.names += 1
        self.leases.append(Lease(f"lease-{self.names}", process))

    # -- events in, effects out

    def feed(self, event):
        effects = self.run.handle(event)
        for effect in effects:
            assert not self.finished, f"{effect} after the end"
            self.take(effect, event)
        for index, status in self.finals.items():
            if index >= self.run.base:
                assert self.run.column[index - self.run.base] == status
        return effects

    def take(self, effect, event):
        if isinstance(effect, state.Send):
            self.take_send(effect)
        elif isinstance(effect, state.Accept):
            assert isinstance(event, state.Got)
            assert event.start <= effect.start < effect.stop <= event.start + event.n
            failed = dict(event.failed)
            assert not self.later & set(range(effect.start, effect.stop))
            for index in range(effect.start, effect.stop):
                kind = failed.get(index)
                self.settle(index, _STATUS.get(kind, state.FAILED))
        elif isinstance(effect, state.Settle):
            assert effect.start < effect.stop
            for index in range(effect.start, effect.stop):
                late = effect.kind in {LOST, TIMEOUT}
                self.settle(index, state.FAILED if late else state.STOPPED)
                self.later.discard(index)
        elif isinstance(effect, state.Later):
            assert effect.index not in self.finals
            assert self.run.tried[effect.index] <= self.run.retries
            self.later.add(effect.index)
        elif isinstance(effect, state.Grant):
            assert effect.nbytes > 0
            assert self.run.stream
            self.grants += 1
            for lease in self.leases:
                for chunk in lease.far if lease.name == effect.lease else ():
                    chunk.credit += effect.nbytes if chunk.id == effect.chunk else 0
        elif isinstance(effect, state.Halt):
            for lease in self.leases:
                if lease.name == effect.lease:
                    lease.stops.append((effect.chunk, effect.index))
        elif isinstance(effect, state.Allow):
            assert effect.upto > self.allowed
            if self.total is not None:
                assert effect.upto <= self.total + 1
            if not self.run.keep:
                slots = self.run.slots
                window = min(state.WINDOW_INPUTS, max(4 * slots, 6 * slots * self.run.size))
                assert effect.upto <= self.handed + window
            self.allowed = effect.upto
        elif isinstance(effect, state.Finish):
            self.finished.append(effect.status)

    def take_send(self, effect):
        assert not self.cancelled_all
        empty = effect.start == effect.stop  # to find out whether the function can be loaded
        assert not empty or (effect.careful and not self.run.loaded and self.deaths)
        assert empty or 0 <= effect.start < effect.stop <= self.read
        away = {
            index
            for flight in self.run.flights.items()
            if flight[0] != effect.chunk
            for index in range(flight[1].pos, flight[1].stop)
        }
        for index in range(effect.start, effect.stop):
            assert index not in away, f"{index} is sent while it is with another lease"
            assert index not in self.finals, f"{index} is sent though it has ended"
        self.sends.append(effect)

    def settle(self, index, status):
        assert index not in self.finals, f"{index} ends twice"
        self.finals[index] = status

    # -- the reader and the consumer

    def may_read(self):
        more = min(self.allowed, INPUTS) - self.read
        return more if self.total is None else min(more, self.total - self.read)

    def read_some(self, n, *, refused=False):
        n = 1 if refused else min(n, self.may_read())
        first, self.read = self.read, self.read + n
        if refused:  # what can't be pickled has its outcome from the start
            self.finals[first] = state.FAILED
        self.feed(state.Read(n, 0 if refused else 10 * n, refused))

    def may_end(self):
        return not self.ended and (
            self.read < self.allowed and self.read == self.total
            if self.total is not None
            else self.read < self.allowed or self.read >= INPUTS
        )

    def end(self):
        self.ended = True
        self.feed(state.End())

    def hand_out(self, n):
        """Hand out what is there: in input order its head, else anything."""
        there = len(self.finals) - self.handed
        if self.ordered:
            there = 0
            while self.handed + there in self.finals and there < n:
                there += 1
        n = min(n, there)
        unread = len(self.finals) - self.handed
        nbytes = self.run.unread_bytes * n // unread if unread else 0
        if self.run.stream and n == there:  # outputs are handed out before their input ends
            nbytes = self.run.unread_bytes
        self.handed += n
        if n or nbytes:
            self.feed(state.Handed(n, nbytes))

    def cancel(self, index):
        if index < 0:
            self.cancelled_all = True
        else:
            self.singled.add(index)
        self.feed(state.Cancel(index))
        self.ended = self.ended or bool(self.run.ending)

    # -- leases

    def offer(self, lease, *, alone=False):
        inside = [other for other in self.leases if other.process == lease.process]
        if alone:
            if any(other.near for other in inside):
                return False
        elif len(lease.near) > 1 or lease.process in self.solo:
            return False
        self.chunk += 1
        n = len(self.leases)
        before = len(self.sends)
        self.feed(state.Offer(lease.name, self.chunk, n, bool(lease.near), alone))
        if len(self.sends) == before:
            return False
        sent = self.sends[-1]
        careful = alone or sent.start == sent.stop  # which tries whether the function can be loaded
        assert (sent.lease, sent.chunk, sent.careful) == (lease.name, self.chunk, careful)
        lease.near.append(self.chunk)
        start = sent.start
        chunk = Chunk(self.chunk, start, sent.stop, sent.careful, start, start)
        chunk.credit = sent.credit
        lease.far.append(chunk)
        if alone:
            self.solo[lease.process] = self.chunk
        return True

    def begin(self, lease):
        """Start the next input; return its index, or None where there is none."""
        if not lease.far or lease.far[0].running is not None:
            return None
        chunk = lease.far[0]
        if chunk.at >= chunk.stop:
            return None
        chunk.running, chunk.at = chunk.at, chunk.at + 1
        self.starts[chunk.running] += 1
        if chunk.careful:
            lease.wire.append(state.Began(chunk.id, chunk.running))
            self.deliver(lease)
        return chunk.running

    def yields(self, lease, nbytes):
        """The running generator yields, where it has credit; what it yields is on the wire."""
        chunk = lease.far[0] if lease.far else None
        if chunk is None or chunk.running is None or not self.run.stream:
            return False
        if chunk.credit <= 0:
            return False
        self.flush(lease)
        chunk.credit -= nbytes
        lease.wire.append(state.Yielded(chunk.id, chunk.running, nbytes, nbytes))
        return True

    def again(self):
        """The time is over that inputs had to wait for another attempt."""
        for index in sorted(self.later):
            self.later.discard(index)
            self.feed(state.Again(index))

    def overdue(self, lease):
        """The running input has used up its timeout and does not stop."""
        chunk = lease.far[0] if lease.far else None
        if chunk is not None and chunk.running is not None:
            self.deliver(lease)
            self.feed(state.Overdue(chunk.id, chunk.running))

    def end_input(self, lease, kind=None):
        if not lease.far or lease.far[0].running is None:
            return
        chunk = lease.far[0]
        unwanted = {-1, chunk.running} & chunk.unwanted
        chunk.outcomes.append(kind or (CANCELLED if unwanted else None))
        chunk.running, chunk.ran = None, chunk.ran + 1

    def flush(self, lease):
        for chunk in list(lease.far)[:1]:
            if n := len(chunk.outcomes):
                failed = tuple((chunk.sent + i, k) for i, k in enumerate(chunk.outcomes) if k)
                lease.wire.append(state.Got(chunk.id, chunk.sent, n, failed, 10 * n))
                chunk.sent, chunk.outcomes = chunk.sent + n, []

    def mark(self, lease):
        """Tell of the running input, as the keeper does; outcomes before it may still be held."""
        if lease.far and lease.far[0].running is not None:
            lease.wire.append(state.Began(lease.far[0].id, lease.far[0].running))

    def hand_back(self, lease, *, waiting=False):
        if waiting:
            while len(lease.far) > 1:
                chunk = lease.far.pop()
                lease.wire.append(state.Returned(chunk.id, chunk.start))
                lease.wire.append(state.Ended(chunk.id, 0, 0.0))
        elif lease.far and lease.far[0].at < lease.far[0].stop:
            chunk = lease.far[0]
            lease.wire.append(state.Returned(chunk.id, chunk.at))
            chunk.stop = chunk.at

    def end_chunk(self, lease, seconds=0.001):
        chunk = lease.far[0] if lease.far else None
        if chunk is not None and chunk.running is None and chunk.at >= chunk.stop:
            self.flush(lease)
            lease.far.popleft()
            lease.wire.append(state.Ended(chunk.id, chunk.ran, seconds * chunk.ran))

    def hear(self, lease):
        """Let requests to stop arrive at the worker."""
        for chunk_id, index in lease.stops:
            for chunk in lease.far:
                if chunk.id == chunk_id:
                    chunk.unwanted.add(index)
                    if index < 0:
                        chunk.stop = chunk.at
        lease.stops.clear()

    def deliver(self, lease, n=1 << 30):
        while lease.wire and n:
            n -= 1
            event = lease.wire.popleft()
            if isinstance(event, state.Ended):
                lease.near.remove(event.chunk)
                if self.solo.get(lease.process) == event.chunk:
                    del self.solo[lease.process]
            self.feed(event)

    def lose(self, leases, *, died, charge=True, anew=True):
        alone = sum(bool(lease.near) for lease in leases) == 1
        for lease in leases:
            self.leases.remove(lease)
            for at, chunk in enumerate(lease.near):
                self.feed(state.Lost(chunk, died, at == 0, alone, charge, death=self.deaths))
                if self.solo.get(lease.process) == chunk:
                    del self.solo[lease.process]
            if anew:
                self.add_lease(lease.process)

    def join(self):
        """A process joins, with one lease."""
        self.add_lease(1 + max(lease.process for lease in self.leases))

    def retire(self, process):
        """A process goes on request: what has not started comes back, the rest is lost untold."""
        leases = [lease for lease in self.leases if lease.process == process]
        if len(leases) == len(self.leases):
            self.join()
        for lease in leases:
            self.hand_back(lease, waiting=True)
            self.hand_back(lease)
            self.end_chunk(lease)
            self.deliver(lease)
        self.lose(leases, died=True, charge=False, anew=False)

    def give_up(self, lease):
        """A lease is lost here, and does not know it: what it has to say comes late."""
        self.lose([lease], died=False)
        self.given_up.append(lease)

    def speak_late(self):
        """Let leases that were given up do all that they have, and hear of it."""
        before = dict(self.finals)
        while self.given_up:
            lease = self.given_up.pop()
            for chunk in lease.far:
                while chunk.running is not None or chunk.at < chunk.stop:
                    if chunk.running is None:
                        chunk.running, chunk.at = chunk.at, chunk.at + 1
                    chunk.outcomes.append(None)
                    chunk.running = None
                if n := len(chunk.outcomes):
                    lease.wire.append(state.Began(chunk.id, chunk.sent))
                    lease.wire.append(state.Got(chunk.id, chunk.sent, n, (), 10 * n))
                lease.wire.append(state.Ended(chunk.id, len(chunk.outcomes), 0.001))
            for event in lease.wire:
                self.feed(event)
        assert self.finals == before, "what came late counted"

    def break_down(self):
        """The cluster is gone; whatever is heard afterwards changes nothing."""
        self.ended = True
        self.feed(state.Break())

    def die(self, process, arrives=1 << 30):
        """A process dies; of what it had written at most `arrives` messages a lease still come."""
        self.deaths += 1
        leases = [lease for lease in self.leases if lease.process == process]
        for lease in leases:
            self.deliver(lease, arrives)
        self.lose(leases, died=True)

    # -- what has to hold at any time

    def check(self):
        run = self.run
        places = [0] * run.read
        for ranges in (run.ready, run.suspects):
            for start, stop in ranges:
                assert 0 <= start < stop <= run.read
                for index in range(start, stop):
                    places[index] += 1
        for flight in run.flights.values():
            for index in range(flight.pos, flight.stop):
                places[index] += 1
        for index in self.finals:
            places[index] += 1
        for index in run.later:
            places[index] += 1
        assert run.later == self.later or run.ending or run.status == "broken"
        uncounted = {i: n for i, n in self.starts.items() if n > run.attempts(i)}
        assert not uncounted, f"more starts than attempts: {uncounted}"
        if run.status != "broken":
            assert all(n == 1 for n in places), f"inputs in {places} places"
        for ranges in (run.ready, run.suspects):
            assert all(a[1] <= b[0] for a, b in pairwise(ranges))
        assert run.ready_count == sum(stop - start for start, stop in run.ready)
        status = list(self.finals.values())
        assert run.done == status.count(state.DONE)
        assert run.failed == status.count(state.FAILED)
        assert run.cancelled == status.count(state.STOPPED) + run.skipped
        counts = run.counts()
        known = run.read if run.total is None else max(run.read, run.total)
        if run.status in {"running", "finished"}:
            assert sum(counts.values()) == known
        assert min(counts.values()) >= 0
        if run.status != "broken":
            assert counts["running"] <= len(self.leases)
        assert max(Counter(f.lease for f in run.flights.values()).values(), default=0) <= 2
        assert len(self.finished) <= 1
        assert (run.status == "running") == (not self.finished)
        if self.finished and run.status != "broken":
            assert len(self.finals) == run.read

    def failed_late(self):
        """Return the inputs that have failed already, of which nothing is known here."""
        late = set()
        for lease in self.leases:
            for chunk in lease.far:
                late |= {chunk.sent + i for i, kind in enumerate(chunk.outcomes) if kind}
            for event in lease.wire:
                if isinstance(event, state.Got):
                    late |= {index for index, _ in event.failed}
        return late

    # -- when everything works from now on

    def go_on(self):
        """Run what is left, without further trouble; fails where that does not end."""
        for _ in range(4 * INPUTS):
            if self.finished:
                return
            if not self.ended and self.may_read() > 0:
                self.read_some(1000)
            if self.may_end():
                self.end()
            self.again()
            self.speak_late()
            for lease in list(self.leases):
                self.deliver(lease)
                if self.run.suspects:
                    self.offer(lease, alone=True)
            for lease in self.leases:
                self.offer(lease)
            for lease in self.leases:
                self.hear(lease)
                while lease.far:
                    while lease.far[0].running is not None or self.begin(lease) is not None:
                        self.end_input(lease)
                    self.end_chunk(lease)
                self.deliver(lease)
            self.hand_out(1 << 30)
            if self.run.full:
                self.feed(state.Await())
        pytest.fail(f"the run does not end: {self.run}")


_STATUS = {None: state.DONE, CANCELLED: state.STOPPED}


# --- any history ------------------------------------------------------------------------------

some = st.integers(0, 11)
few = st.integers(1, 8)


USUAL = [
    "read",
    "read",
    "refuse",
    "offer",
    "offer",
    "offer",
    "work",
    "stream",
    "fail",
    "again",
    "finish",
    "finish",
    "mark",
    "hand_back",
    "deliver",
    "deliver",
    "deliver",
    "hear",
    "hand_out",
    "empty",
]
TROUBLE = [
    "die",
    "die",
    "die",
    "cut",
    "cut",
    "cancel_one",
    "cancel_one",
    "cancel_all",
    "overdue",
    "wait",
    "keep_more",
    "grace_over",
    "join",
    "retire",
    "give_up",
    "give_up",
    "speak_late",
    "break_down",
]
usual = st.lists(st.tuples(st.sampled_from(USUAL), some, few), min_size=4, max_size=15)


class Histories(RuleBasedStateMachine):
    """Anything that can happen to a run, in any order."""

    sizes: ClassVar = {"TRIM": 8, "CAREFUL_INPUTS": 3, "CHUNK_INPUTS": 12}

    def __init__(self):
        super().__init__()
        self.kept = {name: getattr(state, name) for name in self.sizes}
        for name, value in self.sizes.items():
            setattr(state, name, value)

    @initialize(
        total=st.none() | st.integers(0, 60),
        keep=st.booleans(),
        ordered=st.booleans(),
        processes=st.integers(1, 3),
        leases=st.integers(1, 4),
        worker_losses=st.integers(1, 3),
        failures=st.sampled_from([None, None, 1, 5]),
        keep_bytes=st.sampled_from([30, 200, 1 << 20]),
        stream=st.booleans(),
        retries=st.sampled_from([0, 0, 1, 3]),
        single=st.booleans(),
    )
    def make(
        self,
        total,
        keep,
        ordered,
        processes,
        leases,
        worker_losses,
        failures,
        keep_bytes,
        stream,
        retries,
        single,
    ):
        too_many = None if failures is None else lambda failed, _finished: failed >= failures
        run = RunState(
            total,
            keep,
            processes * leases,
            worker_losses,
            too_many,
            keep_bytes=keep_bytes,
            stream=stream,
            retries=retries,
            single=single,
        )
        ordered = ordered and not stream  # outputs of generators are taken as they come
        self.cluster = Cluster(run, processes=processes, leases=leases, ordered=ordered)
        if total is None or total > 5:
            self.cluster.read_some(20)

    def lease(self, at):
        return self.cluster.leases[at % len(self.cluster.leases)]

    @rule(ops=usual)
    def work_on(self, ops):
        """What happens all the time."""
        self.play(ops)

    @rule(ops=usual)
    def work_on_again(self, ops):
        """The same, so that it is more frequent than trouble."""
        self.play(ops)

    def play(self, ops):
        for op, at, n in ops:
            getattr(self, op)(self.lease(at), n)
            self.cluster.check()

    def read(self, _lease, n, *, refused=False):
        cluster = self.cluster
        if cluster.ended or cluster.run.ending:
            return
        if cluster.may_read() > 0:
            cluster.read_some(4 * n, refused=refused)
        elif cluster.may_end():
            cluster.end()

    def refuse(self, lease, n):
        self.read(lease, n, refused=n == 1)

    def offer(self, lease, n):
        """Give one or all leases work; the odd ones a chunk by itself where that is needed."""
        for other in [lease] if n < 4 else list(self.cluster.leases):
            if self.cluster.run.suspects and n % 2:
                self.cluster.offer(other, alone=True)
            self.cluster.offer(other)

    def work(self, lease, n, kinds=()):
        """A lease runs some inputs, and may be in the middle of the next one afterwards."""
        for at in range(n):
            self.cluster.begin(lease)
            self.cluster.end_input(lease, kinds[at] if at < len(kinds) else None)
        if n % 2:
            self.cluster.begin(lease)
        if n % 3:
            self.cluster.flush(lease)

    def fail(self, lease, n):
        self.work(lease, n, (None, None, USER, CANCELLED)[-n:])

    def stream(self, lease, n):
        """A generator yields some outputs."""
        self.cluster.begin(lease)
        for _ in range(n):
            self.cluster.yields(lease, 7)

    def again(self, _lease, n):
        if n > 3:
            self.cluster.again()

    def finish(self, lease, n):
        self.work(lease, 12)
        self.cluster.end_chunk(lease, 10.0 ** (n - 7))

    def empty(self, lease, n):
        """A process comes to rest; where there are suspects it gets some of them."""
        cluster = self.cluster
        for other in [other for other in cluster.leases if other.process == lease.process]:
            while other.far:
                cluster.end_input(other)
                while cluster.begin(other) is not None:
                    cluster.end_input(other)
                cluster.end_chunk(other)
            cluster.deliver(other)
        if cluster.run.suspects and cluster.offer(lease, alone=True):
            for _ in range(n % 3):
                cluster.begin(lease)
                cluster.end_input(lease)
            cluster.begin(lease)

    def mark(self, lease, _n):
        self.cluster.mark(lease)

    def hand_back(self, lease, n):
        self.cluster.hand_back(lease, waiting=n < 3)

    def deliver(self, lease, n):
        for other in [lease] if n < 6 else list(self.cluster.leases):
            self.cluster.deliver(other, n if n < 4 else 1 << 30)

    def hear(self, lease, _n):
        self.cluster.hear(lease)

    def hand_out(self, _lease, n):
        self.cluster.hand_out(n * n)

    @rule(what=st.sampled_from(TROUBLE), at=some, n=st.integers(0, 70))
    def trouble(self, what, at, n):
        """What happens now and then."""
        getattr(self, what)(self.lease(at), n)

    def die(self, lease, n):
        self.cluster.die(lease.process, n % 7)

    def cut(self, lease, n):
        """The stream of one lease breaks; its process lives on."""
        self.cluster.deliver(lease, n % 7)
        self.cluster.lose([lease], died=False)

    def join(self, _lease, _n):
        self.cluster.join()

    def retire(self, lease, _n):
        self.cluster.retire(lease.process)

    def give_up(self, lease, n):
        """Its stream is cut, and it does not notice."""
        self.cluster.deliver(lease, n % 7)
        self.cluster.give_up(lease)

    def speak_late(self, _lease, _n):
        self.cluster.speak_late()

    def break_down(self, _lease, n):
        if n < 10:
            self.cluster.break_down()

    def overdue(self, lease, _n):
        self.cluster.overdue(lease)

    def wait(self, _lease, _n):
        self.cluster.feed(state.Await())

    def keep_more(self, _lease, n):
        self.cluster.feed(state.KeepBytes(20 * (n + 1)))

    def cancel_one(self, _lease, n):
        self.cluster.cancel(n)

    def cancel_all(self, _lease, n):
        if n < 10:
            self.cluster.cancel(-1)

    def grace_over(self, _lease, _n):
        self.cluster.feed(state.GraceOver())

    @invariant()
    def holds(self):
        if hasattr(self, "cluster"):
            self.cluster.check()

    def teardown(self):
        """From wherever this history has led to, the run ends once everything works."""
        try:
            if hasattr(self, "cluster"):
                before, late = dict(self.cluster.finals), self.cluster.failed_late()
                self.cluster.go_on()
                self.cluster.check()
                self.fate(before, late)
        finally:
            for name, value in self.kept.items():
                setattr(state, name, value)

    def fate(self, before, late):
        """Whoever was not done at the start of the good times is now, unless told to stop."""
        cluster = self.cluster
        if cluster.run.status == "broken":
            assert cluster.finals == before
            return
        for index in range(cluster.run.read):
            status = cluster.finals[index]
            assert status == before.get(index, status)
            if cluster.run.unloadable:  # what is read then has failed at once
                assert index in before or status == state.FAILED or index in cluster.singled
            elif index not in before and not cluster.run.ending:
                assert status == state.DONE or index in cluster.singled | late
                assert cluster.run.tried.get(index, 0) <= cluster.run.retries


def play(examples, **options):
    """Play so many histories."""
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples,
            **options,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)  # to make a history that fails as short as can be
def test_every_history_keeps_its_inputs_and_ends():
    """Whatever happens, each input is in one place, ends once, and the run ends."""
    play(200, derandomize=True)  # the same ones every time; `make chaos` looks for new ones


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_very_many_histories_keep_their_inputs_and_end():
    """The same in twenty thousand histories."""
    play(20_000)


# --- killers ----------------------------------------------------------------------------------


def simulate(run, killer, seed, *, total, processes=1, leases=4, chance=0.0, late=False):
    """Play a run in which some inputs kill their process each time that they run.

    Args:
        run: the state.
        killer: whether an input does.
        seed: of the order in which things happen.
        total: number of inputs.
        processes: number of processes.
        leases: of each.
        chance: that an input's process dies though the input has nothing to do with it.
        late: whether a death may take messages with it that were written and not sent yet.
    """
    rng = random.Random(seed)
    cluster = Cluster(run, processes=processes, leases=leases)
    for _ in range(100_000):
        if cluster.finished:
            return cluster
        if cluster.may_read() > 0:
            cluster.read_some(total)
        elif cluster.may_end():
            cluster.end()
        lease = rng.choice(cluster.leases)
        if cluster.run.suspects and lease.process == 0:
            cluster.offer(lease, alone=True)
        cluster.offer(lease)
        index = cluster.begin(lease)
        if index is not None and rng.random() < 0.5:
            cluster.mark(lease)
        running = lease.far[0].running if lease.far else None
        arrives = rng.randrange(3) if late else 1 << 30
        if running is not None and (killer(running) or rng.random() < chance):
            cluster.die(lease.process, arrives)
        elif rng.random() < 0.7:  # otherwise the neighbours come first
            cluster.end_input(lease)
            if rng.random() < 0.7:
                cluster.flush(lease)
            cluster.end_chunk(lease)
        if rng.random() < 0.7 and lease in cluster.leases:
            cluster.deliver(lease)
        cluster.hand_out(1 << 30)
        cluster.check()
    pytest.fail("the run does not end")


@settings(max_examples=100, deadline=None)
@given(killer=st.integers(0, 20), seed=st.integers(0, 1 << 30))
def test_exactly_the_input_that_kills_its_process_is_lost(killer, seed):
    """Among innocents and neighbours the killer is found by its second or third death."""
    run = RunState(21, worker_losses=2, slots=4)
    cluster = simulate(run, lambda index: index == killer, seed, total=21)
    assert run.status == "finished"
    assert {i for i, status in cluster.finals.items() if status != state.DONE} == {killer}
    assert 2 <= cluster.deaths <= 3
    assert 1 <= run.attempts(killer) - 1 <= cluster.deaths


@settings(max_examples=100, deadline=None)
@given(
    killers=st.sets(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 1 << 30),
    worker_losses=st.integers(2, 4),
)
def test_innocents_succeed_whatever_a_death_takes_with_it(killers, seed, worker_losses):
    """All killers are lost and nobody else, though what was said before a death may get lost."""
    run = RunState(41, worker_losses=worker_losses, slots=6)
    cluster = simulate(run, killers.__contains__, seed, total=41, processes=2, leases=3, late=True)
    assert run.status == "finished"
    assert {i for i, status in cluster.finals.items() if status != state.DONE} == killers


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_random_deaths_lose_nothing(seed):
    """With worker_losses=20 a run outlives processes that die for reasons of their own."""
    run = RunState(60, worker_losses=20, slots=6)
    cluster = simulate(
        run, lambda _index: False, seed, total=60, processes=3, leases=2, chance=0.15, late=True
    )
    assert run.status == "finished"
    assert run.counts()["done"] == 60
    assert cluster.deaths > 0


def test_an_input_whose_outcome_died_with_the_next_one_is_not_blamed():
    """Of two chunks at a lease the second may be at fault, though of the first nothing came."""
    cluster = started(10, worker_losses=1)
    cluster.run.per = 0.001  # so that a second chunk is sent ahead
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    assert cluster.begin(lease) == 1  # which kills the process, before anything was sent
    cluster.die(0, arrives=0)
    assert 0 not in cluster.finals


def test_a_killer_behind_a_chunk_whose_end_died_untold_is_a_suspect():
    """Otherwise it could take a process with it each time that it happens to be behind another."""
    cluster = started(10)
    cluster.run.per = 0.001  # so that a second chunk is sent ahead
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    assert cluster.begin(lease) == 1
    cluster.die(0, arrives=0)
    assert (1, 2) in cluster.run.suspects


def test_a_process_that_dies_without_a_start_blames_nobody_for_certain():
    """A single input of which no start was told is suspected and not convicted."""
    cluster = started(1, worker_losses=1)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.die(0)
    assert cluster.run.failed == 0


def test_a_lost_input_counts_an_attempt_for_every_process_that_it_took():
    """Also where the first process died before it could tell which input had started."""
    cluster = started(10)
    cluster.run.size = 10
    lease = cluster.leases[0]
    cluster.offer(lease)
    for index in range(3):  # the last of them kills the process, and no start was told
        assert cluster.begin(lease) == index
        if index < 2:
            cluster.end_input(lease)
    cluster.die(0, arrives=0)
    lease = cluster.leases[0]
    assert cluster.offer(lease, alone=True)
    assert cluster.begin(lease) is None  # the first chunk has none: it tells that it can be loaded
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert cluster.offer(lease, alone=True)
    while cluster.begin(lease) != 2:
        cluster.end_input(lease)
    cluster.die(0)
    assert cluster.run.deaths[2] == 2
    assert cluster.run.attempts(2) - 1 == 2  # without the one that is not to be


def test_a_function_that_no_process_survives_fails_all_its_inputs_unstarted():
    """After the third process, and no input counts an attempt more than the chunk that it was in."""
    cluster = started(10)
    cluster.offer(cluster.leases[0])
    sent = cluster.sends[0].stop
    cluster.die(0, arrives=0)
    while not cluster.run.unloadable:
        assert cluster.offer(cluster.leases[0], alone=True)
        assert cluster.begin(cluster.leases[0]) is None
        cluster.die(0, arrives=0)
        cluster.check()
    assert cluster.deaths == state.UNLOADABLE
    assert cluster.run.failed == 10
    assert [cluster.run.attempts(index) for index in range(10)] == [2] * sent + [1] * (10 - sent)


def test_what_may_have_started_untold_counts_as_an_attempt():
    """Of a lost lease all that it had, also behind a chunk of whose end nothing came."""
    cluster = started(10)
    cluster.run.per, cluster.run.size = 0.001, 3  # so that a second chunk is sent ahead
    lease = cluster.leases[0]
    assert cluster.offer(lease)
    assert cluster.offer(lease)
    while cluster.begin(lease) is not None:
        cluster.end_input(lease)
    cluster.end_chunk(lease)
    assert cluster.begin(lease) == 3  # of the second one
    lease.wire.clear()
    cluster.lose([lease], died=False)
    cluster.check()
    assert [cluster.run.attempts(index) for index in range(8)] == [2] * 6 + [1] * 2


def test_what_a_lease_had_not_started_when_it_said_bye_counts_as_no_attempt():
    """A chunk that met a lease on its way out is sent again as if for the first time."""
    cluster = started(10)
    cluster.offer(cluster.leases[0])
    [chunk] = cluster.leases[0].near
    cluster.feed(state.Lost(chunk, died=False, begun=False))
    assert cluster.run.attempts(0) == 1


# --- single truths ----------------------------------------------------------------------------


def started(total=10, *, read=10, processes=1, leases=1, end=True, **kwargs):
    """Return a cluster whose run has read some inputs."""
    total = None if total is None else max(total, read)
    run = RunState(total, slots=processes * leases, **kwargs)
    cluster = Cluster(run, processes=processes, leases=leases)
    run.allowed = cluster.allowed = max(run.allowed, read + 1)
    if read:
        cluster.read_some(read)
    if end and cluster.may_end():
        cluster.end()
    return cluster


def run_chunk(cluster, lease, seconds=0.001):
    """Have a lease run its chunk to the end."""
    while cluster.begin(lease) is not None:
        cluster.end_input(lease)
    cluster.end_chunk(lease, seconds)
    cluster.deliver(lease)


def test_a_run_without_inputs_finishes():
    """An empty run ends when its end is met."""
    cluster = started(0, read=0)
    assert cluster.finished == ["finished"]


def test_nothing_is_sent_ahead_to_a_lease_before_the_time_an_input_takes_is_known():
    """A busy lease gets a second chunk only where inputs are known to be short."""
    cluster = started(20, read=20)
    lease = cluster.leases[0]
    assert cluster.offer(lease)
    assert not cluster.offer(lease)
    run_chunk(cluster, lease, seconds=0.001)
    assert cluster.offer(lease)
    assert cluster.offer(lease)


def test_nothing_is_sent_ahead_where_inputs_are_long():
    """An input that takes a second stays where any lease can take it."""
    cluster = started(20, read=20)
    lease = cluster.leases[0]
    cluster.offer(lease)
    run_chunk(cluster, lease, seconds=1.0)
    assert cluster.offer(lease)
    assert len(cluster.run.flights) == 1
    assert not cluster.offer(lease)


def test_chunks_grow_with_short_inputs_and_shrink_towards_the_end():
    """Short inputs travel by the thousand, and the last ones are shared out."""
    run = RunState(10_000, slots=2)
    cluster = Cluster(run, processes=1, leases=2)
    sizes = []
    cluster.allowed = 10_001
    cluster.read = 10_000
    cluster.feed(state.Read(10_000, 10_000))
    cluster.feed(state.End())
    while not cluster.finished:
        for lease in cluster.leases:
            if cluster.offer(lease):
                sent = cluster.sends[-1]
                sizes.append(sent.stop - sent.start)
                lease.far[0].at = sent.stop
                lease.far[0].outcomes = [None] * sizes[-1]
                lease.far[0].ran = sizes[-1]
                cluster.end_chunk(lease, 1e-6)
                cluster.deliver(lease)
    assert sizes[0] == 1
    assert max(sizes) > 1000
    assert sizes[-1] <= 2
    assert sum(sizes) == 10_000


def test_large_inputs_travel_in_small_chunks():
    """A chunk holds no more bytes than it may, whatever the time says."""
    run = RunState(100)
    run.per, run.size = 1e-6, 50_000
    run.handle(state.Read(100, 100 << 20))
    [sent] = [e for e in run.handle(state.Offer("a", 1, 1)) if isinstance(e, state.Send)]
    assert sent.stop - sent.start == state.CHUNK_BYTES >> 20


def test_the_head_may_always_go():
    """With a full window the input that the consumer waits for is sent, and no other."""
    cluster = started(None, read=4, leases=2, keep=False, keep_bytes=5, end=False)
    first, second = cluster.leases
    cluster.offer(first)
    cluster.offer(second)
    run_chunk(cluster, second)
    assert cluster.run.full
    assert not cluster.offer(second), "input 0 is still running, so 2 is not the head"
    run_chunk(cluster, first)
    assert cluster.offer(first), "2 is the head now"
    assert cluster.sends[-1].start == 2
    assert not cluster.offer(second)


def test_a_lost_head_may_go_though_the_window_is_full():
    """The head that comes back from a lost lease is sent before anything else."""
    cluster = started(None, read=4, leases=2, keep=False, keep_bytes=5, end=False)
    first, second = cluster.leases
    cluster.offer(first)
    cluster.offer(second)
    run_chunk(cluster, second)
    cluster.lose([first], died=False)
    assert cluster.offer(second)
    assert cluster.sends[-1].start == 0


def test_a_run_that_keeps_outputs_pauses_until_somebody_waits():
    """A full store stops a run with keep=True; who waits lets only the head go."""
    cluster = started(10, leases=2, keep_bytes=5)
    first, second = cluster.leases
    cluster.offer(first)
    run_chunk(cluster, first)
    assert not cluster.offer(first)
    cluster.feed(state.Await())
    assert cluster.offer(first)
    assert cluster.sends[-1].start == 1
    assert not cluster.offer(second)


def test_raising_keep_bytes_lets_a_paused_run_go_on():
    """A larger store takes more."""
    cluster = started(10, keep_bytes=5)
    lease = cluster.leases[0]
    cluster.offer(lease)
    run_chunk(cluster, lease)
    assert not cluster.offer(lease)
    cluster.feed(state.KeepBytes(1000))
    assert cluster.offer(lease)


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_reading_stays_a_window_ahead_of_the_consumer(slots):
    """With keep=False as many inputs are read as the window has, until some are handed out."""
    run = RunState(None, keep=False, slots=slots)
    cluster = Cluster(run, processes=1, leases=slots)
    while cluster.may_read() > 0:
        cluster.read_some(1000)
    window = min(4 * slots, INPUTS)
    assert cluster.read <= max(window, 6 * slots)
    for lease in cluster.leases:
        cluster.offer(lease)
        run_chunk(cluster, lease, 1e-6)
    assert cluster.allowed <= state.WINDOW_INPUTS
    before = cluster.allowed
    cluster.hand_out(1)
    assert cluster.allowed <= max(before, 1 + state.WINDOW_INPUTS)


def test_of_a_sized_run_one_more_than_there_are_may_be_read():
    """The reader has to meet the end, so it is allowed one step beyond the last input."""
    run = RunState(3)
    effects = run.handle(state.Handed(0, 0)) + run.handle(state.Read(2, 20))
    effects += run.handle(state.Read(1, 10)) + run.handle(state.Offer("a", 1, 1))
    assert max(e.upto for e in effects if isinstance(e, state.Allow)) == 4


def test_iterators_that_yield_more_than_they_said_are_read_to_their_end():
    """A list that grows while it is read does not hang the run."""
    run = RunState(3)
    allowed = 0

    def feed(event):
        nonlocal allowed
        effects = run.handle(event)
        allowed = max([allowed, *(e.upto for e in effects if isinstance(e, state.Allow))])

    for index in range(6):
        feed(state.Read(1, 10))
        feed(state.Offer("lease", index, 1))
        feed(state.Got(index, index, 1))
        feed(state.Ended(index, 1, 0.001))
        assert allowed > run.read, f"{run.read} were read and no more may be"
    feed(state.End())
    assert (run.status, run.done) == ("finished", 6)


def test_too_many_failures_stop_the_run():
    """When too many have failed what waits is cancelled and what runs is asked to stop."""
    cluster = started(10, leases=2, too_many=lambda failed, _finished: failed > 0)
    first, second = cluster.leases
    cluster.offer(first)
    cluster.offer(second)
    cluster.begin(first)
    cluster.begin(second)
    cluster.end_input(first, USER)
    cluster.end_chunk(first)
    cluster.deliver(first)
    assert cluster.run.ending == "stopped"
    assert cluster.run.counts()["cancelled"] == 8
    assert second.stops == [(2, -1)]
    cluster.hear(second)
    cluster.end_input(second)
    cluster.end_chunk(second)
    cluster.deliver(second)
    assert cluster.finished == ["stopped"]


def test_a_refused_input_is_a_failure_that_counts():
    """What can't be pickled fails at once, and may stop the run."""
    cluster = started(10, read=2, end=False, too_many=lambda failed, _finished: failed > 0)
    cluster.read_some(1, refused=True)
    assert cluster.finished == ["stopped"]
    assert cluster.run.counts()["failed"] == 1
    assert cluster.run.counts()["cancelled"] == 9


def test_cancelling_a_waiting_input_settles_it_at_once():
    """It is cancelled and never sent."""
    cluster = started(10)
    cluster.cancel(4)
    assert cluster.finals == {4: state.STOPPED}
    cluster.go_on()
    assert all(not sent.start <= 4 < sent.stop for sent in cluster.sends)
    assert cluster.run.counts()["done"] == 9


def test_cancelling_a_running_input_asks_its_lease():
    """Only that input is asked to stop, and how it ended is told by the lease."""
    cluster = started(10)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.cancel(0)
    assert lease.stops == [(1, 0)]
    assert cluster.finals == {}
    cluster.hear(lease)
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert cluster.finals == {0: state.STOPPED}


def test_cancelling_an_input_before_it_is_read_cancels_it_when_it_is():
    """An index that is not there yet is remembered."""
    cluster = started(None, read=2, end=False)
    cluster.cancel(3)
    cluster.run.allowed = cluster.allowed = 9
    for _ in range(3):
        cluster.read_some(1)
    assert cluster.finals == {3: state.STOPPED}


def test_cancelling_a_suspect_settles_it():
    """An input that waits to be tried alone can be cancelled as well."""
    cluster = started(4, read=4, leases=2)
    for lease in cluster.leases:
        cluster.offer(lease)
    cluster.die(0)
    assert cluster.run.suspects
    cluster.cancel(0)
    assert cluster.finals == {0: state.STOPPED}


@pytest.mark.parametrize("how", ["handed back", "lost"])
def test_a_cancelled_input_that_comes_back_unstarted_is_not_sent_again(how):
    """A request to stop that crosses with what a lease hands back still counts."""
    cluster = started(100, read=100)
    lease = cluster.leases[0]
    cluster.run.size = 8
    cluster.offer(lease)
    cluster.begin(lease)
    sent = cluster.sends[-1]
    assert sent.stop - sent.start == 8
    cluster.cancel(sent.stop - 1)
    if how == "handed back":
        cluster.hand_back(lease)
        cluster.deliver(lease)
        cluster.end_input(lease)
        cluster.end_chunk(lease)
        cluster.deliver(lease)
    else:
        cluster.lose([lease], died=False)
    before = len(cluster.sends)
    cluster.go_on()
    again = [s for s in cluster.sends[before:] if s.start <= sent.stop - 1 < s.stop]
    assert again == []
    assert cluster.finals[sent.stop - 1] == state.STOPPED


def test_cancelling_the_run_settles_what_waits_and_what_was_never_read():
    """All that is not with a lease is cancelled at once; what runs has its grace."""
    cluster = started(1000, read=5, end=False)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.cancel(-1)
    assert cluster.run.counts()["cancelled"] == 999
    assert cluster.finished == []
    cluster.feed(state.GraceOver())
    assert cluster.finished == ["cancelled"]
    assert cluster.run.counts()["cancelled"] == 1000


def test_an_outcome_that_comes_within_the_grace_counts():
    """What a cancelled run's lease still finishes is done."""
    cluster = started(10)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.cancel(-1)
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert cluster.finals[0] == state.DONE
    assert cluster.finished == ["cancelled"]


def test_an_outcome_that_comes_after_the_end_changes_nothing():
    """A final status stays."""
    cluster = started(10)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.cancel(-1)
    cluster.feed(state.GraceOver())
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert cluster.finals[0] == state.STOPPED


def test_stopping_a_run_of_many_unread_inputs_is_cheap():
    """A run over ten million inputs that keeps none is stopped without a byte for each."""
    n = 10**7
    run = RunState(n, keep=False)
    run.handle(state.Read(4, 40))
    run.handle(state.Cancel())
    assert run.status == "cancelled"
    assert run.counts()["cancelled"] == n
    size = len(run.column)
    assert size < 1 << 20


def test_a_lost_cluster_breaks_the_run():
    """The run ends at once, as broken."""
    cluster = started(10)
    cluster.offer(cluster.leases[0])
    effects = cluster.feed(state.Break())
    assert effects == [state.StopReading(), state.Finish("broken")]


def test_attempts_count_what_had_started():
    """An input that was running when its lease was lost is at its second attempt."""
    cluster = started(10)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.mark(lease)
    cluster.deliver(lease)
    cluster.lose([lease], died=False)
    assert cluster.run.attempts(0) == 2
    assert cluster.run.attempts(1) == 1


# --- another attempt, timeouts, generators ------------------------------------------------------


def failing(cluster, lease, kind=USER):
    """Have a lease run its chunk, whose first input fails."""
    cluster.begin(lease)
    cluster.end_input(lease, kind)
    run_chunk(cluster, lease)


def test_a_failed_input_is_tried_again_as_often_as_was_asked():
    """Only the last failure counts, and attempts are told."""
    cluster = started(1, read=1, retries=2)
    lease = cluster.leases[0]
    for attempt in (1, 2):
        cluster.offer(lease)
        failing(cluster, lease)
        assert cluster.later == {0}
        assert not cluster.finals
        assert cluster.run.counts()["waiting"] == 1
        assert cluster.run.attempts(0) == 1 + attempt
        cluster.again()
    cluster.offer(lease)
    failing(cluster, lease)
    assert cluster.finals == {0: state.FAILED}
    assert cluster.finished == ["finished"]


@pytest.mark.parametrize("kind", [LOST, "unpicklable"])
def test_only_failures_of_the_user_and_timeouts_are_tried_again(kind):
    """What could not be sent, or took processes with it, would do so again."""
    cluster = started(1, read=1, retries=2)
    lease = cluster.leases[0]
    cluster.offer(lease)
    failing(cluster, lease, kind)
    assert cluster.finals == {0: state.FAILED}


def test_the_neighbours_of_an_input_that_is_tried_again_have_their_outcomes():
    """Outcomes on both sides of it are accepted at once."""
    cluster = started(5, read=5, retries=1)
    cluster.run.size = 5
    cluster.run.total = None  # so that one chunk has them all
    lease = cluster.leases[0]
    cluster.run.slots = 1
    cluster.offer(lease)
    chunk = lease.far[0]
    for index in range(chunk.start, chunk.stop):
        cluster.begin(lease)
        cluster.end_input(lease, USER if index == 1 else None)
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert chunk.stop > 2
    assert set(cluster.finals) == set(range(chunk.start, chunk.stop)) - {1}


def test_cancelling_settles_what_waits_to_be_tried_again():
    """Whether one input is cancelled, or the run."""
    for index in (0, -1):
        cluster = started(1, read=1, retries=2)
        lease = cluster.leases[0]
        cluster.offer(lease)
        failing(cluster, lease)
        cluster.cancel(index)
        assert cluster.finals == {0: state.STOPPED}
        cluster.again()
        assert cluster.finals == {0: state.STOPPED}


def test_an_input_with_a_timeout_travels_alone():
    """A chunk is one input, and none is sent ahead of its time."""
    cluster = started(10, single=True)
    cluster.run.size, cluster.run.per = 8, 0.001
    lease = cluster.leases[0]
    cluster.offer(lease)
    assert cluster.sends[-1].stop - cluster.sends[-1].start == 1
    assert not cluster.offer(lease)


def test_an_overdue_input_times_out_and_its_late_outcome_changes_nothing():
    """The run does not wait for a function that does not stop."""
    cluster = started(1, read=1, single=True)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    cluster.overdue(lease)
    assert cluster.finals == {0: state.FAILED}
    assert cluster.finished == ["finished"]
    cluster.end_input(lease)
    cluster.end_chunk(lease)
    cluster.deliver(lease)
    assert cluster.finals == {0: state.FAILED}


@pytest.mark.parametrize("keep", [True, False])
def test_generators_pause_until_somebody_takes_their_outputs(keep):
    """What was spent is granted again, unless the run is full of outputs that nobody took."""
    cluster = started(1, read=1, keep=keep, stream=True, keep_bytes=1000)
    lease = cluster.leases[0]
    cluster.offer(lease)
    cluster.begin(lease)
    lease.far[0].credit = 300
    cluster.run.flights[lease.near[0]].nbytes = 300
    spent = 0
    while cluster.yields(lease, 100):
        spent += 100
        cluster.deliver(lease)
    assert 1000 <= spent <= 1300
    before = cluster.grants
    cluster.feed(state.Handed(0, 600))
    assert cluster.grants == before + 1
    assert cluster.yields(lease, 100)
