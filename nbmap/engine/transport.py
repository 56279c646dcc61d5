"""The seam between runs and whatever holds leases, and the in-process transport.

A `Transport` has leases and the jobs (runs) that want them. It decides which lease works for whom:
handles take turns at chunk borders, none holds more leases than its `concurrency`, suspects of a
worker's death get a process to themselves. What a chunk holds is the run's decision, how a lease
is had is the subclass's.

All of it happens on one thread, the engine's loop, shared by all transports of the process: no
locks, and every history is a sequence. User code and pickling never run there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import cloudpickle

from ..errors import RunError, VersionMismatch
from ..worker.serve import Lease, Process
from .interrupts import start_thread
from .model import (
    DEAD,
    LEAVING,
    Aside,
    Ask,
    Back,
    Blob,
    Bye,
    Credit,
    Done,
    GPUUse,
    Hello,
    Hold,
    Load,
    Mark,
    Message,
    Out,
    Paused,
    Print,
    Quit,
    Recall,
    Resume,
    Stop,
    Work,
    Yield,
    frames_of,
    size_of,
)

logger = logging.getLogger("nbmap")

DEPTH = 2  # chunks that a lease may have: one that runs, one that waits
IDLE = 2.0  # seconds after which an idle lease is given back
TICK = 0.25
TRIED = 2  # processes that get a function before it is known that it can be loaded
PAUSED = "Dask has paused the workers: it gives them nothing while their memory is nearly full"
ACKNOWLEDGE = 4 << 20  # bytes of outputs received before the lease is told

ABOUT_A_CHUNK = (Out, Yield, Mark, Print, Back, Done, Ask)
WORKING = frozenset({"asked", "open", "paused", "silent"})  # states of leases that are to be had

LOADED = object()  # another one after a reload

_clock = time.monotonic
_chunks = count(1)
_deaths = count(1)


class EngineLoop:
    """The event loop on a thread of its own that all engine state belongs to."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._failed)
        self.transports: weakref.WeakSet[Transport] = weakref.WeakSet()
        self._pid = os.getpid()
        self._loaded = LOADED
        start_thread("nbmap-engine", self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the runs where something of ours raised that was called on the loop.

        They would wait for what it was to bring. It happens where nbmap's modules are reloaded, as
        by autoreload after an upgrade: what one of them made, another does not know any more.
        """
        loop.default_exception_handler(context)
        error = context.get("exception")
        if error is not None and "handle" in context:  # not a task that somebody looks after
            for transport in list(self.transports):
                transport.fail(own_failure(error))

    def check(self) -> None:
        """Raise where what this is asked for would never come.

        In a process that was forked the thread has stayed behind.
        """
        self.check_modules()
        if os.getpid() != self._pid:
            msg = (
                f"this process was forked from the one that has nbmap's threads (pid {self._pid}), "
                "and has none of its own. Use nbmap there, or in a process that is started anew: "
                "multiprocessing.get_context('spawn')"
            )
            raise RunError(msg)

    def check_modules(self) -> None:
        """Raise after a reload of nbmap's modules: what one made, another does not know any more."""
        if self._loaded is not LOADED:
            msg = (
                "nbmap's modules were reloaded after this was made, and can't use it any more: make "
                "it again, or restart the kernel"
            )
            raise RunError(msg)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop's thread, soon; from any thread."""
        self.check()
        self.loop.call_soon_threadsafe(function, *args)

    def wait_for(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the loop's thread and return what it returns.

        Waits on a bare lock: an interrupt in the middle of a Condition leaves it taken, and the
        loop standing.
        """
        self.check()
        done = threading.Lock()
        done.acquire()
        told: list[Any] = []

        def run() -> None:
            try:
                told.append(function(*args))
            except BaseException as error:
                told.extend((None, error))
            finally:
                done.release()

        self.loop.call_soon_threadsafe(run)
        done.acquire()
        if len(told) > 1:
            raise told[1]
        return told[0]


def own_failure(error: BaseException) -> RunError:
    """Return what ends the runs where nbmap itself has failed."""
    return RunError(
        f"nbmap has failed ({error!r}), and not your code; what was done is on the run. If its "
        "modules were reloaded or upgraded, restart the kernel; otherwise please report the "
        "traceback that it logged"
    )


_engine: EngineLoop | None = None
_engine_lock = threading.Lock()


def engine_loop() -> EngineLoop:
    """Return the process's loop; it starts at the first use."""
    global _engine
    with _engine_lock:
        if _engine is None:
            _engine = EngineLoop()
        return _engine


class Job(Protocol):
    """What a transport asks of a run."""

    handle: Hashable  # runs of one handle share its limit
    limit: int | None
    streams: bool  # whether the function is a generator's
    gpu: Any  # what its inputs run on (`cluster.gpu.GPURequest`), or None
    patience: float  # seconds that it waits until the cluster has that
    blob: Blob

    @property
    def loaded(self) -> bool:
        """Whether the function could be loaded somewhere."""

    def wanted(self) -> int:
        """Return how many leases the run could use now."""

    def has_suspects(self) -> bool:
        """Tell whether inputs wait for a process to themselves."""

    def offer(self, lease: str, chunk: int, slots: int, *, ahead: bool, alone: bool) -> Work | None:
        """Return a chunk for a lease that has room, or None."""

    def gave_up(self, chunk: int) -> bool:
        """Tell whether nobody waits for a chunk any more, though it has not ended."""

    def receive(self, message: Message, worker: str) -> None:
        """Take what a lease sent about one of the run's chunks."""

    def lost(self, loss: Loss) -> None:
        """Learn that a chunk's lease is gone."""

    def fail(self, error: BaseException) -> None:
        """End the run: nothing more will come."""

    def move(self, transport: Transport) -> None:
        """Use another transport from now on; nothing was sent yet."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How a chunk was lost; see `state.Lost`."""

    chunk: int
    died: bool
    current: bool
    alone: bool
    reason: str
    worker: str
    charge: bool = True  # whether it counts as a death that its inputs may have caused
    begun: bool = True  # whether it may have started inputs of which nothing was told
    death: int = 0  # leases that ended together with their process share it


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a function that did not stop when asked.

    Args:
        where: the worker where it goes on; "" where its process ends.
        sure: whether it is known to be this one, and not another one in its process that keeps all
            of them from going on.
    """

    where: str = ""
    sure: bool = True


ENDED = Fate()


class NearLink(Protocol):
    """The near end of a lease's stream."""

    def send(self, message: Message, *, wait: bool = False) -> None:
        """Send a message."""

    def close(self) -> None:
        """Close when everything was sent."""


@dataclass(slots=True)
class Held:
    """A lease as the near side sees it: asked → open ⇄ paused → ending.

    It is silent while it is unclear what became of it. One whose input waits for something else is
    aside: another has its place, so once the input goes on it is the last that the lease runs.
    """

    name: str
    state: str = "asked"
    link: NearLink | None = None
    process: str = ""
    pid: int = 0
    worker: str = ""
    heard: float = 0.0  # when it sent something last
    chunks: deque[int] = field(default_factory=deque)
    known: set[str] = field(default_factory=set)
    owed: int = 0
    idle_since: float = 0.0
    asked_to_hold: int = 0  # the chunk whose generator is to stand aside
    freed: int = 0  # the chunk whose input does not count for its handle's limit
    still_since: float | None = None  # its input waits for something else
    still: float = 0.0  # seconds that the input of its last chunk has waited so

    def forget_stream(self) -> None:
        """Go back to the state before the lease was open."""
        self.link, self.process, self.worker = None, "", ""
        self.known.clear()
        self.owed = 0


class Transport(ABC):
    """Leases and the runs that take turns on them. All methods run on the engine's loop."""

    places = "slots"  # what leases are on, as views call it

    def __init__(self) -> None:
        self.engine = engine_loop()
        self.leases: dict[str, Held] = {}
        self.jobs: list[Job] = []
        self.routes: dict[int, tuple[Held, Job]] = {}
        self.using: dict[Hashable, Counter[str]] = {}
        self.reserved: dict[str, Job] = {}  # process -> the job whose suspects it is kept for
        self.solo: dict[str, int] = {}  # process -> the chunk that has it to itself
        self.turn = 0
        self.trouble = ""  # a sentence about what keeps leases from being used
        self.lasting = ""  # the same of what stays so; it is said at a run's end, too
        self.waiting_since: float | None = None  # that inputs wait and there is no lease
        self.returning: list[tuple[Held, int]] = []  # with chunks whose inputs would go on
        self._ticking = False
        self.engine.call(self.engine.transports.add, self)

    # -- what a subclass has to do

    @abstractmethod
    def slots(self) -> int:
        """Return how many leases a handle without a limit may hold."""

    @abstractmethod
    def ask(self, n: int) -> None:
        """Ask for `n` more leases; each is announced by `opened`."""

    def capacity(self, limited: int, unlimited: int) -> int:
        """Return how many leases to have for handles with and without a limit that want so many."""
        return min(self.slots(), limited + unlimited)

    def tick(self) -> None:  # noqa: B027 - nothing to look after by default
        """Look after things, a few times a second while there are leases or jobs."""

    # -- jobs

    def add(self, job: Job) -> None:
        """Work for a run from now on."""
        self.jobs.append(job)
        self.using.setdefault(job.handle, Counter())
        self.wake()
        self._start_ticking()

    def remove(self, job: Job) -> None:
        """Stop working for a run. Chunks that still run keep their slot until they have ended."""
        if job in self.jobs:
            self.jobs.remove(job)
            for process in [p for p, j in self.reserved.items() if j is job]:
                if process not in self.solo:
                    del self.reserved[process]
            if not self.jobs:  # the next one has not been waiting
                self.waiting_since = None
            self.wake()

    def wake(self) -> None:
        """Hand out what there is, and ask for leases where more is needed."""
        if self.jobs:
            self.pump()
            self.ensure()

    def limit(self, job: Job) -> int:
        """Return how many leases the run's handle may use."""
        return job.limit or max(1, self.slots())

    def fits(self, job: Job, held: Held) -> bool:  # noqa: ARG002 - here any does
        """Tell whether a run's inputs may run on a lease."""
        return True

    def held(self, job: Job | None = None) -> int:
        """Return how many leases there are, all or those that a run's inputs may run on."""
        there = [held for held in self.leases.values() if held.state in {"open", "paused"}]
        return sum(job is None or self.fits(job, held) for held in there)

    def remark(self, job: Job) -> str:
        """Return one plain sentence about what keeps a run from being worked for, or ""."""
        if self.trouble or self.lasting:
            return self.trouble or self.lasting
        states = {held.state for held in self.leases.values() if self.fits(job, held)}
        if "paused" in states and not states & {"open", "aside", "last"}:
            return PAUSED
        return ""

    def use(self, job: Job) -> tuple[GPUUse, ...]:  # noqa: ARG002 - here are none
        """Return how full and how busy the GPUs are that a run's inputs may run on."""
        return ()

    def ensure(self) -> None:
        """Ask for leases while runs want more than there are."""
        have = sum(self.works(held) for held in self.leases.values())
        room, wanted = self._room()
        if room > have:
            self.ask(room - have)
        there = {"open", "paused", "aside", "last"}
        idle = not any(lease.state in there for lease in self.leases.values())
        if wanted and idle:
            self.waiting_since = self.waiting_since or _clock()
        else:
            self.waiting_since = None

    def works(self, held: Held) -> bool:
        """Tell whether a lease is to be had, now or soon."""
        return held.state in WORKING and not self._is_deaf(held)

    def _room(self) -> tuple[int, int]:
        """Return how many leases may work now, and how many are wanted."""
        wanted: dict[Hashable, int] = {}
        limits: dict[Hashable, int | None] = {}
        for job in self.jobs:
            wanted[job.handle] = wanted.get(job.handle, 0) + job.wanted()
            limits[job.handle] = job.limit
        limited = sum(min(n, limits[h] or 0) for h, n in wanted.items() if limits[h])
        unlimited = sum(min(n, self.slots()) for h, n in wanted.items() if not limits[h])
        return self.capacity(limited, unlimited), limited + unlimited

    def _is_deaf(self, held: Held) -> bool:
        """Tell whether a lease is taken by a function that nobody waits for any more."""
        routes = [(chunk, self.routes.get(chunk)) for chunk in held.chunks]
        return any(route is not None and route[1].gave_up(chunk) for chunk, route in routes)

    # -- turns

    def pump(self) -> None:
        """Give every lease that has room a chunk of the next run that has one."""
        self._place_suspects()
        if self._let_return():
            return
        busy = Counter(held.process for held in self.leases.values() if held.chunks)
        for depth in range(DEPTH):
            room = [
                held
                for held in self.leases.values()
                if held.state == "open"
                and len(held.chunks) == depth
                and held.process not in self.reserved
            ]
            while room:
                if depth == 0 and self._are_taken():
                    break
                room.sort(key=lambda held: busy[held.process])
                held = room.pop(0)
                if not self._give(held):
                    continue
                busy[held.process] += depth == 0

    def _are_taken(self) -> bool:
        """Tell whether inputs that went on, beside the leases that replace theirs, fill all places."""
        if not any(held.state == "last" for held in self.leases.values()):
            return False
        return self._busy() >= max(1, self._room()[0])

    def _may(self, job: Job, held: Held) -> bool:
        if not self.fits(job, held):
            return False
        using = self.using[job.handle]
        others = len(using) - (using[held.name] > 0)
        for other, chunk in self.returning:  # whose inputs have been waiting for longer
            route = self.routes.get(chunk)
            others += other.freed == chunk and route is not None and route[1].handle == job.handle
        return others < self.limit(job) and (job.loaded or self._may_try(job, held))

    def _may_try(self, job: Job, held: Held) -> bool:
        """Not all processes of a large cluster are to die of a function that none survives.

        However long it takes to load: the first that has loaded it says so at once.
        """
        chunks = ((lease.process, lease.chunks) for lease in self.leases.values())
        trying = {process for process, mine in chunks if any(self._is_of(job, c) for c in mine)}
        return len(trying | {held.process}) <= TRIED

    def _is_of(self, job: Job, chunk: int) -> bool:
        route = self.routes.get(chunk)
        return route is not None and route[1] is job

    # -- standing aside

    def _aside(self, held: Held, message: Aside) -> None:
        """An input waits, so another may run in its place; or it has what it waited for."""
        route = self.routes.get(message.chunk)
        if route is None:
            return
        pending = (held, message.chunk) in self.returning
        if message.now:
            self._resume(held, message.chunk, route[1])
        elif not message.waits:
            self.returning.append((held, message.chunk))
        elif pending and held.link is not None:
            # Another thread of the input waits now: the first may go on, the place stays free.
            self.returning.remove((held, message.chunk))
            held.link.send(Resume(message.chunk))
        elif held.state in {"open", "paused", "last"}:
            held.state = "aside"
            held.asked_to_hold = 0
            held.still_since = _clock()
            if not held.freed:
                held.freed = message.chunk
                self._uncount(held, route[1])
        self.wake()

    def _let_return(self) -> bool:
        """Let inputs go on for which there is a place; return whether others need the next one."""
        crowded = False
        for held, chunk in list(self.returning):
            route = self.routes.get(chunk)
            if route is None or held.link is None or held.state != "aside":
                self.returning.remove((held, chunk))
                continue
            job = route[1]
            if self._busy() >= max(1, self._room()[0], self.slots()) or not self.has_place(held):
                crowded = True
                self._make_room()
                continue
            if held.freed and len(self.using.get(job.handle, ())) >= self.limit(job):
                continue
            self.returning.remove((held, chunk))
            self._resume(held, chunk, job)
            held.link.send(Resume(chunk))
        return crowded

    def has_place(self, held: Held) -> bool:  # noqa: ARG002 - here any free one does
        """Tell whether there is a place for an input that goes on, where one is free."""
        return True

    def _make_room(self) -> None:
        """Have a generator give its place up for a turn; it may be what an input waits for."""
        for held in self.leases.values():
            if held.state in {"open", "last"} and held.chunks and held.link is not None:
                chunk = held.chunks[0]
                route = self.routes.get(chunk)
                if route is not None and route[1].streams and held.asked_to_hold != chunk:
                    held.asked_to_hold = chunk
                    held.link.send(Hold(chunk))
                    return

    def _resume(self, held: Held, chunk: int, job: Job) -> None:
        """Count an input that goes on."""
        if held.freed == chunk:
            self.using.setdefault(job.handle, Counter())[held.name] += 1
            held.freed = 0
        if held.still_since is not None:
            held.still += _clock() - held.still_since
            held.still_since = None
        if held.state == "aside":
            held.state = "last"

    def still(self, lease: str) -> float:
        """Return the seconds that the input of a lease's chunk has waited for something else."""
        held = self.leases.get(lease)
        if held is None:
            return 0.0
        return held.still + (0.0 if held.still_since is None else _clock() - held.still_since)

    def _busy(self) -> int:
        """Return how many leases work, without those that nobody waits for."""
        return sum(
            held.state in {"open", "paused", "last"}
            and bool(held.chunks)
            and not self._is_deaf(held)
            for held in self.leases.values()
        )

    def answer(self, chunk: int, message: Message) -> bool:
        """Send something to the lease that has a chunk; return whether there is one."""
        route = self.routes.get(chunk)
        if route is None or route[0].link is None:
            return False
        route[0].link.send(message)
        return True

    def _give(self, held: Held) -> bool:
        for step in range(len(self.jobs)):
            at = (self.turn + step) % len(self.jobs)
            job = self.jobs[at]
            if self._may(job, held) and self._offer(job, held, ahead=bool(held.chunks)):
                self.turn = at + 1
                return True
        return False

    def _offer(self, job: Job, held: Held, *, ahead: bool = False, alone: bool = False) -> bool:
        chunk = next(_chunks)
        active = sum(lease.state in {"open", "asked"} for lease in self.leases.values())
        slots = max(1, min(self.limit(job), active))
        work = job.offer(held.name, chunk, slots, ahead=ahead, alone=alone)
        if work is None or held.link is None:
            return False
        if job.blob.digest not in held.known:
            held.known.add(job.blob.digest)
            held.link.send(Load(job.blob.digest, job.blob.sources, job.blob.frames))
        if not held.chunks:
            held.still = 0.0
            held.heard = _clock()
        held.chunks.append(chunk)
        self.routes[chunk] = (held, job)
        self.using[job.handle][held.name] += 1
        held.link.send(work)
        return True

    def _place_suspects(self) -> None:
        """Empty a process for a run that has suspects, and give it them one chunk at a time."""
        there = {held.process for held in self.leases.values()}
        for process in [p for p in self.reserved if p not in there]:
            del self.reserved[process]
            self.solo.pop(process, None)
        for job in self.jobs:
            if not job.has_suspects():
                continue
            process = next((p for p, j in self.reserved.items() if j is job), "")
            if process not in self.solo and self._has_chunks(process):
                # What runs there may take long, or wait for what the suspects hold back.
                free = self._least_busy(job)
                if free and not self._has_chunks(free):
                    del self.reserved[process]
                    process = ""
            if not process:
                process = self._least_busy(job)
                if not process:
                    continue
                self.reserved[process] = job
                for held in self.leases.values():
                    if held.process == process and held.link is not None:
                        held.link.send(Recall())
            inside = [held for held in self.leases.values() if held.process == process]
            if process in self.solo or self._has_chunks(process):
                continue
            ready = [h for h in inside if h.state == "open" and self._may(job, h)]
            if ready and self._offer(job, ready[0], alone=True):
                self.solo[process] = ready[0].chunks[-1]

    def _has_chunks(self, process: str) -> bool:
        return any(held.chunks for held in self.leases.values() if held.process == process)

    def _least_busy(self, job: Job) -> str:
        load: Counter[str] = Counter()
        deaf = {held.process for held in self.leases.values() if self._is_deaf(held)}
        for held in self.leases.values():
            taken = held.process in self.reserved or held.process in deaf
            if held.state == "open" and not taken and self.fits(job, held):
                load[held.process] += len(held.chunks)
        return min(load, key=lambda process: load[process], default="")

    def _let_go(self, process: str) -> None:
        self.solo.pop(process, None)
        job = self.reserved.get(process)
        if job is not None and (job not in self.jobs or not job.has_suspects()):
            del self.reserved[process]

    def _drop_chunk(self, chunk: int) -> tuple[Held, Job] | None:
        route = self.routes.pop(chunk, None)
        if route is None:
            return None
        held, job = route
        if chunk in held.chunks:
            held.chunks.remove(chunk)
        if held.freed == chunk:
            held.freed = 0
        else:
            self._uncount(held, job)
        if not self.using.get(job.handle) and all(j.handle != job.handle for j in self.jobs):
            self.using.pop(job.handle, None)
        return route

    def _uncount(self, held: Held, job: Job) -> None:
        using = self.using[job.handle]
        using[held.name] -= 1
        if using[held.name] <= 0:
            del using[held.name]

    def halt(self, lease: str, chunk: int, index: int) -> None:
        """Ask a lease to stop an input, or with -1 a chunk."""
        held = self.leases.get(lease)
        if held is not None and held.link is not None:
            held.link.send(Stop(chunk, index))

    def force(self, chunks: list[int], then: Callable[[dict[int, Fate]], None]) -> None:
        """End the processes of chunks that did not stop when asked, where they are ours to end.

        Here none is.

        Args:
            chunks: that are with a lease, or have ended meanwhile.
            then: is called with what becomes of each.
        """
        routes = {chunk: self.routes.get(chunk) for chunk in chunks}
        then({chunk: Fate(route[0].worker) if route else ENDED for chunk, route in routes.items()})

    def silent_workers(self) -> dict[str, float]:
        """Return for how many seconds workers have been silent that should not be."""
        return {}

    # -- leases

    def opened(self, held: Held, link: NearLink) -> None:
        """Use a lease whose stream is open; its Hello follows."""
        held.forget_stream()
        held.link = link

    def receive(self, held: Held, link: NearLink, message: Message) -> None:
        """Take one message of a lease's stream."""
        if held.link is not link:
            return
        held.heard = _clock()
        if isinstance(message, ABOUT_A_CHUNK):
            self._about_a_chunk(held, message)
        elif isinstance(message, Aside):
            self._aside(held, message)
        elif isinstance(message, Hello):
            self._hello(held, message)
        elif isinstance(message, Paused):
            if held.state in {"open", "paused"}:
                held.state = "paused" if message.paused else "open"
                self.wake()
        elif isinstance(message, Bye):
            held.state = "ending"
            if message.reason == LEAVING:
                self.lose([held], died=False, reason="its worker retired")
            elif message.reason == DEAD:
                self.recycle(held)
            self.wake()

    def _about_a_chunk(
        self, held: Held, message: Out | Yield | Mark | Print | Back | Done | Ask
    ) -> None:
        route = self.routes.get(message.chunk)
        if isinstance(message, (Out, Yield)):
            held.owed += size_of(frames_of(message))
            if held.owed > ACKNOWLEDGE and held.link is not None:
                held.link.send(Credit(held.owed))
                held.owed = 0
        if route is None:
            return
        route[1].receive(message, held.worker)
        if isinstance(message, Done):
            self._drop_chunk(message.chunk)
            held.idle_since = _clock()
            if self.solo.get(held.process) == message.chunk:
                self._let_go(held.process)
            if held.state in {"aside", "last"} and not held.chunks and held.link is not None:
                held.state = "ending"
                held.link.send(Quit())
        if isinstance(message, (Done, Back)):
            self.wake()

    def _hello(self, held: Held, message: Hello) -> None:
        error = mismatch(message)
        if error is not None:
            self.fail(error)
            if held.link is not None:  # it gives its slot back, and the next map asks anew
                held.link.send(Quit())
            held.state = "ending"
            return
        held.process, held.pid, held.worker = message.boot, message.pid, message.worker
        held.known.update(message.known)
        held.state = "open"
        self.trouble = ""
        held.idle_since = _clock()
        self.wake()

    def recycle(self, held: Held) -> None:  # noqa: B027 - here no process has GPUs
        """Have a process started anew that can't use its GPUs any more."""

    def stream_ended(self, held: Held, link: NearLink) -> None:
        """The stream of a lease is gone: as it said, or its worker died, or the connection."""
        if held.link is not link:
            return
        if held.state == "ending":
            self.lose([held], died=False, reason="its lease ended", begun=False)
            held.forget_stream()
            self.gone(held)
        else:
            held.state = "silent"
            self.silent(held)

    def silent(self, held: Held) -> None:
        """Find out what became of a lease whose stream broke; here: nothing can be found out."""
        self.lose([held], died=False, reason="the connection to its worker was lost")
        self.gone(held)

    def lose(
        self,
        leases: list[Held],
        *,
        died: bool,
        reason: str,
        charge: bool = True,
        begun: bool = True,
    ) -> None:
        """Tell the runs what was lost with leases of one process that ended together."""
        alone = sum(bool(held.chunks) for held in leases) == 1
        death = next(_deaths)
        for held in leases:  # none of them gets what another had
            held.state = "ending"
        for held in leases:
            process = held.process
            for at, chunk in enumerate(list(held.chunks)):
                route = self._drop_chunk(chunk)
                if route is not None:
                    how = reason, held.worker, charge, begun, death
                    route[1].lost(Loss(chunk, died, at == 0, alone, *how))
            if died:
                self.solo.pop(process, None)
                self.reserved.pop(process, None)
            elif self.solo.get(process) is not None:
                self._let_go(process)

    def gone(self, held: Held) -> None:
        """Forget a lease that has ended."""
        self.leases.pop(held.name, None)
        self.wake()

    def fail(self, error: BaseException) -> None:
        """End all runs: there is nothing left that could run them."""
        for job in list(self.jobs):
            job.fail(error)

    # -- looking after

    def _start_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.engine.loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        now = _clock()
        for held in list(self.leases.values()):
            idle = held.state == "open" and not held.chunks
            if idle and now - held.idle_since > IDLE and held.link is not None:
                held.state = "ending"
                held.link.send(Quit())
        self.tick()
        self.wake()
        if self.leases or self.jobs:
            self._start_ticking()

    def quit(self) -> None:
        """Give all leases back."""
        for held in self.leases.values():
            if held.link is not None:
                held.link.send(Quit())
            held.state = "ending"

    def status(self) -> dict[str, Any]:
        """Return what there is, for people."""
        return {"leases": self.held()}


def mismatch(hello: Hello) -> VersionMismatch | None:
    """Return why functions can't be sent to a worker, if its versions forbid it."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    major = cloudpickle.__version__.partition(".")[0]
    if hello.python == here and hello.cloudpickle.partition(".")[0] == major:
        return None
    return VersionMismatch(
        f"the worker {hello.worker} has Python {hello.python} with cloudpickle "
        f"{hello.cloudpickle}, the notebook Python {here} with cloudpickle "
        f"{cloudpickle.__version__}: functions can't be sent between them. Use the same "
        "Python 3 minor version and the same major version of cloudpickle on both sides."
    )


class Pending(Transport):
    """Stands for a cluster that is not there yet, so that a run can be made without waiting."""

    def slots(self) -> int:
        """Return 1: how many there are going to be is unknown."""
        return 1

    def ask(self, n: int) -> None:
        """Do nothing: who made this asks for leases when there is a cluster."""

    def arrive(self, transport: Transport) -> None:
        """Have the runs use the cluster that is there now; from any thread."""
        self.engine.call(self._move, transport)

    def failed(self, error: BaseException) -> None:
        """End the runs: there will be no cluster; from any thread."""
        self.engine.call(self.fail, error)

    def add(self, job: Job) -> None:
        """Keep a run until there is a cluster."""
        if self._arrived is None:
            super().add(job)
        else:
            job.move(self._arrived)
        if self._error is not None:
            job.fail(self._error)

    _arrived: Transport | None = None
    _error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """End the runs that are here, and those that still come."""
        self._error = error
        super().fail(error)

    def _move(self, transport: Transport) -> None:
        self._arrived = transport
        for job in list(self.jobs):
            self.remove(job)
            job.move(transport)


class InProcess(Transport):
    """Leases that are threads of this process: for tests, and for debugging without a cluster.

    Args:
        slots: number of leases.

    Example:
        >>> import nbmap
        >>> from nbmap.engine.transport import InProcess
        >>> with nbmap.connect(InProcess(slots=2)):
        ...     list(nbmap.remote(abs).map([-1, 2]))
        [1, 2]
    """

    def __init__(self, slots: int = 2) -> None:
        super().__init__()
        self._slots = slots
        self._process = Process(_Here())

    def __repr__(self) -> str:
        return f"InProcess(slots={self._slots})"

    def slots(self) -> int:
        """Return the number of leases."""
        return self._slots

    def ask(self, n: int) -> None:
        """Start threads."""
        for _ in range(n):
            lease = Lease(uuid.uuid4().hex, self._process)
            held = Held(lease.id)
            self.leases[lease.id] = held
            link = _Near(self, held, lease)
            self.opened(held, link)
            lease.open(_Far(link))
            threading.Thread(target=lease.run, name="nbmap-lease", daemon=True).start()


class _Here:
    """This process as a host of leases: nobody else uses its threads, and it never retires."""

    name = "in-process"

    def status(self) -> str:
        return "running"

    def waiting(self) -> list[str]:
        return []

    def aside(self) -> None:
        pass


class _Near:
    """The near end of a stream inside one process."""

    def __init__(self, transport: InProcess, held: Held, lease: Lease) -> None:
        self.transport = transport
        self.held = held
        self.lease = lease

    def send(self, message: Message, *, wait: bool = False) -> None:  # noqa: ARG002
        if isinstance(message, Work):  # the run keeps its frames, and functions write to arrays
            message.frames = [bytes(frame) for frame in message.frames]
        self.lease.receive(message)

    def close(self) -> None:
        self.lease.end()


class _Far:
    """The far end of a stream inside one process."""

    def __init__(self, near: _Near) -> None:
        self.near = near

    def send(self, message: Message, *, wait: bool = False) -> None:  # noqa: ARG002
        near = self.near
        near.transport.engine.call(near.transport.receive, near.held, near, message)

    def close(self) -> None:
        near = self.near
        near.transport.engine.call(near.transport.stream_ended, near.held, near)
