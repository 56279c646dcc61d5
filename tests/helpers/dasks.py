"""Dask clusters of separate processes, as people start them by hand."""

import contextlib
import os
import signal
import subprocess
import sys
import time

from .processes import wait_until


@contextlib.contextmanager
def dask(*arguments, env=None, python=sys.executable):
    """Run `dask ...` in a process of its own, and end it at once when the test has what it needs."""
    process = subprocess.Popen(
        [python, "-m", "dask", *map(str, arguments)],
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@contextlib.contextmanager
def scheduler(folder, *options, env=None):
    """Run a scheduler; yield its process and the path of its scheduler file."""
    path = folder / f"scheduler-{time.monotonic_ns()}.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", path)
    with dask("scheduler", *arguments, *options, env=env) as process:
        wait_until(lambda: path.exists() and path.stat().st_size)
        yield process, path


def worker(path, *options, env=None, python=sys.executable):
    """Run a worker of one thread for the scheduler of a scheduler file."""
    arguments = ("--host", "127.0.0.1", "--nthreads", 1, "--no-dashboard", "--scheduler-file", path)
    return dask("worker", *arguments, *options, env=env, python=python)


def wait_for_workers(path, n):
    """Wait until the scheduler of a scheduler file has so many workers."""
    from distributed import Client

    with Client(scheduler_file=os.fspath(path), set_as_default=False) as client:
        client.wait_for_workers(n, timeout=30)
