"""Measure what nbmap's startup file costs a kernel: starts with it and without, in turns.

For an environment in which nbmap is installed, so that its kernels find the file. Each start is of
a new process, with an IPython folder of its own, and lasts until the kernel answers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.kernels import OwnKernel

STARTUP = Path(sys.prefix) / "etc" / "ipython" / "startup" / "50-nbmap.py"
ASK = "get_ipython().find_line_magic('nbmap') is not None"


def start(folder: str, *, loads: bool) -> float:
    """Start a kernel and end it; return the seconds until it was ready."""
    env = {**os.environ, "IPYTHONDIR": f"{folder}/ipython"}
    env.pop("NBMAP_AUTOLOAD", None)
    if not loads:
        env["NBMAP_AUTOLOAD"] = "0"
    manager = OwnKernel(transport="ipc", ip=f"{folder}/kernel")
    began = time.perf_counter()
    manager.start_kernel(env=env)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        took = time.perf_counter() - began
        reply = client.execute("", user_expressions={"loaded": ASK}, reply=True, timeout=60)
        told = reply["content"]["user_expressions"]["loaded"]["data"]["text/plain"]
        if told != str(loads):
            sys.exit(f"%nbmap is {'not ' if loads else ''}there in a kernel: look at {STARTUP}")
        return took
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if not STARTUP.is_file():
        sys.exit(f"{STARTUP} is not there: install nbmap into this environment")
    times: dict[bool, list[float]] = {True: [], False: []}
    with TemporaryDirectory() as folder:
        start(folder, loads=False)  # which makes the IPython folder
        for turn in range(options.repeats):
            for loads in (True, False) if turn % 2 else (False, True):
                times[loads].append(start(folder, loads=loads))
    loaded, bare = (1000 * statistics.median(times[loads]) for loads in (True, False))
    pairs = zip(times[True], times[False], strict=True)
    figures = {
        "ms to a kernel with nbmap's magics": loaded,
        "ms without": bare,
        "difference of the medians, ms": loaded - bare,
        "median of the differences, ms": 1000 * statistics.median(a - b for a, b in pairs),
    }
    for name, value in figures.items():
        print(f"{name:36}{value:8.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
