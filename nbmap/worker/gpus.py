"""The GPUs that a process sees: what the driver tells of those in CUDA_VISIBLE_DEVICES.

Through pynvml (nvidia-ml-py), which dask-cuda brings along, and through CUDA's own library for what
only that knows: how it numbers GPUs, and whether a process can still use one.

That there is no GPU is only said where that is certain. Where nobody can tell, that is said instead:
a machine whose GPUs can't be looked at is not one without.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import re
import subprocess
import sys
from contextlib import suppress
from typing import Any

_DRIVER = "libnvidia-ml.so.1"
_CUDA = "libcuda.so.1"
_HIDDEN = "CUDA_VISIBLE_DEVICES"
_NOT_INITIALIZED = 3  # what CUDA says before its first use in a process
_GIB = 1 << 30
_FULL = re.compile(
    r"out.?of.?memory|MemoryAllocation|RESOURCE_EXHAUSTED|ALLOC_FAILED", re.IGNORECASE
)
ASK = 20.0  # seconds for CUDA to tell its order; a driver that wakes a GPU up may take several

# Prints the UUIDs of the GPUs as CUDA numbers them, in hexadecimal digits. In a process of its own:
# what has called CUDA can't be forked any more.
_ORDER = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
tell = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
    for device in range(count.value):
        if tell(uuid, device) == 0:
            print(bytes(uuid).hex())
"""


class NotSeen(Exception):
    """No GPU is to be seen; `certain` where that is so, and nobody merely failed to look."""

    def __init__(self, why: str, *, certain: bool) -> None:
        super().__init__(why)
        self.certain = certain


def look(worker: object = None) -> dict[str, Any]:  # noqa: ARG001 - Dask gives it
    """Return what can be seen, in plain values.

    Returns:
        `gpus`: [UUID, name, bytes of memory or None, of a slice bytes of its GPU or None] of each,
        in the order in which CUDA numbers them in this process; `lost`: how many of the machine's
        have ceased to answer; `why`: there is no GPU; `certain`: whether there is none then, or
        none could be looked at.
    """
    found: list[list[Any]] = []
    why, certain, lost = "", True, 0
    try:
        found, lost = _visible()
    except NotSeen as none:
        why, certain = str(none), none.certain
    except Exception as error:
        why, certain = f"the GPUs can't be looked at: {error!r}", False
    return {"gpus": found, "lost": lost, "why": why, "certain": certain}


def used(uuids: list[str]) -> list[dict[str, Any]]:
    """Return the figures of GPUs at this moment.

    Returns:
        Of each its `index` on the machine, `used` and `total` in bytes, `busy` in percent, and
        `processes`; None for what it does not tell. A GPU that fell off the bus has `lost` instead.
    """
    try:
        nvml = _nvml()
        return [_figures(nvml, uuid) for uuid in uuids]
    except NotSeen:
        return [{} for _ in uuids]


def in_use(figures: dict[str, Any]) -> str:
    """Return figures of `used` as "79.2 of 80.0 GiB in use"; "" where a GPU does not tell."""
    if not figures.get("total"):
        return ""
    return f"{figures['used'] / _GIB:.1f} of {figures['total'] / _GIB:.1f} GiB in use"


def why_unfit(worker: object = None) -> str:  # noqa: ARG001 - Dask gives it
    """Create this process's CUDA context; return why it is not on its first GPU, "" where it is."""
    try:
        from cuda.core import Device

        device = Device()
        device.set_current()
        got, wanted = device.uuid, os.environ[_HIDDEN].partition(",")[0]
    except Exception as error:
        return f"CUDA does not start: {str(error) or type(error).__name__}"
    return "" if _digits(got) == _digits(wanted) else f"CUDA uses {got} in the place of {wanted}"


def is_dead() -> bool:
    """Tell whether this process's CUDA context can't be used any more, as after a wrong address.

    CUDA then fails whatever the process does, until it ends. Waits for the kernels that run, since
    what they do is known only then.
    """
    try:
        cuda = _cuda()
        count = ctypes.c_int()
        state = cuda.cuDeviceGetCount(ctypes.byref(count))
        if state == _NOT_INITIALIZED:
            return False  # it has not been used
        # What CUDA says of a dead context it may say in answer to anything.
        return bool(state) or any(_is_dead_on(cuda, device) for device in range(count.value))
    except (OSError, AttributeError):
        return False


