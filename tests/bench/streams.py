"""Measure runs of generators: how fast outputs come, how soon the first one, and what they take.

Memory is the resident memory of this process and of its workers, looked at ten times a second: the
most that there was, less what there was before. Runs with `keep=False`, as endless ones have it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

import nbmap

MB = 1 << 20


@nbmap.remote
def count(n: int) -> Any:
    yield from range(n)


@nbmap.remote
def rows(n: int) -> Any:
    for i in range(n):
        yield {"epoch": i, "loss": 1 / (i + 1)}


@nbmap.remote
def arrays(n: int) -> Any:
    for i in range(n):
        yield np.full(MB, i, dtype=np.float64)


class Memory:
    """Watches the memory of this process and of its children while the block runs."""

    def __enter__(self) -> Self:
        self.own = psutil.Process()
        self.workers = [
            p for p in self.own.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())
        ]
        self.before = self.now()
        self.most = list(self.before)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def now(self) -> list[int]:
        return [p.memory_info().rss for p in (self.own, *self.workers)]

    def watch(self) -> None:
        while not self.ended.wait(0.1):
            self.most = list(map(max, self.most, self.now()))

    @property
    def growth(self) -> list[float]:
        """MB: of this process, and of the worker that grew most."""
        grown = [(a - b) / MB for a, b in zip(self.most, self.before, strict=True)]
        return [round(grown[0], 1), round(max(grown[1:]), 1)]


def consume(run: Any, pause: float = 0.0) -> tuple[int, float]:
    """Take all outputs; return how many there were and how many seconds it took."""
    began, n = time.perf_counter(), 0
    for _ in run:
        n += 1
        if pause:
            time.sleep(pause)
    return n, time.perf_counter() - began


def first() -> float:
    began = time.perf_counter()
    outputs = rows.remote_gen(1000)
    next(outputs)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    consume(rows.map([1000] * 4, keep=False))
    figures: dict[str, Any] = {}

    with Memory() as memory:
        n, took = consume(count.map([10_000] * 100, keep=False))
    figures["1,000,000 ints of 100 generators"] = {
        "outputs/s": round(n / took),
        "MB more in the notebook, in a worker": memory.growth,
    }
    with Memory() as memory:
        n, took = consume(rows.map([10_000] * 20, keep=False))
    figures["200,000 dicts of 20 generators"] = {
        "outputs/s": round(n / took),
        "MB more in the notebook, in a worker": memory.growth,
    }
    with Memory() as memory:
        n, took = consume(arrays.map([50] * 4, keep=False), 0.05)
    figures["200 arrays of 8 MB, each taken for 50 ms"] = {
        "seconds": round(took, 2),
        "seconds that the consumer sleeps": n * 0.05,
        "MB more in the notebook, in a worker": memory.growth,
    }
    with Memory() as memory:
        n, took = consume(arrays.map([50] * 4, keep=False))
    figures["200 arrays of 8 MB"] = {
        "MB/s": round(n * 8 / took),
        "MB more in the notebook, in a worker": memory.growth,
    }
    figures["ms to the first output of a warm call, median of 30"] = round(
        statistics.median(first() for _ in range(30)), 2
    )
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
