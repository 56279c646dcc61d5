"""The near end of a lease's stream: a Dask comm with the client's security, by one of two carriers.

Direct to the lease's worker, or, where that can't be reached from here (Kubernetes, a gateway,
another network), relayed through the scheduler; see `relay.py`. What goes over it is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import dask.config
from distributed import Client
from distributed.comm.addressing import get_address_host_port

from ..engine.model import Message
from ..errors import ClusterError, OptionError
from ..options import shown
from ..worker import boot
from . import relay
from .far import CommLink

logger = logging.getLogger("nbmap")

CONNECT = 3.0  # seconds to reach a worker
ALIVE = 2.0  # seconds in which a worker says whether it is alive
ASK = 10.0  # seconds for the scheduler to answer

CARRIERS = ("auto", "direct", "relay")

# What the far side is made of, in the order of its imports.
FAR = (
    "nbmap",
    "nbmap.errors",
    "nbmap.engine",
    "nbmap.engine.model",
    "nbmap.engine.pickling",
    "nbmap.worker",
    "nbmap.worker.capture",
    "nbmap.worker.coroutines",
    "nbmap.worker.gpus",
    "nbmap.worker.nested",
    "nbmap.worker.standin",
    "nbmap.worker.attempt",
    "nbmap.worker.serve",
    "nbmap.cluster",
    "nbmap.cluster.relay",
    "nbmap.cluster.nannies",
    "nbmap.cluster.far",
)


@cache
def far_package() -> tuple[str, dict[str, str]]:
    """Return the name that the far side has on workers, and its modules' texts under that name."""
    texts = {
        name: "" if _is_package(name) else inspect.getsource(importlib.import_module(name))
        for name in FAR
    }
    digest = hashlib.blake2b("\0".join(texts.values()).encode(), digest_size=6).hexdigest()
    package = f"nbmap_far_{digest}"
    return package, {package + name.removeprefix("nbmap"): text for name, text in texts.items()}


def _is_package(name: str) -> bool:
    """Packages are shipped empty: nbmap's own names have no place on a worker."""
    return any(other.startswith(name + ".") for other in FAR)


def far_function(name: str, module: str = "cluster.far") -> boot.Shipped:
    """Return a function of the far side in a form that any process can unpickle and call."""
    package, texts = far_package()
    return boot.Shipped(inspect.getsource(boot), texts, f"{package}.{module}", name)


class Place(NamedTuple):
    """Where a lease runs."""

    address: str  # of its worker
    server: str  # id of the worker, another one whenever it starts


