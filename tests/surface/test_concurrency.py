"""A handle's limit over all that it is used for at once, held by locks that die with their process."""

import fcntl
import os
import signal
import threading
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import pytest
from helpers.files import (
    await_file,
    count_for_ever,
    record,
    recorded,
    stands_still,
    there,
    touch,
    wait_until,
)

import nbmap


@contextmanager
def locked(folder, n):
    """Hold one of `n` locks; where all are held this is one too many. A killed process holds none."""
    for at in range(n):
        file = os.open(Path(folder) / f"lock-{at}", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        break
    else:
        touch(folder, "too-many")
        msg = f"more than {n} at once"
        raise AssertionError(msg)
    try:
        yield at
    finally:
        os.close(file)


def add(folder, name="arrivals"):
    """Count one more in a file; return how many there are now."""
    file = os.open(Path(folder) / name, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, b".")
        return os.fstat(file).st_size
    finally:
        os.close(file)


def arrivals(folder, name="arrivals"):
    """Return how many have been counted."""
    path = Path(folder) / name
    return path.stat().st_size if path.exists() else 0


def in_groups(folder, n, name="arrivals", last=10**9):
    """Hold one of `n` places until all of them are held: the next group can't come before that.

    There is not work for `n` any more after the `last`.
    """
    with locked(folder, n):
        me = add(folder, name)
        until = -(-me // n) * n if me <= last else 0
        wait_until(lambda: arrivals(folder, name) >= until, f"the group of {n} around {me}")


def test_s15_five_run_at_once_as_long_as_there_is_work(roomy, folder):
    """Each group of five meets before the next one comes: never fewer, never more."""
    handle = nbmap.remote(lambda x: in_groups(folder, 5) or x, concurrency=5)
    assert list(handle.map(range(60))) == list(range(60))
    assert not there(folder, "too-many")


def test_s15_maps_calls_threads_and_nested_uses_share_the_limit(roomy, folder):
    """Two maps, spawned calls, calls of threads, for_each and what another handle does with it."""

    @nbmap.remote(concurrency=5)
    def five(x):
        in_groups(folder, 5, last=45)
        return x

    @nbmap.remote(concurrency=2)
    def outer(x):
        return [*five.map(range(x, x + 4)), five.remote(x), five.spawn(x).get()]

    runs = [five.map(range(20)), five.map(iter(range(20)))]
    calls = [five.spawn(x) for x in range(6)]
    nested = outer.map([100, 200])
    out = []
    threads = [threading.Thread(target=lambda n=n: out.append(five(n))) for n in range(4)]
    threads.append(threading.Thread(target=lambda: five.for_each(range(8))))
    for thread in threads:
        thread.start()
    assert [list(run) for run in runs] == [list(range(20))] * 2
    assert nbmap.gather(*calls) == list(range(6))
    assert list(nested) == [[x, x + 1, x + 2, x + 3, x, x] for x in (100, 200)]
    for thread in threads:
        thread.join(60)
    assert sorted(out) == list(range(4))
    assert arrivals(folder) == 20 + 20 + 6 + 12 + 4 + 8
    assert not there(folder, "too-many")


def test_s15_the_handle_that_maps_over_itself_is_one_handle(roomy, folder):
    """Nested uses by the handle itself count too; while an input waits for them it does not."""

    @nbmap.remote(concurrency=3)
    def tree(depth):
        with locked(folder, 3):
            add(folder)
        if depth:
            return 1 + sum(tree.map([depth - 1] * 2))
        return 1

    assert tree(4) == 31
    assert arrivals(folder) == 31
    assert not there(folder, "too-many")


def test_s15_generators_share_the_limit(roomy, folder):
    """Of two maps and of remote_gen together five generators run at once."""

    @nbmap.remote(concurrency=5)
    def five(x):
        with locked(folder, 5):
            me = add(folder)
            yield x
            wait_until(lambda: arrivals(folder) >= -(-me // 5) * 5, "the group")
            yield x

    runs = [five.map(range(10)), five.map(range(10, 18))]
    ones = [five.remote_gen(x) for x in (18, 19)]
    out = [x for run in (*runs, *ones) for x in run]
    assert sorted(out) == sorted([*range(20), *range(20)])
    assert not there(folder, "too-many")


def test_s15_five_run_at_once_after_a_worker_was_killed(own_cluster, folder):
    """SIGKILL of one of the processes: never more than five, and five again.

    What may have run in it is tried alone first, so only later ones wait for each other.
    """

    @nbmap.remote(concurrency=5, worker_losses=20)
    def five(x):
        with locked(folder, 5):
            if not there(folder, "killed"):
                record(folder, os.getpid())
                add(folder, "before")
                wait_until(lambda: there(folder, "killed"), "the kill")
            elif x >= 80:
                wait_until(lambda: there(folder, "full") or held(folder) == 5, "five again")
                touch(folder, "full")
        return x

    def held(folder):
        """Count the locks that somebody holds."""
        n = 0
        for path in Path(folder).glob("lock-*"):
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                n += 1
            finally:
                os.close(file)
        return n

    run = five.map(range(100))
    wait_until(lambda: arrivals(folder, "before") == 5, "five at first")
    os.kill(int(recorded(folder)[0]), signal.SIGKILL)
    touch(folder, "killed")
    assert list(run) == list(range(100))
    assert there(folder, "full")
    assert not there(folder, "too-many")
    assert run.failures == []


def test_s15_failed_calls_give_their_place_back(roomy, folder):
    """After failures of calls, of maps and of generators the same number run at once."""

    @nbmap.remote(concurrency=3)
    def work(x):
        if x < 0:
            with locked(folder, 3):
                raise ValueError(x)
        in_groups(folder, 3)
        return x

    @nbmap.remote(concurrency=1)
    def outer(x):
        return list(work.map([x] * 3, return_exceptions=True, wrap_returned_exceptions=False))

    calls = [work.spawn(-1) for _ in range(5)]
    failed = work.map([-1] * 20, return_exceptions=True)
    assert [type(call.exception()) for call in calls] == [ValueError] * 5
    assert len(list(failed)) == 20
    assert [type(e) for e in outer(-1)] == [ValueError] * 3
    assert list(work.map(range(12))) == list(range(12))
    assert not there(folder, "too-many")


def test_s15_a_timed_out_input_keeps_its_place_until_it_has_really_ended(roomy, folder):
    """A function that does not hear is given up; nobody runs beside it while it still runs."""

    @nbmap.remote(concurrency=1, timeout=0.2, grace=0.2)
    def deaf(x):
        import contextlib

        if x:
            with locked(folder, 1):
                return x
        with locked(folder, 1):
            done = threading.Event()

            def finish():
                await_file(folder, "go")
                done.set()

            threading.Thread(target=finish, daemon=True).start()
            while not done.is_set():
                with contextlib.suppress(BaseException):
                    done.wait(0.05)
        return None

    run = deaf.map([0, 1, 2], return_exceptions=True)
    wait_until(lambda: run.counts["failed"] == 1, "the first to be given up")
    assert run.counts["done"] == 0 or roomy == "dask"  # there its process may have been ended
    touch(folder, "go")
    out = list(run)
    assert type(out[0]) is nbmap.InputTimeout
    assert out[1:] == [1, 2]
    assert not there(folder, "too-many")


def test_s15_with_options_has_a_limit_of_its_own(roomy, folder):
    """Two of the old handle and three of the new one run at once, and no more of either."""

    @nbmap.remote(concurrency=2)
    def work(name, n):
        in_groups(Path(folder) / name, n)
        add(folder, "both")
        wait_until(lambda: arrivals(folder, "both") >= 5, "two and three at once")

    three = work.with_options(concurrency=3)
    same = work.with_options(retries=1)
    for name in ("two", "three", "same"):
        (Path(folder) / name).mkdir()
    runs = [
        handle.map([name] * 6, [n] * 6)
        for handle, name, n in ((work, "two", 2), (three, "three", 3), (same, "same", 2))
    ]
    for run in runs:
        assert list(run) == [None] * 6
    for name in ("two", "three", "same"):
        assert not there(Path(folder) / name, "too-many")
    assert "concurrency=2" in repr(work)
    assert "concurrency=3" in repr(three)
    assert "concurrency=2" in repr(same)


def test_s15_other_handles_are_served_while_one_is_at_its_limit(roomy, folder):
    """Five inputs that wait for ever hold five places, and not the other handle's."""
    stuck = nbmap.remote(count_for_ever, concurrency=5).map(
        [folder] * 20, [f"counter-{n}" for n in range(20)]
    )
    wait_until(lambda: stuck.counts["running"] == 5, "five to run")
    other = nbmap.remote(lambda x: -x, concurrency=2)
    assert list(other.map(range(30))) == [-x for x in range(30)]
    assert other.spawn(1).get(10) == -1
    assert stuck.counts["running"] == 5
    stuck.cancel()
    assert stuck.wait(60)
    for n in range(20):
        if there(folder, f"counter-{n}"):
            assert stands_still(folder, f"counter-{n}")


def test_s15_a_paused_generator_does_not_keep_others_from_running(roomy, folder):
    """A generator whose consumer takes nothing gives its place up, and goes on later."""

    @nbmap.remote(concurrency=1)
    def numbers(n):
        for x in range(n):
            yield x, b"x" * 100_000

    endless = numbers.remote_gen(10_000)
    assert next(endless)[0] == 0
    other = nbmap.remote(abs, concurrency=1)
    assert list(other.map(range(20))) == list(range(20))
    assert [x for x, _ in islice(endless, 100)] == list(range(1, 101))
    endless.close()


def test_s15_unlimited_handles_use_all_slots_and_no_more(transport, folder):
    """Without a limit as many run at once as there are slots: two."""
    handle = nbmap.remote(lambda x: in_groups(folder, 2) or x)
    assert list(handle.map(range(30))) == list(range(30))
    assert not there(folder, "too-many")


@pytest.mark.parametrize("endless", [3])
def test_s15_endless_maps_of_several_handles_all_go_on(roomy, folder, endless):
    """Three handles with endless inputs and small limits each hand out outputs in turn."""
    handles = [nbmap.remote(lambda x, n=n: (n, x), concurrency=2) for n in range(endless)]
    outputs = [iter(handle.map(count())) for handle in handles]
    for step in range(3):
        for n, output in enumerate(outputs):
            assert list(islice(output, 20)) == [(n, x) for x in range(20 * step, 20 * step + 20)]
    for output in outputs:
        output.close()
