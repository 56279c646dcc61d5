"""Retries and timeouts: attempts counted by files, ends told by events."""

import asyncio
import datetime as dt
import time

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

SOON = nbmap.Retries(5, initial_delay=0.01, backoff_coefficient=1)


def flaky(folder, x, failures):
    """Fail so many times, then return the attempt's number."""
    record(folder, x)
    mine = recorded(folder).count(str(x))
    if mine <= failures:
        raise LookupError(f"attempt {mine} of {x}")
    return mine


def test_s17_an_input_that_fails_is_tried_again(transport, folder):
    """Inputs that fail never, once and twice have their outputs, in order; nothing is a failure."""
    run = nbmap.remote(flaky, retries=SOON).map([folder] * 6, range(6), [0, 1, 2, 0, 2, 1])
    assert list(run) == [1, 2, 3, 1, 3, 2]
    assert run.failures == []
    assert run.counts["done"] == 6
    assert sorted(map(int, recorded(folder))) == [0, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5]


@pytest.mark.parametrize("retries", [1, nbmap.Retries(1, initial_delay="10ms")])
def test_s17_retries_are_a_number_or_retries(transport, folder, retries):
    """One retry means two attempts."""
    run = nbmap.remote(flaky, retries=retries).map([folder] * 2, [1, 2], [1, 5])
    out = run.results(errors="keep")
    assert out[0] == 2
    assert str(out[1]) == "attempt 2 of 2"
    assert sorted(recorded(folder)) == ["1", "1", "2", "2"]


def test_s17_without_retries_there_is_one_attempt(transport, folder):
    """By default, and with `retries=0`, an input that fails has failed."""
    for n, options in enumerate([{}, {"retries": 0}, {"retries": None}]):
        run = nbmap.remote(flaky, **options).map([folder], [n], [1])
        assert [f.attempts for f in run.wait() and run.failures] == [1]
    assert len(recorded(folder)) == 3


def test_s17_the_failure_of_the_last_attempt_is_told(transport, folder):
    """After all attempts the last one's exception is raised; the table counts the attempts."""
    retries = nbmap.Retries(2, initial_delay=0.01)
    run = nbmap.remote(flaky, retries=retries).map([folder] * 3, range(3), [0, 9, 0])
    with pytest.raises(LookupError, match="attempt 3 of 1"):
        list(run)
    assert run.wait(20)
    assert [(f.index, f.kind, f.attempts) for f in run.failures] == [(1, "user", 3)]
    assert "attempt 3 of 1" in run.failures[0].message
    assert "attempt 3 of 1" in run.traceback(1)
    assert recorded(folder).count("1") == 3
    assert run.counts["failed"] == 1
    notes = " ".join(run.results(errors="keep")[1].exc.__notes__)
    assert "attempt 3" in notes


def test_s17_current_input_tells_index_and_attempt(transport, folder):
    """The first attempt is 1; the index is the input's place in its run; in the note as well."""

    @nbmap.remote(retries=SOON)
    def work(x):
        index, attempt = nbmap.current_input().index, nbmap.current_input().attempt
        record(folder, (x, index, attempt))
        if attempt <= x:
            raise LookupError(x)
        here = nbmap.current_input()
        return here.index, here.attempt

    assert list(work.map([2, 0, 1])) == [(0, 3), (1, 1), (2, 2)]
    assert sorted(recorded(folder)) == sorted(
        map(str, [(2, 0, 1), (2, 0, 2), (2, 0, 3), (0, 1, 1), (1, 2, 1), (1, 2, 2)])
    )
    assert work(1) == (0, 2)


def test_s17_current_input_is_for_remote_code():
    """In the notebook there is no input: a RuntimeError says so."""
    with pytest.raises(RuntimeError, match="remote code"):
        nbmap.current_input()


