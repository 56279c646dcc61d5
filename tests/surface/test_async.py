"""Async functions, awaitable twins, and async iterables as inputs."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from helpers.files import (
    GUARD,
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
from helpers.here import in_process

import nbmap


async def double(x):
    await asyncio.sleep(0)
    return 2 * x


def invert(x):
    return 1 / x


async def a_file(folder, name):
    """Wait for a file without blocking the loop."""
    for _ in range(int(GUARD / 0.005)):
        if there(folder, name):
            return
        await asyncio.sleep(0.005)
    msg = f"waited {GUARD:.0f} s for the file {name}"
    raise TimeoutError(msg)


async def numbers(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


class Async:
    """Has a coroutine function as a method, and is one."""

    def __init__(self, by):
        self.by = by

    async def add(self, x):
        await asyncio.sleep(0)
        return x + self.by

    async def __call__(self, x):
        return await self.add(x)


# Coroutines in remote code


def test_s7_coroutine_functions_are_functions(transport):
    """Every way to use a handle gives what the coroutine returns."""
    handle = nbmap.remote(double)
    assert list(handle.map(range(300))) == [2 * x for x in range(300)]
    assert list(handle.starmap([(1,), (2,)])) == [2, 4]
    assert handle(3) == handle.remote(3) == handle.spawn(3).get(timeout=30) == 6
    assert handle.for_each([1, 2]) is None
    assert list(handle.map(iter(range(3)), order_outputs=False)) != []
    assert asyncio.run(handle.local(4)) == 8


def test_s7_methods_objects_and_partials(transport):
    """What is called like a coroutine function is one."""
    import functools

    for function in (Async(5).add, Async(5), functools.partial(Async.add, Async(5))):
        assert list(nbmap.remote(function).map([1, 2])) == [6, 7]


def test_s7_several_awaits_overlap_inside_one_input(transport, folder):
    """`gather` and tasks inside a coroutine go on together: each waits for the other."""

    async def work(x):
        async def side(mine, others):
            touch(folder, f"{x}-{mine}")
            await a_file(folder, f"{x}-{others}")
            return mine

        task = asyncio.create_task(side("c", "a"))
        first = await asyncio.gather(side("a", "b"), side("b", "c"))
        return [*first, await task]

    assert list(nbmap.remote(work).map(range(3))) == [["a", "b", "c"]] * 3


def test_s7_coroutines_of_two_inputs_run_in_parallel(transport, folder):
    """On two workers, neither of which is this process."""

    async def work(x):
        return meet(folder), os.getpid()

    outputs = list(nbmap.remote(work).map(range(20)))
    assert len({who for who, _ in outputs}) == 2
    if transport == "dask":
        assert os.getpid() not in {pid for _, pid in outputs}
        assert len({pid for _, pid in outputs}) == 2


def test_s7_a_slow_coroutine_and_one_that_blocks_do_not_cost_their_worker(own_cluster, folder):
    """Whatever runs in the loop of an input, Dask's own loop goes on: the worker answers."""
    from distributed import worker_client  # noqa: F401 - is there on workers

    async def work(x):
        touch(folder, f"began-{x}")
        while not there(folder, "go"):
            time.sleep(0.005)  # blocks the loop, as bad code does
        return os.getpid()

    with nbmap.connect("local"):
        run = nbmap.remote(work).map(range(2))
        await_file(folder, "began-0")
        await_file(folder, "began-1")
        # A limit of its own: more leases in the same processes, opened by their loops.
        pids = set(
            nbmap.remote(lambda x: meet(folder, 3) and os.getpid(), concurrency=4).map(range(12))
        )
        touch(folder, "go")
        assert pids <= set(run)
    assert run.failures == []


def test_s7_the_loop_is_the_same_for_the_inputs_of_a_lease(transport):
    """What belongs to a loop can be used again by the next input, also after a failure."""

    async def work(x):
        loop = asyncio.get_running_loop()
        loop.seen = getattr(loop, "seen", 0) + 1
        if x == 5:
            raise ValueError(x)
        future = loop.create_future()
        loop.call_later(0.001, future.set_result, x)
        return await future, loop.seen

    outputs = list(nbmap.remote(work, concurrency=1).map(range(10), return_exceptions=True))
    assert [x for x, _ in outputs[:5] + outputs[6:]] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert type(outputs[5].exc) is ValueError
    assert outputs[9][1] == 10


