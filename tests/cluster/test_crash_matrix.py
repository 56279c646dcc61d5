"""What crashes, exits or raises while something is pickled or unpickled costs that input alone.

The matrix is joblib/loky's: {crash, exit, C-level exit, error} in {pickling, unpickling} of {the
function, an input, an output, a yielded item, an exception}. What happens in the notebook's own
process can only exit or raise. Each row holds on nbmap's own cluster and on one that it did not
start.
"""

import asyncio
import contextlib
import ctypes
import functools
import os
import re
import signal
import socket
import sys
import threading
import time

import anywidget
import ipywidgets
import psutil
import pytest
from distributed import Client
from helpers.files import await_file, record, recorded, touch
from helpers.processes import wait_until

import nbmap

FATAL = ["kill", "segfault", "os._exit", "C exit"]
RAISED = ["sys.exit", "error"]


@pytest.fixture(scope="module", params=["own", "two_workers"])
def cluster(request):
    """Handles run on nbmap's own cluster, or on one that it did not start."""
    started = request.getfixturevalue(request.param)
    with nbmap.connect("local" if started is None else started):
        yield request.param


def workers():
    """Return the pids of the processes of all workers."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def hurt(kind, folder):
    """Do it; a process that will not survive it is written down first."""
    if kind in FATAL:
        record(folder, os.getpid())
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "os._exit":
            os._exit(3)
        case "C exit":
            ctypes.CDLL(None).exit(3)
        case "sys.exit":
            sys.exit(3)
    raise ValueError("hurt on purpose")


class Trap:
    """Hurts the process in which it is pickled or unpickled: the notebook's, or any other."""

    def __init__(self, step, where, kind, folder, notebook=None):
        self.told = (step, where, kind, folder, notebook or os.getpid())

    def spring(self, now):
        step, where, kind, folder, notebook = self.told
        if now == step and (os.getpid() == notebook) == (where == "here"):
            hurt(kind, folder)

    def __reduce__(self):
        self.spring("pickle")
        return rebuild, (type(self), *self.told)


class TrapError(Trap, Exception):
    pass


def rebuild(cls, *told):
    trap = cls(*told)
    trap.spring("unpickle")
    return trap


class Model:
    """Holds a trap two steps down."""

    def __init__(self, trap):
        self.layers = [1, {"weights": trap}]


def give(trap):
    """Return a trap, or what else an input was."""
    return Model(trap) if isinstance(trap, Trap) else trap


def give_told(told):
    """Return what is trapped here and was plain on its way."""
    return Model(Trap(*told)) if isinstance(told, tuple) else told


def raise_told(told):
    """Raise what is trapped."""
    if isinstance(told, tuple):
        raise TrapError(*told)
    return told


def yield_told(told):
    """Yield one plain item, and one that is trapped."""
    yield "first"
    yield give_told(told)


@contextlib.contextmanager
def no_worker_lost():
    """Fail where the workers at the end are not the processes that they were."""
    before = workers()
    assert len(before) >= 2
    yield
    assert workers() == before


def innocents(run, bad, n):
    """Fail where another input than `bad` has not its output."""
    out = list(run)
    if run._driver.streams:
        assert sorted(x for x in out if isinstance(x, int)) == [i for i in range(n) if i != bad]
        return
    assert [out[i] for i in range(n) if i != bad] == [i for i in range(n) if i != bad]


# --- inputs, outputs, items: what raises -------------------------------------------------------

AFAR = {
    "output": (give_told, "the output, a Model, can't be sent"),
    "item": (yield_told, "output 1, a Model, can't be sent"),
}


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("lazy", [False, True], ids=["list", "iterator"])
def test_f3_an_input_that_cannot_be_pickled_fails_alone(cluster, folder, kind, lazy):
    """Its message names the attribute; all others have outputs, and the next map works."""
    inputs = [*range(12)]
    inputs[5] = Model(Trap("pickle", "here", kind, folder))
    with no_worker_lost():
        run = nbmap.remote(give).map(
            iter(inputs) if lazy else inputs, keep=True, return_exceptions=True
        )
        innocents(run, 5, 12)
        (line,) = run.failures
        assert (line.index, line.kind, line.attempts) == (5, "unpicklable", 1)
        assert ".layers[1]['weights']" in line.message
        assert nbmap.remote(give)(1) == 1


