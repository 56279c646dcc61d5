"""Programs on machines with GPUs: the real dask-cuda over the libraries of helpers/gpus."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from helpers import gpus
from helpers.processes import wait_until

COMMON = """
import os, signal, sys, textwrap, time
import nbmap

def where(x):
    from cuda.core import Device

    began = time.time()
    time.sleep(0.2)
    device = Device()
    device.set_current()
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    return {
        "x": x, "visible": visible, "uuid": device.uuid, "name": device.name, "pid": os.getpid(),
        "began": began, "ended": time.time(),
    }

def refused(**options):
    try:
        nbmap.remote(where, **options).map([1])
    except nbmap.NbmapError as error:
        return type(error).__name__, str(error)
"""
END = """
if __name__ == "__main__":
    import json

    print("RESULT", json.dumps(main()))
"""


def lives(group):
    """Tell whether there are processes of a group; those that were killed keep no CUDA context."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def has_dask_cuda():
    """Not skipped where it is missing: these tests would be taken for passed."""
    if importlib.util.find_spec("dask_cuda") is None:
        pytest.fail("these tests need dask-cuda: run make test-cuda")


@pytest.fixture
def on(libraries, state, tmp_path):
    """Yield a function that runs a program on a machine with GPUs, and returns what main() did.

    No process that it started may be left, and so no CUDA context.
    """

    def run(machine, code, *, driver=True, **settings):
        path = tmp_path / "program.py"
        path.write_text(COMMON + textwrap.dedent(code) + END)
        env = gpus.machine(libraries if driver else None, state, *machine, **settings)
        process = subprocess.Popen(
            [sys.executable, path],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            run.out, run.err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            run.out, run.err = process.communicate()
            pytest.fail(f"the program did not end\n{run.out}\n{run.err}")
        assert process.returncode == 0, run.err
        wait_until(lambda: not lives(process.pid), 10, lambda: "it left processes behind")
        [line] = [line for line in run.out.splitlines() if line.startswith("RESULT ")]
        return json.loads(line.removeprefix("RESULT "))

    return run
