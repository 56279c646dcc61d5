"""Functions that do not stop when asked: their outcome, their process, and what else runs in it."""

import ctypes
import os
import time
from pathlib import Path

import dask
import pytest
from distributed import Client
from helpers.processes import wait_until

import nbmap


def holds_the_lock(folder, seconds=600):
    """Tell who it is, and sleep in C code without giving Python's lock away."""
    with (Path(folder) / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    ctypes.PyDLL(None).sleep(seconds)


def is_gone(pid):
    """Tell whether a process has ended; one that is not collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_f13_a_function_in_c_code_times_out_and_its_process_ends(anywhere, folder):
    """time.sleep(600) is a timeout of its input alone, and sleeps on nowhere."""

    def nap(x):
        import os
        import time

        if x == 1:
            (Path(folder) / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        return x

    handle = nbmap.remote(timeout=0.5, grace=0.5, cluster=anywhere)(nap)
    out = list(handle.map(range(6), return_exceptions=True))
    assert out[:1] + out[2:] == [0, 2, 3, 4, 5]
    assert isinstance(out[1], nbmap.InputTimeout)
    pid = int((Path(folder) / "pid").read_text())
    wait_until(lambda: is_gone(pid))
    assert list(handle.map([7, 8])) == [7, 8]


def test_f13_code_that_holds_pythons_lock_times_out(anywhere, folder):
    """Nothing in its process can run; still only that input times out, and the slot comes back."""

    def work(x):
        if x == 2:
            holds(folder)
        return x

    holds = holds_the_lock
    handle = nbmap.remote(timeout=0.5, grace=0.5, cluster=anywhere)(work)
    run = handle.map(range(8), return_exceptions=True)
    out = list(run)
    assert [x for at, x in enumerate(out) if at != 2] == [0, 1, 3, 4, 5, 6, 7]
    assert isinstance(out[2], nbmap.InputTimeout)
    assert [(f.index, f.kind) for f in run.failures] == [(2, "timeout")]


@pytest.fixture(params=["own", "existing", "not ours to end"])
def shared_processes(request):
    """Yield handle options with which four inputs run at once and share their processes."""
    if request.param == "own":
        request.getfixturevalue("own")
        yield {"concurrency": 4}
        return
    cluster = request.getfixturevalue("existing")
    if request.param == "existing":
        yield {"cluster": cluster(workers=1, threads=4)}
        return
    cluster = cluster(workers=3, threads=2)
    with Client(cluster, set_as_default=False) as other:
        # Of data on several workers Dask keeps one copy in the end: each has some of its own.
        nannies = list(cluster.workers.values())
        theirs = [other.scatter(0, workers=[n.worker_address], hash=False) for n in nannies]
        pids = [nanny.pid for nanny in nannies]
        yield {"cluster": cluster, "concurrency": 6}
        assert [nanny.pid for nanny in nannies] == pids
        assert [future.status for future in theirs] == ["finished"] * 3


def test_f13_innocents_beside_a_function_that_holds_the_lock_succeed(shared_processes, folder):
    """Four leases share processes; whoever was with it when it stopped all runs again."""

    def work(x):
        import time

        if x == 2:
            Path(folder, "locked").touch()
            holds(folder)
        while not Path(folder, "locked").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        return x

    holds = holds_the_lock
    handle = nbmap.remote(timeout=3, grace=0.5, **shared_processes)(work)
    run = handle.map(range(8), return_exceptions=True)
    out = list(run)
    assert [x for at, x in enumerate(out) if at != 2] == [0, 1, 3, 4, 5, 6, 7], out
    assert isinstance(out[2], nbmap.InputTimeout)
    assert [failure.index for failure in run.failures] == [2]


def test_f13_no_lease_waits_at_a_worker_that_a_function_has_stopped(existing, folder):
    """To Dask it seems free; inputs go elsewhere until it answers again."""
    cluster = existing(workers=2, threads=1)
    nannies = list(cluster.workers.values())
    with (
        Client(cluster, set_as_default=False) as other,
        dask.config.set({"nbmap.cluster": cluster.scheduler_address}),
    ):
        theirs = [other.scatter(0, workers=[n.worker_address], hash=False) for n in nannies]
        holds = holds_the_lock
        handle = nbmap.remote(timeout=0.5, grace=0.5)(lambda _: holds(folder, 20))
        with pytest.raises(nbmap.InputTimeout):
            handle(0)
        assert nbmap.status().slots == 1
        for _ in range(3):
            wait_until(lambda: nbmap.status().leases == 0)
            assert list(nbmap.remote(abs, concurrency=1).map([-1])) == [1]
        wait_until(lambda: len(list(nbmap.remote(abs).map(range(2)))) == nbmap.status().slots)
        assert [future.status for future in theirs] == ["finished"] * 2


def test_f12_cancel_ends_a_function_that_does_not_stop(anywhere, folder):
    """After the grace the run is over and the process of the function is gone."""
    handle = nbmap.remote(grace=0.5, cluster=anywhere)(holds_the_lock)
    run = handle.map([folder])
    wait_until((Path(folder) / "pids").exists)
    run.cancel()
    assert run.wait(30)
    assert run.status == "cancelled"
    pid = int((Path(folder) / "pids").read_text())
    wait_until(lambda: is_gone(pid))
    assert list(nbmap.remote(abs, cluster=anywhere).map(range(20))) == list(range(20))


def test_f12_cancelling_one_input_ends_it_though_it_does_not_stop(anywhere, folder):
    """Its neighbours go on, and the run is not cancelled."""

    def work(x):
        if x == 1:
            holds(folder)
        return x

    holds = holds_the_lock
    run = nbmap.remote(grace=0.5, cluster=anywhere)(work).map(range(6), return_exceptions=True)
    wait_until((Path(folder) / "pids").exists)
    run.cancel(1)
    out = list(run)
    assert isinstance(out[1], nbmap.InputCancelled)
    assert out[:1] + out[2:] == [0, 2, 3, 4, 5]
    assert run.status == "finished"


def test_f12_a_run_with_too_many_failures_ends_though_a_function_does_not_stop(own, folder):
    """max_failures stops the run within the grace, whatever still runs."""

    def work(x):
        import time

        if x == 0:
            holds(folder)
        while not Path(folder, "pids").exists():
            time.sleep(0.01)
        raise ValueError(x)

    holds = holds_the_lock
    run = nbmap.remote(grace=0.5)(work).map(range(10), max_failures=2)
    assert run.wait(30)
    assert run.status == "stopped"
    assert run.counts["cancelled"] >= 1


def test_what_others_have_on_a_worker_is_not_lost(existing, folder):
    """A process with somebody else's result stays; the view says where the function goes on."""
    cluster = existing(workers=1, threads=2)
    with Client(cluster, set_as_default=False) as other:
        theirs = other.submit(os.getpid, pure=False)
        before = theirs.result()

        def nap(_):
            import time

            Path(folder, "in").touch()
            try:
                time.sleep(4)
            finally:
                Path(folder, "out").touch()

        run = nbmap.remote(grace=0.3, cluster=cluster)(nap).map([0])
        wait_until((Path(folder) / "in").exists)
        run.cancel()
        assert run.wait(30)
        assert run.status == "cancelled"
        address = next(iter(other.scheduler_info()["workers"]))
        assert f"may still run on {address}" in run.snapshot().note
        wait_until((Path(folder) / "out").exists)
        assert other.submit(os.getpid, pure=False).result() == before
        assert theirs.status == "finished"


def test_a_worker_without_a_nanny_keeps_its_process(folder):
    """Nothing would start it anew, so the function goes on, and its failure says where."""
    from distributed import LocalCluster

    with LocalCluster(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        handle = nbmap.remote(timeout=0.3, grace=0.3, cluster=cluster)(time.sleep)
        [out] = handle.map([2], return_exceptions=True)
        assert isinstance(out, nbmap.InputTimeout)
        assert "still runs on inproc://" in str(out)
