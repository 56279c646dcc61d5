"""dask-cuda's cluster for one machine, corrected; imported only where GPUs are used.

What `LocalCUDACluster` does, and is otherwise here (measured with dask-cuda 26.10):

- each worker sees all GPUs, its own first, so that TensorFlow takes the memory of all of them
- GPUs are named by number, and CUDA numbers them otherwise than the driver does where they differ
- the limit after which Dask moves data to the host's memory is that of the first GPU for all, and
  of a MIG slice that of the whole GPU
- one worker per GPU at most, and none has several
- with a GPU that fell off the bus, each of Dask's servers logs a traceback twice a second
"""

from __future__ import annotations

import os
from typing import Any

from dask_cuda import LocalCUDACluster
from dask_cuda.worker_common import worker_data_function

from .slots import Group

LIMIT = 0.8  # of a GPU's memory, for data that Dask keeps there; dask-cuda's own default

# So that frameworks take the memory that they need, and not all there is. Not what the user has set.
POLITE = {
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
POLITE_WHEN_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class GroupsCluster(LocalCUDACluster):  # type: ignore[misc]
    """A worker process for each group of GPUs, which sees exactly these.

    Args:
        groups: that are to have one; `groups` may be changed, then `scale`.
        memory: bytes of the host's that all of them share.
        options: what LocalCUDACluster takes besides.
    """

    def __init__(self, groups: list[Group], memory: int, **options: Any) -> None:
        self.groups = {group.name: group for group in groups}
        self._memory = memory
        super().__init__(
            CUDA_VISIBLE_DEVICES=[groups[0].gpus[0].uuid],
            n_workers=len(groups),
            memory_limit=memory // len(groups),
            device_memory_limit=0,  # each has its own; that of the first GPU, which may be lost, is asked
            **options,
        )

    def new_worker_spec(self) -> dict[str, Any]:
        """Return the specification of the next worker, by its name."""
        name = next(name for name in self.groups if name not in self.worker_spec)
        group = self.groups[name]
        uuids = [gpu.uuid for gpu in group.gpus]
        memory, limit = group.gpus[0].memory, None
        if memory is not None:
            limit = int(LIMIT * memory / group.share)
        self.cuda_visible_devices = uuids[:1]
        host = self._memory // len(self.groups)
        self.data = worker_data_function(device_memory_limit=limit, memory_limit=host)
        [spec] = super().new_worker_spec().values()
        options = spec["options"]
        options["memory_limit"] = host
        options["env"] = {
            **_unset(POLITE),
            **(_unset(POLITE_WHEN_SHARED) if group.share > 1 else {}),
            "CUDA_VISIBLE_DEVICES": ",".join(uuids),
        }
        # They watch their GPUs, other than the scheduler and the nannies in this process.
        options["config"] = {
            **(options.get("config") or {}),
            "distributed.diagnostics.nvml": True,
        }
        return {name: spec}


def _unset(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in os.environ}
