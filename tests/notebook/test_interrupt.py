"""The stop button at any instant, in a real kernel, on nbmap's own cluster and on another one."""

import random
import re
import time

import pytest

# It interrupts itself, and all of its process group as the button does: what comes before a cell has
# begun, or when it has ended, ends the kernel's own work on the message, and no reply comes.
CELL = """
import os, signal, threading
run = None
threading.Timer({delay}, os.killpg, (os.getpgrp(), signal.SIGINT)).start()
run = work.map(range({n}))
for output in run:
    pass
time.sleep(10)
"""

AFTER = """
import time
if run is not None:
    run.wait(30)
    found = run.status, len(run.results(errors="drop")), run.counts["done"], sum(run.counts.values())
else:
    found = None
print(found, list(work.map(range(3))))
"""

DEFINED = """
%load_ext nbmap
import nbmap, time
@nbmap.remote(cluster={cluster!r})
def work(x):
    time.sleep(0.01)
    return x
list(work.map(range(3)))
"""


def interrupt_at_random_instants(kernel, cluster, times, seed):
    """Interrupt a cell so many times; check what the user sees, and what the next cell does."""
    rng = random.Random(seed)
    kernel.printed(DEFINED.format(cluster=cluster))
    for at in range(times):
        why = f"seed {seed}, time {at}"
        n = rng.choice([40, 400, 4000])
        delay = rng.choice([0.02, 0.2, 0.6]) * rng.random()
        reply, published = kernel.run(CELL.format(n=n, delay=delay))
        errors = [content for kind, content in published if kind == "error"]
        printed = "".join(c["text"] for kind, c in published if kind == "stream")
        assert "Traceback" not in printed, (why, printed)
        assert reply["ename"] == "KeyboardInterrupt", (why, reply)
        assert len(errors) == 1, (why, errors)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(errors[0]["traceback"]))
        assert len(shown.splitlines()) <= 20, (why, shown)
        assert "nbmap/" not in shown, (why, shown)
        text = kernel.printed(AFTER)
        found, _, again = text.strip().splitlines()[-1].rpartition(" [")
        assert again == "0, 1, 2]", (why, text)
        if found == "None":
            continue
        status, kept, done, total = eval(found)
        assert status in {"cancelled", "finished"}, (why, text)
        assert kept == done, (why, text)
        assert total == n, (why, text)
    assert kernel.printed("print(nbmap.status().runs)").strip() == "0"


def test_f14_an_interrupt_at_any_instant_ends_the_cell_and_nothing_else(new_kernel, cluster):
    """The prompt is back, what was finished is kept, and the next cell works."""
    interrupt_at_random_instants(new_kernel(), cluster, 20, seed=14)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_f14_two_hundred_interrupts(new_kernel, cluster):
    """The same at instants that no test has tried before."""
    interrupt_at_random_instants(new_kernel(), cluster, 200, seed=random.randrange(1 << 30))


def test_f14_a_second_interrupt_does_not_wait_for_the_grace(new_kernel, cluster):
    """A function that does not stop holds the kernel up no longer than its user wants."""
    kernel = new_kernel()
    kernel.printed(DEFINED.format(cluster=cluster))
    kernel.printed(
        f"@nbmap.remote(cluster={cluster!r}, grace=60)\n"
        "def stubborn(x):\n"
        "    import ctypes\n"
        "    while True:\n"
        "        ctypes.PyDLL(None).usleep(1000)\n"
        "        try:\n"
        "            time.sleep(0.01)\n"
        "        except BaseException: pass"
    )
    sent = kernel.client.execute("run = stubborn.map(range(2))\nrun.wait()")
    kernel_is_waiting(kernel)
    kernel.manager.interrupt_kernel()
    reply, _ = kernel.await_end(sent)
    assert reply["ename"] == "KeyboardInterrupt"
    assert "2 still stop (grace 60 s)" in reply["evalue"]
    sent = kernel.client.execute("run.wait()")
    kernel_is_waiting(kernel)
    kernel.manager.interrupt_kernel()
    reply, _ = kernel.await_end(sent)
    assert reply["status"] == "error"
    assert kernel.printed("print(run.wait(20), run.status)").split() == ["True", "cancelled"]
    assert kernel.printed("print(list(work.map(range(3))))").strip().endswith("[0, 1, 2]")


def kernel_is_waiting(_kernel):
    """Give the cell the time to come to where it waits; an interrupt before that is as good."""
    time.sleep(1.5)
