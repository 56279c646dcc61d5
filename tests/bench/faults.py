"""Measure what a fault costs: an interrupt, a cancel, a function that does not stop, a dead worker.

Times are read off the machine's monotonic clock, which all its processes share, in milliseconds:
medians, and the longest. A worker's death is measured in turns with plain Dask.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client, LocalCluster

import nbmap

GRACE = 0.5  # seconds
OTHERS = 20  # inputs beside the one that is looked at


def note(folder: str, what: str, text: object = "") -> None:
    """Write down what happened when, so that it is there whole or not at all."""
    path = Path(folder) / f"{what}-{time.monotonic_ns()}"
    path.with_suffix(".part").write_text(str(text))
    path.with_suffix(".part").rename(path)


def noted(folder: str, what: str, n: int = 1) -> list[tuple[int, str]]:
    """Wait until something happened n times; return when, in ns, and what was said."""
    while True:
        paths = [p for p in Path(folder).glob(f"{what}-*") if p.suffix != ".part"]
        if len(paths) >= n:
            return sorted((int(p.name.rpartition("-")[2]), p.read_text()) for p in paths)
        time.sleep(0.001)


def sleeps(folder: str) -> None:
    """Run Python code until it is stopped."""
    note(folder, "began", os.getpid())
    try:
        while True:
            time.sleep(0.001)
    finally:
        note(folder, "ended")


def holds_the_lock(folder: str) -> None:
    """Never give Python's lock away."""
    note(folder, "began", os.getpid())
    ctypes.PyDLL(None).sleep(600)


def ends_strangely(x: int) -> None:
    """End in one of the ways that are no errors, or too deep."""
    if x == 0:
        sys.exit(3)
    if x < 5:
        raise (KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError)[x - 1]

    def deeper() -> None:
        deeper()

    deeper()


def dies_once(folder: str) -> None:
    """Be killed in the first attempt."""
    note(folder, "began", os.getpid())
    if len(noted(folder, "began")) == 1:
        time.sleep(600)


def an_interrupt(folder: str) -> float:
    """From SIGINT to the next statement, with two inputs that run and twenty that wait."""
    sent = 0

    def send() -> None:
        nonlocal sent
        noted(folder, "began", 2)
        time.sleep(0.1)
        sent = time.monotonic_ns()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    run = nbmap.remote(sleeps).map([folder] * (2 + OTHERS))
    sender = threading.Thread(target=send)
    sender.start()
    try:
        run.results()
    except KeyboardInterrupt:
        back = time.monotonic_ns()
    sender.join()
    run.wait()
    return (back - sent) / 1e6


def a_cancel(folder: str) -> float:
    """From `cancel()` to the end of two functions in Python code."""
    run = nbmap.remote(sleeps).map([folder] * (2 + OTHERS))
    noted(folder, "began", 2)
    time.sleep(0.1)
    sent = time.monotonic_ns()
    run.cancel()
    run.wait()
    return (noted(folder, "ended", 2)[-1][0] - sent) / 1e6


def a_hard_stop(folder: str) -> float:
    """From the end of the grace to the end of the run whose function does not stop."""
    run = nbmap.remote(grace=GRACE)(holds_the_lock).map([folder])
    noted(folder, "began")
    time.sleep(0.1)
    sent = time.monotonic_ns()
    run.cancel()
    run.wait()
    return (time.monotonic_ns() - sent) / 1e6 - GRACE * 1e3


def strange_ends(_folder: str) -> float:
    """From the map to the last of six outcomes that none of the functions gave by returning."""
    began = time.monotonic_ns()
    run = nbmap.remote(ends_strangely).map(range(6), return_exceptions=True)
    run.wait()
    assert len(run.failures) == 6, run.failures
    return (time.monotonic_ns() - began) / 1e6


def a_cancel_of_many(folder: str) -> float:
    """From `cancel()` to the end of a run with five inputs that run and 95 that wait."""
    run = nbmap.remote(sleeps, concurrency=5).map([folder] * 100)
    noted(folder, "began", 5)
    sent = time.monotonic_ns()
    run.cancel()
    run.wait()
    return (time.monotonic_ns() - sent) / 1e6


def a_timeout(folder: str) -> float:
    """From the end of timeout and grace to the outcome of what holds Python's lock."""
    run = nbmap.remote(timeout=2, grace=GRACE)(holds_the_lock).map([folder], return_exceptions=True)
    [(began, _)] = noted(folder, "began")
    run.wait()
    return (time.monotonic_ns() - began) / 1e6 - (2 + GRACE) * 1e3


