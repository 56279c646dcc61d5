"""Waiting, scripts and processes."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def wait_until(true, seconds=30, why=lambda: "waited in vain"):
    """Wait for something to become true; a guard, not a measure."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, why()
        time.sleep(0.01)


def run_script(path, text, *, env=None, timeout=90):
    """Run a script in a process of its own; return what became of it."""
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


def processes_with(marker):
    """Return the pids of all processes with `marker` in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
