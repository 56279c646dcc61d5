"""The stream of a lease through the scheduler, where its worker can't be reached from here.

Both ends connect to the scheduler, as they do for all else, so that nothing new listens, and a
plugin of ours there joins the two connections, one message after the other::

    near side ── 1 connects, names worker and lease ──▶ scheduler ◀── 3 connects, with token ── worker
                                                           │                                      ▲
                                                           └── 2 the token, on Dask's own stream ──┘

What is behind the two ends is the same as on a direct stream: a comm, whose end is seen by both.
Not Dask's batched streams all the way: they add 12 ms to a call, stand in the way of Dask's own
messages, and keep the last thousand batches in memory.

Sent to the scheduler by value. What is private in distributed is used here and nowhere else on the
scheduler, and `tests/cluster/test_contract.py` fails when it changes: `Scheduler.handlers` (its
operations), and `comm.stream` of connections over TCP and TLS, since Dask's `write` does not wait
until the other side has room.
"""

from __future__ import annotations

import asyncio
import operator
import uuid
from dataclasses import dataclass, field
from typing import Any

from distributed import SchedulerPlugin
from distributed.comm.core import connect
from distributed.core import Status

CONNECT = 3.0  # seconds to reach the scheduler
LINGER = 5.0  # seconds in which what is under way arrives after one side has gone

# What the scheduler answers.
OPEN = "open"
GONE = "gone"  # no such worker, or another process in its place
SILENT = "silent"  # it is known, and does not come

OPERATION = __name__.partition(".")[0] + "_relay"


@dataclass(slots=True)
class Call:
    """A near side that waits for its worker, or speaks with it."""

    worker: str
    near: Any
    far: asyncio.Future[Any]  # the worker's comm, or None: it is gone
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Relay(SchedulerPlugin):
    """Joins the two connections of a stream; on the scheduler.

    Args:
        operation: its name among the scheduler's operations, and among its plugins.
        shipped: near side only: what makes it on the scheduler.
    """

    idempotent = True

    def __init__(self, operation: str, shipped: Any = None) -> None:
        self.name = operation
        self._shipped = shipped
        self._scheduler: Any = None
        self._calls: dict[str, Call] = {}  # by token

    def __reduce__(self) -> Any:
        return operator.call, (self._shipped,)

    async def start(self, scheduler: Any) -> None:
        """Answer to our operation from now on."""
        self._scheduler = scheduler
        scheduler.handlers[self.name] = self._answer

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """End the streams of a worker that has gone; what it sent before is delivered first."""
        for call in list(self._calls.values()):
            if call.worker != worker:
                continue
            if call.far.done():
                asyncio.get_running_loop().call_later(LINGER, call.near.abort)
            else:
                call.far.set_result(None)

    async def _answer(self, comm: Any, token: str = "", **asked: Any) -> Status:
        """Serve one connection until its stream ends: with a token a worker's, else a near side's.

        A near side gets an answer, a worker only the stream.
        """
        if token:
            call = self._calls.get(token)
            if call is None or call.far.done():
                comm.abort()
            else:
                call.far.set_result(comm)
                await call.over.wait()
        else:
            await self._call(comm, **asked)
        return Status.dont_reply

    async def _call(
        self, near: Any, worker: str = "", server: str = "", lease: str = "", patience: float = 0
    ) -> None:
        known = self._scheduler.workers.get(worker)
        # The id is new for each process: another one at the same address may not know our message,
        # and Dask's workers close when they get one that they don't know.
        if known is None or known.server_id != server:
            await near.write(GONE)
            await near.close()
            return
        token, far = uuid.uuid4().hex, None
        call = self._calls[token] = Call(worker, near, asyncio.get_running_loop().create_future())
        try:
            message = {"op": self.name, "lease": lease, "token": token}
            self._scheduler.worker_send(worker, message)
            await asyncio.wait({call.far}, timeout=patience)
            far = call.far.result() if call.far.done() else None
            if far is None:
                await near.write(GONE if call.far.done() else SILENT)
                await near.close()
            else:
                await near.write(OPEN)
                await _join(near, far)
        finally:
            del self._calls[token]
            call.far.cancel()
            if far is not None:
                far.abort()
            call.over.set()


async def _join(near: Any, far: Any) -> None:
    """Pass messages both ways until one side ends; what was read by then is delivered."""
    ways = {asyncio.ensure_future(_pass(near, far)), asyncio.ensure_future(_pass(far, near))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        closing = {asyncio.ensure_future(comm.close()) for comm in (near, far)}
        await asyncio.wait(closing, timeout=LINGER)
    finally:
        near.abort()
        far.abort()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass(source: Any, sink: Any) -> None:
    """Read one message ahead of what the other side has taken, so that none pile up here."""
    try:
        while True:
            message = await source.read()
            await _taken(sink)
            await sink.write(message)
    except OSError:  # one of them has ended
        pass


async def _taken(comm: Any) -> None:
    """Wait until all that was written is on its way; other comms than TCP wait when they write."""
    stream = getattr(comm, "stream", None)
    if stream is not None and stream.writing():
        await stream.write(b"")  # as Dask does before it closes


def plugin() -> Relay:
    """Return the plugin; called on the scheduler."""
    return Relay(OPERATION)


# --- the two ends -------------------------------------------------------------------------------


async def reach(address: str, seconds: float, security: dict[str, Any]) -> Any:
    """Connect to a process of Dask's; return the comm.

    Dask's connect waits for ever where one is stopped that had a socket.

    Args:
        address: its address.
        seconds: for which it is tried.
        security: connection arguments.

    Raises:
        OSError: it can't be reached.
    """
    try:
        return await asyncio.wait_for(connect(address, timeout=seconds, **security), seconds)
    except ValueError as error:  # what tornado raises where TLS was to begin on a dead connection
        msg = f"the connection to {address} was lost at its beginning: {error}"
        raise OSError(msg) from error


async def call(
    scheduler: str, security: dict[str, Any], operation: str, **asked: Any
) -> tuple[Any, Any]:
    """Ask the scheduler for a stream to a worker.

    Args:
        scheduler: its address.
        security: connection arguments.
        operation: the plugin's name.
        **asked: what `Relay` wants to know: worker, server, lease, patience.

    Returns:
        The answer, None where there is no plugin, and the comm, which is the stream if it is open.

    Raises:
        OSError: the scheduler can't be reached, or says nothing.
    """
    comm = await reach(scheduler, CONNECT, security)
    try:
        await comm.write({"op": operation, **asked})
        answer = await asyncio.wait_for(comm.read(), asked["patience"] + CONNECT)
    except BaseException:
        comm.abort()
        raise
    if answer != OPEN:
        comm.abort()
    return answer, comm


async def come(scheduler: str, security: dict[str, Any], token: str) -> Any:
    """Connect a worker to the near side that called it; return the comm.

    Args:
        scheduler: its address.
        security: connection arguments.
        token: the call's.

    Raises:
        OSError: the scheduler can't be reached.
    """
    comm = await reach(scheduler, CONNECT, security)
    try:
        await comm.write({"op": OPERATION, "token": token, "reply": False})
    except BaseException:
        comm.abort()
        raise
    return comm
