"""The Run: looking at outcomes, and cancelling."""

import threading

import pytest
from helpers.files import (
    await_file,
    count_for_ever,
    meet,
    place,
    record,
    recorded,
    stands_still,
    there,
    touch,
    wait_until,
)
from helpers.interrupts import interrupt_when

import nbmap


def fail_on_two(x):
    if x == 2:
        raise ValueError("two is wrong", x)
    return x * 10


def stuck(folder, first=3):
    """Return a handle that returns its input below `first` and else runs until it is stopped."""
    return nbmap.remote(lambda x: x if x < first else count_for_ever(folder, f"count-{x}"))


def wait_for_running(run, n=1):
    wait_until(lambda: run.counts["running"] >= n, f"{n} to run")


def test_s25_indexing_waits_for_an_outcome(transport, folder):
    """`run[i]` is output i, from the end too, as soon as it is there."""

    def work(x):
        if x == 4:
            await_file(folder, "go")
        return x * 10

    run = nbmap.remote(work).map(range(5))

    assert [run[i] for i in range(4)] == [0, 10, 20, 30]
    assert not run.done()
    touch(folder, "go")
    assert (run[4], run[-1], run[-5]) == (40, 40, 0)


def test_s25_slices(transport):
    """Slices are those of a list."""
    run, outputs = nbmap.remote(fail_on_two).map(range(10, 16)), [x * 10 for x in range(10, 16)]
    for at in (slice(1, 3), slice(None), slice(None, None, -1), slice(-2, None), slice(4, 100)):
        assert run[at] == outputs[at]
    assert run[3:3] == []


@pytest.mark.parametrize("index", [3, 100, -4])
def test_s25_an_index_out_of_range(transport, index):
    """An index that does not exist is an IndexError that says how many there are."""
    run = nbmap.remote(abs).map([1, 2, 3])
    with pytest.raises(IndexError, match="3 inputs"):
        run[index]


@pytest.mark.parametrize("index", ["1", 1.0, None])
def test_s25_an_index_that_is_none(transport, index):
    """An index is an int."""
    run = nbmap.remote(abs).map([1, 2, 3])
    with pytest.raises(TypeError):
        run[index]


def test_s25_an_index_beyond_an_iterator_of_unknown_length(transport):
    """Where the number of inputs is not known, an index beyond their end is an IndexError then."""
    run = nbmap.remote(abs).map(iter([1, 2]), keep=True)
    assert (run[1], run[0]) == (2, 1)
    with pytest.raises(IndexError):
        run[2]


def test_s25_length(transport):
    """`len` is the number of inputs where they have a length, and else a TypeError until all are read."""
    assert len(nbmap.remote(abs).map(range(7))) == 7
    asked = threading.Event()

    def inputs():
        yield 1
        asked.wait(30)

    run = nbmap.remote(abs).map(inputs())
    with pytest.raises(TypeError, match="not known"):
        len(run)
    asked.set()
    assert list(run) == [1]
    assert len(run) == 1


def test_s25_a_failed_input_raises_at_its_index_alone(transport):
    """`run[i]` of a failed input raises its failure; of others it is their output."""
    run = nbmap.remote(fail_on_two).map(range(4))
    assert [run[0], run[1], run[3]] == [0, 10, 30]
    with pytest.raises(ValueError):
        run[2]
    with pytest.raises(ValueError):
        run[1:3]
    values = nbmap.remote(fail_on_two).map(range(4), return_exceptions=True)
    with pytest.raises(ValueError):
        values[2]


def test_s25_results(transport):
    """`results` raises, keeps or drops failures, and refuses anything else."""
    run = nbmap.remote(fail_on_two).map(range(4))
    with pytest.raises(ValueError, match="two is wrong"):
        run.results()
    kept = run.results(errors="keep")
    assert [kept[0], kept[1], kept[3]] == [0, 10, 30]
    assert isinstance(kept[2], nbmap.UserCodeException)
    assert run.results(errors="drop") == [0, 10, 30]
    with pytest.raises(ValueError, match='"raise", "keep" and "drop"'):
        run.results(errors="ignore")
    fine = nbmap.remote(fail_on_two).map(range(3, 6))
    assert fine.results() == [30, 40, 50]


def test_s25_results_are_in_input_order_whatever_the_order_of_the_run(transport):
    """`order_outputs=False` concerns iterating alone."""
    run = nbmap.remote(abs).map(range(100), order_outputs=False)
    assert run.results() == run[:] == list(range(100))
    assert sorted(run) == list(range(100))


