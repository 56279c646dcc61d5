"""Clusters whose workers or scheduler go away under a run, or are not there yet."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.config
import pytest
from distributed import Client, LocalCluster, get_worker
from helpers import dasks
from helpers.files import await_file, meet, record, recorded, there, touch
from helpers.processes import wait_until

import nbmap
from nbmap.cluster import connect

SCHEDULER = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture
def cluster():
    """A plain Dask cluster of two processes of one thread, for one test."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs=SCHEDULER,
        silence_logs=50,
    ) as made:
        yield made


@pytest.fixture
def own_for_one():
    """Nbmap's own cluster of two processes, for one test; yield its LocalCluster."""
    nbmap.stop()
    nbmap.start(workers=2)
    yield connect._own._cluster
    nbmap.stop()


@contextlib.contextmanager
def scheduler_with(folder, workers):
    """Run a scheduler and workers, all separate; connect; yield (scheduler, its file, workers)."""
    with contextlib.ExitStack() as stack:
        process, path = stack.enter_context(dasks.scheduler(folder))
        there = [stack.enter_context(dasks.worker(path)) for _ in range(workers)]
        if workers:
            dasks.wait_for_workers(path, workers)
        with nbmap.connect(str(path)):
            yield process, path, there


def says_that_it_waits(run):
    """Wait until the run says so."""
    wait_until(lambda: "waiting for workers for" in run.snapshot().note)


def nobody_is_blamed(run, n):
    """Check that every input has its output, and that none counts as having caused a loss."""
    assert run.wait(60)
    assert run.results(errors="keep") == list(range(n))
    assert run.failures == []
    wait_until(lambda: run.snapshot().note == "")


def first_one_waits(folder):
    """Return a function whose input 0 is under way, in its first attempt, until the test says."""

    def work(x):
        record(folder, x)
        if x == 0 and not there(folder, "under-way"):
            (Path(folder) / "where").write_text(get_worker().address)
            touch(folder, "under-way")
            await_file(folder, "go")
        return x

    return work


# --- F9: no workers, and workers that come and go ---------------------------------------------


TERMINAL = """
import sys, time
import nbmap

def work(x):
    time.sleep(0.01)
    return x

if __name__ == "__main__":
    with nbmap.connect(sys.argv[1]):
        assert list(nbmap.remote(work, worker_losses=1).map(range(20))) == list(range(20))
    print("all right")
"""


def test_f9_a_terminal_shows_that_a_run_waits_until_the_first_worker_is_there(tmp_path):
    """Without any worker yet the bar says that the run waits; the worker that joins is used."""
    script = tmp_path / "script.py"
    script.write_text(TERMINAL)
    near, far = pty.openpty()
    seen = []

    def read():
        with contextlib.suppress(OSError):  # how a terminal of Linux ends
            while data := os.read(near, 4096):
                seen.append(data)

    with dasks.scheduler(tmp_path) as (_, path):
        process = subprocess.Popen(
            [sys.executable, script, path],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=far,
            stderr=far,
        )
        os.close(far)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_until(lambda: b"waiting for workers for" in b"".join(seen))
            with dasks.worker(path):
                assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            reader.join()
            os.close(near)
    text = b"".join(seen)
    assert b"all right" in text
    assert b"Traceback" not in text


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_f9_a_run_waits_for_workers_after_all_have_gone(tmp_path, ending):
    """All workers killed, or told to end: it says that it waits, then the next one does the rest.

    An input may be charged with the death of the process that it was in; of one that ends on
    request, with a nanny or without, not even that.
    """

    def work(x):
        time.sleep(0.02)
        return x

    with (
        scheduler_with(tmp_path, 1) as (_, path, [with_nanny]),
        dasks.worker(path, "--no-nanny") as without,
    ):
        dasks.wait_for_workers(path, 2)
        run = nbmap.remote(work, worker_losses=1 if ending == signal.SIGTERM else 2).map(range(100))
        wait_until(lambda: run.counts["done"] > 5)
        for worker in (with_nanny, without):
            if ending == signal.SIGKILL:  # the nanny too, or it starts another
                os.killpg(worker.pid, ending)
            else:
                worker.send_signal(ending)
        says_that_it_waits(run)
        with dasks.worker(path):
            nobody_is_blamed(run, 100)


def test_f9_a_worker_that_joins_in_the_middle_is_used(tmp_path):
    """Two inputs that have to meet do, though there was one slot when the run was made."""
    folder = os.fspath(tmp_path)

    def work(x):
        if x > 0:
            meet(folder)
        touch(folder, f"done-{x}")
        return x

    with scheduler_with(tmp_path, 1) as (_, path, _):
        run = nbmap.remote(work, worker_losses=1).map(range(3))
        wait_until(lambda: there(folder, "done-0"))
        with dasks.worker(path):
            nobody_is_blamed(run, 3)


