"""How many run at once, counted inside the functions."""

import itertools
import os
import threading
from itertools import islice

import pytest
from helpers.files import fill, meet, place, record, recorded, there, wait_until

import nbmap


@pytest.mark.parametrize("n", [1, 3, 5])
def test_s15_exactly_n_of_one_map_run_at_once(roomy, folder, n):
    """With work left, n run at once, and never n + 1, on two cores too."""
    handle = nbmap.remote(lambda x: fill(folder, n) or x, concurrency=n)
    assert list(handle.map(range(40))) == list(range(40))
    assert there(folder, "full")
    assert not there(folder, "too-many")


def test_s15_two_maps_and_calls_from_threads_share_the_limit(roomy, folder):
    """All maps and calls of one handle together are never more than three, and are three."""
    handle = nbmap.remote(lambda x: fill(folder, 3) or x, concurrency=3)
    called = []
    threads = [
        threading.Thread(target=lambda n=n: called.append(handle(n))) for n in range(100, 106)
    ]
    runs = [handle.map(range(20)), handle.map(iter(range(20, 40)))]
    for thread in threads:
        thread.start()
    assert [list(run) for run in runs] == [list(range(20)), list(range(20, 40))]
    for thread in threads:
        thread.join(60)
    assert sorted(called) == list(range(100, 106))
    assert there(folder, "full")
    assert not there(folder, "too-many")


def test_s15_failures_give_their_place_back(roomy, folder):
    """After many failures the same number run at once, no fewer and no more."""

    @nbmap.remote(concurrency=3)
    def work(x):
        if x < 30:
            with place(folder, 3):
                raise ValueError(x)
        fill(folder, 3)
        return x

    outputs = list(work.map(range(60), return_exceptions=True))
    assert outputs[30:] == list(range(30, 60))
    assert [type(output.exc) for output in outputs[:30]] == [ValueError] * 30
    assert not there(folder, "too-many")


def test_s15_cancelled_inputs_give_their_place_back(roomy, folder):
    """After a cancelled run the same number run at once in the next one."""
    handle = nbmap.remote(
        lambda x: wait_until(lambda: False) if x < 0 else fill(folder, 3), concurrency=3
    )
    run = handle.map([-1] * 10)
    wait_until(lambda: run.counts["running"] == 3, "three to run")
    run.cancel()
    assert run.wait(60)
    assert len(list(handle.map(range(20)))) == 20
    assert there(folder, "full")
    assert not there(folder, "too-many")


def test_s15_the_other_names_of_concurrency_do_the_same(roomy, folder):
    """`concurrency_limit` and `max_containers` limit too."""
    for name in ("concurrency_limit", "max_containers"):
        handle = nbmap.remote(lambda x: fill(folder, 2), **{name: 2})
        assert len(list(handle.map(range(12)))) == 12
    assert not there(folder, "too-many")


def test_s15_two_handles_have_limits_of_their_own(roomy, folder):
    """Two handles of one function, with two places each, are four together."""
    one, other = (nbmap.remote(lambda x: meet(folder, 4), concurrency=2) for _ in range(2))
    runs = [one.map(range(10)), other.map(range(10))]
    assert len({who for run in runs for who in run}) >= 4


def test_s15_handles_take_turns(transport):
    """Two handles that both have endless work on the same slots both go on."""
    one, other = nbmap.remote(lambda x: x), nbmap.remote(lambda x: -x)
    ones, others = iter(one.map(itertools.count())), iter(other.map(itertools.count()))
    for n in range(5):
        assert list(islice(ones, 50)) == list(range(50 * n, 50 * n + 50))
        assert list(islice(others, 50)) == [-x for x in range(50 * n, 50 * n + 50)]
    ones.close()
    others.close()


def test_s15_a_call_gets_its_turn_beside_an_endless_map(transport, folder):
    """A second handle's call is served though the first has work for ever."""
    endless = nbmap.remote(lambda x: record(folder, x)).map(itertools.count())
    for _ in islice(endless, 20):
        pass  # leaving the loop early through islice keeps the iterator, and so the run, alive
    assert nbmap.remote(lambda x: x + 1)(1) == 2
    assert list(nbmap.remote(os.path.basename).map(["/a/b", "/c/d"])) == ["b", "d"]
    assert recorded(folder)
    endless.cancel()
    assert endless.wait(60)