def test_s7_the_traceback_is_the_users(transport):
    """It ends in the coroutine's line, and shows no frame of asyncio or of nbmap's worker side."""

    async def inner(x):
        await asyncio.sleep(0)
        raise KeyError(x)

    async def outer(x):
        return await inner(x)

    run = nbmap.remote(outer).map([1])
    with pytest.raises(KeyError):
        run[0]
    text = run.traceback(0)
    assert text.index("in outer") < text.index("in inner")
    assert "asyncio" not in text.replace("asyncio.sleep", "")
    assert "coroutines.py" not in text


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError("mine"),
        SystemExit(2),
        KeyboardInterrupt(),
        GeneratorExit(),
        TimeoutError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_s7_what_a_coroutine_raises_is_a_failure_of_the_user(transport, error):
    """Also where asyncio means something by it; the lease goes on with its loop."""

    async def work(x):
        if x % 2:
            await asyncio.sleep(0)
            raise error
        return x

    run = nbmap.remote(work, concurrency=1).map(range(6), return_exceptions=True)
    outputs = list(run)
    assert outputs[::2] == [0, 2, 4]
    assert [type(x.exc) for x in outputs[1::2]] == [type(error)] * 3
    assert [f.kind for f in run.failures] == ["user"] * 3


def test_s7_a_task_that_cancels_itself_is_a_failure(transport):
    """`task.cancel()` in user code is the user's; tasks that are left over are nobody's."""

    async def work(x):
        left = asyncio.create_task(asyncio.sleep(100))
        if x == 1:
            asyncio.current_task().cancel()
            await asyncio.sleep(10)
        return left is not None

    run = nbmap.remote(work, concurrency=1).map(range(3), return_exceptions=True)
    outputs = list(run)
    assert (outputs[0], outputs[2]) == (True, True)
    assert type(outputs[1].exc) is asyncio.CancelledError
    assert run.failures[0].kind == "user"


@pytest.mark.parametrize("how", ["awaits", "counts"])
def test_s7_cancel_reaches_a_coroutine(transport, folder, how):
    """One that awaits is cancelled as asyncio does it, one that computes is stopped."""

    async def work(x):
        touch(folder, "began")
        try:
            if how == "counts":
                count_for_ever(folder)
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            touch(folder, "asked")
            raise
        finally:
            touch(folder, "tidied")

    run = nbmap.remote(work).map([0])
    await_file(folder, "began")
    if how == "counts":
        await_file(folder, "counter")
    run.cancel()
    await_file(folder, "tidied")
    assert run.wait(30)
    assert run.status == "cancelled"
    assert there(folder, "asked") == (how == "awaits")
    assert nbmap.remote(double)(4) == 8


def test_s7_a_coroutine_that_does_not_listen_is_stopped_too(folder):
    """One that swallows each CancelledError ends, its `finally` runs, and its slot is free."""

    async def work(x):
        try:
            while True:
                try:
                    touch(folder, "began")
                    await asyncio.sleep(0.002)
                except asyncio.CancelledError:
                    touch(folder, "asked")
        finally:
            touch(folder, "tidied")

    with in_process(1):  # of its own, which stays blocked where this fails
        run = nbmap.remote(work, grace=1).map([0])
        await_file(folder, "began")
        run.cancel()
        await_file(folder, "asked")
        await_file(folder, "tidied")
        assert run.wait(30)
        assert nbmap.remote(double)(4) == 8


def test_s7_a_timeout_reaches_a_coroutine(transport, folder):
    """It is a timeout, and not a cancellation of the user's; the next input has a loop."""

    async def work(x):
        try:
            if x == 1:
                await asyncio.sleep(1000)
            return await double(x)
        finally:
            await asyncio.sleep(0)
            touch(folder, f"tidied-{x}")

    outputs = list(
        nbmap.remote(work, timeout=0.3, concurrency=1).map(range(4), return_exceptions=True)
    )
    assert [*outputs[:1], *outputs[2:]] == [0, 4, 6]
    assert isinstance(outputs[1], nbmap.InputTimeout)
    assert there(folder, "tidied-1")


