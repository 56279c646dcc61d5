"""One behaviour suite over two transports: threads of this process, and a real cluster."""

import os
import sys
import threading
from pathlib import Path

import pytest
from helpers.files import wait_until
from helpers.here import in_process

import nbmap
from nbmap.cluster import connect

LASTING = ("nbmap-engine", "nbmap-view", "nbmap-keeper", "nbmap-lease")


@pytest.fixture(scope="session")
def own_cluster():
    """The embedded cluster, started once for all tests."""
    status = nbmap.start(workers=2)
    yield status
    nbmap.stop()


@pytest.fixture(params=["in-process", "dask"])
def transport(request):
    """The name of the transport that handles run on in this test; at its end nothing runs on it."""
    if request.param == "dask":
        request.getfixturevalue("own_cluster")
    there = nbmap.connect("local") if request.param == "dask" else in_process(2)
    before = set(threading.enumerate())
    with there:
        yield request.param
        nothing_runs(before)


@pytest.fixture
def roomy(transport):
    """The same, with more than five slots for handles that name a limit."""
    if transport == "dask":
        yield transport
        return
    before = set(threading.enumerate())
    with in_process(8):
        yield transport
        nothing_runs(before)


@pytest.fixture(params=["in-process", "dask"])
def script(request, tmp_path):
    """Write a script that runs its `main()` on a transport; return its path.

    The text is the script's top level. It may use `nbmap`.
    """

    def write(text, **others):
        for name, source in others.items():
            (tmp_path / f"{name}.py").write_text(source)
        used = "nbmap.connect(InProcess(slots=2))" if request.param == "in-process" else "Path()"
        path = tmp_path / "script.py"
        path.write_text(
            "from pathlib import Path\n"
            "import nbmap\n"
            "from nbmap.engine.transport import InProcess\n"
            f"{text}\n"
            "if __name__ == '__main__':\n"
            f"    {used}\n"
            "    main()\n"
        )
        return [sys.executable, os.fspath(path)]

    return write


def nothing_runs(before):
    """Fail if a run goes on, or a thread of one; end it for the tests that follow."""
    transport = connect.transport_for(None)
    jobs = transport.jobs
    transport.engine.wait_for(lambda: None)  # runs that were just made are among the jobs then
    try:
        wait_until(lambda: nbmap.status().runs == 0, "runs to end")
    except TimeoutError:
        for job in list(jobs):
            job.cancel()
        raise

    def left():
        new = set(threading.enumerate()) - before
        return [t.name for t in new if t.name.startswith("nbmap-") and t.name not in LASTING]

    wait_until(lambda: not left(), "threads of runs to end")


@pytest.fixture
def folder(tmp_path):
    """A folder that functions and tests meet in, as text."""
    path = Path(tmp_path) / "meeting"
    path.mkdir()
    return os.fspath(path)
