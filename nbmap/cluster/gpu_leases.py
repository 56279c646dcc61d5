"""Leases on GPUs: each on the worker of a slot, for the runs whose request fits it.

Dask could place tasks by names or resources too, and waits for ever where the worker of a name has
died and come back on another port, or where resources were given to it after its start (measured
with distributed 2026.7.1). So the workers are looked at here, now and again while there are runs,
and each lease is sent to the worker that it is meant for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Container
from typing import Any, Protocol

from distributed import Client

from ..engine.model import Done, GPUUse, Message
from ..engine.transport import Held, Job, NearLink
from ..errors import ClusterError, NoMatchingGPU
from ..worker.gpus import used
from .gpu import GPU, GPURequest
from .leases import DaskTransport
from .slots import Group, Slot, listed, slots_for, unanswering, what_is_wrong
from .stream import far_function

logger = logging.getLogger("nbmap")

ASK = 20.0  # seconds for all that is looked at together
LOOK = 10.0  # seconds for a worker to tell what it sees; a driver that wakes up may take several
MEASURE = 2.0  # seconds for it to tell how full its GPUs are
FAILURES = 3  # after which a GPU is left alone
TURN = 1.0  # seconds that a run goes without a GPU before others leave it one
_BUSY = {"open", "paused", "last", "silent"}


class OwnGroups(Protocol):
    """What a GPU cluster of our own can tell."""

    def groups(self) -> dict[str, Group]:
        """Return the groups of the workers that are there, by address."""

    def expects(self, request: GPURequest) -> bool:
        """Tell whether there is a worker for a request, or there will be."""

    def renew(self, left: Container[str]) -> dict[str, str]:
        """Start processes anew, and none on GPUs that are left alone.

        Returns:
            The GPUs that are given up, by UUID, and why.
        """


Seen = tuple[set[str], dict[str, Any], dict[str, Group] | None, dict[str, str]]


class GPUTransport(DaskTransport):
    """Leases on the GPUs of a Dask cluster.

    Args:
        client: ours, connected to it; closed by whoever made it.
        groups: of a cluster that nbmap started, what it can tell.
        stream: how streams reach workers; see `Streams`.
    """

    places = "places on these GPUs"

    def __init__(
        self, client: Client, groups: OwnGroups | None = None, stream: str | None = None
    ) -> None:
        super().__init__(client, stream=stream)
        self._groups = groups
        self._ours: dict[str, Group] | None = None if groups is None else {}
        self._workers: dict[str, list[GPU]] = {}
        self.unseen: dict[str, str] = {}  # workers whose GPUs nobody can look at, and why
        self._slot: dict[str, Slot] = {}  # of each lease
        self._fitting: dict[GPURequest, list[Slot]] = {}  # while nothing has changed
        self._patient: dict[int, float] = {}  # job -> since when it has no slot; -1 once it had one
        self._without: dict[int, float] = {}  # job -> since when it wants a GPU and has none
        self._dead: set[str] = set()  # workers whose process can't use its GPUs any more
        self._use: dict[str, GPUUse] = {}  # by UUID, as it was about a second ago
        self.left: dict[str, str] = {}  # GPUs that are left alone, by UUID, and why
        # In how many processes one after the other CUDA died on GPUs, and chunks since the last.
        self._deaths: Counter[tuple[str, ...]] = Counter()
        self._chunks: Counter[tuple[str, ...]] = Counter()

    # -- what there is

    def slots(self) -> int:
        """Return how many leases there may be at once."""
        if self._ours is not None:
            return max(1, len(self._ours))
        return max(1, len({gpu.uuid for gpus in self._workers.values() for gpu in gpus}))

    def limit(self, job: Job) -> int:
        """Return how many leases the run's handle may use."""
        return job.limit or max(1, len(self._slots_of(job.gpu)))

    def require(self, request: GPURequest) -> None:
        """Look at the workers; not on the engine's thread.

        Raises:
            NoMatchingGPU: no worker has what is asked for. Not on a cluster of our own, which was
                started for it: a worker may just be on its way back.
        """
        found = self._look()
        self.engine.wait_for(self._saw, found)
        if self._groups is None and not self.engine.wait_for(self._slots_of, request):
            raise NoMatchingGPU(self.engine.wait_for(self._why_none, request))

    def _slots_of(self, request: GPURequest) -> list[Slot]:
        if request not in self._fitting:
            down = self._dead | self._stuck
            ours = self._ours
            if ours is not None:
                ours = {
                    worker: group
                    for worker, group in ours.items()
                    if worker not in down
                    and self.left.keys().isdisjoint(gpu.uuid for gpu in group.gpus)
                }
            self._fitting[request] = slots_for(request, self._workers_but(down), ours)
        return self._fitting[request]

    def _workers_but(self, down: Container[str] = ()) -> dict[str, list[GPU]]:
        """Return the GPUs of workers that are not left alone, without workers that are down."""
        return {
            worker: [gpu for gpu in of if gpu.uuid not in self.left]
            for worker, of in self._workers.items()
            if worker not in down
        }

    def _are_left(self, request: GPURequest) -> bool:
        """Tell whether all slots of a request are on GPUs that are left alone."""
        if not self.left:
            return False
        if self._groups is not None:
            return not self._groups.expects(request)
        had = slots_for(request, self._workers, None)
        return bool(had) and not slots_for(request, self._workers_but(), None)

    def wanted_workers(self) -> set[str]:
        """Return the workers on which inputs of runs may run that go on."""
        return {slot.worker for job in self.jobs for slot in self._slots_of(job.gpu)}

    def _why_none(self, request: GPURequest) -> str:
        there = {gpu.uuid: gpu for of in self._workers.values() for gpu in of}
        gpus = [gpu for uuid, gpu in there.items() if uuid not in self.left]
        why = what_is_wrong(request, gpus, "the cluster")
        if self.lasting:
            why += f". {self.lasting}"
        if self.unseen:
            worker, reason = next(iter(self.unseen.items()))
            why += (
                f". The GPUs of {len(self.unseen)} worker(s) can't be looked at, {worker}: {reason}"
            )
        return why

    # -- looking

    def _look(self) -> Seen:
        """Ask the workers that are new what they see; not on the engine's thread."""
        given_up = {} if self._groups is None else self._groups.renew(self.left)
        there = set(self.client.scheduler_info(n_workers=-1)["workers"])
        new = [worker for worker in there if worker not in self._workers]
        told = self._ask_each(new, LOOK, "look")
        return there, told, None if self._groups is None else self._groups.groups(), given_up

    def _saw(self, found: Seen) -> None:
        there, told, self._ours, given_up = found
        self._leave_alone(given_up)
        for worker in [worker for worker in self._workers if worker not in there]:
            del self._workers[worker]
        self._dead &= there
        self.unseen = {worker: why for worker, why in self.unseen.items() if worker in there}
        for worker, answer in told.items():
            seen = isinstance(answer, dict) and (answer["gpus"] or answer["certain"])
            if seen:
                self._workers[worker] = [GPU(*gpu) for gpu in answer["gpus"]]
                self.unseen.pop(worker, None)
            else:  # it is asked again
                why = answer["why"] if isinstance(answer, dict) else repr(answer)
                self.unseen[worker] = why
            if seen and self._ours and worker in self._ours:
                there_now = {gpu.uuid for gpu in self._workers[worker]}
                gone = [gpu for gpu in self._ours[worker].gpus if gpu.uuid not in there_now]
                self._leave_alone(unanswering(gone))
        self._fitting.clear()
        self._forget_asked(there)
        now = time.monotonic()
        for job in list(self.jobs):
            if self._slots_of(job.gpu):
                self._patient[id(job)] = -1.0
                continue
            if self._are_left(job.gpu):
                job.fail(ClusterError(f"no GPU is left for gpu={str(job.gpu)!r}: {self.lasting}"))
                continue
            since = self._patient.setdefault(id(job), now)
            if self._groups is None and since >= 0 and now - since >= job.patience:
                job.fail(NoMatchingGPU(self._why_none(job.gpu)))
        self.wake()

    async def _count(self) -> None:
        """Look at the workers, as other transports count their slots, now and again."""
        try:
            looking = asyncio.get_running_loop().run_in_executor(None, self._look)
            self._saw(await asyncio.wait_for(looking, ASK))
            measuring = asyncio.get_running_loop().run_in_executor(None, self._measure)
            self._use = await asyncio.wait_for(measuring, ASK)
        except (OSError, TimeoutError) as error:
            logger.info("the workers can't be looked at: %s", error)
        finally:
            self._counting = False

    def _measure(self) -> dict[str, GPUUse]:
        """Return how full and how busy the GPUs are; not on the engine's thread."""
        there = {gpu.uuid: gpu.name for of in list(self._workers.values()) for gpu in of}
        figures: dict[str, dict[str, Any]] = {}
        if self._groups is not None:
            figures = dict(zip(there, used(list(there)), strict=True))
        else:
            told = self._ask_each(self._one_for_each(), MEASURE, "used", list(there))
            for answer in told.values():
                if isinstance(answer, list):
                    figures |= {uuid: f for uuid, f in zip(there, answer, strict=True) if f}
        uses = {uuid: _use_of(name, figures.get(uuid, {})) for uuid, name in there.items()}
        return dict(sorted(uses.items(), key=lambda item: (item[1].index is None, item[1].index)))

    def _ask_each(self, workers: list[str], limit: float, name: str, *args: Any) -> dict[str, Any]:
        """Call a function of `worker.gpus` on workers; not on the client's thread.

        Returns:
            What each has returned, or what it raised. One that does not answer in time, since its
            process stands or an input holds Python's lock, holds up none of the others.
        """
        function = far_function(name, "worker.gpus")

        async def one(worker: str) -> Any:
            asked = self.client.run(function, *args, workers=[worker], on_error="return")
            try:
                return (await asyncio.wait_for(asked, limit)).get(worker)
            except TimeoutError:
                return TimeoutError(f"it has not answered in {limit:.0f} s")

        async def each() -> list[Any]:
            return await asyncio.gather(*map(one, workers), return_exceptions=True)

        if not workers:
            return {}
        return dict(zip(workers, self.client.sync(each), strict=True))

    def _one_for_each(self) -> list[str]:
        """Return few workers that see all GPUs together."""
        seen: set[str] = set()
        chosen = []
        for worker, of in self._workers.items():
            new = {gpu.uuid for gpu in of} - seen
            if new:
                seen |= new
                chosen.append(worker)
        return chosen

    def measured(self) -> list[GPUUse]:
        """Return how full and how busy all GPUs are now; not on the engine's thread."""
        try:
            return list(self._measure().values())
        except (OSError, TimeoutError, ValueError) as error:
            logger.info("the GPUs can't be measured: %s", error)
            return list(self._use.values())

    def use(self, job: Job) -> tuple[GPUUse, ...]:
        """Return how full and how busy the GPUs are that a run's inputs may run on."""
        mine = {uuid for slot in self._slots_of(job.gpu) for uuid in slot.gpus}
        return tuple(use for uuid, use in self._use.items() if uuid in mine)

    # -- giving out

    def fits(self, job: Job, held: Held) -> bool:
        """Tell whether a lease has GPUs of the kind, the number and the share that a run wants."""
        slot = self._slot.get(held.name)
        return slot is not None and slot in self._slots_of(job.gpu)

    def remark(self, job: Job) -> str:
        """Say that no GPU fits, and what is there."""
        if not self._slots_of(job.gpu) and self._counted:
            gpus = [gpu for of in self._workers.values() for gpu in of]
            if slots_for(job.gpu, self._workers, self._ours):
                return f"waiting for gpu={str(job.gpu)!r}: its process is being started anew"
            return f"waiting for gpu={str(job.gpu)!r}: the cluster has {listed(gpus)}"
        return super().remark(job)

    def _may(self, job: Job, held: Held) -> bool:
        return (
            super()._may(job, held)
            and not self._is_taken(held)
            and not self._is_kept(self._slot[held.name], job)
        )

    def _is_kept(self, slot: Slot, job: Job) -> bool:
        """Tell whether a slot's GPUs are kept for another run, which has had none for longer.

        One that wants two would never get them, where others take each as soon as it is free.
        """
        mine = self._without.get(id(job), math.inf)
        late = min(mine, time.monotonic() - TURN)
        for other in self.jobs:
            if self._without.get(id(other), math.inf) < late:
                kept = self._next_of(other)
                if kept is not None and kept != slot and _exclude(kept, slot):
                    return True
        return False

    def _next_of(self, job: Job) -> Slot | None:
        """Return the slot that a run gets next, of those that it has leases on."""
        state = {self._slot[name]: held.state for name, held in self.leases.items()}
        mine = [slot for slot in self._slots_of(job.gpu) if slot in state]
        return min(mine, key=lambda slot: state[slot] != "open", default=None)

    def has_place(self, held: Held) -> bool:
        """Tell whether the GPUs of an input that goes on are free."""
        return not self._is_taken(held)

    def _is_taken(self, held: Held) -> bool:
        """Tell whether another slot's input is on one of a lease's GPUs."""
        slot = self._slot[held.name]
        for name, other in self._slot.items():
            lease = self.leases.get(name)
            if lease is None or lease is held or not lease.chunks or lease.state not in _BUSY:
                continue
            shared = slot.share > 1 and other.share == slot.share and other.worker != slot.worker
            if not shared and set(other.gpus) & set(slot.gpus):
                return True
        return False

    def ensure(self) -> None:
        """Ask for leases on the slots of runs that want more than there are."""
        waiting = False
        for job in self.jobs:
            wanted = job.wanted()
            slots = self._slots_of(job.gpu)
            if slots:  # from then on it waits for them to come back, as a process does that died
                self._patient[id(job)] = -1.0
            waiting = waiting or bool(wanted)
            if not wanted or any(route[1] is job for route in self.routes.values()):
                self._without.pop(id(job), None)
            else:
                self._without.setdefault(id(job), time.monotonic())
            have = {
                self._slot[n] for n, h in self.leases.items() if n in self._slot and self.works(h)
            }
            mine = sum(slot in have for slot in slots)
            need = min(job.limit or len(slots), wanted, len(slots)) - mine
            for slot in slots:
                if need > 0 and slot not in have:
                    self._slot[self._submit(slot.worker, slot.gpus).name] = slot
                    need -= 1
        idle = not any(lease.state in {*_BUSY, "aside"} for lease in self.leases.values())
        since = self.waiting_since or time.monotonic()
        self.waiting_since = since if waiting and idle else None

    def receive(self, held: Held, link: NearLink, message: Message) -> None:
        """Take one message of a lease's stream."""
        if isinstance(message, Done) and message.ran and held.link is link:
            self._chunks[self._slot[held.name].gpus] += 1
        super().receive(held, link, message)

    def _leave_alone(self, given_up: dict[str, str]) -> None:
        """Use GPUs no more; their failures would go on for ever."""
        new = {uuid: why for uuid, why in given_up.items() if uuid not in self.left}
        if new:
            self.left |= new
            self.lasting = "; ".join(self.left.values()) + ": left alone"
            self._fitting.clear()

    def recycle(self, held: Held) -> None:
        """Have a process started anew that can't use its GPUs any more.

        Where CUDA dies in one process after the other, before any of them has done more than one
        chunk, it is the GPU.
        """
        uuids = self._slot[held.name].gpus
        self._deaths[uuids] = 1 if self._chunks.pop(uuids, 0) > 1 else self._deaths[uuids] + 1
        if self._deaths[uuids] >= FAILURES:
            labels = {gpu.uuid: gpu.label for gpu in self._workers.get(held.worker, ())}
            times = f"CUDA has died on it in {FAILURES} processes one after the other"
            self._leave_alone({u: f"{labels.get(u, f'a GPU ({u})')}: {times}" for u in uuids})
        self._dead.add(held.worker)
        self._fitting.clear()
        self._start(self._recycle(held.worker, held.pid))

    async def _recycle(self, worker: str, pid: int) -> None:
        if not await self.workers.end(worker, pid):
            self.trouble = (
                f"CUDA is dead in the process {pid} of {worker}, and nothing starts it anew: end it"
            )

    def gone(self, held: Held) -> None:
        """Forget a lease, and its slot."""
        self._slot.pop(held.name, None)
        super().gone(held)

    def remove(self, job: Job) -> None:
        """Stop working for a run."""
        self._patient.pop(id(job), None)
        self._without.pop(id(job), None)
        super().remove(job)

    def status(self) -> dict[str, Any]:
        """Return what there is, for people."""
        found = super().status()
        found["workers"] = len(self._workers)
        return found


def _exclude(one: Slot, other: Slot) -> bool:
    """Tell whether an input on one slot keeps one from the other."""
    return one.worker == other.worker or bool(set(one.gpus) & set(other.gpus))


def _use_of(name: str, figures: dict[str, Any]) -> GPUUse:
    told = {key: figures.get(key) for key in ("index", "used", "total", "busy")}
    return GPUUse(name, **told, lost=bool(figures.get("lost")))
