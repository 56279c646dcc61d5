"""The near end of a lease's stream: a Dask comm to the lease's worker, with the client's security."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import connect

from ..engine.model import Message
from ..worker import boot
from .far import CommLink

CONNECT = 3.0  # seconds to reach a worker
ALIVE = 2.0  # seconds in which a worker says whether it is alive

# What the far side is made of, in the order of its imports.
FAR = (
    "nbmap",
    "nbmap.engine",
    "nbmap.engine.model",
    "nbmap.engine.pickling",
    "nbmap.worker",
    "nbmap.worker.attempt",
    "nbmap.worker.capture",
    "nbmap.worker.serve",
    "nbmap.cluster",
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


def far_function(name: str) -> boot.Shipped:
    """Return a function of `far.py` in a form that any worker can unpickle and call."""
    package, texts = far_package()
    return boot.Shipped(inspect.getsource(boot), texts, f"{package}.cluster.far", name)


async def open_stream(
    address: str,
    lease: str,
    security: dict[str, Any],
    on_message: Callable[[CommLink, Message], None],
    on_end: Callable[[CommLink], None],
) -> CommLink:
    """Connect to a worker and open the stream of a lease; then `read()` what is returned.

    Args:
        address: the worker's.
        lease: its name.
        security: connection arguments of the client's security object.
        on_message: is called with each message.
        on_end: is called when the stream is gone.

    Raises:
        OSError: the worker can't be reached.
    """
    comm = await connect(address, timeout=CONNECT, **security)
    await comm.write({"op": _operation(), "lease": lease, "reply": False})
    link: CommLink
    link = CommLink(
        comm,
        asyncio.get_running_loop(),
        lambda message: on_message(link, message),
        lambda: on_end(link),
    )
    return link


async def process_alive(address: str, boot_id: str, security: dict[str, Any]) -> bool:
    """Tell whether the process that had a lease still answers at its worker's address."""
    try:
        if not address.startswith("inproc"):
            # Dask's connect goes on trying where nobody listens; a socket says so at once.
            host, port = get_address_host_port(address)
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), ALIVE)
            writer.close()
        comm = await connect(address, timeout=ALIVE, **security)
        try:
            await comm.write({"op": _operation(), "lease": "", "reply": False})
            answer = await asyncio.wait_for(comm.read(), ALIVE)
        finally:
            comm.abort()
    except (OSError, TimeoutError):
        return False
    return bool(isinstance(answer, dict) and answer.get("boot") == boot_id)


def _operation() -> str:
    return far_package()[0] + "_open"