def test_s17_current_input_is_there_in_coroutines_and_generators(transport):
    """Each kind of function knows its input."""

    async def coroutine(x):
        await asyncio.sleep(0)
        return nbmap.current_input().index

    def generator(x):
        yield nbmap.current_input().index
        yield nbmap.current_input().index

    async def both(x):
        yield nbmap.current_input().index

    assert list(nbmap.remote(coroutine).map("abc")) == [0, 1, 2]
    assert sorted(nbmap.remote(generator).map("ab")) == [0, 0, 1, 1]
    assert sorted(nbmap.remote(both).map("ab")) == [0, 1]


def test_s17_calls_are_tried_again_too(transport, folder):
    """remote, spawn, for_each and the awaitable twins all retry."""
    handle = nbmap.remote(flaky, retries=SOON)
    assert handle(folder, 1, 1) == 2
    assert handle.remote(folder, 2, 2) == 3
    assert handle.spawn(folder, 3, 1).get() == 2
    assert handle.for_each([folder], [4], [1]) is None
    assert asyncio.run(handle.remote.aio(folder, 5, 1)) == 2
    assert handle.with_options(retries=0).spawn(folder, 6, 1).exception() is not None


def test_s17_max_failures_counts_what_has_failed_for_good(transport, folder):
    """Attempts that are tried again don't stop a run."""
    handle = nbmap.remote(flaky, retries=nbmap.Retries(2, initial_delay=0.01))
    run = handle.map([folder] * 30, range(30), [2] * 30, max_failures=1)
    assert list(run) == [3] * 30
    run = handle.map([folder] * 30, range(100, 130), [9] * 30, max_failures=1)
    assert run.wait(20)
    assert run.status == "stopped"
    assert [f.attempts for f in run.failures].count(3) >= 2  # others were stopped on their way


def test_s17_failures_as_values_come_after_the_last_attempt(transport, folder):
    """With `return_exceptions=True` an input that recovers is a value, one that does not a failure."""
    run = nbmap.remote(flaky, retries=nbmap.Retries(1, initial_delay=0.01)).map(
        [folder] * 3, range(3), [1, 9, 0], return_exceptions=True
    )
    out = list(run)
    assert out[0] == 2
    assert repr(out[1]) == "UserCodeException(LookupError('attempt 2 of 1'))"
    assert out[2] == 1


def test_s17_only_failures_of_the_users_and_timeouts_are_tried_again(transport, folder):
    """What can't be sent is not tried again."""
    handle = nbmap.remote(lambda x: record(folder, x) or (y for y in "abc"), retries=SOON)
    run = handle.map([1], return_exceptions=True)
    assert type(next(iter(run))) is nbmap.Unpicklable
    assert recorded(folder) == ["1"]
    assert [(f.kind, f.attempts) for f in run.failures] == [("unpicklable", 1)]


def test_s17_what_is_cancelled_is_not_tried_again(transport, folder):
    """A cancelled input stays cancelled, however many retries there are."""
    call = nbmap.remote(lambda: record(folder, 1) or count_for_ever(folder), retries=SOON).spawn()
    await_file(folder, "counter")
    call.cancel()
    with pytest.raises(nbmap.InputCancelled):
        call.get()
    assert stands_still(folder)
    assert recorded(folder) == ["1"]


def test_s17_what_waits_for_its_next_attempt_can_be_cancelled(transport, folder):
    """A cancel reaches an input between two attempts, which an hour would lie between."""
    call = nbmap.remote(flaky, retries=nbmap.Retries(3, initial_delay="1h", max_delay="1h")).spawn(
        folder, 1, 9
    )
    wait_until(lambda: recorded(folder) == ["1"], "the first attempt")
    with pytest.raises(TimeoutError):
        call.get(timeout=0.2)
    call.cancel()
    with pytest.raises(nbmap.InputCancelled):
        call.get(timeout=10)
    assert recorded(folder) == ["1"]