@pytest.mark.parametrize("kind", RAISED)
def test_f3_an_input_that_cannot_be_unpickled_fails_alone(cluster, folder, kind):
    """The worker says what was raised and runs the others, generators too."""
    inputs = [*range(12)]
    inputs[5] = Model(Trap("unpickle", "there", kind, folder))
    with no_worker_lost():
        for function in (give, yield_told):
            run = nbmap.remote(function).map(inputs, return_exceptions=True)
            innocents(run, 5, 12)
            (line,) = run.failures
            assert (line.index, line.kind, line.attempts) == (5, "unpicklable", 1)
            assert "the input can't be unpickled" in line.message
            assert ("SystemExit: 3" if kind == "sys.exit" else "hurt on purpose") in line.message


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("thing", ["output", "item"])
def test_f3_what_cannot_be_pickled_there_fails_alone(cluster, folder, thing, kind):
    """An output or a yielded item fails with its attribute named; the worker goes on."""
    function, text = AFAR[thing]
    inputs = [*range(12)]
    inputs[5] = ("pickle", "there", kind, folder, os.getpid())
    with no_worker_lost():
        run = nbmap.remote(function).map(inputs, return_exceptions=True)
        innocents(run, 5, 12)
        (line,) = run.failures
        assert (line.index, line.kind, line.attempts) == (5, "unpicklable", 1)
        assert text in line.message
        assert ".layers[1]['weights']" in line.message


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("thing", ["output", "item"])
def test_f3_what_cannot_be_unpickled_here_fails_alone(cluster, folder, thing, kind):
    """The notebook goes on, and so does the run."""
    function, _ = AFAR[thing]
    inputs = [*range(12)]
    inputs[5] = ("unpickle", "here", kind, folder, os.getpid())
    with no_worker_lost():
        run = nbmap.remote(function).map(inputs, return_exceptions=True)
        innocents(run, 5, 12)
        (line,) = run.failures
        assert (line.index, line.kind, line.attempts) == (5, "unpicklable", 1)
        assert "can't be unpickled here" in line.message
        assert nbmap.remote(give)(1) == 1


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize(
    ("step", "where"), [("pickle", "there"), ("unpickle", "there"), ("unpickle", "here")]
)
def test_f3_an_exception_that_cannot_travel_is_told_by_its_name(cluster, folder, step, where, kind):
    """It stays the user's failure, with its name."""
    inputs = [*range(12)]
    inputs[5] = (step, where, kind, folder, os.getpid())
    with no_worker_lost():
        run = nbmap.remote(raise_told).map(inputs, return_exceptions=True)
        innocents(run, 5, 12)
        (line,) = run.failures
        assert (line.index, line.kind, line.type) == (5, "user", "TrapError")
        failed = list(run)[5]
        assert isinstance(failed, nbmap.UserCodeException)
        assert "TrapError" in repr(failed)
        with pytest.raises(Exception) as caught:
            run[5]
        assert "TrapError" in f"{type(caught.value).__name__}: {caught.value}"
        assert nbmap.remote(give)(1) == 1


# --- what kills its process --------------------------------------------------------------------

# thing, how it is trapped, what runs
DEADLY = {
    "input unpickled": ("unpickle", give),
    "output pickled": ("pickle", give_told),
    "item pickled": ("pickle", yield_told),
    "exception pickled": ("pickle", raise_told),
    "exception unpickled": ("unpickle", raise_told),
}
DIAGONAL = [(thing, FATAL[at % len(FATAL)]) for at, thing in enumerate(DEADLY)]


