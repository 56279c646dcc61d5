"""Workers that die, stop answering, or run out of memory, and who is to blame for it."""

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
from distributed import Client, get_worker
from distributed.core import Status
from helpers import dasks
from helpers.faulty import free_port, hangs_up
from helpers.files import await_file, there, touch
from helpers.processes import wait_until

import nbmap
from nbmap.cluster import leases, workers
from nbmap.cluster.stream import Streams

DEATHS = {
    "signal 9 (SIGKILL)": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "signal 11 (SIGSEGV)": lambda: ctypes.string_at(0),
    "exit code 3": lambda: os._exit(3),
}


@pytest.mark.parametrize("how", DEATHS)
def test_f5_the_input_that_kills_its_worker_is_lost_alone(anywhere, folder, how):
    """Its failure tells how the process ended; 20 innocents succeed; at most 3 processes die."""
    die = DEATHS[how]

    def work(x):
        if x == 7:
            (Path(folder) / f"{os.getpid()}-{time.time_ns()}").touch()
            die()
        time.sleep(0.01)
        return x

    run = nbmap.remote(work, cluster=anywhere).map(range(21), return_exceptions=True)
    out = list(run)
    assert out[:7] + out[8:] == [*range(7), *range(8, 21)]
    assert isinstance(out[7], nbmap.WorkerLost)
    assert how in str(out[7])
    assert [(f.index, f.kind) for f in run.failures] == [(7, "lost")]
    assert len(list(Path(folder).iterdir())) <= 3


def test_f5_what_ran_in_a_dead_process_waits_for_no_other_input(anywhere, folder):
    """It is tried alone in the process that comes next, and not after what takes long elsewhere."""

    def work(x):
        if x == 0 and not there(folder, "died"):
            await_file(folder, "1 runs")
            touch(folder, "died")
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 1:
            touch(folder, "1 runs")
            await_file(folder, "0 ended")
        else:
            touch(folder, f"{x} ended")
        return x

    run = nbmap.remote(work, cluster=anywhere, concurrency=2).map(range(2))
    assert list(run) == [0, 1]
    assert [line["attempts"] for line in run.records()] == [2, 1]


@pytest.mark.parametrize("ours", [True, False])
def test_f5_an_input_that_takes_too_much_memory_is_lost_alone(existing, ours):
    """Its failure tells the memory that it used, and the limit."""
    if ours:
        nbmap.stop()
        nbmap.start(workers=2, memory="300MiB")
        cluster = None
    else:
        cluster = existing(workers=2, memory_limit="300MiB")

    def work(x):
        if x == 3:
            hog = []
            while True:
                hog.append(os.urandom(8 << 20))
                time.sleep(0.02)
        return x

    try:
        out = list(nbmap.remote(work, cluster=cluster).map(range(21), return_exceptions=True))
    finally:
        if ours:
            nbmap.stop()
    assert out[:3] + out[4:] == [*range(3), *range(4, 21)]
    assert isinstance(out[3], nbmap.WorkerLost)
    assert "MiB of memory, of a limit of 300 MiB" in str(out[3])


@pytest.mark.parametrize("_", range(3))
def test_a_death_is_noticed_where_another_program_has_the_port(own, folder, _):
    """It hangs up on whoever connects, as the port of a dying process does for a moment."""

    def work(x):
        first = not there(folder, "started")
        Path(folder, "started" if first else "again").write_text(
            f"{os.getpid()} {get_worker().address}"
        )
        if first:
            await_file(folder, "never")
        return x

    run = nbmap.remote(work).map([5])
    wait_until(lambda: there(folder, "started") and Path(folder, "started").read_text())
    pid, address = Path(folder, "started").read_text().split()
    with hangs_up(int(address.rpartition(":")[2])) as taken:
        os.kill(int(pid), signal.SIGKILL)
        wait_until(taken)
        assert list(run) == [5]
    assert [line["attempts"] for line in run.records()] == [2]


