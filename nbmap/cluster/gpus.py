"""nbmap's own cluster on the GPUs of this machine: a process for each that is asked for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import time
from collections import Counter
from collections.abc import Collection, Container, Mapping
from typing import Any

from ..engine.memory import memory_limit
from ..errors import ClusterError, NoMatchingGPU
from ..worker import gpus
from .gpu import GPU, GPURequest
from .gpu_leases import FAILURES, GPUTransport
from .local import SHARE, OwnCluster
from .slots import Group, groups_for, slots_for, unanswering, what_is_wrong
from .stream import far_function

__all__ = ["OwnGPUs"]

START = 60.0  # seconds for workers to start; each imports dask-cuda and wakes its GPU up
_WAIT = 0.05

_INSTALL = (
    "on this machine it needs dask-cuda, which nbmap's extras bring: pip install nbmap[cuda12] for "
    "drivers from 525 on, nbmap[cuda13] from 580 on"
)


def divided(request: GPURequest, left: Mapping[str, str]) -> list[Group]:
    """Return the groups of this machine's GPUs for a request.

    Args:
        request: what is asked for.
        left: GPUs that are left alone since they have failed, by UUID, and why.

    Raises:
        ClusterError: the machine has no GPU, none can be looked at or used, or dask-cuda is
            missing.
        NoMatchingGPU: it has others.
    """
    seen = gpus.look()
    missing = importlib.util.find_spec("dask_cuda") is None
    if missing and not (request.or_cpu and not seen["gpus"] and seen["certain"]):
        besides = f". Besides, {seen['why']}" if seen["why"] else ""
        raise ClusterError(f"gpu={str(request)!r}: {_INSTALL}{besides}")
    if not seen["gpus"]:
        kind = NoMatchingGPU if seen["certain"] else ClusterError
        raise kind(f"gpu={str(request)!r} can't be had on this machine: {seen['why']}")
    there = [GPU(*gpu) for gpu in seen["gpus"] if gpu[0] not in left]
    if not there:
        msg = (
            f"gpu={str(request)!r}: no GPU is left, {'; '.join(left.values())}. To try them again "
            "stop nbmap's cluster first, by nbmap.stop() or %nbmap stop"
        )
        raise ClusterError(msg)
    groups = groups_for(request, there)
    if not groups:
        raise NoMatchingGPU(what_is_wrong(request, there, "this machine"))
    return groups


class OwnGPUs(OwnCluster):
    """Our own cluster of one process per group of GPUs; it grows by what is asked for.

    Args:
        groups: for which to start processes.

    Raises:
        ClusterError: dask-cuda is missing, or the processes can't be started.
    """

    transport: GPUTransport

    def __init__(self, groups: list[Group]) -> None:
        try:
            from .cuda import GroupsCluster
        except ImportError as error:
            msg = f"{_INSTALL} ({error})"
            raise ClusterError(msg) from None
        self._changing = threading.Lock()  # the processes that there are to be
        self._failed: Counter[str] = Counter()  # how often the processes of a group did not start
        super().__init__(
            functools.partial(
                GroupsCluster,
                groups,
                threads_per_worker=1,
                memory=int(memory_limit() * SHARE),
            ),
            lambda client: GPUTransport(client, groups=self),
            len(groups),
        )
        try:
            self._await(groups)
        except BaseException:
            self.close()
            raise

    def groups(self) -> dict[str, Group]:
        """Return the groups of the workers that are there, by address."""
        known = self._cluster.groups
        workers = dict(self._cluster.scheduler_info["workers"])
        return {
            address: known[told["name"]]
            for address, told in workers.items()
            if told["name"] in known
        }

    def expects(self, request: GPURequest) -> bool:
        """Tell whether there is a worker for a request, or there will be."""
        return bool(slots_for(request, {}, self._cluster.groups))

    def renew(self, left: Container[str]) -> dict[str, str]:
        """Start processes anew, and end those on GPUs that are left alone.

        A process can't start on a GPU that has fallen off the bus, and Dask's nanny then gives up.

        Args:
            left: the GPUs that are left alone, by UUID.

        Returns:
            The GPUs that are given up, by UUID, and why.
        """
        with self._changing:
            if self._closed:
                return {}
            there, gone, on_left = self._cluster.groups, self._without_gone(), self._on(left)
            if not (gone or on_left):
                return {}
            given_up: dict[str, str] = {}
            seen = {gpu[0] for gpu in gpus.look()["gpus"]} if gone else set()
            for name in gone:
                self._failed[name] += 1
                group = there.get(name)
                for gpu in group.gpus if group is not None else ():
                    if gpu.uuid not in seen:
                        given_up |= unanswering([gpu])
                    elif self._failed[name] >= FAILURES:
                        times = f"tried {FAILURES} times"
                        given_up[gpu.uuid] = f"no process starts on {gpu.label}, {times}"
            self._end([*on_left, *self._on(given_up)])
            self._cluster.scale(self._n)
            return given_up

    def _on(self, uuids: Container[str]) -> list[str]:
        """Return the names of the groups with one of these GPUs."""
        there = self._cluster.groups
        return [n for n, group in there.items() if any(gpu.uuid in uuids for gpu in group.gpus)]

    def _end(self, names: Collection[str]) -> None:
        """Have no process any more for these groups."""
        for name in names:
            self._cluster.groups.pop(name, None)
        running = [name for name in names if name in self._cluster.worker_spec]
        if running:
            self._cluster.sync(self._cluster.scale_down, running)
        self._n = len(self._cluster.groups)

    def provide(self, groups: list[Group]) -> None:
        """Have processes for these groups.

        Others that have some of the same GPUs are ended: what they keep in the memory of a GPU
        would be missing.

        Raises:
            ClusterError: such processes are at work, or new ones can't be started.
        """
        with self._changing:
            there = self._cluster.groups
            missing = {group.name: group for group in groups if group.name not in there}
            if not missing:
                return
            wanted = {gpu.uuid for group in missing.values() for gpu in group.gpus}
            in_the_way = self._on(wanted)
            busy = self.transport.engine.wait_for(self._busy)
            at_work = [name for address, name in self._names().items() if address in busy]
            if blocked := set(at_work) & set(in_the_way):
                msg = (
                    f"{len(blocked)} process(es) are at work on GPUs that are asked for in another "
                    "division now; run it again when they have ended, or cancel them"
                )
                raise ClusterError(msg)
            self._end(in_the_way)
            there.update(missing)
            self._failed.clear()
            self._n = len(there)
            self._cluster.scale(self._n)
        try:
            self._await(groups)
        except BaseException:  # such processes are none to run inputs in, the next time either
            with self._changing:
                self._end(missing)
            raise

    def _busy(self) -> set[str]:
        """Return the workers that are at work, or that a run goes on with."""
        at_work = {held.worker for held in self.transport.leases.values() if held.chunks}
        return at_work | self.transport.wanted_workers()

    def _names(self) -> dict[str, str]:
        workers = dict(self._cluster.scheduler_info["workers"])
        return {address: told["name"] for address, told in workers.items()}

    def _await(self, groups: list[Group]) -> None:
        """Wait until the workers of groups are there, and their CUDA is on the right GPU."""
        names = {group.name: group for group in groups}
        until = time.monotonic() + START
        while missing := names.keys() - self._names().values():
            if time.monotonic() > until:
                msg = f"{len(missing)} of {len(names)} processes have not started in {START:.0f} s"
                raise ClusterError(msg)
            time.sleep(_WAIT)
        told: dict[str, Any] = {}
        with contextlib.suppress(OSError, TimeoutError):
            places = [address for address, name in self._names().items() if name in names]
            told = self._client.run(
                far_function("why_unfit", "worker.gpus"), workers=places, on_error="return"
            )
        wrong = {str(why) for why in told.values() if why}
        if wrong:
            msg = f"a process can't use its GPU: {'; '.join(sorted(wrong))}"
            raise ClusterError(msg)