def kill_one(folder, thing, kind):
    """Run twelve inputs of which one kills its process; check what becomes of all."""
    step, function = DEADLY[thing]
    inputs = [*range(12)]
    trap = (step, "there", kind, folder, os.getpid())
    inputs[5] = Model(Trap(*trap)) if thing.startswith("input") else trap
    run = nbmap.remote(function).map(inputs, return_exceptions=True)
    innocents(run, 5, 12)
    (line,) = run.failures
    assert (line.index, line.kind) == (5, "lost")
    assert 2 <= len(recorded(folder)) <= 3
    assert list(nbmap.remote(give).map(range(5))) == [*range(5)]
    return line


@pytest.mark.parametrize(("thing", "kind"), DIAGONAL)
def test_f3_what_kills_the_worker_is_lost_alone(cluster, folder, thing, kind):
    """At most three processes are lost, the others have outputs, and the next map works."""
    kill_one(folder, thing, kind)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", FATAL)
@pytest.mark.parametrize("thing", DEADLY)
def test_f3_whatever_kills_the_worker_is_lost_alone(cluster, folder, thing, kind):
    """The whole of the matrix."""
    kill_one(folder, thing, kind)


# --- the function ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAISED)
def test_f3_a_function_that_cannot_be_pickled_is_refused(cluster, folder, kind):
    """It is refused when `.map` is called, and the variable is named."""
    model = Model(Trap("pickle", "here", kind, folder))

    def use(x):
        return model, x

    for call in (lambda: nbmap.remote(use).map([1]), lambda: nbmap.remote(use)(1)):
        with pytest.raises(nbmap.Unpicklable, match=r"use can't be sent .+'model'"):
            call()
    assert nbmap.status().runs == 0


@pytest.mark.parametrize("kind", RAISED)
def test_f3_a_function_that_cannot_be_loaded_fails_every_input(cluster, folder, kind):
    """Each input is unpicklable with the reason; no worker is lost and the next map works."""
    model = Model(Trap("unpickle", "there", kind, folder))
    with no_worker_lost():
        run = nbmap.remote(lambda x: (model, x)).map(range(50), return_exceptions=True)
        assert run.wait(30)
        assert len(run.failures) == 50
        for line in run.failures:
            assert line.kind == "unpicklable"
            assert "the function can't be loaded on the worker" in line.message
            assert ("3" if kind == "sys.exit" else "hurt on purpose") in line.message
        assert nbmap.remote(give)(1) == 1


@pytest.mark.parametrize("kind", ["segfault", "os._exit"])
def test_f3_a_function_whose_loading_kills_its_process_ends_the_run(cluster, folder, kind):
    """At most three processes are lost; then every input fails, and is told why."""
    model = Model(Trap("unpickle", "there", kind, folder))
    run = nbmap.remote(lambda x: (model, x)).map(range(50), return_exceptions=True)
    try:
        assert run.wait(30)
    finally:
        run.cancel()
    assert len(recorded(folder)) <= 3
    assert [(line.index, line.kind) for line in run.failures] == [(i, "lost") for i in range(50)]
    told = "every worker dies that loads the function: its worker"
    assert all(line.message.startswith(told) for line in run.failures)
    assert list(nbmap.remote(give).map(range(5))) == [*range(5)]


def test_f3_a_function_that_is_slow_to_load_and_then_kills_its_process(existing, folder):
    """Of six workers three are lost at most, however long the function takes to load."""

    class Slow:
        def __reduce__(self):
            return load_and_die, (folder,)

    def load_and_die(where):
        import os
        import time

        time.sleep(2.5)
        record(where, "loaded")
        os._exit(3)

    model = Slow()
    handle = nbmap.remote(lambda x: (model, x), cluster=existing(workers=6, threads=1))
    run = handle.map(range(50), return_exceptions=True)
    assert run.wait(60)
    assert len(recorded(folder)) <= 3
    assert [(line.index, line.kind) for line in run.failures] == [(i, "lost") for i in range(50)]