def test_s25_the_table_of_failures(transport):
    """Each failed input has a row: index, input, kind, type, message, attempts, worker."""
    run = nbmap.remote(fail_on_two).map([1, 2, 3, 2], return_exceptions=True)
    assert run.wait(60)
    first, second = run.failures
    assert (first.index, first.input, first.kind, first.type) == (1, "2", "user", "ValueError")
    assert first.message == "('two is wrong', 2)"
    assert (first.attempts, second.index) == (1, 3)
    assert first.worker
    assert "ValueError" in repr(run.failures)
    assert repr(nbmap.remote(abs).map([]).failures) == "no failures"


def test_s25_counts_add_up(transport):
    """Every input has one status."""
    run = nbmap.remote(fail_on_two).map(range(50), return_exceptions=True)
    while not run.done():
        assert sum(run.counts.values()) <= 50
    assert run.counts == {
        "waiting": 0,
        "sent": 0,
        "running": 0,
        "done": 49,
        "failed": 1,
        "cancelled": 0,
    }


def test_s25_waiting_with_and_without_a_timeout(transport, folder):
    """`wait` tells whether the run has ended, and raises no failure."""

    def work(x):
        await_file(folder, "go")
        return 1 / x

    run = nbmap.remote(work).map([1, 0])
    assert not run.wait(0)
    assert not run.wait(timeout=0.05)
    assert not run.done()
    touch(folder, "go")
    assert run.wait()
    assert run.wait(0)
    assert run.done()


def test_s25_as_completed_gives_pairs(transport, folder):
    """`as_completed` gives (index, output) in order of completion."""

    def work(x):
        if x == 50:
            await_file(folder, "others-are-there")
        return x * 2

    run = nbmap.remote(work).map(range(50, 60))
    got = []
    for pair in run.as_completed():
        got.append(pair)
        if len(got) == 9:
            touch(folder, "others-are-there")
    assert got[-1] == (0, 100)
    assert sorted(got) == [(i, 2 * (50 + i)) for i in range(10)]
    assert sorted(run.as_completed()) == sorted(got)


def test_s25_as_completed_of_a_run_that_keeps_nothing(transport):
    """The same over inputs without a length: every output comes once."""
    run = nbmap.remote(lambda x: -x).map(iter(range(300)))
    assert sorted(run.as_completed()) == [(i, -i) for i in range(300)]
    with pytest.raises(nbmap.RunError, match="keep=True"):
        next(iter(run.as_completed()))


def test_s25_as_completed_raises_failures_on_arrival(transport):
    """A failure is raised, or a value with return_exceptions=True."""
    run = nbmap.remote(fail_on_two).map([2, 3], return_exceptions=True)
    pairs = dict(run.as_completed())
    assert pairs[1] == 30
    assert isinstance(pairs[0], nbmap.UserCodeException)
    with pytest.raises(ValueError):
        list(nbmap.remote(fail_on_two).map([2, 3]).as_completed())


def test_s3_a_kept_run_is_iterated_as_often_as_you_like(transport):
    """A second and a third iteration, and two at once, give the same outputs."""
    run = nbmap.remote(fail_on_two).map(range(3, 60))
    assert list(run) == list(run) == [x * 10 for x in range(3, 60)]
    assert [a == b for a, b in zip(run, run, strict=True)] == [True] * 57


def test_s3_a_run_that_keeps_nothing_is_iterated_once(transport):
    """A second iteration is refused, naming keep=True."""
    run = nbmap.remote(abs).map(iter([1, 2]))
    assert list(run) == [1, 2]
    with pytest.raises(nbmap.RunError, match="keep=True"):
        iter(run)


def test_s3_an_iterator_of_a_run_that_keeps_nothing_goes_on_later(transport):
    """Keeping the iterator keeps the run going from where it was."""
    it = iter(nbmap.remote(abs).map(iter(range(30))))
    for output in it:
        if output == 10:
            break
    assert list(it) == list(range(11, 30))


def test_s3_an_unused_iterator_of_a_run_that_keeps_nothing_cancels_it(transport):
    """An iterator that is closed or dropped before its first output cancels the run too."""
    run = nbmap.remote(lambda x: x).map(x for x in iter(int, 1))
    it = iter(run)
    del it
    try:
        assert run.wait(5)
        assert run.status == "cancelled"
    finally:
        run.cancel()


@pytest.mark.parametrize(
    "use",
    [
        lambda run: run[0],
        lambda run: run[0:1],
        lambda run: run.results(),
        lambda run: run.results(errors="drop"),
    ],
    ids=["index", "slice", "results", "results dropped"],
)
def test_s25_what_needs_kept_outputs_says_so(transport, use):
    """On a keep=False run these raise and name keep=True."""
    run = nbmap.remote(abs).map([1, 2], keep=False)
    with pytest.raises(nbmap.RunError, match="keep=True"):
        use(run)
    assert list(run) == [1, 2]