def test_s17_who_waits_for_the_next_attempt_holds_up_nobody(transport, folder):
    """With one place, others run while an input waits for its second attempt."""
    handle = nbmap.remote(
        flaky, concurrency=1, retries=nbmap.Retries(1, initial_delay="1h", max_delay="1h")
    )
    run = handle.map([folder] * 10, range(10), [9] + [0] * 9, order_outputs=False)
    outputs = iter(run)
    assert [next(outputs) for _ in range(9)] == [1] * 9
    assert not run.done()
    run.cancel()
    assert run.wait(20)


def test_s17_a_generator_starts_again_and_delivers_nothing_twice(transport, folder):
    """Output k of the second attempt stands for output k of the first."""

    @nbmap.remote(retries=SOON)
    def count(n):
        record(folder, "attempt")
        for x in range(n):
            if x == 3 and nbmap.current_input().attempt < 3:
                raise LookupError(x)
            yield x

    assert list(count.remote_gen(6)) == list(range(6))
    assert recorded(folder) == ["attempt"] * 3
    run = count.map([5])
    assert list(run) == list(range(5))
    assert run.failures == []
    assert run[0] == list(range(5))


def test_s17_a_timeout_stops_a_python_loop(transport, folder):
    """The function stands still, the failure is InputTimeout, the other inputs have outputs."""

    @nbmap.remote(timeout=0.2)
    def work(x):
        return count_for_ever(folder) if x == 1 else x

    run = work.map(range(4), return_exceptions=True)
    out = list(run)
    assert [out[0], *out[2:]] == [0, 2, 3]
    assert type(out[1]) is nbmap.InputTimeout
    assert "0.2" in str(out[1])
    assert stands_still(folder)
    assert [(f.index, f.kind, f.attempts) for f in run.failures] == [(1, "timeout", 1)]
    with pytest.raises(nbmap.InputTimeout):
        work(1)
    assert issubclass(nbmap.InputTimeout, nbmap.InputFailed)


@pytest.mark.parametrize("timeout", [0.2, "200ms", "0.2s", dt.timedelta(milliseconds=200)], ids=str)
def test_s17_timeouts_are_seconds_texts_or_timedeltas(transport, folder, timeout):
    """Each way of writing a fifth of a second stops the function, and says so alike."""
    call = nbmap.remote(count_for_ever, timeout=timeout).spawn(folder)
    assert type(call.exception(20)) is nbmap.InputTimeout
    assert "timeout=0.2 s" in str(call.exception())


def test_s17_a_timeout_stops_a_coroutine(transport, folder):
    """It is cancelled where it waits, and its `finally` runs."""

    @nbmap.remote(timeout=0.2)
    async def work(x):
        try:
            if x:
                await asyncio.sleep(3600)
            return x
        finally:
            record(folder, x)

    out = list(work.map([1, 0], return_exceptions=True))
    assert type(out[0]) is nbmap.InputTimeout
    assert out[1] == 0
    assert sorted(recorded(folder)) == ["0", "1"]


def test_s17_a_timeout_stops_a_coroutine_that_never_waits(transport, folder):
    """A loop inside a coroutine is stopped like a function's."""

    async def work():
        count_for_ever(folder)

    call = nbmap.remote(work, timeout=0.2, grace=10).spawn()
    assert type(call.exception(20)) is nbmap.InputTimeout
    assert stands_still(folder)


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_s17_a_timeout_stops_a_generator(transport, folder, kind):
    """What it yielded before is delivered, then the failure; it is closed, others go on."""

    def plain(x):
        try:
            yield x
            if x:
                count_for_ever(folder)
        finally:
            record(folder, x)

    async def asynchronous(x):
        try:
            yield x
            if x:
                while True:
                    await asyncio.sleep(0.01)
        finally:
            record(folder, x)

    function = plain if kind == "generator" else asynchronous
    handle = nbmap.remote(function, timeout=0.3)
    outputs = handle.remote_gen(1)
    assert next(outputs) == 1
    with pytest.raises(nbmap.InputTimeout):
        next(outputs)
    assert recorded(folder) == ["1"]
    out = list(handle.map([0, 1], return_exceptions=True))
    assert [x for x in out if isinstance(x, int)] in ([0, 1], [1, 0])
    assert sum(isinstance(x, nbmap.InputTimeout) for x in out) == 1


