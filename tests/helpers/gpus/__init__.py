"""A machine with GPUs, for machines that have none: two small libraries in the place of NVIDIA's.

Everything above them is real: pynvml, cuda.core, dask-cuda. `machine.h` says what a machine may be.
"""

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {"libnvidia-ml.so.1": "nvml.c", "libcuda.so.1": "cuda.c"}

A100 = "NVIDIA A100-SXM4-80GB:81920"
A100_40 = "NVIDIA A100-SXM4-40GB:40960"
T4 = "Tesla T4:15360"


def build(folder):
    """Build both libraries into a folder; return it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        msg = "the GPU tests need a C compiler: install gcc, or name one in CC"
        raise RuntimeError(msg)
    for library, source in LIBRARIES.items():
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        command += ["-Wno-unused-function", "-Wno-unused-variable", f"-Wl,-soname,{library}"]
        command += ["-o", folder / library, HERE / source, "-lpthread", "-ldl"]
        subprocess.run(command, check=True)
    return folder


def machine(libraries, state, *gpus, **settings):
    """Return the environment of processes on a machine with these GPUs.

    Args:
        libraries: what `build` returned; None for a machine without a driver.
        state: a folder that its processes share; see `machine.h`.
        gpus: each as NAME:MIB with options behind.
        settings: more variables of the environment.
    """
    gone = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if name not in gone}
    env |= {"FAKE_GPUS": ",".join(gpus), "FAKE_GPU_STATE": os.fspath(state)}
    if libraries is not None:
        env["LD_LIBRARY_PATH"] = os.fspath(libraries)
    return env | settings