@pytest.mark.parametrize("others", [1, 0])
def test_f9_a_worker_that_retires_blames_nobody(cluster, tmp_path, others):
    """With worker_losses=1 the input that was running runs elsewhere, even if nobody is left yet."""
    folder = os.fspath(tmp_path)
    with Client(cluster, set_as_default=False) as client:
        if not others:
            cluster.scale(1)
            wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        handle = nbmap.remote(first_one_waits(folder), cluster=cluster, worker_losses=1)
        run = handle.map(range(30))
        await_file(folder, "under-way")
        client.retire_workers([(tmp_path / "where").read_text()])
        if not others:
            says_that_it_waits(run)
            cluster.scale(2)
        nobody_is_blamed(run, 30)
        touch(folder, "go")
    assert recorded(folder).count("0") == 2


def test_f9_a_cluster_that_grows_and_shrinks_under_a_run(tmp_path):
    """An adaptive one grows from nothing for a map, shrinks while an input goes on, grows again."""
    folder = os.fspath(tmp_path)

    def meets(x):
        meet(folder)
        return x

    with LocalCluster(
        n_workers=0,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs=SCHEDULER,
        silence_logs=50,
    ) as made:
        made.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        grown = nbmap.remote(meets, cluster=made, worker_losses=1).map(range(2))
        nobody_is_blamed(grown, 2)
        long = nbmap.remote(first_one_waits(folder), cluster=made, worker_losses=1).map([0])
        await_file(folder, "under-way")
        wait_until(lambda: len(made.scheduler_info["workers"]) == 1)
        assert not long.done()
        for path in tmp_path.glob("met-*"):
            path.unlink()
        again = nbmap.remote(meets, cluster=made, worker_losses=1).map(range(2))
        wait_until(lambda: len(made.scheduler_info["workers"]) == 2)
        touch(folder, "go")
        nobody_is_blamed(long, 1)
        nobody_is_blamed(again, 2)
        assert recorded(folder) == ["0"]  # no worker goes that has something to do


def test_f9_our_own_cluster_without_a_worker_is_waited_for(own_for_one, tmp_path):
    """Scaled to none, the run says that it waits; scaled back, it goes on, and nobody is blamed."""
    folder = os.fspath(tmp_path)

    def work(x):
        touch(folder, "under-way")
        await_file(folder, "go")
        return x

    run = nbmap.remote(work, worker_losses=1).map(range(6))
    await_file(folder, "under-way")
    own_for_one.scale(0)
    says_that_it_waits(run)
    own_for_one.scale(2)
    touch(folder, "go")
    nobody_is_blamed(run, 6)


def test_f9_all_processes_of_our_own_cluster_killed_at_once_come_back(own_for_one):
    """Every input has its output; none is lost by one death."""

    def work(x):
        time.sleep(0.02)
        return x, os.getpid()

    run = nbmap.remote(work).map(range(100))
    wait_until(lambda: run.counts["done"] > 10)
    with Client(own_for_one, set_as_default=False) as client:
        before = set(client.run(os.getpid).values())
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert [x for x, _ in run] == list(range(100))
    assert run[-1][1] not in before
    assert run.failures == []


def test_f9_a_restart_of_all_workers_by_a_client_blames_nobody(cluster, tmp_path):
    """Client.restart() ends all tasks; the run goes on afterwards, with worker_losses=1."""
    folder = os.fspath(tmp_path)
    run = nbmap.remote(first_one_waits(folder), cluster=cluster, worker_losses=1).map(range(30))
    await_file(folder, "under-way")
    with Client(cluster, set_as_default=False) as client:
        client.restart()
    nobody_is_blamed(run, 30)
    assert recorded(folder).count("0") >= 2


def test_f9_a_run_does_not_say_that_it_waited_when_one_before_it_did(tmp_path):
    """What the note counts are the seconds of this wait, not those since a cancelled run's."""
    with scheduler_with(tmp_path, 0):
        first = nbmap.remote(abs).map(range(3))
        says_that_it_waits(first)
        first.cancel()
        assert first.wait(30)
        used = connect.transport_for(None)
        assert used.engine.wait_for(lambda: used.waiting_since) is None


# --- F10: the scheduler is killed, or the client sleeps ---------------------------------------