def test_s7_an_async_generator_awaits_between_its_outputs(transport, folder):
    """It can wait for what the consumer does with the output before."""

    async def work(x):
        for i in range(5):
            yield i
            await a_file(folder, f"had-{i}")

    got = []
    for i in nbmap.remote(work).remote_gen(0):
        got.append(i)
        touch(folder, f"had-{i}")
    assert got == list(range(5))


# .aio


def test_s13_every_blocking_method_has_an_awaitable_twin(transport):
    """Each gives what the blocking one gives."""
    handle, stream = (
        nbmap.remote(lambda x, y=0: x + y),
        nbmap.remote(lambda n: (yield from range(n))),
    )

    async def main():
        assert await handle.remote.aio(3, y=4) == 7
        assert [y async for y in handle.map.aio([1, 2, 3], kwargs={"y": 1})] == [2, 3, 4]
        assert [y async for y in handle.starmap.aio([(1, 2), (3, 4)])] == [3, 7]
        assert await handle.for_each.aio([1, 2]) is None
        assert [y async for y in stream.remote_gen.aio(3)] == [0, 1, 2]
        assert sorted([y async for y in stream.map.aio([2, 1])]) == [0, 0, 1]
        call = await handle.spawn.aio(5, y=1)
        assert await call.get.aio() == await call.get.aio(timeout=10) == await call == 6
        assert await nbmap.gather.aio(call, await handle.spawn.aio(1)) == [6, 1]
        assert await nbmap.gather.aio() == []
        run = handle.map.aio([1, 2, 3])
        assert await run.wait.aio() is True
        assert await run.wait.aio(timeout=0) is True
        assert await run.results.aio() == await run.results.aio(errors="keep") == [1, 2, 3]
        assert sorted([p async for p in run.as_completed.aio()]) == [(0, 1), (1, 2), (2, 3)]
        assert await run == await run == [1, 2, 3]
        assert await handle.map([4, 5]) == [4, 5]
        assert [y async for y in handle.map([4, 5])] == [4, 5]
        assert await stream.map([3]) == [0, 1, 2]
        assert await stream.map([3]).results.aio() == [[0, 1, 2]]
        assert await handle.map.aio(iter([1, 2])) == [1, 2]
        assert await handle.map.aio([]) == []

    asyncio.run(main())


def test_s13_failures_of_the_twins(transport):
    """They raise what the blocking ones raise."""
    handle = nbmap.remote(invert)

    async def main():
        with pytest.raises(ZeroDivisionError):
            await handle.remote.aio(0)
        got = []
        with pytest.raises(ZeroDivisionError):
            async for y in handle.map.aio([1, 0, 2]):
                got.append(y)  # noqa: PERF401
        assert got == [1]
        with pytest.raises(ZeroDivisionError):
            await handle.map([1, 0])
        with pytest.raises(ZeroDivisionError):
            await handle.for_each.aio([1, 0])
        assert await handle.for_each.aio([1, 0], ignore_exceptions=True) is None
        with pytest.raises(ZeroDivisionError):
            await (await handle.spawn.aio(0))
        calls = [await handle.spawn.aio(x) for x in (1, 0, 2)]
        with pytest.raises(ZeroDivisionError):
            await nbmap.gather.aio(*calls)
        values = await nbmap.gather.aio(*calls, return_exceptions=True)
        assert (values[0], type(values[1]), values[2]) == (1, ZeroDivisionError, 0.5)
        run = handle.map.aio([1, 0, 4], return_exceptions=True)
        assert repr(await run) == (
            "[1.0, UserCodeException(ZeroDivisionError('division by zero')), 0.25]"
        )
        with pytest.raises(ZeroDivisionError):
            await run.results.aio()
        assert await run.results.aio(errors="drop") == [1, 0.25]
        with pytest.raises(ValueError, match='"raise"'):
            await run.results.aio(errors="ignore")
        with pytest.raises(TypeError, match="gather takes calls"):
            await nbmap.gather.aio(5)
        with pytest.raises(TypeError, match="not iterable"):
            handle.map.aio(5)
        with pytest.raises(nbmap.RunError, match="keep=True"):
            await handle.map.aio([1, 2], keep=False).results.aio()

    asyncio.run(main())


