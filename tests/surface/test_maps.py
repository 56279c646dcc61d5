"""Maps: what goes in, how often it is called, what comes out and when."""

import asyncio
import itertools
import os
import threading
from itertools import islice

import numpy as np
import pytest
from helpers.files import await_file, meet, record, recorded, there, touch

import nbmap


class Plain:
    """Compared by what it holds, and not hashable."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Plain and other.value == self.value

    __hash__ = None


def endless():
    return itertools.count()


def in_turn(folder):
    """Return a handle whose call i waits until the output of call i - 1 was handed out."""

    @nbmap.remote(concurrency=1)  # the only order in which inputs are sure to start
    def wait(i):
        if i:
            await_file(folder, f"got-{i - 1}")
        return i

    return wait


@pytest.mark.parametrize("inside_loop", [False, True])
def test_s2_a_hundred_inputs_run_in_parallel_and_come_in_order(transport, folder, inside_loop):
    """Each of 100 inputs is called, on two workers at once, and outputs come in input order."""

    @nbmap.remote
    def work(x):
        who = meet(folder)
        return x * x, os.getpid(), who

    async def cell():
        return list(work.map(list(range(100))))

    outputs = asyncio.run(cell()) if inside_loop else list(work.map(list(range(100))))
    assert [output[0] for output in outputs] == [x * x for x in range(100)]
    assert len({who for _, _, who in outputs}) == 2
    pids = {pid for _, pid, _ in outputs}
    if transport == "dask":
        assert len(pids) == 2
        assert os.getpid() not in pids


def test_s3_map_returns_at_once(transport, folder):
    """`.map` returns though no function can return, because they wait for what comes after it."""

    @nbmap.remote
    def wait(x):
        await_file(folder, "go")
        return x

    run = wait.map(range(3))
    assert not run.done()
    touch(folder, "go")
    assert list(run) == [0, 1, 2]


@pytest.mark.parametrize("keep", [True, False])
def test_s3_early_outputs_are_handed_out_before_late_ones_exist(transport, folder, keep):
    """Every function but the first waits until the consumer has the output before its own."""
    got = []
    for output in in_turn(folder).map(range(30), keep=keep):
        got.append(output)
        touch(folder, f"got-{output}")
    assert got == list(range(30))


@pytest.mark.parametrize("keep", [True, False])
def test_s3_the_last_function_waits_for_all_outputs_before_its_own(transport, folder, keep):
    """With several workers at once, all outputs but the last are handed out while it runs."""

    @nbmap.remote
    def wait(i):
        if i == 199:
            await_file(folder, "got-198")
        return i

    got = []
    for output in wait.map(range(200), keep=keep):
        got.append(output)
        touch(folder, f"got-{output}")
    assert got == list(range(200))


def test_s3_a_run_starts_and_ends_though_nobody_iterates(transport, folder):
    """A kept run goes on in the background by itself."""
    run = nbmap.remote(lambda x: record(folder, x)).map(range(10))
    assert run.wait(60)
    assert sorted(map(int, recorded(folder))) == list(range(10))


def test_s3_for_list_zip_and_enumerate(transport):
    """A run is iterated like any other iterable, in every idiom."""
    double, negative = nbmap.remote(lambda x: 2 * x), nbmap.remote(lambda x: -x)
    assert list(double.map(range(5))) == [0, 2, 4, 6, 8]
    assert [y for y in double.map(range(5)) if y > 2] == [4, 6, 8]
    assert list(zip(double.map(range(3)), negative.map(range(3)), strict=True)) == [
        (0, 0),
        (2, -1),
        (4, -2),
    ]
    assert list(enumerate(double.map(range(3)), 1)) == [(1, 0), (2, 2), (3, 4)]
    assert sum(double.map(range(1000))) == 999_000
    assert list(double.map({"a": 1, "b": 2})) == ["aa", "bb"]
    assert sorted(double.map({1, 2, 3})) == [2, 4, 6]


def test_s3_an_early_break_leaves_a_kept_run_going(transport):
    """Leaving the loop over a kept run early ends nothing: all its outputs come to be there."""
    run = nbmap.remote(lambda x: x + 1).map(range(50))
    for output in run:
        if output == 3:
            break
    assert run.wait(60)
    assert run.status == "finished"
    assert list(run) == list(range(1, 51))


def test_s3_an_early_break_cancels_a_run_that_keeps_nothing(transport):
    """Leaving the loop over a keep=False run cancels it."""
    run = nbmap.remote(lambda x: x + 1).map(endless())
    for output in run:
        if output == 30:
            break
    assert run.wait(60)
    assert run.status == "cancelled"


def test_s3_an_infinite_generator_under_islice(transport):
    """The first outputs of infinitely many inputs can be had, and inputs are read in bounds."""
    read = []

    def inputs():
        for i in itertools.count():
            read.append(i)
            yield i

    outputs = list(islice(nbmap.remote(lambda x: x * 3).map(inputs()), 100))
    assert outputs == [x * 3 for x in range(100)]


def test_s3_inputs_that_block_do_not_hold_up_outputs(transport, folder):
    """What is read is run and handed out while the iterator blocks in its next item."""

    def inputs():
        yield 1
        yield 2
        await_file(folder, "more")
        yield 3

    outputs = iter(nbmap.remote(lambda x: x * 2).map(inputs()))
    assert [next(outputs), next(outputs)] == [2, 4]
    touch(folder, "more")
    assert list(outputs) == [6]


def test_s4_equal_inputs_are_not_merged(transport, folder):
    """Equal inputs are called once each."""
    handle = nbmap.remote(lambda x: record(folder, x) or x)
    assert list(handle.map([7] * 20)) == [7] * 20
    assert recorded(folder) == ["7"] * 20


def test_s4_repeated_maps_are_not_cached(transport, folder):
    """The same map again calls the function again."""
    handle = nbmap.remote(lambda x: record(folder, x) or x)
    for _ in range(3):
        assert list(handle.map(range(5))) == list(range(5))
    assert sorted(recorded(folder)) == sorted("01234" * 3)


def test_s4_each_of_many_inputs_is_called_once(transport, folder):
    """Of thousands of inputs none is missing and none is called twice."""
    handle = nbmap.remote(lambda x: record(folder, x) or x)
    assert list(handle.map(range(3000))) == list(range(3000))
    assert sorted(map(int, recorded(folder))) == list(range(3000))


THINGS = [
    (1, 2),
    (),
    ("x", 0),
    "x-0",
    "text",
    "",
    b"bytes",
    {"a": 1},
    {"x": ("x", 0)},
    {1, 2},
    frozenset({3}),
    [("x", 0), "x-0"],
    [1, [2, [3]]],
    (sum, [1, 2]),
    (abs, -3),
    ((("nested", 1),),),
    None,
    True,
    2**200,
    1.5,
    complex(1, 2),
    float("inf"),
    range(3),
    Ellipsis,
    NotImplemented,
    int,
    len,
    Plain([1]),
    ["\ud800"],
    "\ud800",
]


def test_s4_every_input_arrives_and_comes_back_as_it_is(transport):
    """Tuples, Dask keys and tasks, None, unhashable objects and more pass unchanged, both ways."""

    def show(x):
        return type(x).__name__, x

    shown = list(nbmap.remote(show).map(THINGS))
    assert shown == [(type(x).__name__, x) for x in THINGS]
    assert list(nbmap.remote(lambda x: x).map(THINGS)) == THINGS


@pytest.mark.parametrize("thing", THINGS, ids=repr)
def test_s4_every_kind_alone_arrives_and_comes_back_as_it_is(transport, thing):
    """The same of a map of that kind alone, and of a call."""
    same = nbmap.remote(lambda x: x)
    assert list(same.map([thing] * 3)) == [thing] * 3
    assert same(thing) == thing
    assert list(map(type, same.map([thing]))) == [type(thing)]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.zeros((300, 300)),
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(60_000)[::3],
        np.arange(10, dtype=">i2"),
        np.array([("a", 1)], dtype=[("name", "U5"), ("n", "u1")]),
        np.array(5.0),
        np.array([], dtype="float32"),
        np.array(["x", None], dtype=object),
        np.arange(3).astype("datetime64[D]"),
    ],
    ids=[
        "small",
        "large",
        "fortran",
        "strided",
        "big-endian",
        "structured",
        "0-d",
        "empty",
        "objects",
        "dates",
    ],
)
def test_s4_numpy_arrays_arrive_and_come_back_as_they_are(transport, array):
    """Values, dtype and shape are the same on both sides, and both are writable."""

    def look(x):
        shown = (str(x.dtype), x.shape, x.flags.writeable)
        before = x.copy()
        x[...] = x
        return shown, before

    for shown, back in nbmap.remote(look).map([array, array]):
        assert shown == (str(array.dtype), array.shape, True)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
        assert back.flags.writeable


def test_s4_a_worker_that_writes_into_an_input_does_not_change_the_callers(transport):
    """An input is a copy: what the function does to it stays there."""
    array, items = np.zeros(50_000), [1]

    def spoil(x):
        x[0] = 99
        return x[0]

    assert list(nbmap.remote(spoil).map([array, items, array])) == [99, 99, 99]
    assert array[0] == 0
    assert items == [1]


def test_s5_completion_order(transport, folder):
    """The first input's output comes last where it completes last."""

    @nbmap.remote
    def work(x):
        if x == 0:
            await_file(folder, "others-are-there")
        return x

    got = []
    for output in work.map(range(20), order_outputs=False):
        got.append(output)
        if len(got) == 19:
            touch(folder, "others-are-there")
    assert got[-1] == 0
    assert sorted(got) == list(range(20))


