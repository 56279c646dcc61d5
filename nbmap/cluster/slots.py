"""Which GPUs of a cluster an input may run on: requests against what workers see; pure.

A slot is a worker with the GPUs that one input gets there. Slots of one request have no GPU in
common, unless it asks for shares of one. Slots of different requests may: whoever gives them out
looks after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .gpu import GPU, GPUKind, GPURequest

__all__ = [
    "Group",
    "Slot",
    "groups_for",
    "listed",
    "slots_for",
    "unanswering",
    "what_is_wrong",
]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one input of a request can run.

    Args:
        worker: its address.
        gpus: UUIDs, in the order in which CUDA numbers them there.
        share: how many inputs may be on these GPUs at once, each on a worker of its own.
    """

    worker: str
    gpus: tuple[str, ...]
    share: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """The GPUs that one worker process of ours is to have.

    Args:
        gpus: they.
        share: how many processes have the same.
        number: which of these it is.
    """

    gpus: tuple[GPU, ...]
    share: int = 1
    number: int = 0

    @property
    def name(self) -> str:
        """What the worker is called; no other group is called so."""
        name = "+".join(gpu.uuid for gpu in self.gpus)
        return name if self.share == 1 else f"{name}/{self.number + 1}:{self.share}"


def share_of(request: GPURequest) -> int:
    """Return how many inputs of a request may be on one GPU."""
    return 1 if request.share is None else int(1 / request.share + 1e-9)


def _fits(request: GPURequest, kind: GPUKind, gpu: GPU) -> bool:
    """Tell whether a GPU may be one of those of an input; CUDA shows a process one slice only."""
    return kind.matches(gpu) and (request.count == 1 or not gpu.mig)


def groups_for(request: GPURequest, gpus: Sequence[GPU]) -> list[Group]:
    """Divide the GPUs of a machine for the first kind of a request that it has enough of."""
    share = share_of(request)
    for kind in request.kinds:
        fit = [gpu for gpu in gpus if _fits(request, kind, gpu)]
        parts = [
            tuple(fit[at : at + request.count])
            for at in range(0, len(fit) - request.count + 1, request.count)
        ]
        if parts:
            return [Group(part, share, number) for part in parts for number in range(share)]
    return []


def slots_for(
    request: GPURequest, workers: Mapping[str, Sequence[GPU]], ours: Mapping[str, Group] | None
) -> list[Slot]:
    """Return the slots of a request, for the first of its kinds that there are any of.

    Args:
        request: what is asked for.
        workers: the GPUs that each worker sees, by address.
        ours: the groups of the workers that we have started, by address; None for a cluster that is
            not ours, whose workers often see more GPUs than they are meant to use: each of
            dask-cuda's sees all, its own first.
    """
    for kind in request.kinds:
        if ours is None:
            found = _of_theirs(kind, request, workers)
        else:
            found = _of_ours(kind, request, ours)
        if found:
            return found
    return []


def _of_ours(kind: GPUKind, request: GPURequest, ours: Mapping[str, Group]) -> list[Slot]:
    share = share_of(request)
    return [
        Slot(worker, tuple(gpu.uuid for gpu in group.gpus), share)
        for worker, group in sorted(ours.items())
        if len(group.gpus) == request.count
        and group.share == share
        and all(_fits(request, kind, gpu) for gpu in group.gpus)
    ]


def _of_theirs(
    kind: GPUKind, request: GPURequest, workers: Mapping[str, Sequence[GPU]]
) -> list[Slot]:
    share = share_of(request)
    taken: Counter[str] = Counter()
    found = []
    for worker in _in_order(workers):
        gpus = workers[worker][: request.count]
        uuids = tuple(gpu.uuid for gpu in gpus)
        room = all(taken[uuid] < share for uuid in uuids)
        if len(gpus) == request.count and room and all(_fits(request, kind, gpu) for gpu in gpus):
            taken.update(uuids)
            found.append(Slot(worker, uuids, share))
    return found


def _in_order(workers: Mapping[str, Sequence[GPU]]) -> list[str]:
    """Sort workers so that the first GPUs of those that see the same follow one another.

    Otherwise the pairs that are taken may leave single ones between them.
    """
    order: dict[str, int] = {}
    for worker in sorted(workers):
        for gpu in workers[worker]:
            order.setdefault(gpu.uuid, len(order))
    with_gpus = [worker for worker in sorted(workers) if workers[worker]]
    return sorted(with_gpus, key=lambda worker: order[workers[worker][0].uuid])


def listed(gpus: Iterable[GPU]) -> str:
    """Return GPUs as a text: "2 x Tesla T4, 1 x NVIDIA A100-SXM4-80GB"; "no GPU"."""
    names = Counter({gpu.uuid: gpu.name for gpu in gpus}.values())
    return ", ".join(f"{n} x {name}" for name, n in sorted(names.items())) or "no GPU"


def unanswering(gpus: Iterable[GPU]) -> dict[str, str]:
    """Return why GPUs are not used that have fallen off the bus, by UUID."""
    return {gpu.uuid: f"{gpu.label} does not answer any more" for gpu in gpus}


def what_is_wrong(request: GPURequest, gpus: Sequence[GPU], where: str) -> str:
    """Return why a request can't be had, with what is there and perhaps what was meant.

    Args:
        request: what was asked for.
        gpus: all that there are, once each.
        where: "this machine" or "the cluster".
    """
    fit = [gpu for gpu in gpus if any(_fits(request, kind, gpu) for kind in request.kinds)]
    if len(fit) >= request.count:
        why = f"{where} has {listed(fit)}, and no worker sees {request.count} of them"
    elif fit:
        why = f"{where} has {len(fit)} of {request.count}: {listed(fit)}"
    else:
        why = f"{where} has {listed(gpus)}"
    return f"gpu={str(request)!r} matches nothing: {why}{_hint(request, gpus, fit)}"


def _hint(request: GPURequest, gpus: Sequence[GPU], fit: Sequence[GPU]) -> str:
    if fit:
        return ""
    for kind in request.kinds:
        slices = sorted({g.mig for g in gpus if g.mig and _is_of(kind, g)})
        if slices and not kind.mig:
            return f". It is divided into MIG slices; ask for one: gpu={slices[0]!r}"
        asked = "".join(kind.tokens)
        for gpu in gpus:
            near = [w for w in gpu.words if w != asked and w.startswith(asked)] if asked else []
            if meant := near[0] if near else kind.variant(gpu):
                return f'. Did you mean "{meant}"?'
        other = GPUKind(kind.tokens, mig=kind.mig)
        if kind.memory and any(other.matches(gpu) for gpu in gpus):
            return f'. Without a size it does: "{other}"'
    return ""


def _is_of(kind: GPUKind, part: GPU) -> bool:
    """Tell whether a slice is one of a GPU that is asked for."""
    return GPUKind(kind.tokens, kind.memory, kind.at_least, part.mig).matches(part)