def test_f3_a_function_that_is_slow_to_load_is_loaded_everywhere_once_it_can_be(existing, folder):
    """The other workers do not wait for its first output, only until one has loaded it."""

    class Slow:
        def __reduce__(self):
            return load, ()

    def load():
        import time

        time.sleep(1)
        return 1

    def use(x):
        assert model == 1
        record(folder, x)
        await_file(folder, "go")
        return x

    model = Slow()
    run = nbmap.remote(use, cluster=existing(workers=4, threads=1)).map(range(4))
    wait_until(lambda: len(recorded(folder)) == 4)
    touch(folder, "go")
    assert run.results() == [0, 1, 2, 3]


# --- F1 and F2: the nastiest of tests/surface/test_failures.py, on both kinds of cluster ---------


def recurse(n):
    return recurse(n + 1) + 1


def end(kind):
    """Do what would end a thread, a loop or a process that is not prepared."""
    match kind:
        case "sys.exit":
            sys.exit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "StopIteration":
            raise StopIteration
        case "CancelledError":
            raise asyncio.CancelledError
        case "RecursionError":
            recurse(0)
    return kind


async def end_awaiting(kind):
    await asyncio.sleep(0)
    return end(kind)


def end_yielding(kind):
    yield end(kind)


async def end_yielding_awaiting(kind):
    await asyncio.sleep(0)
    yield end(kind)


async def end_in_a_task(kind):
    """Have a task of the loop do it, whose exit would end the loop."""
    if kind != "fine":
        await asyncio.gather(asyncio.create_task(end_awaiting(kind)))
    return kind


