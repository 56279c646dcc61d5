"""What can be a handle, and what a single call of one does."""

import functools
import math
import operator
import os
from dataclasses import dataclass

import pytest
from helpers.files import place, record, recorded

import nbmap


def square(x):
    return x * x


def factorial(n):
    return 1 if n <= 1 else n * factorial(n - 1)


@dataclass
class Point:
    x: int
    y: int = 1

    def moved(self, by):
        return Point(self.x + by, self.y)


class Counter:
    def __init__(self, step):
        self.step = step

    def after(self, x):
        return x + self.step

    @classmethod
    def named(cls, x):
        return f"{cls.__name__}-{x}"


class Callable:
    def __call__(self, x):
        return x + 7


def test_s1_bare_decorator_leaves_a_handle_under_the_functions_name(transport):
    """`@nbmap.remote` gives a handle that bears the function's name and runs it."""

    @nbmap.remote
    def double(x):
        """Twice x."""
        return 2 * x

    assert isinstance(double, nbmap.RemoteFunction)
    assert (double.__name__, double.__doc__) == ("double", "Twice x.")
    assert list(double.map([1, 2])) == [2, 4]


def test_s1_decorator_takes_options(transport):
    """`@nbmap.remote(...)` gives a handle with these options."""

    @nbmap.remote(concurrency=2, name="twice")
    def double(x):
        return 2 * x

    assert double.__name__ == "twice"
    assert list(double.map([1, 2])) == [2, 4]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (square, [0, 1, 4, 9]),
        (factorial, [1, 1, 2, 6]),
        (lambda x: x - 1, [-1, 0, 1, 2]),
        (abs, [0, 1, 2, 3]),
        (math.sqrt, [0, 1, math.sqrt(2), math.sqrt(3)]),
        (functools.partial(pow, 2), [1, 2, 4, 8]),
        (functools.partial(square), [0, 1, 4, 9]),
        (Counter(10).after, [10, 11, 12, 13]),
        (Counter.named, ["Counter-0", "Counter-1", "Counter-2", "Counter-3"]),
        ([5, 6, 7, 8].__getitem__, [5, 6, 7, 8]),
        (operator.itemgetter(0), None),
        (Callable(), [7, 8, 9, 10]),
    ],
    ids=[
        "module function",
        "recursive",
        "lambda",
        "builtin",
        "C function",
        "partial of builtin",
        "partial",
        "bound method",
        "class method",
        "method of a list",
        "itemgetter",
        "callable object",
    ],
)
def test_s1_every_kind_of_function_works(transport, function, expected):
    """Whatever is called like a function and pickles can be a handle."""
    if expected is None:
        assert list(nbmap.remote(function).map([(1, 2), "ab"])) == [1, "a"]
    else:
        assert list(nbmap.remote(function).map(range(4))) == expected


def test_s1_closures_bring_their_variables(transport):
    """A closure arrives with the values that it had when the map was called."""

    def make(offset):
        def add(x):
            return x + offset

        return add

    assert list(nbmap.remote(make(100)).map([1, 2])) == [101, 102]


def test_s1_local_recursion_through_its_own_name(transport):
    """A function that calls itself by a name that is now a handle calls the plain function."""

    @nbmap.remote
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert list(fibonacci.map(range(10))) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]


def test_s1_dataclasses_of_the_users_module_travel_both_ways(transport):
    """Instances of the user's own classes arrive as such and come back as such."""
    outputs = list(nbmap.remote(lambda p: p.moved(1)).map([Point(1), Point(2, 3)]))
    assert outputs == [Point(2), Point(3, 3)]
    assert [type(output) for output in outputs] == [Point, Point]


def test_s1_a_handle_in_remote_code_is_called_like_the_function(transport):
    """Inside a function another handle is an ordinary function."""
    inner = nbmap.remote(square)

    @nbmap.remote
    def outer(x):
        return inner(x) + inner.local(1)

    assert list(outer.map([2, 3])) == [5, 10]


def test_s1_a_class_is_refused():
    """A class is refused with a sentence that names it."""
    with pytest.raises(TypeError, match=r"Point is a class; nbmap runs functions\. .+"):
        nbmap.remote(Point)


def test_s1_a_handle_is_refused():
    """A handle is refused with a sentence that says what to write."""
    handle = nbmap.remote(square)
    with pytest.raises(TypeError, match=r"square is a handle already; .+nbmap\.remote\("):
        nbmap.remote(handle)
    with pytest.raises(TypeError, match="square is a handle already"):
        nbmap.remote(concurrency=2)(handle)


@pytest.mark.parametrize("thing", [5, "square", None, [square]])
def test_s1_what_cannot_be_called_is_refused(thing):
    """What can't be called is refused with a sentence that shows it."""
    with pytest.raises(TypeError, match=r"nbmap\.remote takes a function, not "):
        nbmap.remote()(thing)


def test_s12_a_call_runs_on_a_worker(transport):
    """`handle(x)` and `handle.remote(x)` run remotely, `handle.local(x)` here."""
    pid = nbmap.remote(os.getpid)
    assert pid.local() == os.getpid()
    assert pid() == pid.remote() or transport == "dask"
    if transport == "dask":
        assert os.getpid() not in {pid(), pid.remote()}


def test_s12_a_call_takes_arguments_of_all_kinds(transport):
    """A call takes what the function takes, and returns what it returns."""

    @nbmap.remote
    def show(a, /, b, *rest, c=3, **others):
        return a, b, rest, c, others

    assert show(1, 2) == (1, 2, (), 3, {})
    assert show(1, b=2, c=[4], d={"e": 5}) == (1, 2, (), [4], {"d": {"e": 5}})
    assert show.remote(1, 2, 3, 4) == (1, 2, (3, 4), 3, {})
    assert show(None, ("x", 0)) == (None, ("x", 0), (), 3, {})


def test_s12_builtin_map_runs_one_at_a_time_in_order(transport, folder):
    """`list(map(handle, xs))` is right, and never two of them overlap."""

    @nbmap.remote
    def alone(x):
        with place(folder, 1):
            record(folder, x)
            return x * 10

    assert list(map(alone, range(8))) == [x * 10 for x in range(8)]
    assert recorded(folder) == [str(x) for x in range(8)]


def test_s12_the_output_of_a_call_has_no_map(transport):
    """`handle(xs).map()`, meant as a map, raises."""
    handle = nbmap.remote(lambda xs: [x + 1 for x in xs])
    with pytest.raises(AttributeError, match="map"):
        handle([1, 2]).map()


@pytest.mark.parametrize("method", ["map", "starmap"])
def test_s12_a_loop_over_the_method_itself_is_refused(method):
    """`for x in handle.map:` raises with what to write instead."""
    handle = nbmap.remote(square)
    with pytest.raises(
        TypeError, match=rf"square\.{method} has to be called with the inputs: `for"
    ):
        for _ in getattr(handle, method):
            pass


def test_s12_a_failing_call_raises_the_users_exception(transport):
    """A call raises what the function raised, and the handle goes on working."""

    @nbmap.remote
    def invert(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError):
        invert(0)
    assert invert(4) == 0.25