def test_s25_the_repr_says_where_the_run_stands(transport):
    """The repr has the status and the counts."""
    run = nbmap.remote(fail_on_two).map(range(4))
    assert run.wait(60)
    assert "3 of 4 done" in repr(run)
    assert "1 failed" in repr(run)


# Cancelling


def test_s25_cancel_hands_out_what_is_done_and_then_raises(transport, folder):
    """Iterating a cancelled run gives what was done, then RunCancelled."""
    run = stuck(folder).map(range(20))
    outputs = iter(run)
    assert [next(outputs) for _ in range(3)] == [0, 1, 2]
    wait_for_running(run)
    run.cancel()
    with pytest.raises(nbmap.RunCancelled, match="3 inputs done"):
        next(outputs)
    assert run.wait(60)
    assert (run.status, run.counts["done"], run.counts["cancelled"]) == ("cancelled", 3, 17)
    got = []
    with pytest.raises(nbmap.RunCancelled):
        got.extend(run)
    assert got == [0, 1, 2]
    assert run.failures == []


def test_s25_cancel_with_return_exceptions_gives_values(transport, folder):
    """Each cancelled input is an InputCancelled at its place."""
    run = stuck(folder).map(range(6), return_exceptions=True)
    assert run[:3] == [0, 1, 2]
    run.cancel()
    assert run.wait(60)
    outputs = list(run)
    assert outputs[:3] == [0, 1, 2]
    assert [type(output) for output in outputs[3:]] == [nbmap.InputCancelled] * 3
    with pytest.raises(nbmap.InputCancelled):
        run[4]


def test_s25_cancel_stops_running_functions(transport, folder):
    """A running Python loop is really stopped, and its slot serves others."""
    run = stuck(folder, first=0).map(range(2))
    wait_until(lambda: there(folder, "count-0") and there(folder, "count-1"), "both to count")
    run.cancel()
    assert run.wait(60)
    assert stands_still(folder, "count-0")
    assert stands_still(folder, "count-1")
    assert len(set(nbmap.remote(lambda x: meet(folder)).map(range(20)))) == 2


def test_s25_cancel_ends_a_function_that_tidies_up(transport, folder):
    """`finally` blocks of a stopped function run; `except Exception` does not hold it up."""

    def work(x):
        try:
            while True:
                try:
                    count_for_ever(folder)
                except Exception:
                    touch(folder, "caught")
        finally:
            touch(folder, "tidied")

    run = nbmap.remote(work).map([1])
    wait_until(lambda: there(folder, "counter"), "it to count")
    run.cancel()
    assert run.wait(60)
    await_file(folder, "tidied")
    assert not there(folder, "caught")


def test_s25_cancel_one_waiting_input(transport, folder):
    """`run.cancel(i)` puts InputCancelled at its place, and the others finish."""

    def work(x):
        await_file(folder, "go")
        record(folder, x)
        return x

    run = nbmap.remote(work).map(range(10), return_exceptions=True)
    wait_for_running(run)
    run.cancel(9)
    with pytest.raises(nbmap.InputCancelled):
        run[9]
    touch(folder, "go")
    outputs = list(run)
    assert outputs[:9] == list(range(9))
    assert isinstance(outputs[9], nbmap.InputCancelled)
    assert "9" not in recorded(folder)
    assert (run.status, run.failures) == ("finished", [])


def test_s25_cancel_one_running_input(transport, folder):
    """The same of an input that runs: its function is stopped; without values it is raised."""
    run = nbmap.remote(lambda x: count_for_ever(folder) if x == 1 else x).map(range(5))
    wait_until(lambda: there(folder, "counter"), "it to count")
    run.cancel(1)
    assert run.wait(60)
    assert stands_still(folder)
    got = []
    with pytest.raises(nbmap.InputCancelled, match="input 1"):
        got.extend(run)
    assert got == [0]
    assert run.results(errors="drop") == [0, 2, 3, 4]
    assert [type(x).__name__ for x in run.results(errors="keep")][1] == "InputCancelled"


def test_s25_cancel_one_counts_from_the_end_and_in_range(transport, folder):
    """`run.cancel(i)` takes an index as `run[i]` does."""
    run = stuck(folder, first=5).map(range(6))
    with pytest.raises(IndexError):
        run.cancel(6)
    run.cancel(-1)
    assert run.wait(60)
    assert run.counts["cancelled"] == 1
    with pytest.raises(nbmap.InputCancelled):
        run[5]