ENDS = ["sys.exit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "CancelledError"]
ENDS = [*ENDS, "RecursionError"]


@pytest.mark.parametrize(
    "function", [end, end_awaiting, end_yielding, end_yielding_awaiting, end_in_a_task]
)
def test_f1_what_ends_threads_is_a_user_failure_wherever_it_comes_from(cluster, function):
    """No worker is lost, and the next input on it is fine, in each kind of function."""
    with no_worker_lost():
        run = nbmap.remote(function, concurrency=1).map(
            [word for kind in ENDS for word in (kind, "fine")], return_exceptions=True
        )
        out = list(run)
        assert out.count("fine") == len(ENDS)
        told = [(line.index, line.kind, line.attempts) for line in run.failures]
        assert told == [(2 * i, "user", 1) for i in range(len(ENDS))]


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("function", [end, end_awaiting])
def test_f1_a_single_call_of_it_raises_here(cluster, function, kind):
    """It ends neither the worker nor the caller, who is told."""
    with no_worker_lost():
        handle = nbmap.remote(function)
        with pytest.raises((nbmap.UserCodeException, RuntimeError)):
            handle(kind)
        assert handle("fine") == "fine"


class NoText(Exception):
    def __str__(self):
        raise SystemExit("no str")

    __repr__ = __str__


class Sly(str):
    """A text whose methods raise."""

    __slots__ = ()

    def __len__(self):
        raise RuntimeError("no len")

    def encode(self, *_):
        raise RuntimeError("no encode")


class SlyText(Exception):
    def __str__(self):
        return Sly("sly")


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class NoName(Exception, metaclass=Nameless):
    pass


class NoClass(Exception):
    @property
    def __class__(self):
        raise RuntimeError("no class")


class NoTraceback(Exception):
    __traceback__ = property(lambda self: 1 / 0, lambda self, value: 1 / 0)
    __cause__ = __context__ = __notes__ = __traceback__


class NoArguments(TypeError):
    args = property(lambda self: 1 / 0)


class Wants(Exception):
    def __init__(self, a, *, b):
        super().__init__(f"{a} and {b}")


class Group(ExceptionGroup):
    """Holds what can't be pickled, three deep."""


def raise_odd(kind):
    """Raise it; the text "fine" is none."""
    if kind == "fine":
        return kind
    if kind == "group":
        inner = ExceptionGroup("inner", [NoText(), Wants(1, b=2)])
        raise Group("outer", [ExceptionGroup("middle", [inner, TrapError(*TOLD)])])
    if kind == "cause":
        try:
            raise NoText
        except NoText as error:
            raise NoName(sys.stdin) from error
    if kind == "circle":
        error = Wants(1, b=2)
        error.__cause__ = error.__context__ = error
        error.owner = [error]
        raise error
    if kind == "missing here":
        space = {"__name__": "only_there"}
        exec("class Foreign(Exception): pass", space)
        raise space["Foreign"]("x" * 5_000_000 + "\ud800")
    raise {k.__name__ if k is not NoName else "NoName": k for k in ODD}[kind]


ODD = [NoText, SlyText, NoName, NoClass, NoTraceback, NoArguments]
NAMES = ["NoText", "SlyText", "NoName", "NoClass", "NoTraceback", "NoArguments"]
TOLD = ("pickle", "there", "sys.exit", "", os.getpid())
TYPES = {"group": "Group", "cause": "NoName", "circle": "Wants", "missing here": "Foreign"}


@pytest.mark.parametrize("kind", [*NAMES, *TYPES])
def test_f2_an_exception_that_is_as_odd_as_can_be_is_told_by_its_name(cluster, kind):
    """Its name and a bounded text are there, and the inputs behind it have their outputs."""
    with no_worker_lost():
        run = nbmap.remote(raise_odd).map(["fine", kind, "fine"], return_exceptions=True)
        out = list(run)
        assert (out[0], out[2]) == ("fine", "fine")
        assert isinstance(out[1], nbmap.UserCodeException)
        (line,) = run.failures
        assert (line.index, line.kind, line.type) == (1, "user", TYPES.get(kind, kind))
        assert len(line.message) < 10_000
        assert len(run.traceback(1)) < 100_000
        with pytest.raises(BaseException):  # noqa: B017 - whatever it became
            run[1]
        assert nbmap.remote(raise_odd)("fine") == "fine"


@pytest.mark.parametrize("lazy", [False, True], ids=["list", "iterator"])
def test_f2_an_input_whose_pickling_raises_what_has_no_text_fails_alone(cluster, lazy):
    """The run does not hang, and the input is refused with the exception's name."""
    inputs = [0, RaisesNoText(), 2]
    run = nbmap.remote(give).map(
        iter(inputs) if lazy else inputs, keep=True, return_exceptions=True
    )
    try:
        assert run.wait(10)
    finally:
        run.cancel()
    assert [(line.index, line.kind, line.type) for line in run.failures] == [
        (1, "unpicklable", "NoText")
    ]
    assert (run[0], run[2]) == (0, 2)


class RaisesNoText:
    def __reduce__(self):
        raise NoText


class SlowToLoad:
    """Takes for ever to be unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return wait_for_ever, (self.folder,)


def wait_for_ever(folder):
    record(folder, "in")
    while True:
        time.sleep(0.01)


def test_f3_an_input_that_is_stopped_while_it_is_unpickled_timed_out(cluster, folder):
    """It is told as what it is: too slow, and not unpicklable."""
    with no_worker_lost():
        run = nbmap.remote(give, timeout=1).map(
            [0, Model(SlowToLoad(folder)), 2], return_exceptions=True
        )
        innocents(run, 1, 3)
        assert [(line.index, line.kind) for line in run.failures] == [(1, "timeout")]
        assert recorded(folder) == ["in"]


def test_f3_an_input_that_is_cancelled_while_it_is_unpickled_is_cancelled(cluster, folder):
    """Cancelling stops the unpickling too."""
    run = nbmap.remote(give).map([0, Model(SlowToLoad(folder)), 2], return_exceptions=True)
    wait_until(lambda: recorded(folder) == ["in"])
    run.cancel(1)
    innocents(run, 1, 3)
    assert run.counts["cancelled"] == 1


class SlowToSend:
    """Is pickled as soon as a file is there."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        record(self.folder, "in")
        await_file(self.folder, "go")
        return int, ("7",)


def maybe_slow(x):
    """Return what only cloudpickle can pickle; of a folder it takes long."""
    return [lambda: 0, SlowToSend(x) if isinstance(x, str) else x]


def test_f3_a_slow_pickling_holds_up_no_other(cluster, folder):
    """While one output is being pickled others come, also from the same process."""
    handle = nbmap.remote(maybe_slow, concurrency=4)
    run = handle.map([folder, *range(20)])
    try:
        wait_until(lambda: recorded(folder) == ["in"])
        wait_until(lambda: run.counts["done"] == 20)
    finally:
        touch(folder, "go")
    assert run[0][1] == 7


def test_f3_an_input_that_is_slow_to_pickle_holds_up_no_other_map(cluster, folder):
    """While the notebook pickles an input of one run, other runs begin and end."""
    slow = nbmap.remote(give).map(iter([0, maybe_slow(folder)]), keep=True)
    try:
        wait_until(lambda: "in" in recorded(folder))
        assert list(nbmap.remote(lambda x: x).map(range(5))) == [*range(5)]
    finally:
        touch(folder, "go")
    assert slow[1][1] == 7


# --- F4: what belongs to this process alone --------------------------------------------------------


@pytest.fixture(scope="module")
def clients(two_workers):
    """A client of the cluster that was not started by nbmap; not the current one."""
    with Client(two_workers, set_as_default=False) as client:
        yield client


class Holder:
    """Holds something, and has a method that uses it."""

    def __init__(self, thing):
        self.thing = thing

    def use(self, x):
        return self.thing, x


def ways(thing):
    """Return functions that bring a thing along, with the name that is to be told."""
    held, several, named = Holder(thing), [1, (2, {"a": thing})], {"a": thing}

    def closure(x):
        return thing, x

    def inner(x):
        return closure(x)

    def deep(x):
        return several, x

    def attribute(x):
        return held, x

    def default(x, *, by_default=thing):
        return by_default, x

    async def waits(x):
        return named, x

    def yields(x):
        yield named, x

    return {
        "thing": [closure, inner],
        "several": [deep],
        "held": [attribute],
        "by_default": [default],
        "named": [waits, yields],
        "self.thing": [held.use],
        "argument 0": [functools.partial(divmod, thing)],
    }


def things(kind, folder, clients):
    """Make what can't be sent."""
    match kind:
        case "client":
            return clients
        case "cluster":
            return clients.cluster
        case "future":
            return nbmap.remote(abs).spawn(-1)
        case "widget":
            return ipywidgets.IntSlider()
        case "anywidget":
            return anywidget.AnyWidget()
        case "lock":
            return threading.RLock()
        case "file":
            return open(os.path.join(folder, "open"), "wb")  # noqa: PTH118, PTH123
        case "socket":
            return socket.socket()
        case "run":
            return nbmap.remote(abs).map([-1])


@pytest.mark.parametrize(
    "kind", ["client", "cluster", "widget", "anywidget", "lock", "file", "socket", "run", "future"]
)
def test_f4_what_belongs_to_this_process_is_refused_and_named(cluster, folder, clients, kind):
    """A function that brings it along is refused when `.map` is called; the variable is named."""
    thing = things(kind, folder, clients)
    try:
        for name, functions in ways(thing).items():
            for function in functions:
                handle = nbmap.remote(function)
                with pytest.raises(nbmap.Unpicklable, match=re.escape(f"'{name}'")):
                    handle.map([1, 2])
        with pytest.raises(nbmap.Unpicklable, match="'held'"):
            nbmap.remote(give).map([1, 2], kwargs={"held": [thing]})
        if kind in {"run", "future"}:
            wait_until(lambda: nbmap.status().runs == 0)
        assert nbmap.status().runs == 0
    finally:
        if kind in {"file", "socket", "widget", "anywidget"}:
            thing.close()
        if kind == "widget":  # its style and layout are widgets of their own
            thing.style.close()
        if kind in {"widget", "anywidget"}:
            thing.layout.close()