@functools.cache
def _cuda() -> Any:
    return ctypes.CDLL(_CUDA)


def _is_dead_on(cuda: Any, device: int) -> bool:
    current, active, flags = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint()
    state = cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
    if state == _NOT_INITIALIZED or (state == 0 and not active.value):
        return False  # it has none there
    if state or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(current), device):
        return True
    before = ctypes.c_void_p()
    cuda.cuCtxGetCurrent(ctypes.byref(before))
    cuda.cuCtxSetCurrent(current)
    try:
        return bool(cuda.cuCtxSynchronize())
    finally:
        cuda.cuCtxSetCurrent(before)
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def tidy() -> None:
    """Give the memory back that frameworks keep of what is not used any more."""
    gc.collect()
    with suppress(Exception):
        if (torch := sys.modules.get("torch")) is not None:
            torch.cuda.empty_cache()
    with suppress(Exception):
        if (cupy := sys.modules.get("cupy")) is not None:
            cupy.get_default_memory_pool().free_all_blocks()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, of whatever library, says that a GPU's memory is full."""
    return _FULL.search(f"{type(error).__name__}: {error}") is not None


def memory_in_words(uuids: list[str]) -> str:
    """Tell how full GPUs are, as "NVIDIA A100: 79.2 of 80.0 GiB in use by 2 processes"."""
    try:
        nvml = _nvml()
        told = []
        for uuid in uuids:
            figures = _figures(nvml, uuid)
            name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByUUID(uuid))
            if full := in_use(figures):
                n = figures["processes"] or 0
                by = f" by {n} process{'es' if n != 1 else ''}" if n else ""
                told.append(f"{name}: {full}{by}")
            else:
                told.append(f"{name}, which does not tell its memory")
        return "; ".join(told)
    except Exception:  # it is said beside an error that matters more
        return ""


def _visible() -> tuple[list[list[Any]], int]:
    nvml = _nvml()
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise NotSeen("the NVIDIA driver finds no GPU", certain=True)
    handles, lost = _handles(nvml, count)
    if not handles and lost:
        why = f"none of the {_gpus(lost)} answers any more: restart the machine"
        raise NotSeen(why, certain=False)
    text = os.environ.get(_HIDDEN)
    names = {uuid: nvml.nvmlDeviceGetName(handle) for uuid, handle in handles.items()}
    if text is None:
        wanted = list(handles)
    else:
        wanted = _named(nvml, text, list(handles), len(set(names.values())) > 1)
        if not wanted and lost:
            why = f"none of the GPUs in {_HIDDEN} ({text!r}) answers any more: restart the machine"
            raise NotSeen(why, certain=False)
    if not wanted:
        raise NotSeen("all GPUs are in MIG mode, and none has a slice", certain=True)
    return [_told(nvml, uuid, handles[uuid], names[uuid]) for uuid in wanted], lost


def _nvml() -> Any:
    """Return pynvml, ready."""
    if sys.platform != "linux":
        raise NotSeen("GPUs are used on Linux only", certain=True)
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        why = f"there is no NVIDIA driver: {_DRIVER} is not found"
        raise NotSeen(why, certain=True) from None
    try:
        import pynvml
    except ImportError:
        why = (
            "there is an NVIDIA driver, but not the package that asks it: pip install nvidia-ml-py"
        )
        raise NotSeen(why, certain=False) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        told = {
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
                "the NVIDIA driver is installed and not loaded: try `sudo modprobe nvidia`, and for "
                "a container `--gpus all`"
            ),
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
                "the NVIDIA driver was updated while the old one runs: restart the machine"
            ),
            pynvml.NVML_ERROR_NO_PERMISSION: "this user may not use the NVIDIA driver",
        }.get(error.value, f"the NVIDIA driver says: {error}")
        raise NotSeen(told, certain=False) from None
    return pynvml


def _handles(nvml: Any, count: int) -> tuple[dict[str, Any], int]:
    """Return the handles of GPUs, in the place of those in MIG mode of their slices, and how many fail."""
    handles: dict[str, Any] = {}
    lost = 0
    for index in range(count):
        try:
            whole = nvml.nvmlDeviceGetHandleByIndex(index)
            parts = [whole]
            with suppress(nvml.NVMLError_NotSupported):
                if nvml.nvmlDeviceGetMigMode(whole)[0]:
                    parts = list(_slices(nvml, whole))
            for part in parts:
                handles[nvml.nvmlDeviceGetUUID(part)] = part
        except nvml.NVMLError_GpuIsLost:
            lost += 1
    return handles, lost