def test_s13_timeouts_of_the_twins(transport, folder):
    """What waits gives up; the call goes on."""
    handle = nbmap.remote(lambda x: await_file(folder, "go") or x)

    async def main():
        call = await handle.spawn.aio(1)
        with pytest.raises(TimeoutError):
            await call.get.aio(timeout=0.05)
        with pytest.raises(TimeoutError):
            await call.get.aio(timeout=0)
        run = handle.map.aio([1, 2])
        assert await run.wait.aio(timeout=0.05) is False
        assert not run.done()
        touch(folder, "go")
        assert await call == 1
        assert await run == [1, 2]

    asyncio.run(main())


def test_s13_the_loop_goes_on_while_everything_waits(transport, folder):
    """A task of the same loop opens the way for what the others wait for."""

    def work(x):
        await_file(folder, "go")
        return x

    def steps(x):
        yield x
        await_file(folder, "go")
        yield -x

    handle, stream = nbmap.remote(work, concurrency=8), nbmap.remote(steps, concurrency=2)
    if transport == "in-process":
        handle, stream = nbmap.remote(work), nbmap.remote(steps)

    async def main():
        async def opener():
            for _ in range(50):
                await asyncio.sleep(0.002)
            touch(folder, "go")

        async def stream_all():
            return [y async for y in stream.remote_gen.aio(3)]

        run, kept = handle.map.aio([1, 2]), handle.map([3])
        outputs = await asyncio.gather(
            opener(),
            handle.remote.aio(0),
            handle.for_each.aio([1]),
            run.wait.aio(),
            run.results.aio(),
            run,
            kept,
            stream_all(),
        )
        assert outputs == [None, 0, None, True, [1, 2], [1, 2], [3], [3, -3]]

    asyncio.run(main())


def test_s13_remote_aio_overlaps(transport, folder):
    """gather, TaskGroup, wait_for and as_completed over `.remote.aio` run side by side."""

    def handle(name):
        return nbmap.remote(lambda x: (meet(f"{folder}/{name}"), x)[1])

    for name in ("gather", "group", "wait_for", "as_completed"):
        Path(folder, name).mkdir()

    async def main():
        one = handle("gather")
        assert await asyncio.gather(*(one.remote.aio(x) for x in range(6))) == list(range(6))
        one = handle("group")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.remote.aio(x)) for x in range(6)]
        assert [task.result() for task in tasks] == list(range(6))
        one = handle("wait_for")
        waits = (asyncio.wait_for(one.remote.aio(x), GUARD) for x in range(6))
        assert await asyncio.gather(*waits) == list(range(6))
        one = handle("as_completed")
        done = asyncio.as_completed([one.remote.aio(x) for x in range(6)])
        assert sorted([await next_one for next_one in done]) == list(range(6))

    asyncio.run(main())


def test_s13_one_failure_does_not_break_the_others(transport):
    """Under gather with values, and in tasks of their own."""
    handle = nbmap.remote(invert)

    async def main():
        calls = (handle.remote.aio(x) for x in (1, 0, 2, 0, 4))
        outputs = await asyncio.gather(*calls, return_exceptions=True)
        assert [*outputs[:1], *outputs[2::2]] == [1, 0.5, 0.25]
        assert [type(x) for x in outputs[1::2]] == [ZeroDivisionError] * 2
        tasks = [asyncio.create_task(handle.remote.aio(x)) for x in (0, 1)]
        assert await tasks[1] == 1
        with pytest.raises(ZeroDivisionError):
            await tasks[0]

    asyncio.run(main())


