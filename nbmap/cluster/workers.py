"""What is known of a cluster's worker processes beside the streams of their leases.

How they ended, since when they are silent, whether one is ours to end. All of it is asked of the
scheduler and of the workers' nannies by public functions of Dask's client, on threads of their own,
as a client's functions block.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from distributed import Client

from ..engine.transport import EngineLoop
from . import nannies
from .stream import far_function

logger = logging.getLogger("nbmap")

REASON = 1.0  # seconds to wait for a nanny to tell how its worker died
ASK = 2.0  # seconds for an answer of the scheduler
LOOK = 2.0  # how often it is asked when its workers were last seen
SILENT = 10.0  # seconds after which that is worth saying
REMEMBERED = 1000  # ends of workers
MEMORY = "worker-restart-memory"  # Dask's topic: a nanny ends its worker for its memory


class Workers:
    """The worker processes of one cluster. All methods run on the engine's loop.

    Args:
        client: ours, connected to the cluster.
        engine: the engine's loop.
        topic: on which nannies tell how their workers end.
        ours: how the keys of our tasks begin.
    """

    def __init__(self, client: Client, engine: EngineLoop, topic: str, ours: str) -> None:
        self.topic = topic
        self._client = client
        self._engine = engine
        self._ours = ours
        self._ends: OrderedDict[str, tuple[Any, Any]] = OrderedDict()  # exit code, memory limit
        self._memory: OrderedDict[str, int] = OrderedDict()  # of those that had too much
        self._watched: dict[str, bool | None] = {}  # whether its nanny tells; None: not known yet
        self._servers: dict[str, str] = {}  # address -> the id of the worker there
        self._seen: dict[str, tuple[Any, float]] = {}  # what the scheduler said, and since when
        self._asking = False
        self._asked = 0.0
        client.subscribe_topic(topic, self._on_end)
        client.subscribe_topic(MEMORY, self._on_memory)

    # -- how they ended

    def _on_end(self, event: Any) -> None:
        _time, told = event
        self._engine.call(_note, self._ends, told["ended"], (told["code"], told["limit"]))

    def _on_memory(self, event: Any) -> None:
        _time, told = event
        self._engine.call(_note, self._memory, told["worker"], told["rss"])

    def watch(self, address: str, server: str) -> None:
        """Have the nanny of a worker tell how it ends.

        Another `server` at the same address is another process; how the last one ended is not how
        this one will.
        """
        if self._servers.get(address) == server:
            return
        self._servers[address] = server
        self._ends.pop(address, None)
        self._memory.pop(address, None)
        self._watched[address] = None
        self._engine.loop.create_task(self._watch(address))

    async def _watch(self, address: str) -> None:
        self._watched[address] = await self._ask(self._run_on_nanny, address, "watch", self.topic)

    async def reason(self, address: str) -> str:
        """Return how a worker's process ended, as far as it can be known."""
        until = time.monotonic() + REASON
        while address not in self._ends:
            # A nanny that was asked once tells of all its processes, also of one that died too soon
            # for the question to be answered.
            if time.monotonic() > until or self._watched.get(address) is False:
                return f"its worker {address} died"
            await asyncio.sleep(0.02)
        code, limit = self._ends[address]
        return nannies.how(code, limit, self._memory.get(address, 0))

    async def given_up(self, address: str) -> bool:
        """Tell whether the scheduler has no worker of an address any more."""
        info = await self._ask(self._client.scheduler_info)
        return info is not None and address not in info.get("workers", [address])

    async def processing(self, address: str) -> list[str]:
        """Return the keys of the tasks that Dask has sent to a worker and that have not ended."""
        told = await self._ask(self._client.processing, [address])
        return [str(key) for keys in (told or {}).values() for key in keys]

    # -- ending one

    async def may_end(self, address: str) -> bool:
        """Tell whether a worker's process may be ended: a nanny restarts it, and all on it is ours."""
        if not await self._ask(self._run_on_nanny, address, "watch", self.topic):
            return False
        keys = await self._ask(self._keys, address)
        return keys is not None and all(str(key).startswith(self._ours) for key in keys)

    async def end(self, address: str, pid: int) -> bool:
        """End a worker's process; return whether that was done."""
        return bool(await self._ask(self._run_on_nanny, address, "end", pid))

    def _keys(self, address: str) -> list[Any]:
        """Return the tasks and the results of anybody on a worker."""
        processing, results = self._client.processing([address]), self._client.has_what([address])
        return [key for told in (processing, results) for keys in told.values() for key in keys]

    def _run_on_nanny(self, address: str, name: str, argument: Any) -> bool | None:
        """Call a function of `nannies` for a worker; return None where nobody answers."""
        function = far_function(name, "cluster.nannies")
        told = self._client.run(
            function, argument, workers=[address], nanny=True, on_error="ignore"
        )
        return any(told.values()) if told else None

    # -- since when they are silent

    def look(self, quiet: Iterable[str], missing: Callable[[str], None]) -> None:
        """Learn of workers of which nothing was heard for a while when the scheduler saw them.

        Args:
            quiet: their addresses.
            missing: is called with those that the scheduler has given up.
        """
        addresses = set(quiet)
        for address in self._seen.keys() - addresses:
            del self._seen[address]
        now = time.monotonic()
        if addresses and not self._asking and now - self._asked > LOOK:
            self._asking, self._asked = True, now
            self._engine.loop.create_task(self._look(addresses, missing))

    async def _look(self, addresses: set[str], missing: Callable[[str], None]) -> None:
        try:
            info = await self._ask(self._client.scheduler_info)
        finally:
            self._asking = False
        workers = None if info is None else info.get("workers")
        if workers is None:  # or the client is closed
            return
        now = time.monotonic()
        for address in addresses:
            worker = workers.get(address)
            if worker is None:
                self._seen.pop(address, None)
                missing(address)
            elif self._seen.get(address, ("", 0.0))[0] != worker["last_seen"]:
                self._seen[address] = (worker["last_seen"], now)

    def silent(self) -> dict[str, float]:
        """Return for how many seconds workers have been silent."""
        now = time.monotonic()
        return {a: now - since for a, (_, since) in self._seen.items() if now - since > SILENT}

    # -- asking

    async def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call one of the client's functions; return None where it fails or takes too long."""
        try:  # where the process ends, there is nobody left to ask
            asking = asyncio.get_running_loop().run_in_executor(None, function, *args)
            return await asyncio.wait_for(asking, ASK)
        except Exception as error:
            logger.info("%s: no answer: %r", function.__name__, error)
            return None


def _note(table: OrderedDict[str, Any], address: str, told: Any) -> None:
    table[address] = told
    while len(table) > REMEMBERED:
        table.popitem(last=False)
