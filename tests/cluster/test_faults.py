"""What happens to a run when its workers do not stay."""

import ctypes
import os
import signal
import threading
import time

import pytest
from helpers.processes import wait_until

import nbmap


def test_f5_an_input_that_kills_its_worker_is_lost_alone(own, tmp_path):
    """Of 21 inputs the one that kills its process is lost, with the signal; 20 have outputs."""
    deaths = tmp_path / "deaths"
    deaths.touch()

    @nbmap.remote
    def work(x):
        if x == 7:
            with deaths.open("a") as file:
                file.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return x, os.getpid()

    run = work.map(range(21), return_exceptions=True)
    out = list(run)

    assert [x for x, _ in out[:7] + out[8:]] == [*range(7), *range(8, 21)]
    assert isinstance(out[7], nbmap.WorkerLost)
    assert "signal 9" in str(out[7])
    assert "SIGKILL" in str(out[7])
    assert "memory limit" in str(out[7])
    assert [(f.index, f.kind, f.attempts) for f in run.failures] in (
        [(7, "lost", 2)],
        [(7, "lost", 3)],
    )
    assert 2 <= len(deaths.read_text().split()) <= 3


def run_out_of_memory():
    """Take more and more of it."""
    hog = []
    while True:
        hog.append(os.urandom(8 << 20))
        time.sleep(0.02)


DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "exit code 3": lambda: os._exit(3),
    "of a limit of 300 MiB": run_out_of_memory,
}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("ours", [True, False])
def test_f5_three_neighbours_in_the_killers_process_succeed(existing, tmp_path, ours, how):
    """Three inputs inside their function in the same process of four threads all succeed."""
    nbmap.stop()
    if ours:
        nbmap.start(workers=1, memory="300MiB")
        options = {"concurrency": 4}
    else:
        options = {"cluster": existing(workers=1, threads=4, memory_limit="300MiB")}
    pids = tmp_path / "pids"
    pids.touch()
    die = DEATHS[how]

    def work(x):
        if x < 3:  # inside its function until its process has died
            (tmp_path / f"in-{x}").touch()
            while pids.read_text().split()[:1] in ([], [str(os.getpid())]):
                time.sleep(0.01)
        if x == 3:
            while len(list(tmp_path.glob("in-*"))) < 3:
                time.sleep(0.01)
            with pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            die()
        return x

    out = list(nbmap.remote(work, **options).map(range(24), return_exceptions=True))

    assert isinstance(out[3], nbmap.WorkerLost)
    assert how in str(out[3])
    assert out[:3] + out[4:] == [*range(3), *range(4, 24)]
    assert len(pids.read_text().split()) <= 3


def test_an_interrupt_of_the_whole_process_group_costs_no_worker(own, tmp_path):
    """Ctrl-C and a kernel's interrupt reach the workers too, and user code may raise SIGINT."""
    import _thread

    @nbmap.remote
    def work(x):
        (tmp_path / str(os.getpid())).touch()
        if x == 3:
            signal.raise_signal(signal.SIGINT)
        if x == 5:
            _thread.interrupt_main()
        time.sleep(0.01)
        return os.getpid()

    run = work.map(range(50))
    wait_until(lambda: run.counts["done"] > 10)
    for path in list(tmp_path.iterdir()):
        os.kill(int(path.name), signal.SIGINT)
    before = set(run)
    assert set(work.map(range(20))) == before
    assert run.failures == []


def test_a_worker_killed_from_outside_costs_no_input(own, tmp_path):
    """SIGKILL of a random worker: every input has its output, some after a second attempt."""
    pids = tmp_path / "pids"
    pids.mkdir()

    @nbmap.remote(worker_losses=20)
    def work(x):
        (pids / str(os.getpid())).touch()
        time.sleep(0.005)
        return x

    run = work.map(range(300))
    wait_until(lambda: run.counts["done"] > 20)
    os.kill(int(next(iter(pids.iterdir())).name), signal.SIGKILL)

    assert list(run) == list(range(300))
    assert run.failures == []


def test_a_retired_worker_blames_nobody(existing):
    """An input whose worker retires runs elsewhere, and counts as no loss."""
    cluster = existing(workers=2)

    @nbmap.remote(cluster=cluster, worker_losses=1)
    def work(x):
        time.sleep(0.02)
        return x

    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        run = work.map(range(100))
        wait_until(lambda: run.counts["done"] > 5)
        client.retire_workers([next(iter(client.scheduler_info()["workers"]))])
        assert list(run) == list(range(100))
    assert run.failures == []


def test_a_cluster_that_goes_away_ends_the_run_with_what_was_done(existing):
    """Closing the cluster under a run raises ClusterLost; finished outputs stay readable."""
    cluster = existing(workers=1)

    @nbmap.remote(cluster=cluster)
    def work(x):
        time.sleep(0.05)
        return x

    run = work.map(range(1000))
    assert run[0] == 0
    cluster.close()

    with pytest.raises(nbmap.ClusterLost):
        list(run)
    assert run.status == "broken"
    assert run[0] == 0


def test_cancel_stops_the_function_itself(own, tmp_path):
    """A running Python loop stands still after cancel, and its slot serves the next map."""
    counter = tmp_path / "counter"

    @nbmap.remote
    def spin(_):
        n = 0
        while True:
            n += 1
            counter.write_text(str(n))

    run = spin.map([0])
    wait_until(counter.exists)
    run.cancel()
    assert run.wait(60)
    assert run.status == "cancelled"
    before = counter.read_text()
    assert nbmap.remote(abs)(-1) == 1
    assert counter.read_text() == before


def test_a_run_survives_its_handle_and_the_run_object(own, tmp_path):
    """A dropped Run is not ended by garbage collection: all its inputs run."""

    def begin():
        nbmap.remote(lambda x: (tmp_path / str(x)).touch()).map(range(20))

    begin()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 20)


def test_stopping_the_cluster_ends_its_runs():
    """nbmap.stop() ends a run on our own cluster with ClusterLost, and the next map starts anew."""
    nbmap.stop()
    nbmap.start(workers=1)
    run = nbmap.remote(time.sleep).map([0, 60])
    run[0]
    nbmap.stop()
    with pytest.raises(nbmap.ClusterLost):
        run.results()
    assert nbmap.remote(abs).map([-2]).results() == [2]
    nbmap.stop()


def test_s23_every_input_has_its_warning_though_threads_share_a_process(own):
    """The same warning is found at each of 60 inputs, with four leases in each process."""
    import warnings

    def talk(_):
        warnings.warn("the same", stacklevel=1)
        time.sleep(0.01)

    run = nbmap.remote(talk, concurrency=8).map(range(60))
    assert run.wait(60)
    assert [run.stdout(i).count("UserWarning: the same") for i in range(60)] == [1] * 60


def test_threads_can_share_a_handle(own):
    """Maps of one handle from several threads at once all get their own outputs."""
    handle = nbmap.remote(lambda x: x + 1)
    out = {}

    def work(n):
        out[n] = list(handle.map(range(n, n + 100)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == {n: list(range(n + 1, n + 101)) for n in range(5)}
