"""Finds the cluster that a handle runs on, or starts one; the Python twins of `%nbmap`.

In this order: the handle's `cluster=` · `nbmap.connect(x)` · the process's current Dask client ·
`nbmap.cluster` in Dask's configuration, `DASK_SCHEDULER_ADDRESS`, `labextension.factory` · our own.

Whatever it is, nbmap connects with a client of its own: it is never Dask's default, and it goes on
when the user closes theirs.
"""

from __future__ import annotations

import ast
import asyncio
import atexit
import contextvars
import importlib
import json
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..engine.interrupts import start_thread
from ..engine.model import GPUUse
from ..engine.transport import InProcess, Pending, Transport, engine_loop
from ..errors import ClusterError, NoMatchingGPU, OptionError
from ..options import shown
from ..view import render
from ..view.watch import in_kernel
from .gpu import GPURequest

if TYPE_CHECKING:
    from types import TracebackType

    from .gpus import OwnGPUs
    from .local import LocalOwn

__all__ = [
    "Connection",
    "Status",
    "connect",
    "cores",
    "dashboard",
    "recent_log",
    "restart",
    "start",
    "status",
    "stop",
    "versions",
]

logger = logging.getLogger("nbmap")

LISTENS = 5.0  # seconds in which somebody has to listen at an address
TIMEOUT = 8.0  # seconds in which that has to answer as a scheduler
LEAST = 64 << 20  # bytes of memory that a worker process may be given

_lock = threading.RLock()
_chosen: list[Any] = []  # what `connect` was given, the last one counts
_transports: dict[str, Any] = {}  # by scheduler address
_own: LocalOwn | None = None
_own_gpus: OwnGPUs | None = None
_nowhere: InProcess | None = None
_warming: threading.Thread | None = None
_ahead = False  # our own cluster was started before anybody asked for it


def transport_for(
    cluster: object, gpu: GPURequest | None = None, patience: float = 0.0
) -> Transport:
    """Return the transport to the cluster that a handle with `cluster=` runs on.

    Args:
        cluster: what was given as that.
        gpu: what inputs are to run on; None for no GPU.
        patience: seconds that a run may wait until the cluster has that.

    Raises:
        ClusterError: it can't be reached or started.
        NoMatchingGPU: it has no such GPU.
    """
    if multiprocessing.parent_process() is not None and _is_worker():
        msg = (
            "this process is a worker of a cluster, and nbmap starts nothing from there; "
            "map from the notebook or the script itself"
        )
        raise ClusterError(msg)
    global _ahead
    with _lock:
        target = cluster if cluster is not None else _named()
        if target is None or _is_local(target):
            _ahead = False
            return _own_transport() if gpu is None else _own_gpus_or_cpu(gpu)
        _close_if_unused()
        if isinstance(target, Transport):
            if gpu is not None and not gpu.or_cpu:
                msg = f"gpu={str(gpu)!r} matches nothing: {target!r} has no GPU"
                raise NoMatchingGPU(msg)
            return target
        transport = _existing(target)
        return transport if gpu is None else _their_gpus_or_cpu(transport, gpu, patience)


def transport_soon(
    cluster: object, gpu: GPURequest | None = None, patience: float = 0.0
) -> Transport:
    """Return the transport, or one that stands for it until it is there; never blocks for long.

    Raises:
        RunError: this process was forked from one that uses nbmap.
    """
    engine_loop().check()
    if gpu is None and _lock.acquire(blocking=False):
        try:
            if _at_hand(cluster):
                return transport_for(cluster)
        finally:
            _lock.release()
    if cluster is None or _is_local(cluster):
        _refuse_without_main_guard()  # which looks at who calls
    pending = Pending()

    def find() -> None:
        try:
            pending.arrive(transport_for(cluster, gpu, patience))
        except Exception as error:
            pending.failed(error)

    context = contextvars.copy_context()  # a client may be the current one of this task only
    start_thread("nbmap-connect", context.run, find)
    return pending