def test_s5_completion_order_of_a_run_that_keeps_nothing(transport, folder):
    """The same where outputs are dropped when they are handed out."""

    @nbmap.remote
    def work(x):
        if x == 0:
            await_file(folder, "others-are-there")
        return x

    got = []
    for output in work.map(iter(range(20)), order_outputs=False):
        got.append(output)
        if len(got) == 19:
            touch(folder, "others-are-there")
    assert got[-1] == 0
    assert sorted(got) == list(range(20))


def test_s10_one_iterator_per_argument(transport):
    """`map(xs, ys)` pairs them, and the shortest ends it."""
    add = nbmap.remote(lambda x, y, z=0: x + y + z)
    assert list(add.map([1, 2, 3], [10, 20, 30])) == [11, 22, 33]
    assert list(add.map([1, 2], [10, 20, 30], [100, 200, 300])) == [111, 222]
    assert list(add.map(range(100), (i for i in [5, 6]))) == [5, 7]
    assert len(add.map([1, 2], [10, 20, 30])) == 2


@pytest.mark.parametrize("first", [True, False])
def test_s10_the_shortest_ends_it_as_zip_does(transport, first):
    """No iterator is read further than `zip` would."""

    def counted(log):
        for i in itertools.count():
            log.append(i)
            yield i

    def iterators(log):
        return ([1, 2], counted(log)) if first else (counted(log), [1, 2])

    read, by_zip = [], []
    assert list(nbmap.remote(max).map(*iterators(read))) == [1, 2]
    list(zip(*iterators(by_zip), strict=False))
    assert read == by_zip