def test_s17_each_attempt_has_the_whole_timeout(transport, folder):
    """What takes too long is tried again, and the second attempt has its own time."""

    @nbmap.remote(timeout=0.3, retries=SOON)
    def work(x):
        record(folder, nbmap.current_input().attempt)
        if nbmap.current_input().attempt < 3:
            count_for_ever(folder)
        return x

    run = work.map([7])
    assert list(run) == [7]
    assert recorded(folder) == ["1", "2", "3"]
    assert run.failures == []


def test_s17_what_always_takes_too_long_fails_after_its_attempts(transport, folder):
    """The failure is InputTimeout, with the number of attempts in the table."""
    handle = nbmap.remote(count_for_ever, timeout=0.1, retries=nbmap.Retries(2, initial_delay=0.01))
    run = handle.map([folder])
    with pytest.raises(nbmap.InputTimeout):
        list(run)
    assert [(f.kind, f.attempts) for f in run.failures] == [("timeout", 3)]
    assert stands_still(folder)


def test_s17_the_time_that_an_input_waits_does_not_count(transport, folder):
    """Twenty inputs on one place, each of half the timeout, all have outputs."""
    handle = nbmap.remote(lambda x: time.sleep(0.05) or x, concurrency=1, timeout=0.5)
    assert list(handle.map(range(20))) == list(range(20))


def test_s17_the_time_that_a_nested_run_takes_does_not_count(roomy, folder):
    """A timeout is for the function's own time: an input that waits for another is not stopped."""
    inner = nbmap.remote(lambda x: await_file(folder, "go") or x)
    outer = nbmap.remote(lambda x: [inner.remote(x)], timeout=0.3)
    call = outer.spawn(5)
    with pytest.raises(TimeoutError):
        call.get(timeout=1)
    touch(folder, "go")
    assert call.get(20) == [5]


def test_s17_the_time_of_a_paused_generator_does_not_count(roomy):
    """A generator whose consumer takes its time is not stopped."""

    @nbmap.remote(timeout=0.4)
    def numbers():
        for x in range(300):
            yield x, b"x" * 100_000

    outputs = numbers.remote_gen()
    assert next(outputs)[0] == 0
    time.sleep(1)
    assert [x for x, _ in outputs] == list(range(1, 300))


def test_s17_a_function_that_does_not_hear_is_given_up(transport, folder):
    """What sleeps in C is told as a timeout before it returns, and its place comes back."""

    @nbmap.remote(timeout=0.2, grace=0.3, concurrency=2)
    def work(x):
        if x == 0:
            time.sleep(3)
            touch(folder, "returned")
        return x

    run = work.map(range(6), return_exceptions=True)
    out = list(run)
    assert not there(folder, "returned")
    assert type(out[0]) is nbmap.InputTimeout
    assert out[1:] == [1, 2, 3, 4, 5]
    assert run.done()
    assert run.failures[0].kind == "timeout"
    assert work(8) == 8


def test_s17_a_deaf_function_that_is_tried_again(transport, folder):
    """The second attempt starts in another place while the first one sleeps on in C."""

    @nbmap.remote(timeout=0.2, grace=0.2, retries=nbmap.Retries(1, initial_delay=0.01))
    def work(_):
        if nbmap.current_input().attempt == 1:
            time.sleep(3)
            touch(folder, "returned")
        return nbmap.current_input().attempt, there(folder, "returned")

    run = work.map([1])
    assert list(run) == [(2, False)]
    assert run.failures == []