def _slices(nvml: Any, whole: Any) -> Any:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        with suppress(nvml.NVMLError_NotFound):
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)


def _named(nvml: Any, text: str, uuids: list[str], differ: bool) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES names."""
    words = [word.strip() for word in text.split(",")]
    if words[0] in {"", "-1", "NoDevFiles"}:
        slurm = ", as in a Slurm job without --gres" if words[0] == "NoDevFiles" else ""
        why = f"{_HIDDEN} is {text!r}{slurm}, which hides all GPUs"
        raise NotSeen(why, certain=True)
    words = [word for at, word in enumerate(words) if word and word not in words[:at]]
    found: list[str] = []
    gone = 0
    if differ and any(word.isdigit() for word in words):
        order = _order_of_cuda()
        by_digits = {_digits(uuid): uuid for uuid in uuids}
        found = [by_digits[digits] for digits in order if digits in by_digits]
    else:
        for word in words:
            if _is_lost(nvml, word):
                gone += 1
                continue
            one = _find(nvml, word, uuids)
            if one is None:
                break  # CUDA looks no further either
            found.append(one)
    if len(found) + gone < len(words):
        bad = words[len(found) + gone]
        why = f"{_HIDDEN} is {text!r}, and there is no GPU {bad} among {len(uuids)}"
        raise NotSeen(why, certain=True)
    return found


def _is_lost(nvml: Any, word: str) -> bool:
    """Tell whether a word of CUDA_VISIBLE_DEVICES names a GPU that does not answer any more."""
    try:
        if word.isdigit():
            nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(word)))
        else:
            nvml.nvmlDeviceGetHandleByUUID(word)
    except nvml.NVMLError_GpuIsLost:
        return True
    except nvml.NVMLError:
        return False
    return False


def _find(nvml: Any, word: str, uuids: list[str]) -> str | None:
    if word.isdigit():
        try:
            whole = nvml.nvmlDeviceGetHandleByIndex(int(word))
            there = {str(nvml.nvmlDeviceGetUUID(whole))}
            if there.isdisjoint(uuids):  # of a GPU in MIG mode CUDA takes the first slice
                there = {str(nvml.nvmlDeviceGetUUID(part)) for part in _slices(nvml, whole)}
        except nvml.NVMLError:
            return None
        return next((uuid for uuid in uuids if uuid in there), None)
    return next((uuid for uuid in uuids if uuid.startswith(word)), None)


def _order_of_cuda() -> list[str]:
    command = [sys.executable, "-I", "-c", _ORDER]
    try:
        told = subprocess.run(  # noqa: S603 - our own text
            command, capture_output=True, text=True, timeout=ASK, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = f"CUDA does not tell how it numbers the GPUs: {error}"
        raise NotSeen(why, certain=False) from None
    order = told.stdout.split()
    if not order:
        raise NotSeen("CUDA does not tell how it numbers the GPUs", certain=False)
    return order


def _told(nvml: Any, uuid: str, handle: Any, name: str) -> list[Any]:
    whole = None
    if " MIG " in name:
        with suppress(nvml.NVMLError):
            parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            whole = _memory(nvml, parent)
    return [uuid, name, _memory(nvml, handle), whole]


def _memory(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # it shares the host's
        return None


def _figures(nvml: Any, uuid: str) -> dict[str, Any]:
    keys = ("index", "used", "total", "busy", "processes")
    figures: dict[str, Any] = dict.fromkeys(keys)
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        with suppress(nvml.NVMLError):  # a slice has none
            figures["index"] = int(nvml.nvmlDeviceGetIndex(handle))
        with suppress(nvml.NVMLError_NotSupported):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            figures["used"], figures["total"] = int(memory.used), int(memory.total)
        with suppress(nvml.NVMLError_NotSupported):
            figures["busy"] = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(nvml.NVMLError_NotSupported):
            figures["processes"] = len(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError_GpuIsLost:
        return {"lost": True}
    except nvml.NVMLError:
        return {}
    return figures


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _digits(uuid: Any) -> str:
    """Return the hexadecimal digits of a UUID, which NVML and CUDA write in ways of their own."""
    return str(uuid).lower().removeprefix("gpu-").removeprefix("mig-").replace("-", "")
