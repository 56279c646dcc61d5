"""The pool: asks Dask for leases, opens their streams, gives them back, learns of their loss.

A lease is a Dask task that does not end (`far.hold`). Dask decides where it runs, restarts workers
and scales; when a lease has started it says so on a topic, and the near side connects to its worker.
Whatever then happens to one - it ends by itself, its stream breaks, its worker dies, Dask cancels
it - leads to `gone` or back to `asked`, and both ask again for what runs still want: no run waits
for a lease that nobody asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Sequence
from typing import Any, Protocol

from distributed import Client

from ..engine.model import Message
from ..engine.transport import ENDED, Fate, Held, Transport, own_failure
from ..errors import ClusterError, ClusterLost
from .far import LEASE_KEY, CommLink
from .stream import Place, Streams, far_function
from .workers import Workers

logger = logging.getLogger("nbmap")

REFRESH = 1.0  # seconds after which slots of a cluster that is not ours are counted again
EOF = 1.0  # seconds in which the stream to a worker that has died ends by itself
FAILED = 5  # leases in a row that fail to start before the runs end
QUIET = 5.0  # seconds without a message from a lease that works, before its worker is asked for
ALIVE = 1.0  # seconds in which a process answers that has its Python lock
ANSWERS = 5.0  # the same, where that can't be ended but only left, with all that it runs
AGAIN = 0.2  # seconds after which what failed over a network is tried again
UNKNOWN = 10.0  # seconds after which nobody asks any more what became of a process


class Own(Protocol):
    """What a cluster of our own can tell besides."""

    cores: int

    def workers(self) -> list[str]:
        """Return the addresses of the workers that are there."""

    def leases_each(self) -> int:
        """Return how many leases a worker may have."""

    def mend(self) -> None:
        """Replace the nannies that gave up."""


class DaskTransport(Transport):
    """Leases on a Dask cluster.

    Args:
        client: ours, connected to it; closed by whoever made it.
        own: of a cluster that nbmap started, what it can tell.
        grows_to: slots that a cluster which scales itself may come to have.
        stream: how streams reach workers: "direct", "relay" or "auto"; see `Streams`.

    Raises:
        OptionError: `stream` is none of them.
    """

    def __init__(
        self,
        client: Client,
        own: Own | None = None,
        grows_to: int = 0,
        stream: str | None = None,
    ) -> None:
        super().__init__()
        self.client = client
        self._loop: Any = client.loop
        # Which a client forgets when it closes.
        self._address = str(client.scheduler.address) if client.scheduler else "the scheduler"
        self.own = own
        name = uuid.uuid4().hex
        self.topic = f"nbmap-{name}"
        self._key = f"{LEASE_KEY}-{name[:12]}-"  # how the keys of our leases begin
        self.workers = Workers(client, self.engine, f"nbmap-ends-{name}", self._key)
        self._condemned: dict[str, bool] = {}  # processes that we end -> whether it is unsure why
        self.gpus: DaskTransport | None = None  # of leases on the GPUs of this cluster
        self._mended = 0.0
        self._grows_to = grows_to
        self._streams = Streams(client, stream)
        self._task = far_function("hold")
        self._futures: dict[str, Any] = {}
        self._placed: dict[str, str] = {}  # lease -> the worker of ours that it was sent to
        self._at: dict[str, Place] = {}  # lease -> where it said that it runs
        self._counted = 0.0
        self._counting = False
        self._failed = 0  # leases in a row that did not start
        self._unreached = ""  # the worker that `trouble` is about
        self._stuck: set[str] = set()  # workers in which nothing runs, and that are not ours to end
        self._threads: dict[str, int] = {} if own else dict(client.nthreads())
        client.subscribe_topic(self.topic, self._on_event)

    # -- what there is

    def slots(self) -> int:
        """Return how many leases a handle without a limit may hold."""
        if self.own is not None:
            return self.own.cores
        usable = sum(n for worker, n in self._threads.items() if worker not in self._stuck)
        return max(1, self._grows_to, usable)

    def capacity(self, limited: int, unlimited: int) -> int:
        """On our own cluster a handle's limit is the number of leases that it gets."""
        if self.own is None:
            return min(self.slots(), limited + unlimited)
        return limited + min(self.own.cores, unlimited)

    def _start(self, work: Coroutine[Any, Any, None], held: Held | None = None) -> None:
        """Run something on the engine's loop. Where it fails as nobody foresaw, so do the runs.

        They would wait for ever for what it was about, and so would those that come for the lease.
        """

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                logger.error("nbmap's own part failed", exc_info=error)
                self.fail(own_failure(error))
                if held is not None and self.leases.get(held.name) is held:
                    self.lose([held], died=False, reason="nbmap has failed")
                    held.forget_stream()
                    self.gone(held)

        self.engine.loop.create_task(work).add_done_callback(ended)

    def alive(self) -> bool:
        """Tell whether the cluster can still be used."""
        return bool(self.client.status == "running")

    # -- asking

    def ask(self, n: int) -> None:
        """Submit leases to Dask; on our own cluster spread evenly over the processes."""
        for place in self._places(n) if self.own is not None else [""] * n:
            self._submit(place)

    def _submit(self, place: str, uuids: Sequence[str] = ()) -> Held:
        """Submit one lease; to a worker and GPUs of it, or where Dask likes."""
        held = Held(uuid.uuid4().hex)
        self.leases[held.name] = held
        options: dict[str, Any] = {}
        if place:
            options["workers"] = [place]
            self._placed[held.name] = place
        elif self._stuck:  # to Dask they seem to have nothing to do
            options["workers"] = [w for w in self._threads if w not in self._stuck] or None
            options["allow_other_workers"] = options["workers"] is not None
        key = self._key + held.name
        future = self.client.submit(
            self._task, held.name, self.topic, uuids, key=key, pure=False, **options
        )
        self._futures[held.name] = future
        self._loop.add_callback(self._task_done, held, future)
        return held

    def _places(self, n: int) -> list[str]:
        """Choose the workers for `n` more leases; fewer where a worker is being restarted."""
        assert self.own is not None
        workers = self.own.workers()
        if not workers:
            return []
        load = Counter(dict.fromkeys(workers, 0))
        working = [n for n, held in self.leases.items() if self.works(held)]
        for name in working:
            place = self._placed.get(name, "")
            if place in load:
                load[place] += 1
        most = min(self.own.leases_each(), -(-(len(working) + n) // self.own.cores))
        out: list[str] = []
        while len(out) < n:
            place = min(load, key=lambda worker: load[worker])
            if load[place] >= most:
                break
            load[place] += 1
            out.append(place)
        return out

    def _on_event(self, event: Any) -> None:
        """Hear that a lease has started; on the client's loop."""
        _time, told = event
        self.engine.call(self._announced, told["lease"], Place(told["worker"], told["server"]))

    def _announced(self, name: str, place: Place) -> None:
        held = self.leases.get(name)
        if held is not None:
            self._start(self._connect(held, place), held)

    async def _connect(self, held: Held, place: Place) -> None:
        def on_message(link: CommLink, message: Message) -> None:
            self.receive(held, link, message)

        def on_end(link: CommLink) -> None:
            self.stream_ended(held, link)

        await self._bury(held)
        if self.leases.get(held.name) is held:
            self._at[held.name] = place
            self.workers.watch(place.address, place.server)
        while self._is_at(held, place):  # its task gives up in the end, and is asked for again
            try:
                link = await self._streams.open(place, held.name, on_message, on_end)
            except OSError as error:  # it died meanwhile, or can't be reached from here
                logger.info("no stream to a lease on %s: %s", place.address, error)
                if not self._some_open():
                    self._unreached = place.address
                    self.trouble = f"the worker {place.address} can't be reached from here"
                await asyncio.sleep(AGAIN)
                continue
            except ClusterError as error:
                logger.info("no stream to a lease on %s: %s", place.address, error)
                if not self._some_open():
                    self.fail(error)
                return
            if not self._is_at(held, place):
                link.abort()  # it is gone, or runs elsewhere
                return
            self._failed = 0
            self.opened(held, link)
            await link.read()
            return

    def _is_at(self, held: Held, place: Place) -> bool:
        return self.leases.get(held.name) is held and self._at.get(held.name) == place

    async def _bury(self, held: Held) -> None:
        """Wait until it is known what became of a lease that Dask runs again on another worker.

        Its chunks would be lost untold if its new stream were opened before.
        """
        until = time.monotonic() + EOF
        while held.process and self.leases.get(held.name) is held:
            if time.monotonic() > until and isinstance(held.link, CommLink):
                held.link.abort()
            await asyncio.sleep(0.01)

    def _some_open(self) -> bool:
        return any(lease.state == "open" for lease in self.leases.values())

    # -- losing

    async def _task_done(self, held: Held, future: Any) -> None:
        """Hear from Dask that a lease's task is over; on the client's loop.

        Not by `Future.add_done_callback`: its threads are gone when the process ends, and then each
        lease that ends with the client leaves a traceback in the terminal.
        """
        try:
            raised = await future.exception(asynchronous=True)
            error = "" if raised is None else repr(raised)
        except Exception as unknown:
            error = repr(unknown)
        self.engine.call(self._task_ended, held, future.status, error)

    def _task_ended(self, held: Held, status: str, error: str) -> None:
        if error and held.link is None:
            self._failed += 1
            logger.warning("a lease failed to start: %s", error)
            if self._failed > FAILED:  # as it would go on for ever, in silence
                msg = f"nbmap's part does not start on the workers of {self.describe()}: {error}"
                self.fail(ClusterError(msg))
                self._failed = 0
        self._futures.pop(held.name, None)
        if self.leases.get(held.name) is not held:
            return
        if not self.alive():
            self._fail_all()
        elif held.link is None:
            self.gone(held)
        elif status == "error" and isinstance(held.link, CommLink):  # as after several deaths
            held.link.abort()  # what became of its process is found out as always
        elif status != "finished":  # cancelled: the cluster was restarted, nobody is to blame
            held.state = "ending"
            self.lose([held], died=False, reason="its worker was restarted")
            held.forget_stream()
            self.gone(held)

    def gone(self, held: Held) -> None:
        """Forget a lease, and its task."""
        self._placed.pop(held.name, None)
        self._at.pop(held.name, None)
        future = self._futures.pop(held.name, None)
        if future is not None:
            future.release()
        super().gone(held)

    def silent(self, held: Held) -> None:
        """Find out what became of a lease whose stream broke."""
        self._start(self._inquest(held), held)

    async def _inquest(self, held: Held) -> None:
        process, worker, place = held.process, held.worker, self._at.get(held.name)
        if place is None:
            return  # it was dealt with meanwhile
        if not process:
            await self._open_again(held, place)
            return
        if await self._may_live(held, place):
            if held.state == "silent" and held.process == process:
                self.lose([held], died=False, reason="the connection to its worker was lost")
                held.forget_stream()
                self.gone(held)
            return
        reason = await self.workers.reason(worker)
        if held.state != "silent" or held.process != process:
            return  # it was dealt with together with another lease of the process
        together = [h for h in self.leases.values() if h.process == process]
        unsure = self._condemned.pop(process, None)
        if unsure is None:
            self.lose(together, died=True, reason=reason)
        else:
            self.lose(together, died=unsure, reason="its process was ended", charge=False)
        for other in together:
            other.forget_stream()
            if other.name in self._placed or other.name not in self._futures:
                self.gone(other)
            else:  # Dask runs its task again on another worker
                other.state = "asked"
        self.wake()

    async def _open_again(self, held: Held, place: Place) -> None:
        """Open a stream that broke before the lease had said Hello, and may wait for us yet.

        It would wait for long, in a slot that others could have.
        """
        held.forget_stream()
        if held.name not in self._futures:  # it had heard of the stream, and of its end
            self.gone(held)
            return
        held.state = "asked"
        await asyncio.sleep(AGAIN)
        if held.link is None and self._is_at(held, place):
            await self._connect(held, place)

    async def _may_live(self, held: Held, place: Place) -> bool:
        """Tell whether the process of a lease lives, or nobody knows, so that none is to blame."""
        until = time.monotonic() + UNKNOWN
        while held.state == "silent":
            alive = await self._streams.process_alive(place, held.process)
            if alive is None and await self.workers.given_up(place.address):
                alive = False
            if alive is not None:
                return alive
            if time.monotonic() > until:
                break
            await asyncio.sleep(AGAIN)
        return True

    # -- ending functions that do not stop

    def force(self, chunks: list[int], then: Callable[[dict[int, Fate]], None]) -> None:
        """End the processes of chunks that did not stop when asked, where they are ours to end."""
        self._start(self._force(chunks, then))

    async def _force(self, chunks: list[int], then: Callable[[dict[int, Fate]], None]) -> None:
        at: dict[str, Held] = {}  # a lease of each process
        for chunk in chunks:
            if chunk in self.routes:
                held = self.routes[chunk][0]
                at[held.process] = held
        told = await asyncio.gather(*(self._judge(held, chunks) for held in at.values()))
        fates = {process: fate for process, (fate, _) in zip(at, told, strict=True)}
        still = {c: self.routes[c][0].process for c in chunks if c in self.routes}
        then({chunk: fates.get(still.get(chunk, ""), ENDED) for chunk in chunks})
        for (process, held), (fate, answers) in zip(at.items(), told, strict=True):
            if process not in still.values() or process in self._condemned:
                continue
            if not fate.where:
                self._condemned[process] = not fate.sure
                if not await self.workers.end(held.worker, held.pid):
                    self._condemned.pop(process, None)
                    logger.warning("the process %s of %s was not ended", held.pid, held.worker)
            elif not answers:
                self._leave(process, held.worker)

    async def _judge(self, held: Held, chunks: list[int]) -> tuple[Fate, bool]:
        """Return what becomes of chunks in a lease's process, and whether that answers."""
        ours = await self.workers.may_end(held.worker)
        inside = [h for h in self.leases.values() if h.process == held.process and h.chunks]
        alone = all(h.chunks[0] in chunks for h in inside)
        place = self._at.get(held.name)
        if place is None or (ours and alone):
            return ENDED, True
        # Where a function holds Python's lock nobody else in the process can end in time.
        asking = self._streams.process_alive(place, held.process)
        try:
            answers = bool(await asyncio.wait_for(asking, ALIVE if ours else ANSWERS))
        except TimeoutError:
            answers = False
        return Fate("" if ours else held.worker, sure=answers or alone), answers

    def _leave(self, process: str, worker: str) -> None:
        """Give the leases up of a process in which nothing runs, and that is not ours to end."""
        reason = f"the worker {worker} does not answer: something in it holds Python's lock"
        together = [held for held in self.leases.values() if held.process == process]
        places = [self._at[held.name] for held in together if held.name in self._at]
        if places:
            self._stuck.add(worker)
            self._start(self._avoid(process, places[0]))
        self.lose(together, died=True, reason=reason, charge=False)
        for held in together:
            link = held.link
            held.forget_stream()
            if isinstance(link, CommLink):
                link.abort()
            self.gone(held)
        if not self._some_open():
            self._unreached, self.trouble = worker, reason

    async def _avoid(self, process: str, place: Place) -> None:
        """Have no lease wait at a worker in which nothing runs, until it answers or has gone."""
        while self.alive():
            if self.jobs:
                for key in await self.workers.processing(place.address):
                    held = self.leases.get(key.removeprefix(self._key))
                    if held is not None and held.state == "asked":
                        self.gone(held)
                self.wake()
                if await self._streams.process_alive(place, process) is not None:
                    break
                if await self.workers.given_up(place.address):
                    break
            await asyncio.sleep(REFRESH)
        self._stuck.discard(place.address)
        self.wake()

    def _fail_all(self) -> None:
        self.fail(
            ClusterLost(
                f"the cluster is gone: {self.describe()} does not answer. What was done is on the "
                "run; map the rest again when there is a cluster"
            )
        )
        links = [held.link for held in self.leases.values() if held.link is not None]
        self.leases.clear()
        self._futures.clear()
        self._placed.clear()
        self._at.clear()
        for link in links:  # where workers live on, they must not keep their slots for us
            link.close()
        # Otherwise it goes on trying to reach a scheduler that is gone, and logs about it.
        if self.client.status == "connecting":  # not where the process ends, and closes it
            self.engine.loop.run_in_executor(None, self.client.close)

    # -- looking after

    def tick(self) -> None:
        """Notice that the cluster is gone, and count slots where more are wanted."""
        now = time.monotonic()
        if self.jobs and not self.alive():
            self._fail_all()
            return
        if self.own is not None:
            self._tick_own(self.own, now)
        elif not self._counting and self.jobs and now - self._counted > REFRESH:
            self._counting, self._counted = True, now
            self._start(self._count())
        quiet = [h.worker for h in self.leases.values() if h.chunks and now - h.heard > QUIET]
        self.workers.look(quiet, self._missing)

    def _tick_own(self, own: Own, now: float) -> None:
        if now - self._mended > REFRESH:
            self._mended = now
            own.mend()
        # A task that may run on one worker only waits for ever when that has died.
        self._forget_asked(set(own.workers()))

    def _forget_asked(self, there: set[str]) -> None:
        """Forget the leases that were sent to workers which are not there any more."""
        self._forget_trouble(there)
        for held in list(self.leases.values()):
            if held.state == "asked" and self._placed.get(held.name, "") not in there:
                self.gone(held)

    def _forget_trouble(self, there: Container[str]) -> None:
        """Say no more that a worker can't be reached which is not there any more."""
        if self._unreached and self._unreached not in there:
            self._unreached = self.trouble = ""

    def _missing(self, worker: str) -> None:
        """Give the leases up of a worker that the scheduler has given up, as it was silent."""
        for held in list(self.leases.values()):
            if held.worker == worker and isinstance(held.link, CommLink):
                held.link.abort()

    def silent_workers(self) -> dict[str, float]:
        """Return for how many seconds workers have been silent that should not be."""
        return self.workers.silent()

    async def _count(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            threads = await loop.run_in_executor(None, self.client.nthreads)
        except Exception as error:
            logger.info("slots can't be counted: %s", error)
        else:
            self._threads = dict(threads)
            self._forget_trouble(self._threads)
            self.wake()
        finally:
            self._counting = False

    def describe(self) -> str:
        """Return the scheduler's address, without anything secret that it may hold."""
        scheme, _, rest = self._address.rpartition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest

    def status(self) -> dict[str, Any]:
        """Return what there is, for people; asks the scheduler, so not on the engine's thread."""
        if self.own is None and self.alive():  # workers come and go while nothing runs
            with contextlib.suppress(OSError, TimeoutError):
                self._threads = dict(self.client.nthreads())
        found = super().status()
        found["slots"] = self.slots()
        found["workers"] = len(self.own.workers()) if self.own is not None else len(self._threads)
        return found
