"""Cancelling from wherever one can, at whatever instant: one final status each, and no more work."""

import threading

import pytest
from helpers.files import count_for_ever, record, recorded, stands_still, there, wait_until

import nbmap

RUNNING, WAITING = 5, 95


@pytest.fixture(scope="module", params=["own", "five_threads"])
def cluster(request):
    """Nbmap's own cluster, and one that it did not start."""
    started = request.getfixturevalue(request.param)
    with nbmap.connect("local" if started is None else started):
        yield request.param


@pytest.fixture(scope="module")
def five_threads():
    """A plain Dask cluster of one process with five threads."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=RUNNING,
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    ) as made:
        yield made


def busy(folder):
    """Return a run of which five inputs count for ever and ninety-five wait."""

    def work(x):
        record(folder, x)
        count_for_ever(folder, f"count-{x}")

    run = nbmap.remote(concurrency=RUNNING)(work).map(range(RUNNING + WAITING))
    wait_until(lambda: all(there(folder, f"count-{x}") for x in range(RUNNING)), "five to run")
    return run


def is_over(run, folder):
    """Check that all has stopped, and that nothing else has ever run."""
    assert run.wait(60)
    assert run.status == "cancelled"
    assert run.counts["cancelled"] == RUNNING + WAITING
    assert {row["status"] for row in run.records()} == {"cancelled"}
    assert sorted(map(int, recorded(folder))) == list(range(RUNNING))
    for x in range(RUNNING):
        assert stands_still(folder, f"count-{x}")
    assert nbmap.status().runs == 0
    assert list(nbmap.remote(abs).map([-1, -2, -3])) == [1, 2, 3]


def from_here(run):
    """Cancel it in this thread."""
    run.cancel()


def twice(run):
    """Cancel it again at once, and when it has ended."""
    run.cancel()
    run.cancel()
    run.wait(60)
    run.cancel()
    run.cancel(0)


def from_another_thread(run):
    """Cancel it in a thread that has never had to do with it."""
    thread = threading.Thread(target=run.cancel)
    thread.start()
    thread.join(60)


def from_a_callback(run):
    """Cancel it in what is called when a call has ended."""
    called = threading.Event()
    call = nbmap.remote(lambda: 1, cluster="local").spawn()
    call.add_done_callback(lambda _: (run.cancel(), called.set()))
    assert called.wait(60)


@pytest.mark.parametrize("cancel", [from_here, twice, from_another_thread, from_a_callback])
def test_f12_what_waits_never_runs_and_what_runs_is_stopped(cluster, folder, cancel):
    """Of five that run and ninety-five that wait none has an output, and all have one status."""
    run = busy(folder)
    cancel(run)
    is_over(run, folder)


def test_f12_one_iterates_while_another_thread_cancels(cluster, folder):
    """Whoever waits for an output hears of the end."""
    run = busy(folder)
    thread = threading.Timer(0.05, run.cancel)
    thread.start()
    with pytest.raises(nbmap.RunCancelled):
        list(run)
    thread.join(60)
    is_over(run, folder)


def race(times):
    """Cancel runs about when they end; check that each input has one status, and keeps it."""
    handle = nbmap.remote(lambda x: x)
    list(handle.map(range(10)))
    for n in range(times):
        run = handle.map(range(1 + n % 40))
        for _ in range(n % 7):  # now and then most are done
            run.counts  # noqa: B018 - it takes the engine a moment
        run.cancel()
        assert run.wait(60)
        counts, total = run.counts, 1 + n % 40
        assert counts["done"] + counts["cancelled"] == total
        assert sum(counts.values()) == total
        kept = run.results(errors="drop")
        assert len(kept) == counts["done"]
        assert [row["status"] for row in run.records()].count("done") == counts["done"]
        assert run.counts == counts


def test_f12_cancelling_races_completion(cluster):
    """A hundred times, of runs that are done, half done, or have hardly begun."""
    race(100)


@pytest.mark.chaos
def test_f12_cancelling_races_completion_a_thousand_times(cluster):
    """The same as often as the requirement says."""
    race(1000)