class Streams:
    """Opens the streams to one cluster's leases, by the carrier that reaches its workers.

    Args:
        client: ours, connected to the cluster.
        carrier: "direct", "relay", or "auto": direct where workers can be reached. By default
            what `nbmap.stream` in Dask's configuration says, else "auto".

    Raises:
        OptionError: there is no such carrier.
    """

    def __init__(self, client: Client, carrier: str | None = None) -> None:
        chosen = carrier or dask.config.get("nbmap.stream", None) or "auto"
        if chosen not in CARRIERS:
            where = "" if carrier else " It comes from nbmap.stream in Dask's configuration."
            msg = f"stream={shown(chosen)} is none of: {', '.join(CARRIERS)}.{where}"
            raise OptionError(msg)
        self._client = client
        self._carrier = chosen
        self._security = client.security.get_connection_args("client")
        self._reached = False  # a worker, directly
        self._relayed: set[str] = set()  # workers that had to be relayed
        self._registering: asyncio.Future[None] | None = None

    async def open(
        self,
        place: Place,
        lease: str,
        on_message: Callable[[CommLink, Message], None],
        on_end: Callable[[CommLink], None],
    ) -> CommLink:
        """Open the stream of a lease; then `read()` what is returned.

        Args:
            place: where it runs.
            lease: its name.
            on_message: is called with each message.
            on_end: is called when the stream is gone.

        Raises:
            OSError: the worker can't be reached.
            ClusterError: nor can it be through the scheduler, which takes no plugins.
        """
        comm = await self._connect(place, lease)
        link: CommLink
        link = CommLink(
            comm,
            asyncio.get_running_loop(),
            lambda message: on_message(link, message),
            lambda: on_end(link),
        )
        return link

    async def _connect(self, place: Place, lease: str) -> Any:
        if self._is_relayed(place):
            return await self._relay(place, lease, CONNECT)
        try:
            comm = await relay.reach(place.address, CONNECT, self._security)
        except OSError as error:
            if self._carrier == "direct" or not await self._is_there(place):
                raise
            return await self._relay_instead(place, lease, error)
        self._reached = True
        await comm.write({"op": _operation(), "lease": lease, "reply": False})
        return comm

    def _is_relayed(self, place: Place) -> bool:
        """Tell whether not to try a direct stream first.

        In a cluster of which no worker was ever reached none is tried again. Where some were, one
        that can't be may only be too busy to answer, and the next one is tried.
        """
        if self._carrier != "auto":
            return self._carrier == "relay"
        return place.address in self._relayed or bool(self._relayed and not self._reached)

    async def _is_there(self, place: Place) -> bool:
        """Tell whether the scheduler knows a worker that can't be reached from here."""
        loop = asyncio.get_running_loop()
        asking = loop.run_in_executor(None, self._client.nthreads)
        try:
            return place.address in await asyncio.wait_for(asking, ASK)
        except Exception as error:
            logger.info("the scheduler does not tell which workers there are: %s", error)
            return False

    async def _relay_instead(self, place: Place, lease: str, error: OSError) -> Any:
        try:
            comm = await self._relay(place, lease, CONNECT)
        except ClusterError:
            if self._reached:  # as others were, so it is only this worker, perhaps too busy
                raise error from None
            raise
        if not self._relayed:
            logger.info(
                "the worker %s can't be reached from here (%s), so its stream goes through the "
                "scheduler; nbmap.stream in Dask's configuration says what to do without trying",
                place.address,
                error,
            )
        self._relayed.add(place.address)
        return comm

    async def _relay(self, place: Place, lease: str, patience: float) -> Any:
        await self._register()
        answer, comm = await self._call(place, lease, patience)
        if answer is None:  # a scheduler that was started anew, say
            self._registering = None
            await self._register()
            answer, comm = await self._call(place, lease, patience)
        if answer != relay.OPEN:
            msg = f"through the scheduler the worker {place.address} can't be reached: {answer}"
            raise OSError(msg)
        return comm

    async def _call(self, place: Place, lease: str, patience: float) -> tuple[Any, Any]:
        scheduler = self._client.scheduler
        if scheduler is None:
            raise OSError("the scheduler is gone")
        return await relay.call(
            str(scheduler.address),
            self._security,
            _relay_operation(),
            worker=place.address,
            server=place.server,
            lease=lease,
            patience=patience,
        )

    async def _register(self) -> None:
        """Send the scheduler its plugin, once."""
        if self._registering is None:
            self._registering = asyncio.ensure_future(self._send_plugin())
        try:
            await asyncio.shield(self._registering)
        except BaseException:
            self._registering = None
            raise

    async def _send_plugin(self) -> None:
        plugin = relay.Relay(_relay_operation(), far_function("plugin", "cluster.relay"))
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(None, self._client.register_plugin, plugin)
        try:
            await asyncio.wait_for(sending, ASK)
        except OSError:
            raise
        except Exception as error:
            msg = (
                "the workers' streams can't go through the scheduler, because it takes no plugin "
                f"of nbmap: {error} Have register_scheduler_plugin taken out of "
                "distributed.scheduler.blocked-handlers in the scheduler's configuration, or run "
                "this where the addresses of the workers can be reached"
            )
            raise ClusterError(msg) from error

    async def process_alive(self, place: Place, boot_id: str) -> bool | None:
        """Tell whether the process that had a lease still answers at its worker's address.

        None where that can't be told now, as nothing or nobody answered: a network that has just
        cut a stream may do the same to this. True also where the relay has no way to ask, since
        its end alone is no worker's death.
        """
        if self._is_relayed(place):
            return await self._alive_behind_the_relay(place, boot_id)
        asking = [asyncio.ensure_future(self._identity(place.address))]
        if not place.address.startswith("inproc"):
            asking.append(asyncio.ensure_future(_nobody_listens(place.address)))
        try:
            told, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            return any(each.result() == place.server for each in told)
        except OSError:
            return None
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _identity(self, address: str) -> Any:
        """Return the id of the worker at an address; every process of Dask's tells it."""
        comm = await relay.reach(address, ALIVE, self._security)
        try:
            await comm.write({"op": "identity", "reply": True})
            return (await _answer(comm)).get("id")
        finally:
            comm.abort()

    async def _alive_behind_the_relay(self, place: Place, boot_id: str) -> bool | None:
        try:
            answer, comm = await self._call(place, "", ALIVE)
            if answer == relay.OPEN:
                return (await _answer(comm)).get("boot") == boot_id
        except OSError:
            return None
        if answer == relay.SILENT:
            return None
        return answer is None


async def _nobody_listens(address: str) -> None:
    """Return as soon as nobody listens at an address.

    Dask's connect goes on trying then; a socket is refused at once. Of a process that is just dying
    the port may be open for a moment longer than the stream that told of it.
    """
    host, port = get_address_host_port(address)
    wait = 0.01
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return
        writer.close()
        await asyncio.sleep(wait)
        wait *= 2


async def _answer(comm: Any) -> dict[str, Any]:
    """Return what the other side says; the comm is not used any more."""
    try:
        answer = await asyncio.wait_for(comm.read(), ALIVE)
    finally:
        comm.abort()
    return answer if isinstance(answer, dict) else {}


def _operation() -> str:
    return far_package()[0] + "_open"


def _relay_operation() -> str:
    return far_package()[0] + "_relay"
