"""The work that every system does, and the check that each did it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = 1_000_000  # 8 MB


def trivial(x: int) -> int:
    return x + 1


def nap(x: int) -> int:
    time.sleep(0.01)
    return x


def make(x: int) -> np.ndarray:
    return np.full(FLOATS, float(x))


def read(a: np.ndarray) -> float:
    return float(a[0] + a[-1])


@dataclass(frozen=True)
class Row:
    """One figure: what is run, how often, and how the time becomes the figure."""

    title: str
    unit: str
    better: str  # "more" or "less"
    function: Callable[[Any], Any]
    inputs: int
    quick: int
    chunk: int  # the pool's best chunk size for this work
    dask: int | None = None  # inputs for Client.map where the others' number takes minutes


ROWS = {
    "trivial_10k": Row("10,000 trivial", "inputs/s", "more", trivial, 10_000, 1_000, 1000, 2_000),
    "trivial_100k": Row(
        "100,000 trivial", "inputs/s", "more", trivial, 100_000, 10_000, 1000, 2_000
    ),
    "sleep_10ms": Row("10 ms inputs", "efficiency", "more", nap, 800, 100, 1),
    "arrays_out": Row("8 MB arrays out", "MB/s", "more", make, 24, 4, 1),
    "arrays_in": Row("8 MB arrays in", "MB/s", "more", read, 24, 4, 1),
    "call": Row("warm call, p50", "ms", "less", trivial, 200, 20, 1),
    "memory": Row("client's peak growth", "MB", "less", trivial, 100_000, 10_000, 1000, 2_000),
}


def inputs(row: str, n: int, start: int) -> list[Any]:
    """Inputs that no earlier map had: Dask keeps and reuses results of equal ones."""
    if row == "arrays_in":
        return [make(x) for x in range(start, start + n)]
    return list(range(start, start + n))


def check(row: str, given: list[Any], got: list[Any]) -> None:
    """Fail unless these are the right results in the right order."""
    if row == "arrays_out":
        right = [(x, x, FLOATS) for x in given]
        got = [(a[0], a[-1], a.size) for a in got]
    elif row == "sleep_10ms":
        right = given
    else:
        right = [ROWS[row].function(x) for x in given]
    if got != right:
        raise SystemExit(f"{row}: wrong results")
