"""gpu= in a kernel: the guide does what it tells."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from helpers import gpus
from helpers.kernels import OwnKernel
from helpers.processes import wait_until

ROOT = Path(__file__).parents[3]


def test_the_guide_to_gpus(libraries, state, tmp_path):
    """On an A100 and a T4; no cell raises, and none writes to stderr."""
    target = tmp_path / "executed.ipynb"
    ended = subprocess.run(
        [sys.executable, ROOT / "tests" / "demo.py", ROOT / "notebooks" / "gpus.ipynb", target],
        env=gpus.machine(libraries, state, gpus.A100, gpus.T4),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cells = {cell.id: cell.get("outputs", []) for cell in nbformat.read(target, 4).cells}
    streams = {
        name: [o for o in outputs if o.output_type == "stream"] for name, outputs in cells.items()
    }
    assert [o.text for of in streams.values() for o in of if o.name == "stderr"] == []
    said = {name: "".join(o.text for o in of).splitlines() for name, of in streams.items()}
    assert said["devices"] == ["0 NVIDIA A100-SXM4-80GB 80 GiB", "1 Tesla T4 15 GiB"]
    assert said["train"] == ["30 reports from 2 processes"]
    [status] = [o.data["text/plain"] for o in cells["status"] if o.output_type != "stream"]
    assert "GPU 1: Tesla T4 · 0.0 of 15.0 GiB · 0 % busy" in status
    assert [line.partition(":")[0] for line in said["wrong"]] == ["NoMatchingGPU"] * 2 + [
        "OptionError"
    ]
    assert said["fallback"] == ["[1, 2]"]
    assert said["shared"] == ["True"]
    assert said["model"] == ["100000 in all, loaded True"]
    first, memory = said["full"]
    assert first == "[1, 2]"
    assert "GiB in use by 1 process" in memory


def test_g20_a_restarted_kernel_leaves_no_process_on_a_gpu(libraries, state, tmp_path):
    """And the next one uses the same GPUs."""
    code = """
import os, nbmap

@nbmap.remote(gpu=True)
def use(x):
    from cuda.core import Device
    Device().set_current()
    return x

print(sum(use.map(range(4))))
"""
    env = {**gpus.machine(libraries, state, gpus.A100, gpus.T4), "IPYTHONDIR": str(tmp_path)}
    kernel = OwnKernel(transport="ipc", ip=str(tmp_path / "k"))
    kernel.start_kernel(env=env)
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        assert client.execute_interactive(code, timeout=60)["content"]["status"] == "ok"
        pids = {int(path.name.split(".")[2]) for path in state.glob("ctx.*")}
        assert len(pids) == 2
        kernel.restart_kernel(now=True)
        wait_until(lambda: not any(map(lives, pids)), 10)
        client.wait_for_ready(timeout=60)
        assert client.execute_interactive(code, timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel()


def lives(pid):
    """Tell whether a process has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
