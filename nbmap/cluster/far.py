"""The far end of a lease in Dask: the task that holds a slot, and the handler that opens its stream.

Sent to workers by value together with `nbmap.worker`. What is private in distributed is used here
and nowhere else on the far side, and `tests/cluster/test_contract.py` fails when it changes:
`Worker.state.ready` (the tasks that wait for a thread), `Worker.handlers` (its operations),
`Worker.stream_handlers` (what it does with messages of the scheduler), `Worker.connection_args`.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from distributed import get_worker, secede
from distributed.core import Status
from distributed.protocol.serialize import to_serialize

from ..engine.model import Message, frames_of, message_from
from ..worker.serve import Lease, Process
from . import relay

logger = logging.getLogger("nbmap")

LEASE_KEY = "nbmap-lease"  # how the keys of our tasks begin
INLINE = 32 << 10  # smaller frames travel inside the message
BATCH = 64  # messages written at once


class CommLink:
    """A stream over a Dask comm: ordered messages, sent from any thread, received on the loop's."""

    def __init__(
        self,
        comm: Any,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self._comm = comm
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._queue: collections.deque[Any] = collections.deque()
        self._writing = False
        self._closing = False
        self._task: Any = None
        self.closed = False

    def send(self, message: Message, *, wait: bool = False) -> None:
        """Queue a message; with `wait` return when it was handed to the socket (not on the loop)."""
        if self.closed:
            return
        written = threading.Event() if wait else None
        self._queue.append((message, written))
        if not self._writing:
            self._writing = True
            self._call(self._kick)
        if written is not None:
            written.wait(1.0)

    def close(self) -> None:
        """Close when everything was sent; from any thread."""
        self._closing = True
        self._call(self._kick)

    def abort(self) -> None:
        """Close at once; on the loop's thread."""
        if not self.closed:
            self.closed = True
            self._comm.abort()
            self._on_end()

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: the process ends
            self.closed = True

    def _kick(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        try:
            while True:
                self._writing = True
                if not self._queue:
                    self._writing = False
                    if not self._queue:
                        break
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await self._comm.write([_to_wire(message) for message, _ in batch])
                for _, written in batch:
                    if written is not None:
                        written.set()
            if self._closing:
                await self._comm.close()
                self.abort()
        except OSError:  # the other side is gone
            self.abort()

    async def read(self) -> None:
        """Receive until the stream ends; the handler of a Dask server must not return before."""
        try:
            while not self.closed:
                batch = await self._comm.read()
                if isinstance(batch, dict):  # no such lease: it has ended meanwhile
                    break
                for header, frames in batch:
                    self._on_message(message_from(header, [_unwrap(frame) for frame in frames]))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.abort()


def _to_wire(message: Message) -> Any:
    return message.header(), [
        bytes(frame)
        if memoryview(frame).nbytes < INLINE
        else to_serialize(memoryview(frame).cast("B"))
        for frame in frames_of(message)
    ]


def _unwrap(frame: Any) -> Any:
    """Return the bytes of a frame; comms inside one process hand wrapped ones over unopened."""
    return frame.data if hasattr(frame, "data") and hasattr(frame.data, "nbytes") else frame


class DaskHost:
    """What leases ask about their worker."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.name = _address(worker)

    def status(self) -> str:
        """Return running, paused or leaving."""
        status = self._worker.status
        if status == Status.running:
            return "running"
        return "paused" if status == Status.paused else "leaving"

    def aside(self) -> None:
        """Let Dask start another task in the place of the one whose thread calls this."""
        secede()

    def waiting(self) -> list[str]:
        """Return whose tasks wait for a thread. A peek from another thread."""
        try:
            return [_owner(str(task.key)) for task in list(self._worker.state.ready)]
        except RuntimeError:  # it changed under the eyes
            return []


def _owner(key: str) -> str:
    """Return whose task it is: of a lease its transport, which there is one of in each client."""
    return key.rpartition("-")[0] if key.startswith(LEASE_KEY) else ""


def _address(worker: Any) -> str:
    """Return the address that others know a worker by; it may listen at another one."""
    return str(worker.contact_address or worker.address)


_lock = threading.Lock()


def _process_of(worker: Any) -> Process:
    """Return what the leases of a worker share, and let it answer to our operation."""
    with _lock:
        process: Process | None = getattr(worker, _ATTRIBUTE, None)
        if process is None:
            process = Process(DaskHost(worker))
            setattr(worker, _ATTRIBUTE, process)

            async def serve(comm: Any, lease: str = "") -> Any:
                return await _serve(process, comm, lease)

            # An exception in there would end the worker's connection to its scheduler.
            def called(lease: str = "", token: str = "", **_: Any) -> None:
                coming = asyncio.ensure_future(_come(process, worker, lease, token))
                tasks.add(coming)
                coming.add_done_callback(tasks.discard)

            tasks: set[Any] = set()  # asyncio itself does not hold them
            worker.handlers[OPERATION] = serve
            worker.stream_handlers[relay.OPERATION] = called
        return process


async def _serve(process: Process, comm: Any, name: str) -> Any:
    """Open the stream of a lease, and stay until it ends; without a name only say who we are."""
    lease = process.leases.get(name)
    if lease is None:
        await comm.write({"boot": process.boot})
        return Status.dont_reply
    link = CommLink(comm, asyncio.get_running_loop(), lease.receive, lease.end)
    lease.open(link)
    await link.read()
    return Status.dont_reply


async def _come(process: Process, worker: Any, name: str, token: str) -> None:
    """Serve a near side that can't reach this worker: through the scheduler, which both can."""
    try:
        comm = await relay.come(worker.scheduler.address, worker.connection_args, token)
    except OSError as error:
        logger.info("the relay can't be reached: %s", error)
        return
    try:
        await _serve(process, comm, name)
        await comm.close()
    except OSError:  # the near side has gone
        pass
    finally:
        comm.abort()


def hold(name: str, topic: str, uuids: Sequence[str] = ()) -> str:
    """Hold a thread of a worker for a lease, perhaps on some of its GPUs: the Dask task."""
    worker = get_worker()
    process = _process_of(worker)
    lease = Lease(name, process, uuids, _owner(str(worker.get_current_task())))
    process.add(lease)
    worker.log_event(topic, {"lease": name, "worker": _address(worker), "server": worker.id})
    return lease.run()


OPERATION = __name__.partition(".")[0] + "_open"
_ATTRIBUTE = "_" + OPERATION