def test_s25_cancel_twice_and_after_the_end(transport, folder):
    """A second cancel, and one after the end, change nothing."""
    run = stuck(folder).map(range(6))
    assert run[:3] == [0, 1, 2]
    run.cancel()
    run.cancel()
    assert run.wait(60)
    counts = run.counts
    run.cancel()
    run.cancel(0)
    run.cancel(5)
    assert (run.counts, run.status, run[0]) == (counts, "cancelled", 0)
    ended = nbmap.remote(abs).map([1, 2])
    assert list(ended) == [1, 2]
    ended.cancel()
    ended.cancel(0)
    assert (list(ended), ended.status) == ([1, 2], "finished")


def test_s25_cancel_from_another_thread(transport, folder):
    """A thread cancels while the main thread iterates."""
    run = stuck(folder).map(range(10))
    thread = threading.Thread(target=lambda: (wait_for_running(run), run.cancel()))
    thread.start()
    got = []
    with pytest.raises(nbmap.RunCancelled):
        got.extend(run)
    thread.join(60)
    assert set(got) <= {0, 1, 2}
    assert run.wait(60)


def test_s25_cancel_races_completion(transport):
    """Whenever the cancel comes, every input has one final status."""
    handle = nbmap.remote(lambda x: x)
    for n in range(100):
        run = handle.map(range(n))
        run.cancel()
        assert run.wait(60)
        counts = run.counts
        assert counts["done"] + counts["cancelled"] == n
        assert sum(counts.values()) == n
        assert run.results(errors="drop") == [run[i] for i in range(n) if done(run, i)]


def done(run, index):
    try:
        run[index]
    except nbmap.InputCancelled:
        return False
    return True


def test_s25_a_cancelled_run_that_keeps_nothing_raises_too(transport, folder):
    """Iterating it gives what was done before, then RunCancelled."""
    run = stuck(folder).map(iter(range(10)))
    outputs = iter(run)
    assert [next(outputs) for _ in range(3)] == [0, 1, 2]
    run.cancel()
    with pytest.raises(nbmap.RunCancelled):
        next(outputs)


# Interrupting


@pytest.mark.parametrize("way", ["iterate", "index", "wait", "call"])
def test_s19_interrupting_a_wait_cancels_the_run(transport, folder, way):
    """Ctrl-C in the thread that waits cancels what it waits for; what is done stays."""
    handle, runs = stuck(folder), []
    thread = interrupt_when(lambda: there(folder, "count-3"))
    with pytest.raises(KeyboardInterrupt):
        if way == "call":
            handle(3)
        else:
            runs.append(handle.map(range(4)))
            {"iterate": list, "index": lambda run: run[3], "wait": lambda run: run.wait()}[way](
                runs[0]
            )
    thread.join(60)
    assert stands_still(folder, "count-3")
    for run in runs:
        assert run.wait(60)
        assert (run.status, run[:3]) == ("cancelled", [0, 1, 2])


def test_s19_a_blocked_iterator_can_be_interrupted(transport):
    """Inputs that block for ever: finished outputs are readable, an interrupt ends the wait."""
    unblock, got = threading.Event(), []

    def inputs():
        yield from range(3)
        unblock.wait(15)

    try:
        run = nbmap.remote(lambda x: x).map(inputs(), keep=True)
        thread = interrupt_when(lambda: len(got) == 3)
        with pytest.raises(KeyboardInterrupt):
            got.extend(run)
        thread.join(60)
        assert got == [0, 1, 2]
        assert run.wait(20)
        assert (run.status, run[:] if run.counts["done"] == 0 else run[2]) == ("cancelled", 2)
    finally:
        unblock.set()


def test_s15_stopped_functions_leave_their_place(transport, folder):
    """Places held in a function are given back when it is stopped."""

    def work(x):
        with place(folder, 2) as at:
            count_for_ever(folder, f"count-{at}")

    run = nbmap.remote(work).map(range(4))
    wait_until(lambda: there(folder, "count-0") and there(folder, "count-1"), "both to count")
    run.cancel()
    assert run.wait(60)
    wait_until(lambda: not (there(folder, "place-0") or there(folder, "place-1")), "places")


def test_f12_a_run_over_a_billion_inputs_is_cancelled_without_a_byte_for_each(transport):
    """What was never read costs nothing, and is cancelled all the same."""
    run = nbmap.remote(abs).map(range(10**9))
    assert run[0] == 0
    run.cancel()
    assert run.wait(60)
    assert sum(run.counts.values()) == len(run) == 10**9
    with pytest.raises(nbmap.InputCancelled):
        run[10**9 - 1]
    assert run.failures == []
