"""Generator functions: what they yield is handed out while they run."""

import asyncio
import functools
import itertools
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
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

MEGABYTE = 1 << 20


def count(n):
    yield from range(n)


async def count_async(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@pytest.fixture(params=["def", "async def"])
def counter(request):
    """A handle that yields the numbers below its input: a generator function of either kind."""
    return nbmap.remote(count if request.param == "def" else count_async)


class Steps:
    """Has a method that is a generator function."""

    def __init__(self, step):
        self.step = step

    def up(self, n):
        for i in range(n):
            yield i * self.step

    def __call__(self, n):
        yield from self.up(n)


class OnlyThere:
    """Can be pickled, and not unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("not here")


def tidy(folder, endless=True):
    """Return a handle whose generator yields for ever, and leaves a file when it is closed."""

    def work(x):
        try:
            yield x
            touch(folder, f"began-{x}")
            if endless:
                for n in itertools.count():
                    time.sleep(0.002)
                    yield n
            count_for_ever(folder, f"count-{x}")
        finally:
            touch(folder, f"tidied-{x}")

    return nbmap.remote(work)


# What runs, and what comes when


def test_s6_one_generator_per_input_in_parallel(transport, folder):
    """The body is started once for each input, two at once, equal inputs included."""

    @nbmap.remote
    def work(x):
        record(folder, x)
        who = meet(folder)
        for i in range(3):
            yield x, i, os.getpid(), who

    inputs = [1, 2, 2, 2, 3, 1]
    outputs = list(work.map(inputs))

    assert sorted(recorded(folder)) == sorted(map(str, inputs))
    assert sorted(output[:2] for output in outputs) == sorted(
        (x, i) for x in inputs for i in range(3)
    )
    assert len({who for *_, who in outputs}) == 2
    if transport == "dask":
        pids = {pid for _, _, pid, _ in outputs}
        assert len(pids) == 2
        assert os.getpid() not in pids


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_s6_outputs_are_handed_out_while_their_generator_runs(transport, folder, keep, kind):
    """Between yields the generator waits until the consumer has had the output before."""

    def plain(x):
        for i in range(10):
            yield x, i
            await_file(folder, f"had-{x}-{i}")
        touch(folder, f"ended-{x}")

    async def coroutine(x):
        for i in range(10):
            yield x, i
            while not there(folder, f"had-{x}-{i}"):
                await asyncio.sleep(0.002)
        touch(folder, f"ended-{x}")

    got = []
    for x, i in nbmap.remote(plain if kind == "def" else coroutine).map([7, 8], keep=keep):
        got.append((x, i))
        assert not there(folder, f"ended-{x}")
        touch(folder, f"had-{x}-{i}")
    assert sorted(got) == [(x, i) for x in (7, 8) for i in range(10)]


@pytest.mark.parametrize("keep", [True, False])
def test_s6_a_fast_ones_outputs_overtake_a_slow_ones(transport, folder, keep):
    """All outputs of the second input come while the first waits for them; each one's in order."""

    @nbmap.remote
    def work(x):
        yield x, 0
        if x == "slow":
            await_file(folder, "fast-is-through")
        for i in range(1, 50):
            yield x, i

    got = []
    for output in work.map(["slow", "fast"], keep=keep):
        got.append(output)
        if output == ("fast", 49):
            touch(folder, "fast-is-through")
    assert [i for x, i in got if x == "slow"] == list(range(50))
    assert [i for x, i in got if x == "fast"] == list(range(50))
    assert got.index(("fast", 49)) < got.index(("slow", 1))


@pytest.mark.parametrize("keep", [True, False])
def test_s6_unequal_numbers_none_and_nothing(transport, keep):
    """Zero outputs are none, None is an output, and what the generator returns is none."""

    @nbmap.remote
    def work(n):
        for i in range(n):
            yield None if i % 2 else (n, i)
        return "not an output"

    got = list(work.map([0, 5, 0, 1, 2, 0], keep=keep))
    assert got.count(None) == 3
    assert "not an output" not in got
    for n in (1, 2, 5):
        own = [output for output in got if output is not None and output[0] == n]
        assert own == [(n, i) for i in range(0, n, 2)]
    assert len(got) == 8
    assert list(work.map([0, 0], keep=keep)) == list(work.map([], keep=keep)) == []
    assert work.map([0, 3], keep=True).results() == [[], [(3, 0), None, (3, 2)]]


@pytest.mark.parametrize("keep", [True, False])
def test_s6_a_sum_over_all_is_exact(transport, counter, keep):
    """Of 60 generators with up to 2000 outputs none is missed and none comes twice."""
    lengths = [n * n % 2003 for n in range(60)]
    run = counter.map(lengths, keep=keep)
    numbers = [0] * len(lengths)
    for index, output in run.as_completed():
        assert output == numbers[index]  # the next one of this input
        numbers[index] += 1
    assert numbers == lengths
    assert run.counts["done"] == 60
    assert sum(counter.map(lengths, keep=keep)) == sum(n * (n - 1) // 2 for n in lengths)


def test_s6_a_run_that_nobody_iterates_runs_to_its_end_and_keeps_its_outputs(transport, counter):
    """Outputs can be had afterwards, as often as one likes, per input too."""
    run = counter.map([3, 0, 2])
    assert run.wait(60)
    assert run.counts["done"] == 3
    assert sorted(run) == sorted(run) == [0, 0, 1, 1, 2]
    assert (run[0], run[1], run[2], run[-1]) == ([0, 1, 2], [], [0, 1], [0, 1])
    assert run[:2] == [[0, 1, 2], []]
    assert run.results() == run.results() == [[0, 1, 2], [], [0, 1]]
    with pytest.raises(IndexError):
        run[3]


def test_s6_a_run_iterated_while_it_goes_on_can_be_iterated_again(transport, folder):
    """Two iterators beside each other, one begun late, give the same outputs in the same order."""

    @nbmap.remote
    def work(x):
        yield x, 0
        await_file(folder, "go")
        yield x, 1

    run = work.map(range(2))
    first = iter(run)
    got = [next(first), next(first)]
    touch(folder, "go")
    again = list(run)
    got += first
    assert got == again == list(run)
    assert sorted(got) == [(x, i) for x in range(2) for i in range(2)]


def test_s6_indexing_waits_for_the_end_of_the_generator(transport, folder):
    """`run[i]` is the list of all outputs of input i, though others go on."""

    @nbmap.remote
    def work(x):
        yield x
        if x:
            await_file(folder, "go")
        yield -x

    run = work.map([0, 5])
    assert run[0] == [0, 0]
    assert not run.done()
    touch(folder, "go")
    assert run[1] == [5, -5]


def test_s25_as_completed_of_generators_gives_pairs(transport, folder):
    """`as_completed` gives (index, output) as they are yielded."""

    @nbmap.remote
    def work(x):
        for i in range(3):
            yield f"{x}{i}"
            await_file(folder, f"had-{x}{i}")

    got = []
    for pair in work.map("ab").as_completed():
        got.append(pair)
        touch(folder, f"had-{pair[1]}")
    assert [output for index, output in got if index == 0] == ["a0", "a1", "a2"]
    assert [output for index, output in got if index == 1] == ["b0", "b1", "b2"]


def test_s6_thousands_of_short_generators(transport):
    """Of 5000 inputs with one output each all come once."""

    @nbmap.remote
    def one(x):
        yield x

    assert sorted(one.map(range(5000))) == list(range(5000))
    assert sorted(one.map(iter(range(5000)))) == list(range(5000))


# Ways to run one


def test_s6_starmap_for_each_and_constant_arguments(transport, folder):
    """Generator functions take their arguments as functions do."""

    @nbmap.remote
    def work(a, b, times=1):
        record(folder, f"{a}{b}")
        for _ in range(times):
            yield a + b

    assert sorted(work.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert sorted(work.map([1, 2], [10, 20], kwargs={"times": 2})) == [11, 11, 22, 22]
    assert work.starmap([(1, 2)], kwargs={"times": 3}).results() == [[3, 3, 3]]
    Path(folder, "calls").unlink()
    assert work.for_each([1, 2, 3], [4, 5, 6], kwargs={"times": 2}) is None
    assert sorted(recorded(folder)) == ["14", "25", "36"]


def test_s6_for_each_runs_the_whole_body(transport, folder):
    """`for_each` waits until each generator has ended, and raises what one raises."""

    def work(x):
        yield bytes(10)
        if x == 1:
            raise ValueError("one")
        record(folder, x)

    assert nbmap.remote(work).for_each([2, 3]) is None
    assert sorted(recorded(folder)) == ["2", "3"]
    with pytest.raises(ValueError, match="one"):
        nbmap.remote(work).for_each([1])
    assert nbmap.remote(work).for_each([1, 4], ignore_exceptions=True) is None
    assert sorted(recorded(folder)) == ["2", "3", "4"]


def test_s6_one_generator_is_streamed(transport, folder):
    """`remote_gen(...)` and a plain call hand outputs out while the generator runs."""

    @nbmap.remote
    def work(x, *, n):
        for i in range(n):
            yield x, i
            await_file(folder, f"had-{x}-{i}")

    for x, use in enumerate((work.remote_gen, work)):
        outputs = use(x, n=5)
        assert iter(outputs) is outputs
        for i, output in enumerate(outputs):
            assert output == (x, i)
            touch(folder, f"had-{x}-{i}")
        assert i == 4
        with pytest.raises(StopIteration):
            next(outputs)


def test_s6_local_is_the_generator_itself(transport, counter):
    """`.local` runs here."""
    assert hasattr(counter.local(3), "__next__") or hasattr(counter.local(3), "__anext__")


@pytest.mark.parametrize(
    "function",
    [
        Steps(2).up,
        functools.partial(Steps(2).up),
        functools.partial(lambda step, n: (i * step for i in range(n)), 2),
        Steps(2),
    ],
    ids=["method", "partial", "partial of a lambda", "callable object"],
)
def test_s6_methods_partials_and_objects(transport, function):
    """What counts is whether the call would give a generator from a generator function."""
    handle = nbmap.remote(function)
    if "lambda" in repr(function):  # it returns a generator, which can't be sent
        with pytest.raises(nbmap.Unpicklable, match="generator"):
            handle(3)
        return
    assert list(handle.map([3])) == list(handle(3)) == [0, 2, 4]


def test_s6_a_lambda_that_yields(transport):
    """A lambda may be a generator function too."""
    assert list(nbmap.remote(lambda x: (yield x)).map([1])) == [1]


# What is yielded


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_s6_items_of_all_sorts(transport, kind):
    """Scalars, containers, arrays and mixtures of them come as they are, in their order."""
    items = [
        *(1, -1.5, "text", b"bytes", None, True, 2**70, 1j),
        *({"loss": 0.5}, [1, [2]], (), {1, 2}, np.arange(5), "", 0, False),
        *(np.float64(1.5), frozenset(), range(3), ..., ValueError("a value")),
    ]

    def plain(x):
        yield from items

    async def coroutine(x):
        for item in items:
            yield item

    got = list(nbmap.remote(plain if kind == "def" else coroutine)(0))
    assert [type(output) for output in got] == [type(item) for item in items]
    assert repr(got) == repr(items)


@pytest.mark.parametrize("keep", [True, False])
def test_s6_large_arrays_and_small_ones_changed_after_they_were_yielded(transport, keep):
    """An array that is written to and yielded again comes as it was at each yield."""

    @nbmap.remote
    def work(n):
        array = np.zeros(n)
        for i in range(12):
            array[:] = i
            yield array
        array[:] = -1

    for size in (10, MEGABYTE // 8):
        got = list(work.map([size], keep=keep))
        assert [array.shape for array in got] == [(size,)] * 12
        assert [(array.min(), array.max()) for array in got] == [(i, i) for i in range(12)]


def test_s6_an_item_is_not_held_on_to_on_the_worker(transport):
    """The memory of an item is free once it was yielded, where the generator has let go of it."""
    import weakref

    class Thing:
        pass

    def work(x):
        thing = Thing()
        ref = weakref.ref(thing)
        yield thing
        del thing
        yield ref() is None

    assert list(nbmap.remote(work)(0))[1] is True


def test_s9_an_item_that_cannot_be_sent_fails_its_generator_after_those_before_it(transport):
    """The failure names the item; outputs before it are handed out; the others go on."""

    def work(x):
        yield x, 0
        yield x, 1
        if x == 1:
            yield threading.Lock()
        yield x, 2

    run = nbmap.remote(work).map([0, 1, 2], return_exceptions=True)
    got = list(run.as_completed())
    ones = [output for index, output in got if index == 1]
    assert ones[:2] == [(1, 0), (1, 1)]
    assert [type(output) for output in ones[2:]] == [nbmap.Unpicklable]
    assert "output 2" in str(ones[2])
    for x in (0, 2):
        assert [output for index, output in got if index == x] == [(x, 0), (x, 1), (x, 2)]
    assert [(f.index, f.kind) for f in run.failures] == [(1, "unpicklable")]


@pytest.mark.parametrize("keep", [True, False])
def test_s9_an_item_that_cannot_be_unpickled_here(transport, folder, keep):
    """It fails its generator, which is closed; no output after it is handed out."""

    def work(x):
        try:
            yield x, 0
            yield OnlyThere() if x == 1 else "fine"
            if x == 1:
                for i in itertools.count():
                    yield x, i + 2
                    time.sleep(0.002)
            yield x, 2
        finally:
            touch(folder, f"tidied-{x}")

    got = list(nbmap.remote(work).map([0, 1, 2], return_exceptions=True, keep=keep).as_completed())
    ones = [output for index, output in got if index == 1]
    assert ones[0] == (1, 0)
    assert [type(output) for output in ones[1:]] == [nbmap.Unpicklable]
    assert "not here" in str(ones[1])
    await_file(folder, "tidied-1")
    for x in (0, 2):
        assert [output for index, output in got if index == x] == [(x, 0), "fine", (x, 2)]


def test_s6_inputs_that_cannot_be_sent_or_made(transport):
    """They fail alone, as with functions."""
    run = nbmap.remote(count).map([2, threading.Lock(), OnlyThere(), 1], return_exceptions=True)
    kinds = [type(x) for x in run.results(errors="keep")]
    assert kinds == [list, nbmap.Unpicklable, nbmap.Unpicklable, list]
    assert run[0] == [0, 1]


def test_s23_prints_of_generators(transport):
    """What a generator prints is found at its input, whole and in its order."""

    def work(x):
        for i in range(5):
            print(f"{x}-{i}")
            yield i
        print(f"{x} ends", file=sys.stderr)

    run = nbmap.remote(work).map(range(10))
    assert run.wait(60)
    for x in range(10):
        assert run.stdout(x).split() == [*(f"{x}-{i}" for i in range(5)), str(x), "ends"]


# Failures


def failing(x):
    yield x, 0
    if x == 1:
        raise KeyError("ohno", x)
    yield x, 1


async def failing_async(x):
    yield x, 0
    await asyncio.sleep(0)
    if x == 1:
        raise KeyError("ohno", x)
    yield x, 1


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("function", [failing, failing_async])
def test_s9_a_generators_failure_is_one_entry_after_its_outputs(transport, function, keep):
    """With return_exceptions=True; and the others are complete."""
    run = nbmap.remote(function).map([0, 1, 2], return_exceptions=True, keep=keep)
    got = list(run.as_completed())
    own = {x: [output for index, output in got if index == x] for x in range(3)}
    assert own[0] == [(0, 0), (0, 1)]
    assert own[2] == [(2, 0), (2, 1)]
    assert own[1][0] == (1, 0)
    assert repr(own[1][1:]) == "[UserCodeException(KeyError('ohno', 1))]"
    if keep:
        again = list(run)
        assert len(again) == 6
        assert repr([x for x in again if isinstance(x, Exception)]) == repr(own[1][1:])
        with pytest.raises(KeyError):
            run[1]
        assert run.results(errors="drop") == [own[0], own[2]]
        assert repr(run.results(errors="keep")[1]) == "UserCodeException(KeyError('ohno', 1))"
        with pytest.raises(KeyError):
            run.results()


@pytest.mark.parametrize("function", [failing, failing_async])
def test_s9_by_default_it_is_raised_on_arrival_after_its_own_outputs(transport, folder, function):
    """As its own type, with the failing line and a note; the other inputs go on and are kept."""

    @nbmap.remote
    def work(x):
        if x == 0:
            yield 0, 0
            await_file(folder, "raised")
            yield 0, 1
        else:
            yield from failing(x)

    run = work.map([0, 1, 2])
    got = []
    with pytest.raises(KeyError) as caught:
        got.extend(run)
    assert caught.value.args == ("ohno", 1)
    assert "input 1 (1) of work" in caught.value.__notes__[0]
    assert (1, 0) in got
    assert (0, 1) not in got
    touch(folder, "raised")
    assert run.wait(60)
    assert run.results(errors="drop") == [[(0, 0), (0, 1)], [(2, 0), (2, 1)]]

    import traceback

    outputs = nbmap.remote(function).remote_gen(1)
    assert next(outputs) == (1, 0)
    with pytest.raises(KeyError) as caught:
        next(outputs)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert (frames[-1].filename, frames[-1].name) == (__file__, function.__name__)
    lines = Path(__file__).read_text().splitlines()
    assert lines[frames[-1].lineno - 1].strip() == 'raise KeyError("ohno", x)'


@pytest.mark.parametrize(
    "error",
    [StopIteration(1), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError()],
)
def test_s9_odd_exceptions_of_a_generator_are_failures_of_the_user(transport, error):
    """They cost no worker, and come after the outputs."""

    class Odd:  # a generator that raises StopIteration would be a RuntimeError
        def __call__(self, x):
            yield x
            raise error

    got = list(nbmap.remote(Odd()).map([1, 2], return_exceptions=True))
    assert sorted(x for x in got if isinstance(x, int)) == [1, 2]
    kind = RuntimeError if isinstance(error, StopIteration) else type(error)
    assert [type(x.exc) for x in got if not isinstance(x, int)] == [kind] * 2


def test_s9_a_returned_or_yielded_exception_is_a_value(transport):
    """An exception object that is yielded is an output like any other."""

    def work(x):
        yield ValueError(x)
        yield x

    got = list(nbmap.remote(work)(5))
    assert (type(got[0]), got[0].args, got[1]) == (ValueError, (5,), 5)


def test_s9_max_failures_stops_a_run_of_generators(transport):
    """Outputs that came before are kept."""

    def work(x):
        yield x
        raise ValueError(x)

    run = nbmap.remote(work, concurrency=1).map(range(1000), max_failures=3, return_exceptions=True)
    with pytest.raises(nbmap.TooManyFailures):
        list(run)
    assert run.counts["failed"] < 1000


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_s22_a_generator_that_is_retried_repeats_no_output(transport, folder, kind):
    """The second attempt starts from the beginning; output k stands for output k."""

    def plain(x):
        record(folder, x)
        for i in range(10):
            yield x, i
            if i == 3 and recorded(folder).count(str(x)) < 3:
                raise OSError("again")

    async def coroutine(x):
        for output in plain(x):
            await asyncio.sleep(0)
            yield output

    retries = nbmap.Retries(max_retries=2, initial_delay=0)
    handle = nbmap.remote(plain if kind == "def" else coroutine, retries=retries)
    run = handle.map([5, 6])
    got = list(run)
    for x in (5, 6):
        assert [i for y, i in got if y == x] == list(range(10))
        assert recorded(folder).count(str(x)) == 3
    assert run.results() == [[(x, i) for i in range(10)] for x in (5, 6)]
    assert sorted(run.takeovers) == [(0, 3, 4), (1, 3, 4)]
    assert run.failures == []


def test_s22_a_generator_that_yields_less_when_retried(transport, folder):
    """Outputs that were handed out stay, and nothing is made up."""

    def work(x):
        first = not there(folder, "second")
        touch(folder, "second")
        yield from range(5 if first else 2)
        if first:
            raise OSError("again")

    run = nbmap.remote(work, retries=nbmap.Retries(max_retries=1, initial_delay=0)).map([0])
    assert run.wait(60)
    assert list(run) == run[0] == [0, 1, 2, 3, 4]
    assert run.takeovers == []


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_s21_a_timeout_is_for_the_generators_own_time(transport, folder, kind):
    """It stops one that takes too long, after its outputs, and closes it."""

    def plain(x):
        try:
            yield x
            if x:
                count_for_ever(folder)
        finally:
            touch(folder, f"tidied-{x}")

    async def coroutine(x):
        try:
            yield x
            while x:
                await asyncio.sleep(0.01)
        finally:
            touch(folder, f"tidied-{x}")

    handle = nbmap.remote(plain if kind == "def" else coroutine, timeout=0.5)
    got = list(handle.map([0, 1], return_exceptions=True).as_completed())
    assert [x for i, x in got if i == 0] == [0]
    assert [type(x) for i, x in got if i == 1] == [int, nbmap.InputTimeout]
    await_file(folder, "tidied-1")


# Stopping


def closed_by_break(run):
    for n, _ in enumerate(run):
        if n > 5:
            break


def closed_by_cancel(run):
    outputs = iter(run)
    for _ in range(3):
        next(outputs)
    run.cancel()
    with pytest.raises(nbmap.RunCancelled):
        list(outputs)


def closed_by_hand(run):
    outputs = iter(run)
    next(outputs)
    outputs.close()


@pytest.mark.parametrize("stop", [closed_by_break, closed_by_cancel, closed_by_hand])
def test_s6_stopping_closes_the_remote_generators(transport, folder, stop):
    """Leaving the loop (keep=False), closing its iterator and cancelling run their `finally`."""
    run = tidy(folder).map(range(2), keep=False)
    wait_until(lambda: there(folder, "began-0") and there(folder, "began-1"), "both to begin")
    stop(run)
    await_file(folder, "tidied-0")
    await_file(folder, "tidied-1")
    assert run.wait(60)
    assert run.status == "cancelled"


def test_s6_break_on_a_kept_run_leaves_it_going(transport, folder):
    """Only a run that keeps nothing is stopped by leaving its loop."""

    @nbmap.remote
    def work(x):
        yield x
        await_file(folder, "left")
        yield -x

    run = work.map([1, 2])
    for _ in run:
        break
    touch(folder, "left")
    assert run.results() == [[1, -1], [2, -2]]


def test_s6_cancelling_one_generator(transport, folder):
    """`run.cancel(i)` closes that generator; its outputs stay, the others go on."""
    run = tidy(folder).map(range(2), return_exceptions=True)
    wait_until(lambda: there(folder, "began-0") and there(folder, "began-1"), "both to begin")
    run.cancel(0)
    await_file(folder, "tidied-0")
    got = []
    for index, output in run.as_completed():
        got.append((index, output))
        if index == 0 and isinstance(output, nbmap.InputCancelled):
            break
    assert (0, 0) in got
    assert not there(folder, "tidied-1")
    run.cancel()
    assert run.wait(60)
    assert there(folder, "tidied-1")


@pytest.mark.parametrize("busy", [True, False], ids=["yielding", "computing"])
def test_s6_closing_remote_gens_iterator_closes_the_generator(transport, folder, busy):
    """Whether it yields all the time or computes between two yields."""
    with closing(tidy(folder, endless=busy).remote_gen(3)) as outputs:
        assert next(outputs) == 3
        await_file(folder, "began-3")
        if not busy:
            await_file(folder, "count-3")
    await_file(folder, "tidied-3")
    if not busy:
        assert stands_still(folder, "count-3")


def test_s6_dropping_the_iterator_of_a_call_closes_the_generator(transport, folder):
    """Leaving the loop over `train(0.1)` is enough."""
    for output in tidy(folder)(4):
        assert output == 4
        await_file(folder, "began-4")
        break
    await_file(folder, "tidied-4")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_s6_a_paused_generator_is_closed_too(transport, folder, kind):
    """One that waits for its consumer hears of the end, and its `finally` runs to its end."""

    def plain(x):
        try:
            while True:
                yield bytes(MEGABYTE)
                record(folder, "yielded")
        finally:
            time.sleep(0.01)
            touch(folder, "tidied")

    async def coroutine(x):
        try:
            while True:
                yield bytes(MEGABYTE)
                record(folder, "yielded")
        finally:
            await asyncio.sleep(0.01)
            touch(folder, "tidied")

    outputs = nbmap.remote(plain if kind == "def" else coroutine).remote_gen(0)
    next(outputs)
    is_paused(folder)
    outputs.close()
    await_file(folder, "tidied")


def is_paused(folder):
    """Wait until the generators of a folder yield no more."""
    before = [-1]

    def same():
        now = len(recorded(folder))
        if now == before[0]:
            return now > 0
        before[0] = now
        time.sleep(0.5)
        return False

    wait_until(same, "the generators to pause")


@pytest.mark.parametrize("way", ["iterate", "remote_gen", "index"])
def test_s19_an_interrupt_closes_the_remote_generator(transport, folder, way):
    """Ctrl-C in the thread that waits for the next output."""
    handle = tidy(folder, endless=False)
    got = []
    thread = interrupt_when(lambda: there(folder, "count-2") and (got or way == "index"))
    with pytest.raises(KeyboardInterrupt):
        if way == "iterate":
            got.extend(handle.map([2]))
        elif way == "remote_gen":
            got.extend(handle.remote_gen(2))
        else:
            handle.map([2])[0]
    thread.join(60)
    await_file(folder, "tidied-2")
    assert got == ([] if way == "index" else [2])


def test_s6_a_generator_that_ignores_being_closed_does_not_hold_up_others(transport, folder):
    """One that yields in its `finally` is left alone, and the slot serves the next map."""

    def work(x):
        try:
            for n in itertools.count():
                time.sleep(0.002)
                yield n
        finally:
            touch(folder, "closing")
            yield "never"

    outputs = nbmap.remote(work).remote_gen(0)
    next(outputs)
    outputs.close()
    await_file(folder, "closing")
    assert len(set(nbmap.remote(lambda x: meet(folder)).map(range(10)))) == 2


# Refused


def test_s6_order_outputs_is_refused_for_generators(transport, folder):
    """Before anything runs; False and None are what holds anyway."""

    def work(x):
        record(folder, x)
        yield x

    handle = nbmap.remote(work)
    for use in (handle.map, lambda xs, **o: handle.starmap([(x,) for x in xs], **o)):
        with pytest.raises(nbmap.OptionError, match=r"order_outputs=True.+run\[i\]"):
            use([1], order_outputs=True)
    assert recorded(folder) == []
    assert list(handle.map([1], order_outputs=False)) == [1]


@pytest.mark.parametrize("method", ["remote", "spawn"])
@pytest.mark.parametrize("function", [count, count_async])
def test_s6_remote_and_spawn_of_a_generator_name_remote_gen(transport, folder, function, method):
    """They are refused where they stand, `.aio` too, and nothing runs."""
    handle = nbmap.remote(function)
    with pytest.raises(TypeError, match=rf"{function.__name__}\.{method} .+remote_gen"):
        getattr(handle, method)(3)
    with pytest.raises(TypeError, match=r"remote_gen"):
        asyncio.run(getattr(handle, method).aio(3))
    assert nbmap.status().runs == 0


def test_s6_remote_gen_of_a_function_names_remote(transport):
    """Before anything runs."""
    handle = nbmap.remote(abs)
    with pytest.raises(TypeError, match=r"abs\.remote_gen .+abs\.remote\("):
        handle.remote_gen(3)
    with pytest.raises(TypeError, match=r"abs\.remote\("):
        handle.remote_gen.aio(3)
    assert nbmap.status().runs == 0


@pytest.mark.parametrize("use", [lambda r: r[0], lambda r: r.results(), lambda r: r[:]])
def test_s6_what_needs_kept_outputs_says_so(transport, use):
    """On a keep=False run of generators as on any other."""
    run = nbmap.remote(count).map([3], keep=False)
    with pytest.raises(nbmap.RunError, match="keep=True"):
        use(run)
    assert list(run) == [0, 1, 2]
    with pytest.raises(nbmap.RunError, match="keep=True"):
        iter(run)