@pytest.mark.parametrize("kind", ["functions", "generators"])
def test_f10_a_run_whose_scheduler_is_killed_says_so_and_a_retry_does_the_rest(tmp_path, kind):
    """ClusterLost; what was done can be read, and is not done again on the next cluster."""
    folder = os.fspath(tmp_path)

    def work(x):
        record(folder, x)
        time.sleep(0.02)
        return [x, x]

    def generate(x):
        record(folder, x)
        time.sleep(0.02)
        yield x
        yield x

    function = generate if kind == "generators" else work
    carrier = "direct" if kind == "generators" else "relay"
    with (
        dask.config.set({"nbmap.stream": carrier}),
        scheduler_with(tmp_path, 2) as (scheduler, _, _),
    ):
        run = nbmap.remote(function).map(range(60))
        wait_until(lambda: run.counts["done"] > 10)
        scheduler.kill()
        with pytest.raises(nbmap.ClusterLost):
            for _ in run:
                pass
        assert run.wait(30)
        assert run.status == "broken"
        done = [row["index"] for row in run.records() if row["status"] == "done"]
        assert len(done) > 10
        assert [run[index] for index in done] == [[index, index] for index in done]
        with pytest.raises(nbmap.ClusterError):  # nothing is tried on what is gone, nor waited for
            nbmap.remote(abs)(-1)
    before = len(recorded(folder))
    with scheduler_with(tmp_path, 1):
        again = run.retry()
        assert again.wait(60)
        assert [again[index] for index in range(60)] == [[index, index] for index in range(60)]
    rest = sorted(map(int, recorded(folder)[before:]))
    assert rest == [index for index in range(60) if index not in done]


def test_f10_a_run_that_waits_for_workers_and_calls_end_with_their_scheduler(tmp_path):
    """What had not begun and who waits for a call hear of it too."""
    with scheduler_with(tmp_path, 0) as (scheduler, _, _):
        run = nbmap.remote(abs).map(range(3))
        call = nbmap.remote(abs).spawn(-1)
        says_that_it_waits(run)
        scheduler.kill()
        with pytest.raises(nbmap.ClusterLost):
            run.results()
        with pytest.raises(nbmap.ClusterLost):
            call.get(timeout=30)
    with scheduler_with(tmp_path, 1):
        assert run.retry().results() == [0, 1, 2]


LOSES_ITS_SCHEDULER = """
import os, sys, time
import nbmap

def work(x):
    time.sleep(0.05)
    return x

if __name__ == "__main__":
    nbmap.connect(sys.argv[1])
    run = nbmap.remote(work).map(range(1000))
    run[3]
    os.kill(int(sys.argv[2]), 9)
    try:
        run.results()
    except nbmap.ClusterLost as error:
        print(error)
"""


def test_f10_the_loss_of_a_scheduler_is_told_in_a_sentence(tmp_path):
    """A script's error names the address, and no traceback of Dask's is left in the terminal."""
    script = tmp_path / "script.py"
    script.write_text(LOSES_ITS_SCHEDULER)
    with scheduler_with(tmp_path, 1) as (scheduler, path, _):
        address = json.loads(path.read_text())["address"]
        ran = subprocess.run(
            [sys.executable, script, path, str(scheduler.pid)],
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert ran.returncode == 0, ran.stderr
    assert f"the cluster is gone: {address} does not answer" in ran.stdout
    assert "Traceback" not in ran.stderr
    assert "distributed" not in ran.stderr


SLEEPS = """
import os, sys, time
import nbmap

def work(x):
    time.sleep(0.01)
    return x

if __name__ == "__main__":
    if sys.argv[1] == "own":
        nbmap.start(workers=2)
    else:
        nbmap.connect(sys.argv[1])
    run = nbmap.remote(work, worker_losses=1).map(range(300))
    run[20]
    print("going", flush=True)
    assert list(run) == list(range(300))
    assert run.failures == []
    print("all right", flush=True)
"""


def test_f10_a_client_that_sleeps_for_longer_than_its_cluster_waits_goes_on(tmp_path):
    """Its process stopped for some seconds: the run ends right, and nobody is blamed.

    Workers may be silent for five seconds here, of which Dask allows five minutes. The scheduler of
    our own cluster sleeps with the script, and finds all of them silent when it wakes.
    """
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}
    with (
        dasks.scheduler(tmp_path, env=ttl) as (_, path),
        dasks.worker(path),
        sleeper(script, "own", ttl) as one,
        sleeper(script, path, ttl) as two,
    ):
        for process in (one, two):
            assert process.stdout.readline() == "going\n"
            process.send_signal(signal.SIGSTOP)
        time.sleep(6.5)
        for process in (one, two):
            process.send_signal(signal.SIGCONT)
        for process in (one, two):
            out, errors = process.communicate(timeout=60)
            assert out == "all right\n", errors
            assert process.returncode == 0
            assert "Traceback" not in errors


@contextlib.contextmanager
def sleeper(script, where, env):
    """Run the script that is going to sleep."""
    with subprocess.Popen(
        [sys.executable, script, where],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