def test_s10_kwargs_are_constants(transport):
    """`kwargs=` gives every call the same keyword arguments, one named like an option too."""

    @nbmap.remote
    def show(x, y=0, *, keep=None):
        return x, y, keep

    assert list(show.map([1, 2], kwargs={"keep": "this"})) == [(1, 0, "this"), (2, 0, "this")]
    assert list(show.map([1], [2], kwargs={"keep": [3]})) == [(1, 2, [3])]
    assert list(show.starmap([(1, 2)], kwargs={"keep": 4})) == [(1, 2, 4)]


def test_s11_starmap_spreads_any_sequence(transport):
    """Each item is spread over the arguments, whatever sequence it is."""
    add = nbmap.remote(lambda x, y: x + y)
    assert list(add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert list(add.starmap([[1, 2], "ab", range(2), np.array([3, 4])])) == [3, "ab", 1, 7]
    assert list(add.starmap(zip([1, 2], [3, 4], strict=True))) == [4, 6]


def test_s11_a_wrong_number_of_values_fails_that_input_alone(transport):
    """The failure has the signature in its message; the others are right."""

    @nbmap.remote
    def add(left, right):
        return left + right

    run = add.starmap([(1, 2), (1, 2, 3), (1,), (3, 4)], return_exceptions=True)
    outputs = list(run)
    assert [outputs[0], outputs[3]] == [3, 7]
    for failed in outputs[1:3]:
        assert isinstance(failed.exc, TypeError)
        assert "add(left, right)" in str(failed.exc)
    with pytest.raises(TypeError, match=r"add\(left, right\)"):
        list(add.starmap([(1,)]))


def test_s11_what_cannot_be_spread_fails_that_input_alone(transport):
    """An item that is no sequence is that input's failure."""
    run = nbmap.remote(max).starmap([(1, 2), 5, (3, 4)], return_exceptions=True)
    assert [type(output).__name__ for output in run] == ["int", "UserCodeException", "int"]


@pytest.mark.parametrize("empty", [[], (), {}, range(0), ""], ids=repr)
def test_s18_empty_input_gives_an_empty_result(transport, empty):
    """A map over nothing has ended, with nothing."""
    run = nbmap.remote(abs).map(empty)
    assert list(run) == []
    assert run.wait(10)
    assert run.done()
    assert (len(run), run.status, run.results(), run.failures) == (0, "finished", [], [])
    assert list(run.as_completed()) == []
    assert list(nbmap.remote(max).map(empty, [1, 2])) == []
    assert list(nbmap.remote(max).starmap(empty)) == []


def test_s18_an_iterator_that_has_nothing_gives_an_empty_result(transport):
    """The same where nobody can know before."""
    run = nbmap.remote(abs).map(iter(()))
    assert list(run) == []
    assert run.status == "finished"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_s19_an_iterator_that_raises_gives_what_it_gave_before(transport, keep, ordered):
    """Inputs 0 to 56 are delivered, then comes the iterator's exception."""

    def inputs():
        yield from range(57)
        raise LookupError("element 57")

    run = nbmap.remote(lambda x: x * 2).map(inputs(), keep=keep, order_outputs=ordered)
    got = []
    with pytest.raises(LookupError, match="element 57"):
        got.extend(run)  # extend keeps what came before the exception
    assert sorted(got) == [x * 2 for x in range(57)]
    assert run.wait(60)
    if keep:
        assert [run[i] for i in range(57)] == [x * 2 for x in range(57)]
        assert run.results(errors="drop") == [x * 2 for x in range(57)]


def test_s19_an_iterator_that_ends_badly_at_once(transport):
    """An iterator whose first item raises leaves only its exception."""

    def inputs():
        raise LookupError("at once")
        yield

    with pytest.raises(LookupError, match="at once"):
        list(nbmap.remote(abs).map(inputs()))


def test_s19_finished_outputs_are_readable_while_the_iterator_blocks(transport):
    """What was read before is done and readable; cancelling ends the run."""
    unblock = threading.Event()

    def inputs():
        yield from range(5)
        unblock.wait(15)

    try:
        run = nbmap.remote(lambda x: x + 1).map(inputs(), keep=True)
        assert [run[i] for i in range(5)] == [1, 2, 3, 4, 5]
        assert not run.done()
        run.cancel()
        assert run.wait(60)
        assert (run.status, run[4]) == ("cancelled", 5)
    finally:
        unblock.set()


def test_s2_two_threads_map_at_once(transport, folder):
    """Maps of one handle from several threads each get their own outputs."""
    handle, outputs = nbmap.remote(lambda x: x * 2), {}

    def one(n):
        outputs[n] = list(handle.map(range(n, n + 50)))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outputs == {n: [2 * x for x in range(n, n + 50)] for n in range(0, 400, 100)}
    assert not there(folder, "too-many")


def test_s4_inputs_are_those_of_the_moment_of_the_call(transport):
    """Lists, dicts and sets that change after map() change nothing for the run."""
    handle = nbmap.remote(lambda x: x)
    items, keys = list(range(2000)), dict.fromkeys(range(2000))
    runs = [handle.map(items), handle.map(keys), handle.starmap(grown := [(1,), (2,)])]
    items.clear()
    keys.clear()
    grown.append((3,))
    assert [list(run) for run in runs] == [list(range(2000)), list(range(2000)), [1, 2]]


def test_s18_one_empty_iterable_makes_the_run_empty(transport):
    """map() ends with the shortest, so nothing runs and the length is known."""
    run = nbmap.remote(pow).map((x for x in range(5)), [])
    assert (len(run), list(run)) == (0, [])
