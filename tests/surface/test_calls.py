"""Calls that were started and go on: spawn, gather, for_each; handles used by several threads."""

import asyncio
import logging
import os
import threading
import time

import pytest
from helpers.files import (
    await_file,
    count_for_ever,
    meet,
    record,
    recorded,
    stands_still,
    there,
    touch,
    wait_until,
)
from helpers.interrupts import interrupt_when

import nbmap


def waits(folder, name, value=None):
    """Say that it runs, wait for a file, return."""
    touch(folder, f"{name}-runs")
    await_file(folder, name)
    return value


def fails(message="ohno"):
    """Fail in the user's way."""
    raise LookupError(message)


def test_s14_spawn_returns_at_once_and_get_has_the_output(transport, folder):
    """A call has started before its output is asked for; asked twice it says the same."""
    call = nbmap.remote(waits).spawn(folder, "go", value=[1])
    await_file(folder, "go-runs")
    assert not call.done()
    assert call.running()
    touch(folder, "go")
    assert call.get(timeout=20) == [1]
    assert call.get() == call.result() == call.result(5) == [1]
    assert (call.done(), call.running(), call.cancelled()) == (True, False, False)
    assert call.exception() is None


def test_s14_the_function_of_a_call_runs_once_however_often_it_is_asked(transport, folder):
    """Asking from several threads at once gives all of them the output of one attempt."""
    call = nbmap.remote(lambda x: record(folder, x) or x + 1).spawn(1)
    out = []
    threads = [threading.Thread(target=lambda: out.append(call.get(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == [2] * 8
    assert recorded(folder) == ["1"]


def test_s14_get_with_zero_looks_and_the_call_goes_on(transport, folder):
    """`get(timeout=0)` raises the builtin TimeoutError until there is an output."""
    call = nbmap.remote(waits).spawn(folder, "go", value=3)
    for ask in (call.get, call.result, call.exception):
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError) as caught:
                ask(timeout=timeout)
            assert type(caught.value) is TimeoutError
            assert "goes on" in str(caught.value)
    assert not call.done()
    touch(folder, "go")
    wait_until(call.done, "the call to end")
    assert call.get(timeout=0) == 3
    assert call.exception(timeout=0) is None


@pytest.mark.parametrize("timeout", ["soon", [1], "1"])
def test_s14_a_timeout_that_is_no_number_is_refused(transport, timeout):
    """A wrong `timeout` of get is refused with a sentence, and the call goes on."""
    call = nbmap.remote(abs).spawn(-3)
    with pytest.raises(TypeError, match="timeout"):
        call.get(timeout=timeout)
    assert call.get() == 3


def test_s14_a_failed_call_raises_the_users_exception(transport):
    """`get` raises it each time, `exception` returns it; a TimeoutError of the user's is told apart."""
    call = nbmap.remote(fails).spawn("this")
    for _ in range(2):
        with pytest.raises(LookupError, match="this"):
            call.get()
    assert type(call.exception()) is LookupError
    assert call.done()
    assert not call.cancelled()

    def late():
        raise TimeoutError("mine")

    call = nbmap.remote(late).spawn()
    with pytest.raises(TimeoutError, match="mine"):
        call.get()
    assert str(call.exception(timeout=0)) == "mine"


def test_s14_cancel_stops_the_function(transport, folder):
    """A cancelled call's function stands still; the call says that it was cancelled."""
    call = nbmap.remote(count_for_ever).spawn(folder)
    await_file(folder, "counter")
    assert call.cancel() is True
    with pytest.raises(nbmap.InputCancelled):
        call.get()
    with pytest.raises(nbmap.InputCancelled):
        call.exception()
    assert (call.done(), call.running(), call.cancelled()) == (True, False, True)
    assert stands_still(folder)
    assert call.cancel() is False


def test_s14_cancelling_what_has_ended_changes_nothing(transport):
    """After the end `cancel` says False, and the output stays."""
    call = nbmap.remote(abs).spawn(-2)
    assert call.get() == 2
    assert call.cancel() is False
    assert call.get() == 2
    assert not call.cancelled()


def test_s14_cancelling_what_waits_means_it_never_runs(transport, folder):
    """A call that is cancelled before its turn does not run its function."""
    handle = nbmap.remote(lambda name: record(folder, name) or waits(folder, name), concurrency=1)
    first = handle.spawn("first")
    await_file(folder, "first-runs")
    second, third = handle.spawn("second"), handle.spawn("third")
    assert second.cancel()
    with pytest.raises(nbmap.InputCancelled):
        second.get(timeout=10)
    touch(folder, "first")
    touch(folder, "third")
    first.get()
    third.get()
    assert recorded(folder) == ["first", "third"]


def test_s14_callbacks_are_called_once_with_the_call(transport, folder):
    """Those added before the end are called at the end, those added after it as well."""
    call = nbmap.remote(waits).spawn(folder, "go", value=5)
    seen = []
    for name in "ab":
        call.add_done_callback(lambda c, name=name: seen.append((name, c is call, c.get(0))))
    assert seen == []
    touch(folder, "go")
    wait_until(lambda: len(seen) == 2, "two callbacks")
    call.add_done_callback(lambda c: seen.append(("c", c is call, c.get(0))))
    wait_until(lambda: len(seen) == 3, "the third callback")
    assert seen == [("a", True, 5), ("b", True, 5), ("c", True, 5)]


def test_s14_callbacks_of_calls_that_fail_or_are_cancelled_are_called_too(transport, folder):
    """How a call ended makes no difference to its callbacks."""
    failed, stopped = nbmap.remote(fails).spawn(), nbmap.remote(count_for_ever).spawn(folder)
    seen = []
    failed.add_done_callback(lambda c: seen.append(type(c.exception()).__name__))
    stopped.add_done_callback(lambda c: seen.append(c.cancelled()))
    await_file(folder, "counter")
    stopped.cancel()
    wait_until(lambda: len(seen) == 2, "both callbacks")
    assert sorted(map(str, seen)) == ["LookupError", "True"]


def test_s14_a_callback_that_raises_is_logged_and_harms_nobody(transport, caplog):
    """The next callbacks are called, the output stays, and the log names what was raised."""
    call = nbmap.remote(abs).spawn(-1)
    seen = []

    def broken(_):
        raise ZeroDivisionError("of the callback")

    with caplog.at_level(logging.ERROR, "nbmap"):
        call.add_done_callback(broken)
        call.add_done_callback(seen.append)
        wait_until(lambda: seen, "the second callback")
    assert call.get() == 1
    assert "of the callback" in caplog.text


def test_s14_a_callback_may_start_the_next_call(transport):
    """A callback that spawns and waits does not deadlock anything."""
    handle = nbmap.remote(lambda x: x + 1)
    out = []
    handle.spawn(1).add_done_callback(lambda c: out.append(handle.spawn(c.get()).get()))
    wait_until(lambda: out, "the second call")
    assert out == [3]


def test_s14_a_call_can_be_awaited(transport, folder):
    """`await call` has the output or raises; the loop goes on meanwhile; twice gives the same."""

    async def main():
        call = await nbmap.remote(waits).spawn.aio(folder, "go", value="out")
        beats = 0

        async def beat():
            nonlocal beats
            while not there(folder, "go-runs"):
                await asyncio.sleep(0.001)
            for _ in range(5):
                beats += 1
                await asyncio.sleep(0)
            touch(folder, "go")

        beating = asyncio.create_task(beat())
        assert await call == "out"
        await beating
        assert beats == 5
        assert await call == await call.get.aio() == await call.get.aio(timeout=1) == "out"
        with pytest.raises(LookupError, match="ohno"):
            await nbmap.remote(fails).spawn()

    asyncio.run(asyncio.wait_for(main(), 50))


def test_s14_awaiting_with_a_timeout_leaves_the_call_going(transport, folder):
    """`get.aio(timeout=0)` raises TimeoutError like `get`, and the output can be awaited later."""

    async def main():
        call = nbmap.remote(waits).spawn(folder, "go", value=1)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                await call.get.aio(timeout=timeout)
        touch(folder, "go")
        assert await call == 1

    asyncio.run(asyncio.wait_for(main(), 50))


def test_s14_the_repr_says_whose_call_it_is_and_where_it_stands(transport, folder):
    """Running, done, failed or cancelled, in a repr of one line."""
    call = nbmap.remote(waits, name="my call").spawn(folder, "go")
    shown = [repr(call)]
    touch(folder, "go")
    call.get()
    shown.append(repr(call))
    failed = nbmap.remote(fails).spawn()
    wait_until(failed.done)
    stopped = nbmap.remote(count_for_ever).spawn(folder)
    stopped.cancel()
    wait_until(stopped.done)
    shown += [repr(failed), repr(stopped)]
    for text, word in zip(shown, ("running", "done", "failed", "cancelled"), strict=True):
        assert word in text
        assert text.isprintable()
    assert "my call" in shown[0]
    assert "fails" in shown[2]


def test_s14_a_dropped_call_goes_on(transport, folder):
    """Nobody has to hold a call for its function to run to the end."""
    nbmap.remote(lambda: record(folder, "ran")).spawn()
    wait_until(lambda: recorded(folder) == ["ran"], "the call to run")


def test_s14_a_failing_call_is_named_as_it_was_written(transport):
    """The note says `f(1, 'b', k=3)`, and not the tuple of tuples that it travels as."""

    @nbmap.remote
    def work(*args, **kwargs):
        raise LookupError("ohno")

    with pytest.raises(LookupError) as caught:
        work(1, "b", k=3)
    for error in (caught.value, work.spawn(1, "b", k=3).exception()):
        notes = " ".join(error.__notes__)
        assert "work(1, 'b', k=3)" in notes
        assert "((1," not in notes


def test_s14_gather_gives_the_outputs_in_the_order_given(transport, folder):
    """The order of the arguments counts, not that of the ends; no calls give an empty list."""
    handle = nbmap.remote(waits, concurrency=2)
    first, second = handle.spawn(folder, "one", 1), handle.spawn(folder, "two", 2)
    touch(folder, "two")
    assert second.get() == 2
    touch(folder, "one")
    assert nbmap.gather(first, second) == [1, 2]
    assert nbmap.gather(second, first, second) == [2, 1, 2]
    assert nbmap.gather() == []
    assert nbmap.gather(return_exceptions=True) == []


def test_s14_gather_raises_the_first_failure_at_once_and_the_others_go_on(transport, folder):
    """While another call, given before it, still runs."""
    slow = nbmap.remote(waits).spawn(folder, "go", 1)
    await_file(folder, "go-runs")
    with pytest.raises(LookupError, match="first"):
        nbmap.gather(slow, nbmap.remote(fails).spawn("first"))
    assert slow.running()
    touch(folder, "go")
    assert slow.get() == 1


def test_s14_gather_returns_exceptions_at_their_places(transport):
    """With `return_exceptions=True` a failure is a value, a cancelled call's too."""
    stopped = nbmap.remote(abs).spawn(-1)
    failed = nbmap.remote(fails).spawn("this")
    out = nbmap.gather(failed, stopped, return_exceptions=True)
    assert type(out[0]) is LookupError
    assert out[1] == 1


def test_s14_gather_tells_of_a_cancelled_call(transport, folder):
    """As a value where exceptions are returned, raised where they are not."""
    stopped, done = nbmap.remote(count_for_ever).spawn(folder), nbmap.remote(abs).spawn(-1)
    await_file(folder, "counter")
    stopped.cancel()
    out = nbmap.gather(stopped, done, return_exceptions=True)
    assert type(out[0]) is nbmap.InputCancelled
    assert out[1] == 1
    with pytest.raises(nbmap.InputCancelled):
        nbmap.gather(done, stopped)


@pytest.mark.parametrize("thing", [3, None, "run", "handle", "list"])
def test_s14_gather_takes_calls_and_nothing_else(transport, thing):
    """Anything else is refused with a sentence that names it."""
    handle = nbmap.remote(abs)
    call = handle.spawn(-1)
    things = {"run": handle.map([]), "handle": handle, "list": [call]}
    with pytest.raises(TypeError, match="spawn"):
        nbmap.gather(call, things.get(thing, thing))
    with pytest.raises(TypeError, match="spawn"):
        asyncio.run(nbmap.gather.aio(call, things.get(thing, thing)))
    assert call.get() == 1


def test_s14_gather_can_be_awaited(transport, folder):
    """In order; the first failure at once while the others go on; exceptions as values."""

    async def main():
        handle = nbmap.remote(waits, concurrency=2)
        one, two = handle.spawn(folder, "one", 1), handle.spawn(folder, "two", 2)
        touch(folder, "two")
        assert await two == 2
        failed = nbmap.remote(fails).spawn("first")
        with pytest.raises(LookupError, match="first"):
            await nbmap.gather.aio(one, failed, two)
        touch(folder, "one")
        assert await nbmap.gather.aio(one, two) == [1, 2]
        assert await nbmap.gather.aio() == []
        out = await nbmap.gather.aio(two, failed, return_exceptions=True)
        assert out[0] == 2
        assert type(out[1]) is LookupError

    asyncio.run(asyncio.wait_for(main(), 50))


def test_s14_awaited_gather_leaves_the_others_going_after_a_failure(transport, folder):
    """A call beside the one that failed has its output in the end."""

    async def main():
        slow = nbmap.remote(waits).spawn(folder, "go", 1)
        with pytest.raises(LookupError):
            await nbmap.gather.aio(slow, nbmap.remote(fails).spawn())
        await asyncio.sleep(0)
        assert slow.running()
        touch(folder, "go")
        assert await slow == 1

    asyncio.run(asyncio.wait_for(main(), 50))


def test_s14_for_each_waits_for_all_and_returns_none(transport, folder):
    """Every input has been called when it returns; what the function returns is dropped."""
    handle = nbmap.remote(lambda x, y=0, k=0: record(folder, (x, y, k)) or x)
    assert handle.for_each(range(30)) is None
    assert len(recorded(folder)) == 30
    assert handle.for_each(iter([100]), [7], kwargs={"k": 1}) is None
    assert recorded(folder)[-1] == "(100, 7, 1)"
    assert handle.for_each([]) is None


def test_s14_for_each_raises_what_the_function_raised(transport, folder):
    """As the user's own exception, and the handle works afterwards."""
    handle = nbmap.remote(lambda x: 1 / x)
    with pytest.raises(ZeroDivisionError):
        handle.for_each([1, 0, 2])
    assert handle.for_each([1, 2]) is None


def test_s14_for_each_can_ignore_exceptions(transport, folder):
    """With `ignore_exceptions=True` all inputs are called, and nothing is raised."""
    handle = nbmap.remote(lambda x: record(folder, x) or 1 / (x % 2))
    assert handle.for_each(range(20), ignore_exceptions=True) is None
    assert len(recorded(folder)) == 20


def test_s14_for_each_of_a_generator_runs_it_to_its_end(transport, folder):
    """The outputs are dropped, the body runs to the end."""

    @nbmap.remote
    def count(n):
        yield from range(n)
        record(folder, n)

    assert count.for_each([0, 3, 5]) is None
    assert sorted(recorded(folder)) == ["0", "3", "5"]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_s14_ignore_exceptions_is_true_or_false(transport, value):
    """Anything else is refused by name."""
    with pytest.raises(nbmap.OptionError, match="ignore_exceptions"):
        nbmap.remote(abs).for_each([1], ignore_exceptions=value)


def test_s14_for_each_can_be_awaited(transport, folder):
    """`for_each.aio` is the same without blocking, and raises the same."""

    async def main():
        handle = nbmap.remote(lambda x: record(folder, x) or 1 / x)
        assert await handle.for_each.aio([1, 2]) is None
        with pytest.raises(ZeroDivisionError):
            await handle.for_each.aio([0])
        assert await handle.for_each.aio([0], ignore_exceptions=True) is None

    asyncio.run(asyncio.wait_for(main(), 50))
    assert sorted(recorded(folder)) == ["0", "0", "1", "2"]


@pytest.mark.parametrize("method", ["spawn", "remote"])
def test_s14_calls_of_a_generator_function_name_remote_gen(transport, method):
    """A call has one output; of a generator's handle it is refused, and says what to use."""

    @nbmap.remote
    def count(n):
        yield from range(n)

    with pytest.raises(TypeError, match="remote_gen"):
        getattr(count, method)(3)
    with pytest.raises(TypeError, match="remote_gen"):
        asyncio.run(getattr(count, method).aio(3))
    assert list(count.remote_gen(3)) == [0, 1, 2]


def test_s14_one_handle_is_used_from_several_threads_at_once(transport, folder):
    """Calls, spawned calls, maps and for_each from eight threads have each their own outputs."""
    handle = nbmap.remote(lambda x: x * 2)
    out, errors = {}, []

    def use(n):
        try:
            call = handle.spawn(n)
            out[n] = (
                handle(n),
                list(handle.map(range(n, n + 20))),
                call.get(),
                handle.for_each([n]),
                nbmap.gather(*[handle.spawn(n + i) for i in range(3)]),
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert out == {
        n: (
            2 * n,
            [2 * x for x in range(n, n + 20)],
            2 * n,
            None,
            [2 * n, 2 * n + 2, 2 * n + 4],
        )
        for n in range(8)
    }


def test_s14_calls_run_at_once(transport, folder):
    """Two spawned calls meet; on the cluster in two processes, and not in this one."""
    handle = nbmap.remote(lambda: (meet(folder, 2), os.getpid())[1])
    pids = set(nbmap.gather(handle.spawn(), handle.spawn()))
    if transport == "dask":
        assert len(pids) == 2
        assert os.getpid() not in pids


def test_s14_exception_can_be_awaited(transport):
    """As everything that blocks."""

    @nbmap.remote
    def invert(x):
        return 1 / x

    async def main():
        return [await invert.spawn(x).exception.aio() for x in (0, 2)]

    error, nothing = asyncio.run(main())
    assert isinstance(error, ZeroDivisionError)
    assert nothing is None


def test_s14_an_interrupt_of_gather_cancels_the_calls(transport, folder):
    """As an interrupt of whatever waits for a run does."""

    @nbmap.remote
    def endless(x):
        touch(folder, str(x))
        while True:
            time.sleep(0.005)

    calls = [endless.spawn(x) for x in range(2)]

    thread = interrupt_when(lambda: there(folder, "0"))
    with pytest.raises(KeyboardInterrupt):
        nbmap.gather(*calls)
    thread.join(60)
    for call in calls:
        with pytest.raises(nbmap.InputCancelled):
            call.get(timeout=60)
