"""What is left when the process that maps, a script or a kernel, ends without a word."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from tempfile import TemporaryDirectory

from distributed import Client
from helpers import dasks
from helpers.kernels import OwnKernel
from helpers.processes import processes_with, wait_until

GONE = 10  # seconds, of requirement F15

# Input x does the x-th thing that a function may do while its notebook ends, the others short work.
WORK = """
import ctypes, sys, time
from pathlib import Path
import nbmap

def work(x):
    path = Path({folder!r})
    (path / f"in-{{x}}").touch()
    how = {how}[x] if x < {n} else "is short"
    while how == "spins":
        pass
    if how == "sleeps":
        time.sleep(60)
    elif how == "sleeps a little":
        time.sleep(2)
    elif how == "holds the lock":
        ctypes.PyDLL(None).sleep(60)
    elif how == "catches all":
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
    else:
        time.sleep(0.02)

def begin():
    {connect}
    return nbmap.remote(work).map(range(100_000))
"""


def text(folder, how, connect):
    """Return Python text that defines `begin()`."""
    return WORK.format(folder=os.fspath(folder), how=how, n=len(how), connect=connect)


def under_way(folder, n):
    """Wait until the first n inputs and some more have begun."""
    wait_until(lambda: all((folder / f"in-{x}").exists() for x in range(n + 2)), 60)


def end(pids):
    """End what a failed test has left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def script(folder, how, connect, marker):
    """Run a script until its functions are under way."""
    path = folder / "script.py"
    main = "if __name__ == '__main__':\n    begin().wait()\n"
    path.write_text(text(folder, how, connect) + main)
    process = subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, "NBMAP_TEST": marker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        under_way(folder, len(how))
        yield process
    finally:
        process.kill()
        process.wait()
        end(processes_with(marker))


@contextlib.contextmanager
def kernel(folder, marker):
    """Run a kernel; yield its manager, and a function that runs a cell in it."""
    with TemporaryDirectory() as sockets, contextlib.ExitStack() as stack:
        manager = OwnKernel(transport="ipc", ip=f"{sockets}/kernel")
        env = {**os.environ, "NBMAP_TEST": marker, "IPYTHONDIR": str(folder / "ipython")}
        manager.start_kernel(env=env)

        def stop():
            manager.shutdown_kernel(now=True)
            end(processes_with(marker))

        stack.callback(stop)

        def run(cell):
            client = manager.blocking_client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=60)
                reply = client.execute_interactive(cell, timeout=60, output_hook=lambda _: None)
                assert reply["content"]["status"] == "ok", reply["content"]
            finally:
                client.stop_channels()

        yield manager, run


def is_served(client):
    """Check that another client's tasks run on all slots, and that no task of ours is there."""
    workers = list(client.nthreads())
    futures = [client.submit(os.getpid, pure=False, workers=[worker]) for worker in workers]
    assert len(set(client.gather(futures))) == len(workers)
    wait_until(lambda: not our_tasks(client))


def our_tasks(client):
    """Return the keys of nbmap's tasks on the scheduler."""

    def ours(dask_scheduler):
        return [str(key) for key in dask_scheduler.tasks if str(key).startswith("nbmap")]

    return client.run_on_scheduler(ours)


def test_f15_a_killed_script_leaves_no_process_of_its_own_cluster(tmp_path):
    """SIGKILL of the script: its workers end, also one whose function holds Python's lock."""
    marker = uuid.uuid4().hex
    how = ["sleeps", "spins", "holds the lock", "catches all"]
    with script(tmp_path, how, "nbmap.start(workers=5)", marker) as process:
        assert len(processes_with(marker)) >= 6
        process.kill()
        process.wait()
        wait_until(lambda: not processes_with(marker), GONE)


def test_f15_a_killed_script_leaves_no_lease_on_a_cluster_that_is_not_its(tmp_path):
    """Others get its slots; that of a function which nothing can stop when that has returned."""
    how = ["spins", "sleeps a little"]
    with dasks.scheduler(tmp_path) as (_, path), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(dasks.worker(path))
        dasks.wait_for_workers(path, 3)
        connect = f"nbmap.connect({os.fspath(path)!r})"
        with (
            Client(scheduler_file=os.fspath(path), set_as_default=False) as other,
            script(tmp_path, how, connect, uuid.uuid4().hex) as process,
        ):
            assert our_tasks(other)
            process.kill()
            process.wait()
            is_served(other)


def test_f15_a_kernel_that_restarts_or_dies_leaves_no_process_of_its_own_cluster(tmp_path):
    """Restarted with and without a word to it, and killed, in the middle of a run each time."""
    marker = uuid.uuid4().hex
    how = ["sleeps", "holds the lock"]
    with kernel(tmp_path, marker) as (manager, run):
        for n, ending in enumerate(
            [
                lambda: manager.restart_kernel(now=False),
                lambda: manager.restart_kernel(now=True),
                lambda: os.kill(manager.provisioner.pid, signal.SIGKILL),
            ]
        ):
            folder = tmp_path / str(n)
            folder.mkdir()
            run(text(folder, how, "nbmap.start(workers=3)") + "run = begin()")
            under_way(folder, len(how))
            before = set(processes_with(marker))
            assert len(before) >= 4
            ending()
            wait_until(lambda before=before: not before & set(processes_with(marker)), GONE)


def test_f15_a_kernel_that_restarts_leaves_no_lease_on_a_cluster_that_is_not_its(tmp_path):
    """Others get the slots of its run, and of the run of the restarted one when that is killed."""
    with (
        dasks.scheduler(tmp_path) as (_, path),
        dasks.worker(path),
        dasks.worker(path),
        Client(scheduler_file=os.fspath(path), set_as_default=False) as other,
        kernel(tmp_path, uuid.uuid4().hex) as (manager, run),
    ):
        other.wait_for_workers(2, timeout=30)
        for n, ending in enumerate(
            [
                lambda: manager.restart_kernel(now=False),
                lambda: os.kill(manager.provisioner.pid, signal.SIGKILL),
            ]
        ):
            folder = tmp_path / str(n)
            folder.mkdir()
            connect = f"nbmap.connect({os.fspath(path)!r})"
            run(text(folder, ["spins"], connect) + "run = begin()")
            under_way(folder, 1)
            assert our_tasks(other)
            ending()
            is_served(other)
