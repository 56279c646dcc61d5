"""Reloading and forking in a kernel while a run goes on: it lives, and nothing is stuck."""

import os

import pytest

SETUP = """
%load_ext nbmap
{start}
import importlib, os, sys, time
import nbmap
from pathlib import Path

FOLDER = {folder!r}
CLUSTER = {cluster!r}
sys.path.insert(0, FOLDER)

@nbmap.remote(cluster=CLUSTER)
def work(x):
    import os, time
    while x >= 3 and not os.path.exists(FOLDER + "/go"):
        time.sleep(0.01)
    return x * x

run = work.map(range(4))  # its last input holds one slot of two
print(run[:3])
"""
AFTER = """
Path(FOLDER, "go").touch()
print(list(run), list(work.map(range(3))), list(nbmap.remote(abs, cluster=CLUSTER).map([-1])))
"""


@pytest.fixture
def kernel(new_kernel, cluster, tmp_path):
    """A kernel in the middle of a run."""
    kernel = new_kernel()
    start = "%nbmap start workers=2" if cluster == "local" else ""
    setup = SETUP.format(folder=str(tmp_path), cluster=cluster, start=start)
    text = kernel.printed(setup)
    assert text.strip().endswith("[0, 1, 4]")
    return kernel


def goes_on(kernel):
    """Check that the run ends as if nothing had happened, and that others can be made."""
    text = kernel.printed(AFTER)
    assert "[0, 1, 4, 9] [0, 1, 4] [1]" in text


def test_f23_reloading_nbmap_leaves_a_run_going(kernel):
    """As people do who work on it; and the magic still makes handles."""
    kernel.printed("importlib.reload(nbmap)")
    goes_on(kernel)
    kernel.printed("%reload_ext nbmap")
    made = kernel.printed("%%remote\ndef f(x): return -x\nprint(list(f.map([1, 2])))")
    assert "[-1, -2]" in made


RELOAD = """
for name in [name for name in list(sys.modules) if name.partition(".")[0] == "nbmap"]:
    importlib.reload(sys.modules[name])
"""


def test_f23_reloading_all_of_nbmaps_modules_ends_a_run_visibly(kernel):
    """As autoreload does after an upgrade: the old run says why; handles and maps go on."""
    kernel.printed(RELOAD)
    kernel.printed('Path(FOLDER, "go").touch()\ntime.sleep(0.5)')  # also where all is done by then
    told = kernel.printed("try: list(run)\nexcept nbmap.RunError as error: print(error)")
    assert "nbmap's modules were reloaded after this was made" in told
    told = kernel.printed("print(list(work.map(range(3))), list(nbmap.remote(abs).map([-1])))")
    assert "[0, 1, 4] [1]" in told


def test_f23_autoreload_of_the_users_module_leaves_a_run_going(kernel, tmp_path):
    """The run keeps the code that it was made with; the next map has what the file says now."""
    module = tmp_path / "mine.py"
    module.write_text("def double(x):\n    return 2 * x\n")
    kernel.printed(
        "%load_ext autoreload\n%autoreload 2\nimport mine\n"
        "mapped = nbmap.remote(mine.double, cluster=CLUSTER)\n"
        "print(list(mapped.map([1, 2])))"
    )
    old = module.stat().st_mtime
    module.write_text("def double(x):\n    return 3 * x\n")
    os.utime(module, (old + 10, old + 10))
    assert "[3, 6]" in kernel.printed("print(list(mapped.map([1, 2])))")
    goes_on(kernel)


def test_f23_a_fork_in_the_middle_of_a_run_leaves_it_going(kernel):
    """Of processes that end at once, and of a pool that works beside the run."""
    kernel.printed("pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)")
    text = kernel.printed(
        "import multiprocessing\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(abs, [-1, -2]))"
    )
    assert "[1, 2]" in text
    goes_on(kernel)


USES = ["list(run)", "run.wait()", "run.cancel()", "work.map([1])", "work(1)", "run.counts"]
CHILD = """
import select
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        told = repr({use})
    except BaseException as error:
        told = f"{{type(error).__name__}}: {{error}}"
    os.write(write, told.encode())
    os._exit(0)
ready, _, _ = select.select([read], [], [], 10)
print(os.read(read, 10_000).decode() if ready else "it is stuck")
os.kill(pid, 9)
ended = os.waitpid(pid, 0)
"""


def test_f23_a_forked_child_is_told_that_it_has_no_cluster(kernel):
    """Its parent's threads are not there; it would wait for them for ever."""
    for use in USES:
        assert "RunError: this process was forked" in kernel.printed(CHILD.format(use=use)), use
    goes_on(kernel)
