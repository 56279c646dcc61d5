"""Which cluster a handle runs on, and nbmap's own."""

import json
import os
import socket
import subprocess
import sys
import time
import traceback

import dask
import psutil
import pytest
from helpers.processes import ROOT, processes_with, run_script, wait_until

import nbmap


def where(_):
    """Return the address of the scheduler that the worker belongs to."""
    from distributed import get_worker

    return get_worker().scheduler.address


def test_a_dask_cluster_object_can_be_named(existing):
    """A handle's cluster= runs it there."""
    cluster = existing()
    assert nbmap.remote(where, cluster=cluster)(0) == cluster.scheduler_address


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_no_error_tells_the_password_of_an_address(scheme):
    """Nor does its cause, which a script would print with it."""
    password = "sec" + "ret"  # so that the traceback's line of this test does not have it
    with pytest.raises(nbmap.ClusterError) as caught:
        nbmap.connect(f"{scheme}://user:{password}@127.0.0.1:1")
    assert "127.0.0.1:1" in str(caught.value)
    assert password not in "".join(traceback.format_exception(caught.value))


def test_an_endless_address_is_no_file_name():
    """A text that no file can be named is refused as an address."""
    with pytest.raises(nbmap.ClusterError):
        nbmap.connect("a" * 10_000)


def test_a_dask_client_can_be_named_and_closed_by_its_owner(existing):
    """Nbmap has a client of its own: closing the user's in the middle changes nothing."""
    from distributed import Client

    cluster = existing()
    client = Client(cluster, set_as_default=False)
    run = nbmap.remote(lambda x: time.sleep(0.01) or x, cluster=client).map(range(100))
    assert run[0] == 0
    client.close()
    assert list(run) == list(range(100))


def test_the_processs_current_client_is_used_and_stays_the_default(existing):
    """Where the notebook has a Dask client, its cluster is used, and ours is never the default."""
    from distributed import Client

    cluster = existing()
    with Client(cluster) as client:
        assert nbmap.remote(where)(0) == cluster.scheduler_address
        assert Client.current() is client
        assert "nbmap's own" not in repr(nbmap.status())


def test_connect_names_a_cluster_until_it_is_undone(existing):
    """connect() by address; as a context manager and with None it is undone."""
    cluster = existing()
    with nbmap.connect(cluster.scheduler_address):
        assert nbmap.remote(where)(0) == cluster.scheduler_address
    assert "none yet" in repr(nbmap.status())
    nbmap.connect(cluster)
    assert nbmap.status().workers == 2
    nbmap.connect(None)
    assert "none yet" in repr(nbmap.status())


def test_a_scheduler_file_can_be_named(existing, tmp_path):
    """connect() takes the file that `dask scheduler --scheduler-file` writes."""
    cluster = existing()
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": cluster.scheduler_address}))
    with nbmap.connect(str(path)):
        assert nbmap.remote(where)(0) == cluster.scheduler_address


def test_the_environment_can_name_a_cluster(existing, monkeypatch):
    """DASK_SCHEDULER_ADDRESS is used where nothing nearer names a cluster."""
    cluster = existing()
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
    assert nbmap.remote(where)(0) == cluster.scheduler_address


