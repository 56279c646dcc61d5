"""What really ran, as the functions under test write it down, against what a run says of it."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict

import psutil

from .files import record, recorded


def starts(folder, x):
    """Write down that an attempt of input `x` starts; on a worker."""
    record(folder, f"start {x} {os.getpid()} {time.monotonic_ns()}")


def ends(folder, x):
    """Write down that it has ended."""
    record(folder, f"end {x} {os.getpid()} {time.monotonic_ns()}")


class Log:
    """What was written down: of each input the starts and the ends, as (pid, time)."""

    def __init__(self, folder):
        self.starts, self.ends = defaultdict(list), defaultdict(list)
        for line in recorded(folder):
            what, x, pid, when = line.split()
            column = self.starts if what == "start" else self.ends
            column[int(x)].append((int(pid), int(when)))

    def cut_short(self, x, killed=None):
        """Return how many attempts have started and not ended, in processes that were killed."""
        began = Counter(pid for pid, _ in self.starts[x])
        began.subtract(pid for pid, _ in self.ends[x])
        return sum(n for pid, n in began.items() if n > 0 and (killed is None or pid in killed))

    def alive(self):
        """Return the pids of all processes that ran something and are there yet."""
        pids = {pid for column in self.starts.values() for pid, _ in column}
        return {pid for pid in pids if psutil.pid_exists(pid)}


class Accepted:
    """Takes a run's outputs as they come, and remembers when each input's first one did.

    Args:
        run: any; of a run that keeps none this is its one pass.
    """

    def __init__(self, run):
        self.outputs = defaultdict(list)
        self.when = {}
        for index, output in run.as_completed():
            self.outputs[index].append(output)
            self.when[index] = time.monotonic_ns()


def check(run, folder, accepted, *, n, value, losses, killed=None, why=""):
    """Check the history of a run that has ended.

    Args:
        run: that kept its outcomes, or did not.
        folder: where its function wrote `starts` and `ends` down.
        accepted: what was taken of it.
        n: number of its inputs, which are 0 to n.
        value: the list of outputs that an input has to have.
        losses: how many deaths and cuts there were: of a lease, or of a process with all its leases.
        killed: the pids that were killed; where streams were cut too, attempts may end in others.
        why: is said with what does not hold.

    Returns:
        How many attempts there were beyond the first ones.
    """
    log = Log(folder)
    assert run.status == "finished", why
    assert run.failures == [], (run.failures, why)
    counts = run.counts
    assert counts["done"] == n, (counts, why)
    assert sum(counts.values()) == n, (counts, why)
    assert set(accepted.outputs) == set(range(n)), why
    wrong = {x: got for x, got in accepted.outputs.items() if got != value(x)}
    assert not wrong, (dict(list(wrong.items())[:3]), len(wrong), why)
    assert set(log.starts) == set(range(n)), why
    attempts = attempts_of(run)
    assert len(attempts) == n, why
    uncounted, unlost, late = [], [], []
    for x in range(n):
        started = len(log.starts[x])
        if started > attempts[x]:
            uncounted.append((x, started, attempts[x]))
        if attempts[x] < 1 + log.cut_short(x, killed) or attempts[x] - 1 > losses:
            unlost.append((x, attempts[x], log.starts[x], log.ends[x]))
        again = [when for _, when in log.starts[x] if when > accepted.when[x]]
        if again and attempts[x] == 1:
            late.append((x, again))
        if not log.ends[x]:
            unlost.append((x, "never ended"))
    assert not uncounted, ("more starts than attempts", uncounted[:5], len(uncounted), why)
    assert not unlost, ("attempts that losses do not explain", unlost[:5], len(unlost), why)
    assert not late, ("started again after its outcome", late[:5], why)
    if run._driver.keep:
        rows = run.records()
        assert [row["index"] for row in rows] == list(range(n)), why
        assert {row["status"] for row in rows} == {"done"}, why
        assert [row["attempts"] for row in rows] == attempts, why
        bad = [r["index"] for r in rows if _as_list(run, r["output"]) != value(r["index"])]
        assert not bad, (bad[:5], why)
    return sum(attempts) - n


def attempts_of(run):
    """Return the attempts that a run has counted for each of its inputs."""
    column, extra = run._driver.tried()
    return [1 + extra.get(index, 0) for index in range(run._driver._state.base + len(column))]


def _as_list(run, output):
    return output if run._driver.streams else [output]
