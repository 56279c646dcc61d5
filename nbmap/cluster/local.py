"""nbmap's own cluster on this machine: secure, quiet, and no larger than what it may use.

What LocalCluster does by default and is set otherwise here:

- it speaks plain TCP, so that every user of the machine can run code as this one: TLS instead, with
  keys made for the session, on loopback only, and nothing served over HTTP
- a worker that dies twice within 15 seconds is closed for ever (`lost-worker-timeout`)
- it logs to the user's terminal
- its workers close, and are not started again, when somebody presses Ctrl-C
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import dask
from distributed import LocalCluster, Security
from distributed.core import Status

from ..engine.memory import memory_limit
from ..errors import ClusterError, ClusterLost, RunError
from ..view import render
from .client import connected
from .leases import DaskTransport

THREADS = 64  # a process; Dask makes a thread when it is needed
SHARE = 0.75  # of the memory, for the workers; the rest is the notebook's
CLOSE = 3.0  # seconds that closing may take
FORCE = 1.0  # seconds that a worker has for it
GONE = {Status.closed, Status.failed}  # of nannies that start no worker any more

# A terminal's Ctrl-C and a kernel's interrupt go to the whole process group. They are meant for the
# notebook; a worker that took one would close for good. Not SIG_IGN, which children would inherit.
NO_INTERRUPT = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"

# That a GPU can't be used is said in a sentence (`worker.gpus.why_unfit`); dask-cuda logs tracebacks.
NO_FLOOD = "import logging; logging.getLogger('dask_cuda').setLevel(logging.CRITICAL + 1)"

# A thread of Dask's ends a worker whose parent is gone, but not while a function holds Python's lock.
# Linux does, when the thread that started the worker ends, which Dask keeps as long as the worker.
NO_ORPHAN = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
"""


class _Recent(logging.Handler):
    """Keeps the last lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=500)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; shortened, safe to show, and without what is secret in an address."""
        text = " ".join(self.format(record).split())
        self.lines.append(render.plain(render.without_secrets(text), 500))


# What distributed says of our own cluster goes here instead of into the user's terminal.
recent = _Recent()


_clusters: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_after_fork() -> None:
    """In a forked child: have Dask not try for ten seconds to close at exit what is the parent's."""
    for cluster in _clusters:
        cluster.shutdown_on_close = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_after_fork)


def _need_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        msg = (
            "nbmap's own cluster needs the package cryptography for its keys: without it every "
            "user of this machine could run code as you. Install it: pip install cryptography"
        )
        raise ClusterError(msg)


class OwnCluster:
    """A cluster of our own, the client that we use it with, and the transport over both.

    Args:
        make: makes the cluster, of the options that are the same for all of ours.
        transport: makes the transport, of the client.
        n: how many workers it has.

    Raises:
        ClusterError: it can't be started.
    """

    def __init__(
        self, make: Callable[..., Any], transport: Callable[[Any], DaskTransport], n: int
    ) -> None:
        _need_cryptography()
        self._n = n
        logging.getLogger("distributed").addHandler(recent)
        # Read whenever a worker is lost, so it can't be set for the start alone.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
        try:
            with dask.config.set(
                {
                    "distributed.scheduler.http.routes": [],
                    "distributed.worker.http.routes": [],
                    "distributed.worker.daemon": True,
                    # Dask's servers in this process would all watch the first GPU, and where that
                    # has fallen off the bus log it twice a second each. Asked for once a process.
                    "distributed.diagnostics.nvml": False,
                }
            ):
                self._cluster = make(
                    security=Security.temporary(),
                    host="127.0.0.1",
                    dashboard_address=None,
                    # Its HTTP server serves nothing, but listens: on any free port, not on 8787.
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    preload=[NO_INTERRUPT, NO_ORPHAN, NO_FLOOD],
                    silence_logs=logging.CRITICAL,
                )
        except Exception as error:
            msg = f"nbmap's own cluster could not be started: {error}"
            raise ClusterError(msg) from error
        self._client = connected(self._cluster)
        _clusters.add(self._cluster)
        self.transport = transport(self._client)
        self._closed = False

    def workers(self) -> list[str]:
        """Return the addresses of the workers that are there."""
        return list(self._cluster.scheduler_info["workers"])

    def _without_gone(self) -> list[Any]:
        """Drop the nannies that gave up, as one does whose worker dies while it starts.

        Returns:
            Their names.
        """
        gone = [n for n, nanny in self._cluster.workers.items() if nanny.status in GONE]
        for name in gone:
            self._cluster.worker_spec.pop(name, None)
        return gone

    def close(self) -> None:
        """Cancel what runs, and stop all processes."""
        if self._closed:
            return
        self._closed = True
        engine = self.transport.engine
        error = ClusterLost("nbmap's own cluster was stopped")
        with contextlib.suppress(RunError):  # after a reload of nbmap's modules
            engine.wait_for(self.transport.fail, error)
            engine.wait_for(self.transport.quit)
        time.sleep(0.05)  # for the leases to hear of it
        with contextlib.suppress(Exception):
            self._client.close(timeout=CLOSE)
        with contextlib.suppress(Exception):
            self._cluster.sync(self._close_workers, callback_timeout=CLOSE)
        with contextlib.suppress(Exception):
            self._cluster.close(timeout=CLOSE)
        logging.getLogger("distributed").removeHandler(recent)

    async def _close_workers(self) -> None:
        """Close the workers, by force after a moment.

        The cluster would wait four seconds for a function that does not end, and Dask, at the end
        of the process, ten more for the cluster.
        """
        nannies = list(self._cluster.workers.values())
        await asyncio.gather(*(nanny.close(timeout=FORCE) for nanny in nannies))


class LocalOwn(OwnCluster):
    """Our own cluster of processes on this machine's cores.

    Args:
        workers: number of processes.
        threads: slots per process.
        memory: per process.

    Raises:
        ClusterError: it can't be started.
    """

    transport: DaskTransport

    def __init__(self, *, workers: int | None, threads: int | None, memory: str | None) -> None:
        self.asked = (workers, threads, memory)
        n = workers or cores()
        self.cores = n * (threads or 1)
        super().__init__(
            functools.partial(
                LocalCluster,
                n_workers=n,
                threads_per_worker=max(THREADS, threads or 1),
                memory_limit=memory or int(memory_limit() * SHARE / n),
            ),
            lambda client: DaskTransport(client, own=self),
            n,
        )

    def mend(self) -> None:
        """Replace the nannies that gave up."""
        if not self._closed and self._without_gone():
            self._cluster.scale(self._n)

    def leases_each(self) -> int:
        """Return how many leases a worker may have."""
        return max(THREADS, self.cores // self._n)


def cores() -> int:
    """Return how many cores this process may use: its affinity, within the cgroup's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123
        quota, period = file.read().split()
        count = min(count, max(1, -(-int(quota) // int(period))))
    return max(1, count)