@pytest.mark.parametrize("way", ["timeout", "cancel"])
def test_s17_a_deaf_function_does_not_hold_up_others(transport, folder, way):
    """While what was stopped sleeps on in C, the other place is used."""

    @nbmap.remote(timeout=0.2 if way == "timeout" else None, grace=0.2)
    def sleep():
        touch(folder, "runs")
        time.sleep(3)
        touch(folder, "returned")

    call = sleep.spawn()
    await_file(folder, "runs")
    if way == "cancel":
        call.cancel()
    assert isinstance(nbmap.gather(call, return_exceptions=True)[0], nbmap.InputFailed)
    assert nbmap.remote(lambda: there(folder, "returned"))() is False


def test_s17_own_time_after_a_nested_wait_is_not_cut_short(roomy):
    """An input that waited for a nested run for longer than its timeout has its own time left."""
    inner = nbmap.remote(lambda x: time.sleep(1.1) or x)

    @nbmap.remote(timeout=1, grace=0.2)
    def outer(x):
        y = inner.remote(x)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pass
        return y

    assert outer(5) == 5


def test_s17_timeout_errors_of_the_users_are_the_users(transport, folder):
    """A TimeoutError that the function raises is its own failure, of kind user."""

    def work():
        raise TimeoutError("mine")

    run = nbmap.remote(lambda x: work(), timeout=20).map([1])
    with pytest.raises(TimeoutError, match="mine") as caught:
        list(run)
    assert not isinstance(caught.value, nbmap.InputFailed)
    assert run.failures[0].kind == "user"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "0s"}, "timeout='0s'"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": True}, "timeout=True"),
        ({"timeout": dt.timedelta(0)}, "timeout="),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"retries": True}, "retries=True"),
        ({"retries": "2"}, "retries='2'"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": -5}, "concurrency=-5"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"concurrency": "5"}, "concurrency='5'"),
        ({"max_containers": 0}, "max_containers=0"),
        ({"concurrency_limit": 0}, "concurrency_limit=0"),
        ({"concurrency": 1, "max_containers": 1}, "max_containers"),
        ({"concurrency_limit": 1, "max_containers": 2}, "max_containers"),
        ({"worker_losses": 0}, "worker_losses=0"),
        ({"grace": -1}, "grace=-1"),
        ({"grace": "soon"}, "grace='soon'"),
    ],
    ids=str,
)
def test_s17_wrong_limits_and_times_are_refused_by_name(options, named):
    """When the handle is made, and by `with_options` too, which leaves the handle as it was."""
    with pytest.raises(nbmap.OptionError) as caught:
        nbmap.remote(**options)
    assert named in str(caught.value)
    handle = nbmap.remote(abs)
    with pytest.raises(nbmap.OptionError) as caught:
        handle.with_options(**options)
    assert named in str(caught.value)
    assert repr(handle) == "<nbmap handle abs>"


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": 1, "initial_delay": -1},
        {"max_retries": 1, "backoff_coefficient": 0.5},
        {"max_retries": 1, "max_delay": "soon"},
    ],
    ids=str,
)
def test_s17_wrong_retries_are_refused(arguments):
    """`nbmap.Retries` checks its arguments when it is made."""
    with pytest.raises(nbmap.OptionError):
        nbmap.Retries(**arguments)


def test_s17_another_name_of_the_limit_replaces_it_in_with_options(roomy, folder):
    """A handle with `concurrency=` takes `max_containers=` as its new limit."""
    handle = nbmap.remote(lambda x: x, concurrency=5).with_options(max_containers=2)
    assert repr(handle) == "<nbmap handle <lambda>, concurrency=2>"
    assert list(handle.map([1])) == [1]


def test_s17_an_unknown_option_of_with_options_gets_the_nearest():
    """A mistyped name is refused with the one that was meant."""
    with pytest.raises(nbmap.OptionError, match="timeout"):
        nbmap.remote(abs).with_options(timout=3)