def a_timeout_beside_others(folder: str) -> float:
    """The same, where two inputs share each process: nobody can tell at first which it is."""

    def work(x: int) -> None:
        note(folder, "in")
        noted(folder, "in", 4)
        if x == 0:
            holds_the_lock(folder)
        noted(folder, "began")
        time.sleep(0.3)

    handle = nbmap.remote(work, timeout=2, grace=GRACE, concurrency=4)
    run = handle.map(range(4), return_exceptions=True)
    [(began, _)] = noted(folder, "began")
    run.wait()
    assert [failure.index for failure in run.failures] == [0], run.failures
    return (time.monotonic_ns() - began) / 1e6 - (2 + GRACE) * 1e3


def no_scheduler(folder: str) -> float:
    """From SIGKILL of a scheduler to the end of the run on its cluster."""
    file = f"{folder}/scheduler.json"
    dask, loopback = [sys.executable, "-m", "dask"], ("--host", "127.0.0.1")
    with (
        started([*dask, "scheduler", *loopback, "--port=0", "--scheduler-file", file]) as scheduler,
        started([*dask, "worker", *loopback, "--nthreads=1", "--scheduler-file", file]),
    ):
        while not Path(file).exists():
            time.sleep(0.01)
        run = nbmap.remote(sleeps, cluster=file).map([folder])
        noted(folder, "began")
        sent = time.monotonic_ns()
        scheduler.kill()
        run.wait()
        return (time.monotonic_ns() - sent) / 1e6


def wrong_address(_folder: str) -> float:
    """From the map to the error, where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return refused(f"tcp://127.0.0.1:{port}")


def refused(address: str) -> float:
    """Return how long an error took that says that a cluster can't be used."""
    began = time.monotonic_ns()
    try:
        nbmap.remote(abs, cluster=address).map([1]).results()
    except nbmap.ClusterError:
        return (time.monotonic_ns() - began) / 1e6
    raise AssertionError(address)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Have a program run while the block does."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def second_attempt(folder: str) -> float:
    """Kill the process of the first attempt; return how long the second one took to begin."""
    [(_, pid)] = noted(folder, "began")
    time.sleep(0.3)
    sent = time.monotonic_ns()
    os.kill(int(pid), signal.SIGKILL)
    return (noted(folder, "began", 2)[1][0] - sent) / 1e6


def a_death(folder: str) -> float:
    """From SIGKILL of a worker to the second attempt of what it ran; another one is idle."""
    run = nbmap.remote(dies_once).map([folder])
    took = second_attempt(folder)
    run.results()
    return took


def a_death_in_dask(folder: str, client: Client) -> float:
    """The same with `Client.map`."""
    futures = client.map(dies_once, [folder], pure=False)
    took = second_attempt(folder)
    client.gather(futures)
    client.wait_for_workers(2)
    return took


def measure(rows: dict[str, Callable[[str], float]], repeats: int) -> dict[str, Any]:
    """Measure the rows in turns."""
    samples: dict[str, list[float]] = {row: [] for row in rows}
    for at in range(repeats + 1):
        for row, function in rows.items():
            with TemporaryDirectory() as folder:
                took = function(folder)
            nbmap.remote(abs).map(range(-8, 0)).results()
            time.sleep(1)  # for processes that were killed to be there again
            if at:  # the first time is a rehearsal
                samples[row].append(took)
    return {
        row: {"median": round(statistics.median(all_), 1), "most": round(max(all_), 1)}
        for row, all_ in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    nbmap.start(workers=2)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        figures = measure(
            {
                "interrupt to the next statement": an_interrupt,
                "cancel to the end of Python code": a_cancel,
                "end of the grace to the end of the run": a_hard_stop,
                "six functions that end strangely, to the last outcome": strange_ends,
                "cancel of 5 that run and 95 that wait to the end of the run": a_cancel_of_many,
                "end of timeout and grace to the outcome, of code with Python's lock": a_timeout,
                "the same, beside another input in the process": a_timeout_beside_others,
                "death of the scheduler to the end of the run": no_scheduler,
                "an address where nothing listens, to the error": wrong_address,
                "death of a worker to the second attempt": a_death,
                "death of a worker to the second attempt, Client.map": lambda folder: (
                    a_death_in_dask(folder, client)
                ),
            },
            options.repeats,
        )
    nbmap.stop()
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