def _at_hand(cluster: object) -> bool:
    """Tell whether nothing has to be started or reached; with the lock held."""
    target: Any = cluster if cluster is not None else _named()
    if target is None or _is_local(target):
        return _own is not None and _own.transport.alive()
    if isinstance(target, Transport):
        return True
    address = target if isinstance(target, str) else getattr(target, "scheduler_address", None)
    if address is None:
        address = getattr(getattr(target, "scheduler", None), "address", None)
    found = _transports.get(str(address))
    return found is not None and found.alive()


def _close_if_unused() -> None:
    """Close a cluster that was started ahead for nothing: the user has another one."""
    global _own, _ahead
    if _own is not None and _ahead:
        _own.close()
        _own, _ahead = None, False


def nowhere() -> Transport:
    """Return a transport for runs that have nothing to run."""
    global _nowhere
    with _lock:
        _nowhere = _nowhere or InProcess(1)
        return _nowhere


def _is_worker() -> bool:
    """Tell whether this process was spawned by a Dask nanny."""
    return "Dask Worker process" in multiprocessing.current_process().name


def _named() -> Any:
    """Return what names a cluster, first found first; None where nothing does."""
    if _chosen:
        return _chosen[-1]
    if (client := _current_client()) is not None:
        return client
    import dask.config

    named = dask.config.get("nbmap.cluster", None)
    if named is None:
        named = os.environ.get("DASK_SCHEDULER_ADDRESS") or None
    if named is None and dask.config.get("labextension.factory.module", None):
        named = _Factory()
    return named


def _current_client() -> Any:
    if "distributed" not in sys.modules:  # then nobody has made one
        return None
    from distributed import Client

    try:
        client = Client.current()
    except ValueError:
        return None
    return client if client.status == "running" else None


class _Factory:
    """Stands for the cluster that `labextension.factory` in Dask's configuration makes."""


_made: dict[str, Any] = {}


def _from_factory() -> Any:
    import dask.config

    factory = dask.config.get("labextension.factory")
    key = json.dumps(factory, sort_keys=True, default=str)
    if key not in _made:
        try:
            make = getattr(importlib.import_module(factory["module"]), factory["class"])
            _made[key] = make(*factory.get("args", ()), **factory.get("kwargs", {}))
        except Exception as error:
            msg = (
                f"the cluster of labextension.factory in Dask's configuration "
                f"({factory.get('module')}.{factory.get('class')}) can't be made: {_public(str(error))}"
            )
            raise ClusterError(msg) from error
    return _made[key]


# --- existing clusters -------------------------------------------------------------------------


def _existing(target: Any) -> Transport:
    """Return the transport to a cluster that is there: an address, a file, a client, an object."""
    if isinstance(target, _Factory):
        target = _from_factory()
    grows_to = 0
    if isinstance(target, (str, os.PathLike)):
        address, security = _address(os.fspath(target)), None
    elif hasattr(target, "scheduler_address"):  # a Dask cluster object
        address, security = target.scheduler_address, getattr(target, "security", None)
        grows_to = _maximum(target)
    elif hasattr(target, "scheduler") and hasattr(target, "security"):  # a Dask client
        if target.status != "running":
            msg = f"the Dask client that nbmap was given is {target.status}; make a new one"
            raise ClusterError(msg)
        address, security = target.scheduler.address, target.security
        grows_to = _maximum(target.cluster)
    else:
        msg = (
            f"cluster={_shown(target)} is none of: 'local', a scheduler's address, a scheduler "
            "file, a Dask client, a Dask cluster"
        )
        raise OptionError(msg)
    found = _transports.get(address)
    if found is not None and found.alive():
        return found  # type: ignore[no-any-return]
    _transports[address] = transport = _connected(address, security, grows_to)
    return transport


def _maximum(cluster: Any) -> int:
    """Return how many slots a cluster that scales itself may come to have, 0 for any other."""
    maximum = getattr(getattr(cluster, "_adaptive", None), "maximum", 0)
    return int(maximum) if maximum and maximum < 1 << 20 else 0


