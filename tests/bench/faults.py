"""Measure what a fault costs: an interrupt, a cancel, a function that does not stop, a dead worker.

Times are read off the machine's monotonic clock, which all its processes share, in milliseconds:
medians, and the longest. A worker's death is measured in turns with plain Dask.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
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
