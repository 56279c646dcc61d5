"""What every test leaves behind: nothing.

Unclosed sockets and files are warnings of Python, which are errors here.
"""

import sys
import threading
from pathlib import Path

import pytest
from helpers.processes import wait_until

# Threads that stay as long as the process does, whatever runs in it.
LASTING = {"nbmap-engine", "nbmap-loop", "nbmap-keeper", "nbmap-view"}


@pytest.fixture(autouse=True)
def leaves_nothing():
    """Fail a test that leaves a thread of nbmap's, a process or a comm; clusters apart."""
    before = held()
    yield
    wait_until(lambda: not left(before), 20, lambda: f"left behind: {left(before)}")


def left(before):
    """Return the names of what there is now and was not there before.

    A process without one has just ended, or just begun.
    """
    return [name for what, name in held().items() if name and what not in before]


def held():
    """Return what there is now: the names of threads, processes and comms, by kind and number."""
    threads = {
        ("thread", thread.ident): thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("nbmap-") and thread.name not in LASTING
    }
    return threads | processes() | comms()


def processes():
    """Return this process's children, without the workers of clusters, which have owners."""
    found = {}
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            for pid in path.read_text().split():
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if not any(b"multiprocessing" in word for word in words):
                    found["process", int(pid)] = b" ".join(words[:4]).decode(errors="replace")
        except OSError:  # it has just ended
            continue
    return found


def comms():
    """Return the comms of the widgets in this process."""
    module = sys.modules.get("comm")
    return {("comm", x): f"comm {x}" for x in module.get_comm_manager().comms} if module else {}


def pytest_terminal_summary(terminalreporter):
    """Say last what each failure was: what precedes it may be too long for a log to keep."""
    for kind in ("failed", "error"):
        for report in terminalreporter.getreports(kind):
            lines = [x for x in str(report.longrepr).splitlines() if x.startswith("E  ")]
            terminalreporter.write_line(f"{report.nodeid} ({report.when}):")
            for line in lines[-20:]:
                terminalreporter.write_line(line[:300])