def _address(text: str) -> str:
    if "://" in text:
        return text.strip()
    if text.endswith(".json") or _is_file(text):
        try:
            address = json.loads(Path(text).read_text())["address"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"the scheduler file {text!r} can't be read: {_public(str(error))}"
            raise ClusterError(msg) from error
        if not isinstance(address, str) or "://" not in address:
            msg = f"the scheduler file {text!r} has no address but {_shown(address)}"
            raise ClusterError(msg)
        return address
    host, colon, port = text.rpartition(":")
    if colon and host and port.isdigit():
        return f"tcp://{text}"
    msg = (
        f"{_shown(text)} is not a scheduler's address: write it as tcp://host:port or "
        "tls://host:port"
    )
    raise ClusterError(msg)


def _shown(value: object) -> str:
    """Return how an error shows what was given for a cluster: of most objects only the type.

    They may be a configuration, or a security object, with a password in it.
    """
    if isinstance(value, (int, float)):
        return shown(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if not isinstance(value, str):
        return f"<{type(value).__name__}>"
    return shown(value.rpartition("@")[2].partition("?")[0])


def _connected(address: str, security: Any, grows_to: int) -> Transport:
    from .client import connected
    from .leases import DaskTransport

    _refuse_where_nobody_listens(address)
    try:
        _await_first_words(address, security)
        client = connected(address, security=security, timeout=TIMEOUT)
    except Exception as error:
        why = str(error) or type(error).__name__
        if address.startswith("tls") and security is None:
            why = (
                "it speaks TLS, or its address begins with tcp://. For TLS make a Dask client with "
                "its certificates and connect to that: nbmap.connect(client), or %nbmap connect "
                "$client"
            )
        elif address.startswith("tls"):
            why += (
                ". Either the certificates here are not those of that cluster, or it does not "
                "speak TLS: then its address begins with tcp://"
            )
        elif address.startswith("tcp"):
            why += (
                ". Check that it is a Dask scheduler; if it speaks TLS, its address begins with "
                "tls://, and nbmap needs a Dask client with its certificates"
            )
        raise _unreachable(address, why) from None  # the cause would name the address as given
    client.cluster = _Cluster(client)
    _at_exit(client.close)
    return DaskTransport(client, grows_to=grows_to)


def _await_first_words(address: str, security: Any) -> None:
    """Raise where what listens does not answer as Dask does; a client would wait for ever.

    It is asked on a thread: in a notebook this one's event loop runs.
    """
    from distributed import Security
    from distributed.comm.core import connect as reach

    if not address.startswith(("tcp://", "tls://")):
        return
    if not isinstance(security, Security):
        security = Security(**(security if isinstance(security, dict) else {}))
    caught: list[Exception] = []

    async def hear() -> None:
        arguments = security.get_connection_args("client")
        try:
            comm = await asyncio.wait_for(reach(address, timeout=TIMEOUT, **arguments), TIMEOUT)
        except TimeoutError:
            msg = f"what listens there did not answer as a Dask scheduler within {TIMEOUT:g} s"
            raise TimeoutError(msg) from None
        await comm.close()

    def ask() -> None:
        try:
            asyncio.run(hear())
        except Exception as error:
            caught.append(error)

    asking = threading.Thread(target=ask, name="nbmap-connect", daemon=True)
    asking.start()
    asking.join()
    if caught:
        raise caught[0]


class _Cluster:
    """Stands for our client's cluster: running while its scheduler is connected, then closed.

    So that the client closes when it loses its scheduler. Otherwise it tries to reach it again,
    though the leases are gone with the connection, and leaves tracebacks in the terminal.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def status(self) -> Any:
        """Return what Dask's clients want to know of their cluster."""
        from distributed.core import Status

        comm = self._client.scheduler_comm
        return Status.closed if comm is None or comm.comm.closed() else Status.running


def _unreachable(address: str, why: str) -> ClusterError:
    """Return the error that a scheduler can't be reached, without what is secret in its address."""
    told = _public(address)
    why = _public(why.replace(address, told))
    return ClusterError(f"no Dask scheduler could be reached at {told}: {why}")


def _public(text: str) -> str:
    """Return a text, often an address, as an error may show it: one line, and nothing secret."""
    return render.plain(render.without_secrets(text), 500)


def _is_local(target: object) -> bool:
    return isinstance(target, str) and target == "local"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, say
        return False


def _refuse_where_nobody_listens(address: str) -> None:
    """Say at once that nobody listens; Dask itself would go on trying until its timeout."""
    import socket

    from distributed.comm.addressing import get_address_host_port

    if not address.startswith(("tcp://", "tls://")):
        return
    try:
        host, port = get_address_host_port(address)
        socket.create_connection((host, port), timeout=LISTENS).close()
    except (OSError, ValueError, OverflowError) as error:
        why = f"{error}. Check the address, and that the scheduler is running"
        raise _unreachable(address, why) from None  # the cause would name the address as given


# --- our own ------------------------------------------------------------------------------------


def _own_transport() -> Transport:
    global _own
    with _lock:
        if _own is None or not _own.transport.alive():
            if _own is not None:
                _own.close()
                _own = None
            _own = _start_own(None, None, None)
        return _own.transport


def _own_gpus_or_cpu(gpu: GPURequest) -> Transport:
    global _own_gpus
    from .gpus import OwnGPUs, divided

    if _own_gpus is not None and not _own_gpus.transport.alive():
        _own_gpus.close()
        _own_gpus = None
    try:
        groups = divided(gpu, {} if _own_gpus is None else _own_gpus.transport.left)
    except NoMatchingGPU:
        if gpu.or_cpu:
            return _own_transport()
        raise
    if _own_gpus is None:
        _refuse_without_main_guard()
        _own_gpus = OwnGPUs(groups)
        _at_exit(_own_gpus.close)
    else:
        _own_gpus.provide(groups)
    _own_gpus.transport.require(gpu)
    return _own_gpus.transport


def _their_gpus_or_cpu(transport: Any, gpu: GPURequest, patience: float) -> Transport:
    from .gpu_leases import GPUTransport

    if transport.gpus is None:
        transport.gpus = GPUTransport(transport.client)
    try:
        transport.gpus.require(gpu)
    except NoMatchingGPU:
        if gpu.or_cpu and not transport.gpus.unseen:
            return transport  # type: ignore[no-any-return]
        if not patience:
            raise
    return transport.gpus  # type: ignore[no-any-return]


def _start_own(workers: int | None, threads: int | None, memory: str | None) -> LocalOwn:
    _refuse_without_main_guard()
    from .local import LocalOwn

    own = LocalOwn(workers=workers, threads=threads, memory=memory)
    _at_exit(own.close)
    return own


def _at_exit(close: Callable[[], object]) -> None:
    """Close when this process ends, and not when one does that was forked from it."""
    here = os.getpid()
    atexit.register(lambda: close() if os.getpid() == here else None)


def _refuse_without_main_guard() -> None:
    """Say that a script needs a main guard, before its workers run it over and over.

    Worker processes are spawned, and a spawned process imports the script. What is at its top
    level, outside of `if __name__ == "__main__":`, would run again in each.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if not path or not path.endswith(".py") or hasattr(main, "get_ipython"):
        return
    frame: Any = sys._getframe()  # noqa: SLF001 - the documented way to look at callers
    line = 0
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is vars(main):
            line = frame.f_lineno
        frame = frame.f_back
    if not line:  # called from elsewhere: a test runner, a thread
        return
    try:
        tree = ast.parse(Path(path).read_text())
    except (OSError, SyntaxError, ValueError):
        return
    for node in tree.body:
        if node.lineno <= line <= (node.end_lineno or line):
            guarded = isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
            if guarded:
                return
    msg = (
        f'{path}, line {line}: put the code that runs under `if __name__ == "__main__":` - '
        "every worker process imports this script, and would run it again"
    )
    raise ClusterError(msg)


def warm_up(cluster: object) -> None:
    """In a notebook, start our own cluster in the background when the first handle is defined."""
    global _warming
    if not in_kernel() or _warming is not None or cluster is not None:
        return

    def warm() -> None:
        global _ahead
        try:
            with _lock:
                if _own is None and _named() is None:
                    _own_transport()
                    _ahead = True
        except Exception as error:
            logger.info("the cluster could not be started ahead: %s", _public(str(error)))

    _warming = threading.Thread(target=warm, name="nbmap-warm-up", daemon=True)
    _warming.start()


# --- what people call ---------------------------------------------------------------------------


class Connection:
    """What `connect` returns: as a context manager it undoes the connection at its end."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo()

    def __repr__(self) -> str:
        return repr(status())


def connect(cluster: object) -> Connection:
    """Run on this cluster from now on, unless a handle names another.

    Args:
        cluster: a scheduler's address, a scheduler file, a Dask client or cluster object, "local"
            for nbmap's own; None undoes the last `connect`.

    Returns:
        A context manager that undoes it; it need not be used as one.

    Raises:
        ClusterError: the cluster can't be reached.
        OptionError: `cluster` is nothing of that kind.

    Example:
        >>> import nbmap
        >>> with nbmap.connect("tcp://scheduler:8786"):  # doctest: +SKIP
        ...     nbmap.remote(abs).map([-1]).results()
        [1]
    """
    with _lock:
        if cluster is None:
            if _chosen:
                _chosen.pop()
            return Connection(lambda: None)
        transport_for(cluster)
        _chosen.append(cluster)

    def undo() -> None:
        with _lock:
            for at in range(len(_chosen) - 1, -1, -1):
                if _chosen[at] is cluster:
                    del _chosen[at]
                    break

    return Connection(undo)


def start(
    *, workers: int | None = None, threads: int | None = None, memory: str | None = None
) -> Status:
    """Start nbmap's own cluster on this machine; it starts by itself where none is named.

    Args:
        workers: number of processes; one per core that this process may use by default.
        threads: slots per process, 1 by default.
        memory: per process, such as "4GiB"; by default they share what the machine, or the cgroup,
            has, with room left for this process.

    Returns:
        What `status()` returns.

    Raises:
        OptionError: a value is wrong.
        ClusterError: one is running with other values, or it can't be started.
    """
    global _own
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            msg = f"{name}={shown(value)} has to be a whole number from 1 on"
            raise OptionError(msg)
    _check_memory(memory)
    with _lock:
        if _own is not None and _own.transport.alive():
            if (workers, threads, memory) not in {(None, None, None), _own.asked}:
                names = ("workers", "threads", "memory")
                asked = zip(names, _own.asked, strict=True)
                values = ", ".join(f"{name}={value}" for name, value in asked if value is not None)
                msg = (
                    f"nbmap's own cluster is running already, with {values or 'the defaults'}; "
                    "stop it first, by nbmap.stop() or %nbmap stop"
                )
                raise ClusterError(msg)
        else:
            _own = _start_own(workers, threads, memory)
    return status()


def _check_memory(memory: object) -> None:
    from dask.utils import parse_bytes

    if memory is None:
        return
    try:
        nbytes = parse_bytes(memory) if isinstance(memory, str) else 0
    except (ValueError, OverflowError):
        nbytes = 0
    if nbytes >= LEAST:
        return
    why = "is too little for a worker process" if nbytes > 0 else "is no amount of memory"
    msg = f'memory={shown(memory)} {why}: write it with its unit, as in "4GiB" or "500MB"'
    raise OptionError(msg)


def restart() -> Status:
    """Stop nbmap's own cluster, with what runs on it, and start it with the values it had.

    Returns:
        What `status()` returns.

    Raises:
        ClusterError: there is none of our own, or it can't be started.
    """
    global _own, _own_gpus, _ahead
    with _lock:
        if _own_gpus is not None:  # it starts again when it is needed
            _own_gpus.close()
            _own_gpus = None
            if _own is None:
                return status()
        if _own is None:
            named = _named()
            where = "" if named is None or _is_local(named) else "; restart the other where it runs"
            msg = f"nbmap has no cluster of its own to restart{where}"
            raise ClusterError(msg)
        workers, threads, memory = _own.asked
        _own.close()
        _own, _ahead = None, False
        _own = _start_own(workers, threads, memory)
    return status()


def dashboard() -> str:
    """Return the address of the dashboard of what handles run on now, or why there is none.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    with _lock:
        named = _named()
        if named is None or _is_local(named):
            return (
                "nbmap's own cluster has no dashboard: it would be readable by every user of this "
                "machine. The view below a cell shows its runs; `%nbmap connect` takes a cluster "
                "that has one"
            )
        transport = _existing(named) if not isinstance(named, Transport) else named
        link = getattr(getattr(transport, "client", None), "dashboard_link", None)
    return _public(str(link)) if link else "this cluster serves no dashboard"


def versions() -> dict[str, dict[str, str]]:
    """Return the versions of Python and of packages on the scheduler and each worker.

    Returns:
        By address; empty where there is no cluster but our own, which has this environment.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    named = _named()
    if named is None or _is_local(named) or isinstance(named, Transport):
        return {}
    transport: Any = _existing(named)
    told = transport.client.get_versions(check=False)
    places = {"the scheduler": told.get("scheduler"), **(told.get("workers") or {})}
    return {
        place: {**(found.get("packages") or {}), "python": str(found["host"]["python"])}
        for place, found in places.items()
        if found
    }


def recent_log() -> list[str]:
    """Return the last lines that distributed logged about nbmap's own cluster."""
    if "distributed" not in sys.modules:  # then there was none
        return []
    from .local import recent

    return list(recent.lines)


def cores() -> int:
    """Return how many cores this process may use, within the cgroup's quota."""
    from .local import cores as counted

    return counted()


def stop() -> None:
    """Stop nbmap's own cluster and cancel the runs on it; one that is not ours stays."""
    global _own, _own_gpus
    with _lock:
        owns = _own, _own_gpus
        _own = _own_gpus = None
    for own in owns:
        if own is not None:
            own.close()


@dataclass(frozen=True, slots=True)
class Status:
    """What handles run on now.

    Attributes:
        cluster: whose it is and where, or "none yet".
        workers: number of worker processes.
        slots: inputs that a handle without `concurrency=` runs at once.
        leases: slots that are held at this moment.
        runs: number of runs that go on.
        gpus: how full and how busy the GPUs are, of a cluster on which `gpu=` was used.
    """

    cluster: str
    workers: int
    slots: int
    leases: int
    runs: int
    gpus: tuple[GPUUse, ...] = ()

    def __repr__(self) -> str:
        if not self.workers and not self.slots:
            return f"cluster: {self.cluster}"
        return "\n".join([self._line(), *map(render.gpu, self.gpus)])

    def _line(self) -> str:
        return (
            f"cluster: {self.cluster} · {_counted(self.workers, 'worker')} · "
            f"{_counted(self.slots, 'slot')} · {self.leases} in use · {_counted(self.runs, 'run')}"
        )


def _counted(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def status() -> Status:
    """Return what handles run on now; starts nothing."""
    with _lock:
        named = _named()
        if isinstance(named, Transport):
            return Status(repr(named), 1, named.slots(), len(named.leases), len(named.jobs))
        if named is None or _is_local(named):
            return _own_status()
        transport: Any = _existing(named)
        told = transport.status()
        both = [each for each in (transport, transport.gpus) if each is not None]
        leases, runs = sum(each.held() for each in both), sum(len(each.jobs) for each in both)
        gpus = () if transport.gpus is None else tuple(transport.gpus.measured())
        return Status(transport.describe(), told["workers"], told["slots"], leases, runs, gpus)


def _own_status() -> Status:
    owns = [own.transport for own in (_own, _own_gpus) if own is not None]
    if not owns:
        return Status("none yet; nbmap starts one on this machine when it is needed", 0, 0, 0, 0)
    told = [transport.status() for transport in owns]
    where = "nbmap's own, on this machine"
    if _own_gpus is not None:
        where += f", with {_counted(told[-1]['workers'], 'process')} on its GPUs"
    workers, slots, leases = (sum(each[n] for each in told) for n in ("workers", "slots", "leases"))
    runs = sum(len(each.jobs) for each in owns)
    gpus = () if _own_gpus is None else tuple(_own_gpus.transport.measured())
    return Status(where, workers, slots, leases, runs, gpus)