@pytest.mark.parametrize(
    "way",
    ["remote", "call", "iterate", "await", "for_each", "remote_gen", "wait_for", "group", "gather"],
)
def test_s13_cancelling_the_task_cancels_what_it_waits_for(transport, folder, way):
    """The function really stops: what it counts stands still."""
    handle = nbmap.remote(count_for_ever)

    def counting(x):
        yield x
        count_for_ever(folder)

    async def wait():
        if way in {"remote", "wait_for", "group"}:
            await handle.remote.aio(folder)
        elif way == "call":
            await (await handle.spawn.aio(folder)).get.aio()
        elif way == "gather":
            await nbmap.gather.aio(await handle.spawn.aio(folder))
        elif way == "iterate":
            async for _ in handle.map.aio([folder]):
                pass
        elif way == "await":
            await handle.map([folder])
        elif way == "for_each":
            await handle.for_each.aio([folder])
        else:
            async for _ in nbmap.remote(counting).remote_gen.aio(1):
                pass

    async def fail():
        await a_file(folder, "counter")
        raise LookupError

    async def main():
        if way == "group":
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(wait())
                    group.create_task(fail())
            return
        task = asyncio.create_task(asyncio.wait_for(wait(), 1) if way == "wait_for" else wait())
        await a_file(folder, "counter")
        if way != "wait_for":
            task.cancel()
        with pytest.raises(TimeoutError if way == "wait_for" else asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stands_still(folder)
    wait_until(lambda: nbmap.status().runs == 0, "the run to end")


def test_s13_leaving_an_async_loop_closes_the_generator(transport, folder):
    """`aclose` of what `remote_gen.aio` gives, and the end of its loop, run the `finally`."""

    def work(x):
        try:
            yield x
            count_for_ever(folder, f"count-{x}")
        finally:
            touch(folder, f"tidied-{x}")

    handle = nbmap.remote(work)

    async def main():
        outputs = handle.remote_gen.aio(1)
        assert await anext(outputs) == 1
        await a_file(folder, "count-1")
        await outputs.aclose()
        await a_file(folder, "tidied-1")
        async for _ in handle.remote_gen.aio(2):
            await a_file(folder, "count-2")
            break

    asyncio.run(main())
    await_file(folder, "tidied-2")


def test_s13_outputs_are_handed_out_while_the_generator_runs(transport, folder):
    """Between yields it waits until the task has had the output before."""

    def work(x):
        for i in range(5):
            yield i
            await_file(folder, f"had-{i}")

    async def main():
        got = []
        async for i in nbmap.remote(work).remote_gen.aio(0):
            got.append(i)
            touch(folder, f"had-{i}")
        assert got == list(range(5))

    asyncio.run(main())


def test_s13_calls_before_there_is_a_loop(transport):
    """A twin may be made outside a loop, and awaited in one."""
    handle = nbmap.remote(abs)
    run = handle.map.aio([-1, -2])

    async def main():
        return await run

    assert asyncio.run(main()) == [1, 2]
    assert list(handle.map.aio(numbers(3))) == [0, 1, 2]


def test_s13_a_run_is_awaited_in_two_loops(transport):
    """A kept run belongs to no loop."""
    run = nbmap.remote(abs).map([-1, -2])

    async def main():
        return await run

    assert asyncio.run(main()) == asyncio.run(main()) == list(run) == [1, 2]


def test_s13_many_waiters_in_one_loop(transport, folder):
    """Two hundred tasks that wait for calls, and two iterating one run, all get their own."""
    handle = nbmap.remote(lambda x: x)

    async def main():
        outputs = await asyncio.gather(*(handle.remote.aio(x) for x in range(200)))
        assert outputs == list(range(200))
        run = handle.map(range(500))
        one, other = await asyncio.gather(run, run.results.aio())
        assert one == other == list(range(500))

    asyncio.run(main())


def test_s13_blocking_forms_inside_a_running_loop(transport):
    """In a notebook's cell, which runs in a loop, every blocking form works."""
    handle, stream = nbmap.remote(double), nbmap.remote(numbers)

    async def cell():
        assert handle(2) == handle.remote(2) == handle.spawn(2).get() == 4
        assert list(handle.map([1, 2])) == handle.map([1, 2]).results() == [2, 4]
        assert handle.for_each([1]) is None
        assert list(stream(3)) == list(stream.map([3])) == [0, 1, 2]
        assert nbmap.gather(handle.spawn(1), handle.spawn(2)) == [2, 4]
        assert list(handle.map(numbers(3))) == [0, 2, 4]
        assert handle.map([1]).wait()

    asyncio.run(cell())


# Inputs


def test_s13_sync_and_async_iterables_are_inputs_of_both_forms(transport):
    """Alone, beside each other, and spread over the arguments."""
    handle = nbmap.remote(lambda x, y=0: (x, y))

    async def pairs(n):
        for i in range(n):
            yield i, -i

    expected, both = [(0, 0), (1, 0), (2, 0)], [(0, 5), (1, 6)]
    assert list(handle.map(numbers(3))) == expected
    assert list(handle.starmap(pairs(3))) == [(0, 0), (1, -1), (2, -2)]
    assert list(handle.map(numbers(3), [5, 6])) == list(handle.map([0, 1], numbers_from(5))) == both
    assert handle.map(numbers(3), keep=True).results() == expected
    assert handle.for_each(numbers(3)) is None

    async def main():
        assert await handle.map.aio(numbers(3)) == await handle.map.aio(range(3)) == expected
        assert [y async for y in handle.starmap.aio(pairs(2))] == [(0, 0), (1, -1)]
        assert await handle.starmap.aio([(1, 2)]) == [(1, 2)]
        assert await handle.map.aio(numbers(3), [5, 6]) == both
        assert await handle.map.aio([0, 1], numbers_from(5)) == both
        assert await handle.for_each.aio(numbers(3)) is None
        assert await handle.map.aio(x for x in range(3)) == expected

    asyncio.run(main())


async def numbers_from(n):
    while True:
        yield n
        n += 1


@pytest.mark.parametrize("twin", [True, False])
def test_s13_in_which_loop_async_inputs_are_read(transport, twin):
    """Of `.aio` in the caller's, of the blocking form in one elsewhere; from first to last."""
    seen = set()

    async def inputs():
        for i in range(50):
            await asyncio.sleep(0)
            seen.add((asyncio.get_running_loop(), threading.get_ident()))
            yield i
        seen.add((asyncio.get_running_loop(), threading.get_ident()))

    handle = nbmap.remote(lambda x: x)

    async def main():
        here = (asyncio.get_running_loop(), threading.get_ident())
        if twin:
            assert await handle.map.aio(inputs()) == list(range(50))
            assert seen == {here}
        else:
            assert list(handle.map(inputs())) == list(range(50))
            assert len(seen) == 1
            assert here not in seen

    asyncio.run(main())


def test_s13_async_inputs_that_come_late_delay_nothing(transport, folder):
    """Outputs of what was read are handed out while the next input is awaited."""

    async def inputs():
        for i in range(5):
            yield i
            await a_file(folder, f"had-{i}")

    handle = nbmap.remote(lambda x: x)
    got = []
    for x in handle.map(inputs()):
        got.append(x)
        touch(folder, f"had-{x}")
    assert got == list(range(5))
    for x in range(5):
        Path(folder, f"had-{x}").unlink()

    async def main():
        got = []
        async for x in handle.map.aio(inputs()):
            got.append(x)
            touch(folder, f"had-{x}")
        assert got == list(range(5))

    asyncio.run(main())


def test_s13_async_inputs_that_raise(transport):
    """What was read before is delivered, then the exception comes."""

    async def inputs():
        yield 1
        await asyncio.sleep(0)
        yield 2
        raise LookupError("no more")

    handle, got = nbmap.remote(lambda x: x), []
    with pytest.raises(LookupError, match="no more"):
        got.extend(handle.map(inputs()))

    async def main():
        async for x in handle.map.aio(inputs()):
            got.append(x)  # noqa: PERF401

    with pytest.raises(LookupError, match="no more"):
        asyncio.run(main())
    assert got == [1, 2, 1, 2]


def test_s13_async_inputs_are_read_only_as_far_as_needed(transport, folder):
    """An endless one under a loop that is left; nothing is left of it."""

    async def inputs():
        i = 0
        while True:
            record(folder, "read")
            yield i
            i += 1

    handle = nbmap.remote(lambda x: x)
    for x in handle.map(inputs()):
        if x == 10:
            break
    n = len(recorded(folder))

    async def main():
        async for x in handle.map.aio(inputs()):
            if x == 10:
                break

    asyncio.run(main())
    assert n < 10_000
    assert len(recorded(folder)) < 20_000


@pytest.mark.parametrize("nap", [0.001, 0])
def test_s13_the_loop_of_the_inputs_ends_before_they_do(transport, nap):
    """What was read is delivered; the run ends with an error that says why, and does not hang.

    At whatever moment: a loop that ends closes generators, and those look like at their end.
    """
    handle = nbmap.remote(lambda x: x)

    async def inputs():
        async for i in numbers_from(0):
            await asyncio.sleep(nap)
            yield i

    async def main():
        run = handle.map.aio(inputs(), keep=True)
        while not run.counts["done"]:
            await asyncio.sleep(0.01)
        return run

    for _ in range(6):
        run, got = asyncio.run(main()), []
        assert run.wait(30)
        with pytest.raises(RuntimeError, match="loop"):
            got.extend(run)
        assert got == list(range(len(got)))
        assert got


@pytest.mark.parametrize("twin", [True, False])
def test_s13_async_inputs_that_were_not_read_to_their_end_are_closed(transport, folder, twin):
    """Their `finally` runs, in the loop that read them, and nothing is complained of."""

    async def inputs():
        try:
            async for i in numbers_from(0):
                yield i
        finally:
            touch(folder, "closed")

    # A grace of its own: the run is let go of when that is over.
    handle = nbmap.remote(lambda x: x, grace=0.1)

    async def main():
        if twin:
            async for x in handle.map.aio(inputs()):
                if x == 3:
                    break
        else:
            for x in handle.map(inputs()):
                if x == 3:
                    break
        for _ in range(4):
            await asyncio.sleep(0.1)
            gc.collect()

    gc.collect()  # what others left
    complaints = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda told: complaints.append(f"{told.exc_value!r} in {told.object!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio.run(main())
            for _ in range(3):
                time.sleep(0.1)
                gc.collect()
            await_file(folder, "closed")
            gc.collect()
    finally:
        sys.unraisablehook = before
    assert complaints == []


# A cold cluster

COLD = """
import asyncio
import sys
import time

import nbmap


async def main():
    ticks, longest = 0, 0.0

    async def ticker():
        nonlocal ticks, longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            ticks, longest, last = ticks + 1, max(longest, now - last), now

    task = asyncio.create_task(ticker())
    await asyncio.sleep(0.05)
    before, began = ticks, time.perf_counter()
    assert "distributed" not in sys.modules
    way = sys.argv[1]
    handle = nbmap.remote(lambda x: x)
    if way == "remote":
        assert await handle.remote.aio(3) == 3
    elif way == "map":
        assert [y async for y in handle.map.aio([1, 2])] == [1, 2]
    elif way == "spawn":
        assert await (await handle.spawn.aio(3)) == 3
    elif way == "gather":
        assert await asyncio.gather(*(handle.remote.aio(x) for x in range(5))) == [0, 1, 2, 3, 4]
    elif way == "for_each":
        await handle.for_each.aio([1, 2])
    else:
        stream = nbmap.remote(lambda n: (yield from range(n)))
        assert [y async for y in stream.remote_gen.aio(3)] == [0, 1, 2]
    took = time.perf_counter() - began
    task.cancel()
    print(ticks - before, took, longest)


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["gather", "map", "remote_gen"])
def test_s13_a_cold_start_does_not_block_the_loop(tmp_path, way):
    """A task of the same loop keeps counting while our own cluster is started."""
    path = tmp_path / "cold.py"
    path.write_text(COLD)
    command = [sys.executable, os.fspath(path), way]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3 * GUARD, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ticks, took, longest = map(float, done.stdout.split())
    # Blocked for as long as it takes, it would count once; imports elsewhere take turns with it.
    assert ticks > 20, (ticks, took, longest)
    assert longest < took / 2, (ticks, took, longest)
