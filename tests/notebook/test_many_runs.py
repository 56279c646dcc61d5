"""What a kernel holds after many runs: no more than after a few."""

import contextlib

import pytest
from helpers.processes import wait_until

SETUP = """
%load_ext nbmap
import collections, gc, os, pathlib, threading, time
import comm, nbmap, psutil
me = psutil.Process()

@nbmap.remote(cluster={cluster!r})
def work(x):
    if x == 7:
        raise ValueError(x)
    print(x)
    return b"x" * 10_000

@nbmap.remote(cluster={cluster!r})
def items(x):
    yield from range(x)

@nbmap.remote(cluster={cluster!r})
def slow(x):
    import time
    time.sleep(0.02)
    return x

@nbmap.remote(cluster={cluster!r})
def wait(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.01)
"""

# One of each: kept and failing, a generator left in the middle, a call, and one that is cancelled.
RUNS = """
for _ in range({n}):
    work.map(range(30), return_exceptions=True).results(errors="drop")
    for _ in items.map(range(5), keep=False):
        break
    slow(1)
    run = slow.map(range(50))
    run[0]
    run.cancel()
    run.wait()
    del run
"""

# More than the kernel keeps the widgets of, at once, and for long enough to be shown.
SHOWN = """
path = pathlib.Path({path!r})
comms = comm.get_comm_manager().comms
before, until = len(comms), time.monotonic() + 30
runs = [wait.map([str(path)]) for _ in range({n})]
while len(comms) < before + 2 * {n} and time.monotonic() < until:  # each view has two
    time.sleep(0.05)
path.touch()
for run in runs:
    run.results()
del run, runs
path.unlink()
"""
KEPT = 20

HELD = """
gc.collect()
print(dict(
    threads=collections.Counter(t.name.rstrip("0123456789") for t in threading.enumerate()),
    system_threads=me.num_threads(),
    sockets=len(me.net_connections("all")),
    # Not what IPython itself writes each cell into, whose journal comes and goes.
    files=collections.Counter(f.path for f in me.open_files() if "history.sqlite" not in f.path),
    descriptors=me.num_fds(),
    comms=len(comm.get_comm_manager().comms),
    children=len(me.children(recursive=True)),
    runs=nbmap.status().runs,
    rss=me.memory_info().rss,
))
"""
GROWTH = 20 << 20  # bytes of memory that a kernel may grow by
WARM = 10


def held(kernel):
    """Return what the kernel holds."""
    text = kernel.printed(HELD).strip().splitlines()[-1]
    return eval(text, {"Counter": dict})


def hold_no_more(kernel, cluster, times, path):
    """Check that so many rounds of runs leave nothing behind."""
    shown = SHOWN.format(path=str(path), n=KEPT + 5)
    kernel.printed(SETUP.format(cluster=cluster))
    kernel.printed(RUNS.format(n=WARM))
    kernel.printed(shown, page=True)
    before = held(kernel)
    assert before["comms"] >= KEPT
    for _ in range(times // 20):
        kernel.printed(RUNS.format(n=20))
        kernel.printed(shown, page=True)
    # ipykernel closes what it has for threads that are gone every ten seconds.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not more(before, held(kernel)), 30)
    after = held(kernel)
    assert not more(before, after)
    grown = after["rss"] - before["rss"]
    assert grown < GROWTH, f"{grown >> 20} MB"


def more(before, after):
    """Return what has become more, with both numbers; memory apart."""
    pairs = {key: (before[key], after[key]) for key in before if key != "rss"}
    return {key: pair for key, pair in pairs.items() if more_than(*pair)}


def more_than(before, after):
    """Tell whether something has become more."""
    if isinstance(before, dict):
        return any(n > before.get(name, 0) for name, n in after.items())
    return after > before


def test_f24_after_many_runs_a_kernel_holds_what_it_held_after_a_few(new_kernel, cluster, tmp_path):
    """Threads, sockets, files, comms and processes are as many; its memory has hardly grown."""
    hold_no_more(new_kernel(), cluster, 20, tmp_path / "go")


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_f24_after_two_hundred_runs_of_each_kind(new_kernel, cluster, tmp_path):
    """The same after ten times as many."""
    hold_no_more(new_kernel(), cluster, 200, tmp_path / "go")
