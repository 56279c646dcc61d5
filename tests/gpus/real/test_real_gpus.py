"""gpu= on the GPUs that this machine really has; run by `make gpu-test`.

Where there is none these tests fail: they are never taken for passed where they did not run.
"""

import os
import time

import pytest

import nbmap
from nbmap.worker import gpus

# Stores a number at the place of each of 256 threads. Compiled by the driver itself, so that no
# compiler of CUDA's is needed.
FILL = b"""
.version 6.4
.target sm_50
.address_size 64

.visible .entry fill(.param .u64 place, .param .u32 number)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [place];
    ld.param.u32 %r1, [number];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r1;
    ret;
}
\0"""
THREADS = 256


def check(told):
    """Return what CUDA returned, or raise what it says."""
    error, *rest = told
    if error:
        msg = f"CUDA error: {error.name}"
        raise RuntimeError(msg)
    return rest


def fill(place, number):
    """Run the kernel on numbers at an address of the current GPU."""
    import ctypes

    from cuda.bindings import driver

    [module] = check(driver.cuModuleLoadData(FILL))
    [function] = check(driver.cuModuleGetFunction(module, b"fill"))
    arguments = ((place, number), (ctypes.c_uint64, ctypes.c_uint32))
    check(driver.cuLaunchKernel(function, 1, 1, 1, THREADS, 1, 1, 0, 0, arguments, 0))
    check(driver.cuCtxSynchronize())


def compute(number):
    """Fill numbers on the GPU; return them, the GPU that CUDA uses, and the process."""
    import ctypes

    from cuda.bindings import driver
    from cuda.core import Device

    device = Device()
    device.set_current()
    [place] = check(driver.cuMemAlloc(4 * THREADS))
    try:
        fill(int(place), number)
        numbers = (ctypes.c_uint32 * THREADS)()
        check(driver.cuMemcpyDtoH(ctypes.addressof(numbers), place, 4 * THREADS))
    finally:
        check(driver.cuMemFree(place))
    time.sleep(0.2)  # so that other GPUs get inputs, too
    return list(numbers), device.uuid, [mine.uuid for mine in nbmap.devices()], os.getpid()


def misuse(x):
    """Write to an address that is nobody's, where told; CUDA is dead in the process then."""
    from cuda.core import Device

    Device().set_current()
    if x == 2:
        fill(0, x)
    return x, os.getpid()


def take(gibibytes):
    """Allocate memory."""
    from cuda.bindings import driver
    from cuda.core import Device

    Device().set_current()
    [place] = check(driver.cuMemAlloc(gibibytes << 30))
    check(driver.cuMemFree(place))
    return gibibytes


@pytest.fixture(scope="module", autouse=True)
def devices():
    """This machine's GPUs; without any, and without dask-cuda, the tests fail."""
    found = nbmap.devices()
    if not found:
        pytest.fail(f"these tests need a GPU: {gpus.look()['why']}")
    yield found
    nbmap.stop()


def digits(uuid):
    """Return the digits of a UUID, which CUDA and NVML write in ways of their own."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-").replace("-", "")


def test_kernels_run_on_the_gpu_that_each_input_has(devices):
    """Each on its own, all of them used, in one process each."""
    out = nbmap.remote(compute, gpu=True).map(range(8 * len(devices))).results()
    assert [numbers for numbers, *_ in out] == [[x] * THREADS for x in range(8 * len(devices))]
    assert all([digits(used)] == [digits(uuid) for uuid in told] for _, used, told, _ in out)
    assert {uuid for *_, [uuid], _ in out} == {device.uuid for device in devices}
    assert len({pid for *_, pid in out}) == len(devices)


def test_a_request_by_name_and_one_that_nothing_fits(devices):
    """By the name that the driver tells; another name is refused with what there is."""
    name = devices[0].name
    [(_, _, [uuid], _)] = nbmap.remote(compute, gpu=name).map([1]).results()
    assert uuid in {device.uuid for device in devices if device.name == name}
    with pytest.raises(nbmap.NoMatchingGPU, match=name):
        nbmap.remote(compute, gpu="GTX 480").map([1])


def test_two_processes_share_a_gpu(devices):
    """gpu=0.5: two processes for each."""
    out = nbmap.remote(compute, gpu=0.5).map(range(16 * len(devices))).results()
    assert len({pid for *_, pid in out}) == 2 * len(devices)


def test_an_illegal_address_costs_its_input_alone(devices):
    """Its process is started anew."""
    run = nbmap.remote(misuse, gpu=devices[0].name).map(range(6), return_exceptions=True)
    out = list(run)
    assert "ILLEGAL_ADDRESS" in repr(out.pop(2))
    assert [x for x, _ in out] == [0, 1, 3, 4, 5]
    again = nbmap.remote(compute, gpu=True).map(range(4)).results()
    assert [numbers[0] for numbers, *_ in again] == [*range(4)]


def test_memory_that_is_full_is_told(devices):
    """With the GPU's name and what is in use."""
    run = nbmap.remote(take, gpu=devices[0].name).map([1, 100_000], return_exceptions=True)
    list(run)
    assert devices[0].name in run.traceback(1)
    assert "GiB" in run.traceback(1) or devices[0].memory is None
    assert "OUT_OF_MEMORY" in run.traceback(1)


def test_figures_are_those_of_the_driver(devices):
    """The status names each GPU, with its memory."""
    nbmap.remote(compute, gpu=True).map(range(2)).results()
    shown = nbmap.status().gpus
    assert [use.name for use in shown] == [device.name for device in devices]
    assert [use.total for use in shown] == [device.memory for device in devices]