def test_a_fault_of_our_own_ends_the_run_and_not_in_silence(own, monkeypatch, caplog):
    """Where nbmap itself fails while it looks what became of a worker, nobody waits for that.

    Nor do later runs: their places are not kept for what nobody knows about.
    """

    async def fail(*_):
        raise ZeroDivisionError

    die = nbmap.remote(lambda _: os.kill(os.getpid(), signal.SIGKILL), concurrency=2)
    with monkeypatch.context() as broken:
        broken.setattr(Streams, "process_alive", fail)
        for _ in range(2):
            with pytest.raises(nbmap.RunError, match=r"ZeroDivisionError\(\).*not your code"):
                list(die.map(range(2)))
    assert "ZeroDivisionError" in caplog.text
    assert list(nbmap.remote(abs, concurrency=2).map(range(9))) == list(range(9))


def test_lost_attempts_are_not_charged_to_retries(anywhere, folder):
    """A worker's death costs no retry: the user's own failure is still tried again once."""

    def work(x):
        tries = len(list(Path(folder).iterdir()))
        (Path(folder) / str(tries)).touch()
        if tries < 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if tries < 2:
            raise ValueError(x)
        return x

    handle = nbmap.remote(work, cluster=anywhere, worker_losses=3)
    handle = handle.with_options(retries=nbmap.Retries(1, initial_delay=0.01))
    run = handle.map([5])
    assert list(run) == [5]
    [row] = run.records()
    assert row["attempts"] == 3


def test_a_lease_that_waits_for_a_dead_worker_is_asked_for_again(folder):
    """Both slots of our own cluster are had, though one's worker died before it got its lease."""
    nbmap.stop()
    nbmap.start(workers=2)
    try:
        pids = nbmap.remote(lambda _: (time.sleep(0.2), os.getpid())[1])
        first, second = sorted(set(pids.map(range(4))))
        time.sleep(2 * 2.0 + 0.5)  # the leases are given back
        os.kill(first, signal.SIGSTOP)

        def meet(x):
            (Path(folder) / str(x)).touch()
            while len(list(Path(folder).iterdir())) < 2:
                time.sleep(0.01)
            return os.getpid()

        run = nbmap.remote(meet).map(range(2))
        wait_until(lambda: run.counts["running"] == 1)
        os.kill(first, signal.SIGKILL)
        assert len(set(run)) == 2
        assert second in set(run)
    finally:
        nbmap.stop()


def test_f5_how_a_worker_ended_is_not_told_of_the_next_one_at_its_address(existing):
    """Where workers have fixed ports, a second process has the address of the first."""

    def work(x):
        if x == 1:
            os._exit(3)
        if x == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    cluster = existing(workers=1, worker_port=free_port())
    handle = nbmap.remote(work, cluster=cluster, worker_losses=1)
    for x, how in ((1, "exit code 3"), (2, "signal 9"), (1, "exit code 3")):
        run = handle.map([x], return_exceptions=True)
        assert run.wait(60)
        [line] = run.failures
        assert how in line.message


@pytest.mark.parametrize("kind", ["functions", "generators"])
def test_f8_a_worker_that_stopped_answering_is_given_up_and_its_late_result_ignored(tmp_path, kind):
    """Dask gives it up after worker-ttl; its input runs elsewhere, and has one outcome."""

    def work(x):
        (tmp_path / f"{x}-{os.getpid()}").touch()
        until = time.monotonic() + 60
        try:
            if x == 0 and len(list(tmp_path.glob("0-*"))) == 1:
                while not (tmp_path / "go").exists() and time.monotonic() < until:
                    time.sleep(0.01)
        finally:  # its worker may hear that it was given up before it does
            (tmp_path / f"ended-{x}-{os.getpid()}").touch()
        return x, os.getpid()

    def generate(x):
        yield x, 0
        yield work(x)
        yield x, 0

    ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}
    with (
        dasks.scheduler(tmp_path, env=ttl) as (_, path),
        dasks.worker(path, "--no-nanny") as one,
        dasks.worker(path, "--no-nanny") as two,
        nbmap.connect(str(path)),
    ):
        dasks.wait_for_workers(path, 2)
        run = nbmap.remote(generate if kind == "generators" else work).map(range(8))
        wait_until(lambda: run.counts["done"] >= 1 and list(tmp_path.glob("0-*")))
        [first] = tmp_path.glob("0-*")
        pid = int(first.name.partition("-")[2])
        assert pid in {one.pid, two.pid}
        os.kill(pid, signal.SIGSTOP)
        out = run.results()
        (tmp_path / "go").touch()
        os.kill(pid, signal.SIGCONT)
        if kind == "generators":
            assert [[x for x, _ in outputs] for outputs in out] == [[x] * 3 for x in range(8)]
            assert out[0][1][1] != pid
        else:
            assert [x for x, _ in out] == list(range(8))
            assert out[0][1] != pid
        wait_until((tmp_path / f"ended-0-{pid}").exists)
        time.sleep(1)  # for what it has to say now
        assert run.results() == out
        assert run.failures == []