def test_a_cluster_inside_this_process_works():
    """processes=False: messages that are handed over unopened."""
    import numpy as np
    from distributed import LocalCluster

    with LocalCluster(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as cluster:
        handle = nbmap.remote(lambda a: a * 2, cluster=cluster)
        out = list(handle.map([np.ones(100_000), np.zeros(3)]))
    assert out[0].sum() == 200_000
    assert out[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_an_address_where_nothing_listens_is_said_at_once(scheme):
    """The error names the address, and nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    handle = nbmap.remote(abs, cluster=f"{scheme}://127.0.0.1:{port}")
    with pytest.raises(nbmap.ClusterError, match=str(port)):
        handle.map([1])
    with pytest.raises(nbmap.ClusterError, match=str(port)):
        nbmap.connect(f"{scheme}://127.0.0.1:{port}")
    assert {p.pid for p in psutil.Process().children(recursive=True)} == before


@pytest.mark.parametrize("value", ["nonsense", "http//x", 5, object()])
def test_what_is_no_cluster_is_refused(value):
    """The error says what can be given."""
    with pytest.raises((nbmap.ClusterError, nbmap.OptionError), match=r"address|client"):
        nbmap.connect(value)


@pytest.mark.parametrize("option", ["workers", "threads"])
@pytest.mark.parametrize("value", [0, -1, "two", 1.5, True])
def test_start_refuses_wrong_numbers(option, value):
    """start(workers=...) takes whole numbers from 1 on."""
    with pytest.raises(nbmap.OptionError, match=option):
        nbmap.start(**{option: value})


def test_a_running_cluster_is_not_replaced(own):
    """start() with other values says that one runs; with the same ones it is a no-op."""
    assert nbmap.start().workers == 2
    with pytest.raises(nbmap.ClusterError, match="stop"):
        nbmap.start(workers=1)


def test_threads_are_slots(existing):
    """start(threads=3): one process has three slots, and a map without a limit uses them."""
    nbmap.stop()
    nbmap.start(workers=1, threads=3)
    try:
        assert nbmap.status().slots == 3
    finally:
        nbmap.stop()


def test_leases_are_spread_evenly_over_the_processes(own, tmp_path):
    """concurrency=4 on two processes: two inputs at once in each."""

    def meet(x):
        import pathlib

        folder = pathlib.Path(tmp)
        (folder / f"{os.getpid()}-{x}").touch()
        while len(list(folder.iterdir())) < 4:
            time.sleep(0.01)
        return os.getpid()

    tmp = str(tmp_path)
    pids = list(nbmap.remote(meet, concurrency=4).map(range(4)))
    assert sorted(map(pids.count, set(pids))) == [2, 2]


MARKED = """
import nbmap, os, sys

def work(x):
    return x, os.getpid()

if __name__ == "__main__":
    handle = nbmap.remote(work)
    out = list(handle.map(range(10)))
    print([x for x, _ in out], len({pid for _, pid in out}) >= 1)
    END
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_no_process_outlives_the_script(tmp_path, end):
    """Whether a script ends, exits or is killed, its workers are gone soon after."""
    marker = f"NBMAP_TEST_MARKER={tmp_path.name}-{time.time_ns()}"
    name, _, value = marker.partition("=")
    script = MARKED.replace("END", end)
    done = run_script(tmp_path / "script.py", script, env={name: value, "PYTHONUNBUFFERED": "1"})
    assert "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] True" in done.stdout, done.stderr
    if end == "pass":
        assert done.returncode == 0
        assert done.stderr == ""
    wait_until(lambda: not processes_with(marker), 100)


def test_a_script_without_a_main_guard_is_told_so_in_one_line(tmp_path):
    """Its workers would run the script again, so nothing starts."""
    script = "import nbmap\nprint(list(nbmap.remote(abs).map([-1])))\n"
    done = run_script(tmp_path / "script.py", script)
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize("stream", ["direct", "relay"])
@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_workers_need_not_have_nbmap(tmp_path, stream):
    """A worker in an environment with only distributed and cloudpickle serves maps and handles.

    The scheduler is in that environment too, and relays the streams if it has to.
    `make test` makes that environment.
    """
    python = ROOT / ".venv-bare" / "bin" / "python"
    assert python.exists(), "make test makes the environment .venv-bare"
    missing = subprocess.run(
        [python, "-c", "import nbmap"], capture_output=True, check=False, cwd=tmp_path
    )
    assert b"No module named 'nbmap'" in missing.stderr

    path = tmp_path / "scheduler.json"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    scheduler = subprocess.Popen(
        [
            *(python, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"),
            *("--port", "0", "--no-dashboard", "--scheduler-file", path),
        ],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.DEVNULL,
    )
    worker = None
    try:
        wait_until(path.exists, 60)
        worker = subprocess.Popen(
            [
                *(python, "-m", "distributed.cli.dask_worker", "--scheduler-file", path),
                *("--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1"),
            ],
            cwd=tmp_path,
            env=env,
            stderr=subprocess.DEVNULL,
        )

        @nbmap.remote
        def fact(n):
            return 1 if n < 2 else n * fact(n - 1)

        with dask.config.set({"nbmap.stream": stream}), nbmap.connect(str(path)):
            assert list(fact.map(range(6))) == [1, 1, 2, 6, 24, 120]
            out = list(nbmap.remote(lambda x: 1 / x).map([1, 0], return_exceptions=True))
            assert repr(out) == "[1.0, UserCodeException(ZeroDivisionError('division by zero'))]"
            # Of nbmap there is only what stands for it in remote code, which is in no file.
            assert not nbmap.remote(lambda: hasattr(sys.modules["nbmap"], "__file__"))()
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.terminate()
                process.wait(30)


def test_p6_the_maps_of_two_notebooks_take_turns(existing, tmp_path):
    """A short one in another process does not wait for the end of a long one, and that goes on."""
    cluster = existing(workers=1)

    def nap(x):
        time.sleep(0.02)
        return x

    run = nbmap.remote(nap, cluster=cluster).map(range(3000))
    wait_until(lambda: run.counts["done"] > 50)
    script = f"""
import nbmap

if __name__ == "__main__":
    print(nbmap.remote(abs, cluster={cluster.scheduler_address!r}).map(range(100))[99])
"""
    done = run_script(tmp_path / "script.py", script)
    assert done.stdout.split() == ["99"], done.stderr
    assert not run.done()
    done = run.counts["done"]
    wait_until(lambda: run.counts["done"] > done + 100)
    run.cancel()


def test_p6_other_peoples_tasks_get_their_share(existing):
    """Another client's tasks finish while a long map holds every slot, and the map goes on."""
    from distributed import Client

    cluster = existing(workers=2)

    def nap(x):
        time.sleep(0.02)
        return x

    run = nbmap.remote(nap, cluster=cluster).map(range(3000))
    wait_until(lambda: run.counts["done"] > 50)
    with Client(cluster, set_as_default=False) as other:
        futures = other.map(lambda x: time.sleep(0.05) or x, range(40), pure=False)
        assert other.gather(futures) == list(range(40))
    assert not run.done()
    done = run.counts["done"]
    wait_until(lambda: run.counts["done"] > done + 100)
    run.cancel()
