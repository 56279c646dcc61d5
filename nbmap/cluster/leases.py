"""The pool: asks Dask for leases, opens their streams, gives them back, learns of their loss.

A lease is a Dask task that does not end (`far.hold`). Dask decides where it runs, restarts workers
and scales; when a lease has started it says so on a topic, and the near side connects to its worker.
Whatever then happens to one - it ends by itself, its stream breaks, its worker dies, Dask cancels
it - leads to `gone` or back to `asked`, and both ask again for what runs still want: no run waits
for a lease that nobody asks for.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from typing import Any, Protocol

from distributed import Client

from ..engine.model import Message
from ..engine.transport import Held, Transport
from ..errors import ClusterError, ClusterLost
from .far import LEASE_KEY, CommLink
from .stream import Place, Streams, far_function

logger = logging.getLogger("nbmap")

REFRESH = 1.0  # seconds after which slots of a cluster that is not ours are counted again
EOF = 1.0  # seconds in which the stream to a worker that has died ends by itself
FAILED = 5  # leases in a row that fail to start before the runs end
REASON = 1.0  # seconds to wait for our own cluster to tell how a worker died


class Own(Protocol):
    """What a cluster of our own can tell besides."""

    cores: int

    def workers(self) -> list[str]:
        """Return the addresses of the workers that are there."""

    def leases_each(self) -> int:
        """Return how many leases a worker may have."""

    def exit_reason(self, address: str) -> str:
        """Return how a worker's process ended, or an empty string while that is unknown."""


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
        self.own = own
        self.topic = f"nbmap-{uuid.uuid4().hex}"
        self._grows_to = grows_to
        self._streams = Streams(client, stream)
        self._task = far_function("hold")
        self._futures: dict[str, Any] = {}
        self._placed: dict[str, str] = {}  # lease -> the worker of ours that it was sent to
        self._at: dict[str, Place] = {}  # lease -> where it said that it runs
        self._counted = 0.0
        self._counting = False
        self._failed = 0  # leases in a row that did not start
        self._threads: dict[str, int] = {} if own else dict(client.nthreads())
        client.subscribe_topic(self.topic, self._on_event)

    # -- what there is

    def slots(self) -> int:
        """Return how many leases a handle without a limit may hold."""
        if self.own is not None:
            return self.own.cores
        return max(1, self._grows_to, sum(self._threads.values()))

    def capacity(self, limited: int, unlimited: int) -> int:
        """On our own cluster a handle's limit is the number of leases that it gets."""
        if self.own is None:
            return min(self.slots(), limited + unlimited)
        return limited + min(self.own.cores, unlimited)

    def alive(self) -> bool:
        """Tell whether the cluster can still be used."""
        return bool(self.client.status == "running")

    # -- asking

    def ask(self, n: int) -> None:
        """Submit leases to Dask; on our own cluster spread evenly over the processes."""
        places = self._places(n) if self.own is not None else [None] * n
        for place in places:
            held = Held(uuid.uuid4().hex)
            self.leases[held.name] = held
            options: dict[str, Any] = {}
            if place is not None:
                options["workers"] = [place]
                self._placed[held.name] = place
            future = self.client.submit(
                self._task,
                held.name,
                self.topic,
                key=f"{LEASE_KEY}-{held.name}",
                pure=False,
                **options,
            )
            self._futures[held.name] = future
            future.add_done_callback(lambda done, held=held: self._task_done(held, done))

    def _places(self, n: int) -> list[str]:
        """Choose the workers for `n` more leases; fewer where a worker is being restarted."""
        assert self.own is not None
        workers = self.own.workers()
        if not workers:
            return []
        load = Counter(dict.fromkeys(workers, 0))
        for name, place in self._placed.items():
            if name in self.leases and place in load:
                load[place] += 1
        most = min(self.own.leases_each(), -(-(len(self.leases) + n) // self.own.cores))
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
            self.engine.loop.create_task(self._connect(held, place))

    async def _connect(self, held: Held, place: Place) -> None:
        def on_message(link: CommLink, message: Message) -> None:
            self.receive(held, link, message)

        def on_end(link: CommLink) -> None:
            self.stream_ended(held, link)

        await self._bury(held)
        if self.leases.get(held.name) is held:
            self._at[held.name] = place
        try:
            link = await self._streams.open(place, held.name, on_message, on_end)
        except OSError as error:  # it died meanwhile, or can't be reached from here
            logger.info("no stream to a lease on %s: %s", place.address, error)
            if not self._some_open():
                self.trouble = f"the worker {place.address} can't be reached from here"
            return
        except ClusterError as error:
            logger.info("no stream to a lease on %s: %s", place.address, error)
            if not self._some_open():
                self.fail(error)
            return
        if self.leases.get(held.name) is not held or self._at.get(held.name) != place:
            link.abort()  # it is gone, or runs elsewhere
            return
        self._failed = 0
        self.opened(held, link)
        await link.read()

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

    def _task_done(self, held: Held, done: Any) -> None:
        """Hear from Dask that a lease's task is over; on the client's thread for callbacks."""
        error = ""
        if done.status == "error":
            try:
                error = repr(done.exception(timeout=5))
            except Exception as unknown:
                error = repr(unknown)
        self.engine.call(self._task_ended, held, done.status, error)

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
        self.engine.loop.create_task(self._inquest(held))

    async def _inquest(self, held: Held) -> None:
        process, worker, place = held.process, held.worker, self._at.get(held.name)
        if place is None:
            return  # it was dealt with meanwhile
        if await self._streams.process_alive(place, process):
            if held.state == "silent":
                self.lose([held], died=False, reason="the connection to its worker was lost")
                held.forget_stream()
                self.gone(held)
            return
        reason = await self._exit_reason(worker)
        if held.state != "silent" or held.process != process:
            return  # it was dealt with together with another lease of the process
        together = [h for h in self.leases.values() if h.process == process]
        self.lose(together, died=True, reason=reason)
        for other in together:
            other.forget_stream()
            if self.own is not None or other.name not in self._futures:
                self.gone(other)
            else:  # Dask runs its task again on another worker
                other.state = "asked"
        self.wake()

    async def _exit_reason(self, worker: str) -> str:
        until = time.monotonic() + REASON
        while self.own is not None and time.monotonic() < until:
            if reason := self.own.exit_reason(worker):
                return reason
            await asyncio.sleep(0.02)
        return f"its worker {worker} died"

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
        self.engine.loop.run_in_executor(None, self.client.close)

    # -- looking after

    def tick(self) -> None:
        """Notice that the cluster is gone, and count slots where more are wanted."""
        if self.jobs and not self.alive():
            self._fail_all()
        elif self.own is None and not self._counting and self.jobs:
            now = time.monotonic()
            if now - self._counted > REFRESH:
                self._counting, self._counted = True, now
                self.engine.loop.create_task(self._count())

    async def _count(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            threads = await loop.run_in_executor(None, self.client.nthreads)
        except Exception as error:
            logger.info("slots can't be counted: %s", error)
        else:
            self._threads = dict(threads)
            self.wake()
        finally:
            self._counting = False

    def describe(self) -> str:
        """Return the scheduler's address, without anything secret that it may hold."""
        address = str(self.client.scheduler.address) if self.client.scheduler else "the scheduler"
        scheme, _, rest = address.rpartition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest

    def status(self) -> dict[str, Any]:
        """Return what there is, for people."""
        found = super().status()
        found["slots"] = self.slots()
        found["workers"] = len(self.own.workers()) if self.own is not None else len(self._threads)
        return found