def test_f8_a_process_of_our_own_cluster_that_is_stopped_for_a_while_goes_on(folder):
    """Its input ends there, in one attempt: within Dask's five minutes nobody is given up."""
    nbmap.stop()
    nbmap.start(workers=2)

    def work(x):
        if x == 0:
            (Path(folder) / str(os.getpid())).touch()
            await_file(folder, "go")
        return x, os.getpid()

    try:
        run = nbmap.remote(work).map(range(20))
        wait_until(lambda: list(Path(folder).iterdir()))
        pid = int(next(Path(folder).iterdir()).name)
        os.kill(pid, signal.SIGSTOP)
        touch(folder, "go")
        time.sleep(3)  # in which it would be heard of several times
        os.kill(pid, signal.SIGCONT)
        out = run.results()
        assert [x for x, _ in out] == list(range(20))
        assert out[0] == (0, pid)
        assert [row["attempts"] for row in run.records()] == [1] * 20
    finally:
        nbmap.stop()


def test_a_paused_worker_is_given_nothing_until_it_goes_on(existing, folder):
    """A worker that Dask pauses for its memory gets no lease; the other one does all."""
    # Without a limit, or Dask would see that there is memory and let it go on.
    cluster = existing(workers=2, memory_limit=0)

    def pause(status, dask_worker):
        dask_worker.status = status

    def here(_):
        time.sleep(0.01)
        return os.getpid()

    with Client(cluster, set_as_default=False) as client:
        pids = client.run(os.getpid)
        paused = next(iter(pids))
        client.run(pause, status=Status.paused, workers=[paused])
        handle = nbmap.remote(here, cluster=cluster)
        assert set(handle.map(range(30))) == set(pids.values()) - {pids[paused]}
        client.run(pause, status=Status.running, workers=[paused])

        def meet(x):
            touch(folder, f"{x}")
            await_file(folder, f"{1 - x}")
            return os.getpid()

        assert set(nbmap.remote(meet, cluster=cluster).map(range(2))) == set(pids.values())


@pytest.mark.parametrize("before", [True, False])
def test_f9_a_run_says_that_all_workers_are_paused(existing, folder, before):
    """Whether it had begun before or not; it goes on as they do."""
    cluster = existing(workers=2, memory_limit=0)

    def pause(status, dask_worker):
        dask_worker.status = status

    def work(x):
        await_file(folder, "go")
        return x

    with Client(cluster, set_as_default=False) as client:
        handle = nbmap.remote(work, cluster=cluster)
        runs = [handle.map(range(20))]
        wait_until(lambda: runs[0].counts["running"] == 2)
        client.run(pause, status=Status.paused)
        if not before:
            runs.append(handle.map(range(20)))
        wait_until(lambda: "paused the workers" in runs[-1].snapshot().note)
        touch(folder, "go")
        wait_until(lambda: runs[-1].counts["running"] == 0)
        assert "paused the workers" in runs[-1].snapshot().note
        client.run(pause, status=Status.running)
        assert [run.results() for run in runs] == [[*range(20)]] * len(runs)


def test_f8_the_view_says_since_when_a_worker_is_silent(two_workers, folder, monkeypatch):
    """While Dask still waits for it, the run's line names it."""
    monkeypatch.setattr(leases, "QUIET", 1.0)
    monkeypatch.setattr(workers, "SILENT", 2.0)

    def work(_):
        (Path(folder) / str(os.getpid())).touch()
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)

    run = nbmap.remote(work, cluster=two_workers).map([0])
    wait_until(lambda: list(Path(folder).iterdir()))
    pid = int(next(Path(folder).iterdir()).name)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "has been silent for" in run.snapshot().note)
    finally:
        os.kill(pid, signal.SIGCONT)
    (Path(folder) / "go").touch()
    assert list(run) == [None]
