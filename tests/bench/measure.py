"""One system in a process of its own: measures rows once each and prints a line of JSON."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import resource
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import work  # noqa: E402 - found by the line above


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(system, name: str, n: int, processes: int, start: int) -> float:
    """Run one row and return its figure."""
    row = work.ROWS[name]
    # Each process has to have met the function, and the array path its first array.
    warm = work.inputs(name, 4 * processes, start + 10_000_000)
    work.check(name, warm, system.map(row.function, warm, 1))
    given = work.inputs(name, n, start)
    if name == "call":
        times = []
        for x in given:
            began = time.perf_counter()
            got = system.call(row.function, x)
            times.append(time.perf_counter() - began)
            work.check(name, [x], [got])
        return statistics.median(times) * 1e3
    before = peak_mb()
    began = time.perf_counter()
    got = system.map(row.function, given, row.chunk)
    took = time.perf_counter() - began
    growth = peak_mb() - before
    work.check(name, given, got)
    return {
        "inputs/s": n / took,
        "efficiency": n * 0.01 / processes / took,
        "MB/s": n * 8 / took,
        "MB": growth,
    }[row.unit]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("processes", type=int)
    parser.add_argument("rows", help='{"row": number of inputs, ...}')
    options = parser.parse_args()
    module = importlib.import_module(f"systems.{options.system}")
    figures = {}
    with module.start(options.processes) as system:
        for number, (name, n) in enumerate(json.loads(options.rows).items()):
            start = 1_000_000 * (number + 1)
            figures[name] = measure(system, name, n, options.processes, start)
    versions = {package: importlib.metadata.version(package) for package in module.PACKAGES}
    print(json.dumps({"figures": figures, "versions": versions}))


if __name__ == "__main__":
    main()
