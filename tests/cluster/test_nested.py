"""Handles that are used in remote code, on clusters of one slot and on workers without nbmap."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from helpers.files import (
    GUARD,
    await_file,
    count_for_ever,
    place,
    record,
    recorded,
    stands_still,
    there,
    touch,
    wait_until,
)
from helpers.processes import ROOT

import nbmap


@pytest.fixture(params=["one slot", "own"])
def anywhere(request):
    """A cluster of one slot, and nbmap's own; what handles run on in this test."""
    if request.param == "own":
        request.getfixturevalue("own")
        yield "own"
        return
    with nbmap.connect(request.getfixturevalue("one_slot")):
        yield "one slot"


def in_time(handle, *args):
    """Call a handle; give up, and stop it, after the guard."""
    call = handle.spawn(*args)
    try:
        return call.get(timeout=GUARD)
    finally:
        call.cancel()


# -- S20


def test_s20_calling_a_handle_in_remote_code_is_an_ordinary_call(anywhere, folder):
    """`f(x)` runs in the process and the thread that call it, with any arguments."""

    @nbmap.remote
    def f(x, *more, k=0):
        record(folder, x)
        return x, more, k, os.getpid(), threading.get_ident()

    @nbmap.remote
    def g(x):
        return f(x, 1, k=2), f.local(x), (os.getpid(), threading.get_ident())

    (one, two, here), other = g(7), next(iter(g.map([8])))
    assert one == (7, (1,), 2, *here)
    assert two == (7, (), 0, *here)
    assert other[2][0] != os.getpid()
    assert recorded(folder) == ["7", "7", "8", "8"]


def test_s20_every_method_works_in_remote_code(anywhere):
    """map, starmap, remote, spawn, for_each, remote_gen: each gives what it gives in the notebook."""

    @nbmap.remote
    def f(x, y=10, *, k=0):
        return x + y + k

    @nbmap.remote
    def count(n):
        yield from range(n)

    @nbmap.remote
    def g(x):
        call = f.spawn(x, 1, k=100)
        return {
            "map": list(f.map(range(x))),
            "two": list(f.map([1, 2, 3], [4, 5], kwargs={"k": 1})),
            "starmap": list(f.starmap([(1, 2), (3,)], kwargs={"k": 5})),
            "remote": f.remote(x, k=1),
            "spawn": (call.get(), call.done(), call.exception()),
            "for_each": f.for_each([1, 2]),
            "gen": list(count.remote_gen(x)),
            "gens": sorted(count.map([x, 2])),
            "empty": list(f.map([])),
            "unordered": sorted(f.map(range(x), order_outputs=False)),
        }

    assert g(3) == {
        "map": [10, 11, 12],
        "two": [6, 8],
        "starmap": [8, 18],
        "remote": 14,
        "spawn": (104, True, None),
        "for_each": None,
        "gen": [0, 1, 2],
        "gens": [0, 0, 1, 1, 2],
        "empty": [],
        "unordered": [10, 11, 12],
    }


def test_s20_the_awaitable_twins_work_in_remote_code(anywhere):
    """In a coroutine that is a remote function: remote.aio, map.aio, spawn, gathered."""

    @nbmap.remote
    def f(x):
        return x + 1

    @nbmap.remote
    async def g(x):
        both = await asyncio.gather(f.remote.aio(x), f.remote.aio(x + 1))
        mapped = [y async for y in f.map.aio(range(x))]
        call = await f.spawn.aio(5)
        return both, mapped, await call, await f.map(range(2)), await f.for_each.aio([1])

    assert in_time(g, 3) == ([4, 5], [1, 2, 3], 6, [1, 2], None)


def test_s20_three_deep_finishes_on_one_slot(one_slot):
    """Handles with concurrency=1 that map over each other, on one worker with one thread."""
    with nbmap.connect(one_slot):
        leaf = nbmap.remote(lambda x: x + 1, concurrency=1)
        middle = nbmap.remote(lambda x: sum(leaf.map(range(x))), concurrency=1)
        top = nbmap.remote(lambda x: list(middle.map(range(x))), concurrency=1)
        root = nbmap.remote(lambda xs: list(top.map(xs)), concurrency=1)
        assert root([3, 4]) == [[0, 1, 3], [0, 1, 3, 6]]
        assert list(root.map([[1]] * 4)) == [[[0]]] * 4


def test_s20_an_endless_generator_lets_its_consumer_have_the_slot(one_slot, folder):
    """It stands aside at an output for whoever waits for one; leaving the loop closes it."""
    with nbmap.connect(one_slot):

        @nbmap.remote
        def endless():
            try:
                for i in itertools.count():
                    time.sleep(0.002)
                    yield i
            finally:
                touch(folder, "closed")

        @nbmap.remote
        def outer():
            for i in endless.remote_gen():
                if i == 5:
                    break
            return i

        assert in_time(outer) == 5
        await_file(folder, "closed")
        assert in_time(nbmap.remote(abs), -1) == 1


def test_s20_what_an_input_leaves_running_is_closed_but_for_calls(one_slot, folder):
    """Nobody could take the outputs of a generator; a call that was spawned goes on."""
    with nbmap.connect(one_slot):

        @nbmap.remote
        def endless():
            try:
                while True:
                    time.sleep(0.002)
                    yield 1
            finally:
                touch(folder, "closed")

        left = nbmap.remote(lambda: time.sleep(0.2) or touch(folder, "ended"))

        @nbmap.remote
        def outer():
            first = next(endless.remote_gen())
            left.spawn()  # which starts when this has ended: there is one slot
            return first

        assert in_time(outer) == 1
        await_file(folder, "closed")
        await_file(folder, "ended")


def test_s20_a_slow_consumer_in_remote_code_pauses_the_generator(one_slot, folder):
    """Of 300 outputs of 1 MB only those are made that may be under way; in the end all come."""
    with nbmap.connect(one_slot):

        @nbmap.remote
        def large():
            for i in range(300):
                record(folder, i)
                yield bytes(1 << 20)

        @nbmap.remote
        def outer():
            outputs = large.remote_gen()
            next(outputs)
            made = -1
            while made != (made := len(recorded(folder))):
                time.sleep(0.5)
            return made, 1 + sum(1 for _ in outputs)

        made, came = in_time(outer)
        assert made < 200
        assert came == 300


def test_s20_an_input_that_waits_gives_its_place_up(one_slot, folder):
    """On one slot the nested input runs while the outer one waits: neither could go on alone."""
    with nbmap.connect(one_slot):
        inner = nbmap.remote(lambda: touch(folder, "inner-ran") or os.getpid())

        @nbmap.remote
        def outer():
            call = inner.spawn()
            assert not there(folder, "inner-ran")
            return call.get(), there(folder, "inner-ran"), os.getpid()

        pid, ran, outer_pid = outer()
        assert ran
        assert pid == outer_pid  # the only worker


def test_s20_one_slot_runs_one_at_a_time_also_while_others_wait(one_slot, folder):
    """The own code of inputs that wait in between never runs beside another input's."""
    with nbmap.connect(one_slot):

        @nbmap.remote
        def inner(x):
            with place(folder, 1):
                time.sleep(0.002)
                return x

        @nbmap.remote
        def outer(x):
            out = []
            for y in range(3):
                with place(folder, 1):
                    time.sleep(0.002)
                out += inner.map([x, y])
            with place(folder, 1):
                return out

        assert list(outer.map(range(6))) == [[x, 0, x, 1, x, 2] for x in range(6)]
        assert not there(folder, "too-many")


def test_s20_a_limit_holds_over_nested_uses_and_the_notebooks(own, folder):
    """Two places for f: the notebook's map and those of five inputs of g share them."""

    @nbmap.remote(concurrency=2)
    def f(x):
        with place(folder, 2):
            time.sleep(0.005)
            return x

    @nbmap.remote(concurrency=5)
    def g(x):
        return [*f.map(range(x)), f.remote(x)]

    run = f.map(range(30))
    assert list(g.map([4] * 5)) == [[0, 1, 2, 3, 4]] * 5
    assert list(run) == list(range(30))
    assert not there(folder, "too-many")


def test_s20_with_options_in_remote_code_has_a_limit_of_its_own(own, folder):
    """One place: a handle made by with_options in remote code never runs two at once."""
    f = nbmap.remote(lambda x: _alone(folder, x))

    @nbmap.remote
    def g(x):
        return list(f.with_options(concurrency=1).map(range(x)))

    def _alone(folder, x):
        with place(folder, 1):
            time.sleep(0.005)
            return x

    assert g(6) == list(range(6))
    assert not there(folder, "too-many")


def test_s20_a_handle_that_maps_over_itself(anywhere):
    """Recursion through map and remote ends, with every place taken by who waits."""

    @nbmap.remote(concurrency=1)
    def tree(n):
        return [n, *tree.map([n - 1] * 2)] if n else []

    @nbmap.remote
    def fib(n):
        return n if n < 2 else fib.remote(n - 1) + fib.remote(n - 2)

    assert tree(3) == [3, [2, [1, [], []], [1, [], []]], [2, [1, [], []], [1, [], []]]]
    assert fib(6) == 8


def test_s20_many_inputs_that_each_wait_all_end(one_slot):
    """Sixty outer inputs on one slot, each with a nested map."""
    with nbmap.connect(one_slot):
        inner = nbmap.remote(lambda x: x * 2)
        outer = nbmap.remote(lambda x: sum(inner.map(range(x % 4))))
        run = outer.map(range(60))
        try:
            assert run.wait(20)
        finally:
            run.cancel()
        assert list(run) == [x % 4 * (x % 4 - 1) for x in range(60)]


class OwnError(Exception):
    """The user's own."""


def test_s20_exceptions_of_nested_runs_arrive_as_their_own_type(anywhere):
    """In remote code, and from there in the notebook, with their arguments."""

    @nbmap.remote
    def f(x):
        if x:
            raise OwnError(x, "ohno")
        return x

    @nbmap.remote
    def catches(x):
        said = []
        for use in (lambda: list(f.map([0, x])), lambda: f.remote(x), lambda: f.spawn(x).get()):
            try:
                use()
            except OwnError as error:
                said.append(error.args)
        said.append(f.spawn(x).exception().args)
        try:
            f.for_each([x])
        except OwnError as error:
            said.append(error.args)
        return said, f.for_each([x], ignore_exceptions=True)

    assert catches(3) == ([(3, "ohno")] * 5, None)
    with pytest.raises(OwnError, match="ohno"):
        nbmap.remote(lambda x: [f.remote(x)])(4)
    with pytest.raises(OwnError, match="ohno"):
        list(nbmap.remote(lambda x: list(f.map([0, x]))).map([0, 5]))


def test_s20_a_nested_map_hands_out_what_comes_before_its_failure(anywhere):
    """In input order, as in the notebook."""
    f = nbmap.remote(lambda x: 1 // x)

    @nbmap.remote
    def g(xs):
        out = []
        with contextlib.suppress(ZeroDivisionError):
            for y in f.map(xs):
                out.append(y)  # noqa: PERF402 - up to the failure
        return out

    assert g([1, 1, 0, 1]) == [1, 1]


def test_s20_failures_are_values_in_nested_maps_too(anywhere):
    """`return_exceptions=True` gives the same wrapped and bare values as in the notebook."""
    f = nbmap.remote(lambda x: 1 // x)

    @nbmap.remote
    def g(xs):
        wrapped = list(f.map(xs, return_exceptions=True))
        bare = list(f.map(xs, return_exceptions=True, wrap_returned_exceptions=False))
        return repr(wrapped), repr(wrapped[1].exc), repr(bare)

    assert g([1, 0]) == (
        "[1, UserCodeException(ZeroDivisionError('integer division or modulo by zero'))]",
        "ZeroDivisionError('integer division or modulo by zero')",
        "[1, ZeroDivisionError('integer division or modulo by zero')]",
    )


def test_s20_wrong_uses_in_remote_code_are_refused_there(anywhere):
    """The refusals of the notebook arrive as exceptions: no iterables, unknown options, kinds."""

    @nbmap.remote
    def f(x):
        return x

    @nbmap.remote
    def count(n):
        yield from range(n)

    @nbmap.remote
    def g():
        said = []
        for use in (
            lambda: list(f.map()),
            lambda: list(f.map(3)),
            lambda: list(f.map([1], retrun_exceptions=True)),
            lambda: f.remote_gen(1),
            lambda: count.remote(1),
            lambda: count.spawn(1),
            lambda: list(f.map([lambda: 0, threading.Lock()])),
        ):
            try:
                use()
            except Exception as error:
                said.append(type(error).__name__)
            else:
                said.append("nothing")
        return said

    said = g()
    assert said[:6] == ["TypeError"] * 6
    assert said[6] != "nothing"


def test_s20_nested_generators_stream(own, folder):
    """Outputs of a nested generator reach remote code while the generator still runs."""

    @nbmap.remote
    def numbers(n):
        for x in range(n):
            yield x
            await_file(folder, f"got-{x}")

    @nbmap.remote
    def g(how):
        for x in numbers.remote_gen(4) if how == "gen" else numbers.map([4]):
            touch(folder, f"got-{x}")
            yield x

    assert list(g.remote_gen("gen")) == [0, 1, 2, 3]
    for x in range(4):
        (Path(folder) / f"got-{x}").unlink()
    assert list(g.map(["map"])) == [0, 1, 2, 3]


def test_s20_cancelling_the_outer_run_stops_the_nested_ones(own, folder):
    """Three levels deep the function stands still, and the places come back."""
    f = nbmap.remote(count_for_ever)
    middle = nbmap.remote(lambda names: list(f.map([folder] * len(names), names)))
    outer = nbmap.remote(lambda names: [middle.remote(names)])
    call = outer.spawn(["one", "two"])
    await_file(folder, "one")
    await_file(folder, "two")
    call.cancel()
    with pytest.raises(nbmap.InputCancelled):
        call.get(timeout=20)
    assert stands_still(folder, "one")
    assert stands_still(folder, "two")
    assert nbmap.remote(abs)(-1) == 1
    wait_until(lambda: nbmap.status().runs == 0, "the nested runs to end")


def test_s20_remote_code_can_cancel_its_own_call(anywhere, folder):
    """`call.cancel()` and `run.cancel()` in remote code stop the functions."""
    f = nbmap.remote(count_for_ever)

    @nbmap.remote
    def g():
        call, run = f.spawn(folder, "a"), f.map([folder], ["b"])
        for name in "ab":
            with contextlib.suppress(TimeoutError):
                call.get(timeout=0.5)
            if there(folder, name):
                break
        call.cancel()
        run.cancel()
        try:
            call.get()
        except BaseException as error:
            return type(error).__name__
        return "nothing"

    assert in_time(g) == "InputCancelled"
    for name in "ab":
        if there(folder, name):
            assert stands_still(folder, name)
    wait_until(lambda: nbmap.status().runs == 0, "the runs to end")


def test_s20_what_an_input_started_and_left_is_not_for_ever(own, folder):
    """An input that ends without waiting for its call leaves nothing behind that can't end."""
    f = nbmap.remote(lambda: record(folder, "ran"))
    g = nbmap.remote(lambda: f.spawn().done())
    assert g() is False
    wait_until(lambda: nbmap.status().runs == 0, "the nested run to end")


def test_s20_a_timeout_of_get_in_remote_code(anywhere, folder):
    """`get(timeout=)` raises the builtin TimeoutError there; the call goes on."""
    f = nbmap.remote(lambda: await_file(folder, "go") or 5)

    @nbmap.remote
    def g():
        call = f.spawn()
        said = []
        for timeout in (0, 0.05):
            try:
                call.get(timeout=timeout)
            except TimeoutError as error:
                said.append(type(error).__name__)
        touch(folder, "go")
        return said, call.get(timeout=20)

    assert in_time(g) == (["TimeoutError"] * 2, 5)


def test_s20_a_worker_killed_while_an_input_waits_for_its_nested_run(own, folder):
    """The input runs again elsewhere, its nested run too, and the result is right."""

    @nbmap.remote(worker_losses=10)
    def f(x):
        if not there(folder, "killed"):
            record(folder, "f")
            await_file(folder, "killed")
        return x * 2

    @nbmap.remote(worker_losses=10)
    def g(x):
        record(folder, f"g {os.getpid()}")
        return sum(f.map(range(x)))

    call = g.spawn(4)
    wait_until(lambda: "f" in recorded(folder), "a nested input")
    pid = int(next(line for line in recorded(folder) if line[:2] == "g ").split()[1])
    os.kill(pid, signal.SIGKILL)
    touch(folder, "killed")
    assert call.get(timeout=40) == 12
    assert sum(line[:2] == "g " for line in recorded(folder)) >= 2
    wait_until(lambda: nbmap.status().runs == 0, "all runs to end")


def test_s20_large_inputs_and_outputs_of_nested_runs(own):
    """Some megabytes go both ways, whole."""
    f = nbmap.remote(lambda b: b + b)
    g = nbmap.remote(lambda n: [len(b) for b in f.map([bytes([i]) * n for i in range(3)])])
    assert g(3_000_000) == [6_000_000] * 3


def test_s20_the_prints_of_nested_inputs_are_not_the_outers(own):
    """Each input keeps what it printed itself."""
    f = nbmap.remote(lambda x: print("inner", x))

    @nbmap.remote
    def g(x):
        print("before")
        f.remote(x)
        print("after")

    run = g.map([1])
    assert run.wait(30)
    assert run.stdout(0) == "before\nafter\n"


def test_s20_current_input_is_the_calling_codes(own):
    """A nested input has an index of its own; the outer one's is the same after the wait."""
    f = nbmap.remote(lambda _: nbmap.current_input().index)

    @nbmap.remote
    def g(_):
        before = nbmap.current_input().index
        nested = list(f.map("abc"))
        return before, nested, f("direct"), nbmap.current_input().index

    assert list(g.map("xyz")) == [(i, [0, 1, 2], i, i) for i in range(3)]


# -- S21


@pytest.mark.parametrize("kind", ["function", "generator"])
@pytest.mark.parametrize("keep", [None, False])
def test_s21_outputs_of_f_start_g_before_f_is_finished(own, folder, kind, keep):
    """The last input of f waits until g has run on the output of the first."""

    def body(x):
        if x == 5:
            await_file(folder, "g-ran-0")
        return x

    def stream(x):
        yield x
        if x == 0:
            await_file(folder, "g-ran-0")
        yield x + 100

    f = nbmap.remote(body if kind == "function" else stream, concurrency=2)
    g = nbmap.remote(lambda y: touch(folder, f"g-ran-{y}") or -y, concurrency=2)
    options = {} if keep is None else {"keep": keep}
    piped = g.map(f.map(range(6), **options), **options)
    if kind == "function":
        assert list(piped) == [-x for x in range(6)]
    else:
        assert sorted(piped) == sorted([-x for x in range(6)] + [-x - 100 for x in range(6)])


def test_s21_a_pipe_of_three(own):
    """One over another over the first, and a run beside a list as a second argument."""
    f, g = nbmap.remote(lambda x: x + 1), nbmap.remote(lambda x, y=0: 10 * x + y)
    assert list(f.map(g.map(f.map(range(5)), range(5)))) == [11, 22, 33, 44, 55]
    assert sum(g.map(f.map(iter(range(300))))) == 10 * sum(range(1, 301))


def test_s21_a_failure_of_f_ends_the_pipe_with_its_exception(own):
    """What came before it goes through g, then f's exception is raised."""
    f, g = nbmap.remote(lambda x: 6 // (3 - x)), nbmap.remote(lambda x: x * 2)
    out = []
    with pytest.raises(ZeroDivisionError):
        for y in g.map(f.map(range(6))):
            out.append(y)  # noqa: PERF402 - up to the failure
    assert out == [4, 6, 12]


def test_s21_a_pipe_on_one_slot_finishes(one_slot):
    """Both handles take turns on the one place."""
    with nbmap.connect(one_slot):
        f, g = nbmap.remote(lambda x: x + 1), nbmap.remote(lambda x: x * 2)
        assert list(g.map(f.map(range(20)))) == [2 * x + 2 for x in range(20)]


# -- workers without nbmap


@pytest.fixture(scope="module")
def bare_workers(tmp_path_factory):
    """The scheduler file of a cluster of one slot, whose environment has no nbmap."""
    folder = tmp_path_factory.mktemp("bare")
    python = ROOT / ".venv-bare" / "bin" / "python"
    assert python.exists(), "make test makes the environment .venv-bare"
    path = folder / "scheduler.json"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    options = {"cwd": folder, "env": env, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [
            *(python, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"),
            *("--port", "0", "--no-dashboard", "--scheduler-file", path),
        ],
        **options,
    )
    worker = None
    try:
        wait_until(path.exists, "the scheduler")
        worker = subprocess.Popen(
            [
                *(python, "-m", "distributed.cli.dask_worker", "--scheduler-file", path),
                *("--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1"),
            ],
            **options,
        )
        yield str(path)
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.terminate()
                process.wait(30)


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
class TestWithoutNbmap:
    """What remote code may use of nbmap where it is not installed."""

    def test_s20_nested_runs(self, bare_workers):
        """All methods, recursion and exceptions, on one slot."""

        @nbmap.remote
        def f(x):
            return x + 1

        @nbmap.remote
        def count(n):
            yield from range(n)

        @nbmap.remote
        def g(x):
            import sys

            if hasattr(sys.modules.get("nbmap"), "__file__"):
                raise OwnError("nbmap is installed here")
            return list(f.map(range(x))), f.remote(x), f(x), f.spawn(x).get(), sum(count.map([x]))

        @nbmap.remote(concurrency=1)
        def tree(n):
            return 1 + sum(tree.map([n - 1] * 2)) if n else 1

        fails = nbmap.remote(lambda x: 1 // x)

        @nbmap.remote
        def catches():
            try:
                list(fails.map([1, 0]))
            except ZeroDivisionError as error:
                return type(error).__name__
            return "nothing"

        with nbmap.connect(bare_workers):
            assert g(3) == ([1, 2, 3], 4, 4, 4, 3)
            assert list(g.map([1, 2]))[1] == ([1, 2], 3, 3, 3, 1)
            assert tree(3) == 15
            assert catches() == "ZeroDivisionError"
            with pytest.raises(ZeroDivisionError):
                nbmap.remote(lambda: fails.remote(0))()

    def test_s20_failures_as_values(self, bare_workers):
        """Nested maps with `return_exceptions=True`; what nbmap itself raises has its name."""
        fails = nbmap.remote(lambda x: 1 // x)
        slow = nbmap.remote(lambda: time.sleep(0.01) or _spin(), timeout=0.1)

        def _spin():
            while True:
                pass

        @nbmap.remote
        def g(xs):
            return [repr(y) for y in fails.map(xs, return_exceptions=True)]

        @nbmap.remote
        def bare(xs):
            flags = {"return_exceptions": True, "wrap_returned_exceptions": False}
            return [repr(y) for y in fails.map(xs, **flags)]

        @nbmap.remote
        def late():
            try:
                slow.remote()
            except Exception as error:
                return type(error).__name__, "longer" in str(error)
            return "nothing"

        with nbmap.connect(bare_workers):
            zero = "ZeroDivisionError('integer division or modulo by zero')"
            assert bare([1, 0]) == ["1", zero]
            assert g([1, 0]) == ["1", f"UserCodeException({zero})"]
            assert late() == ("InputTimeout", True)

    def test_s20_import_nbmap_there(self, bare_workers):
        """`import nbmap` has current_input and per_worker; other names say where they belong."""

        @nbmap.remote
        def f(x):
            import nbmap as there

            try:
                there.connect("x")
            except AttributeError as error:
                said = str(error)
            return x, there.current_input().index, there.current_input().attempt, said

        with nbmap.connect(bare_workers):
            out = list(f.map("ab"))
        assert [row[:3] for row in out] == [("a", 0, 1), ("b", 1, 1)]
        assert "connect" in out[0][3]
        assert "notebook" in out[0][3]

    def test_s22_per_worker(self, bare_workers, folder):
        """A loader is sent by value and loads once; one that is made over there too."""

        @nbmap.per_worker
        def model(name):
            record(folder, name)
            return [name]

        @nbmap.remote
        def f(x):
            return model(x)[0], id(model(x)), model(x) is model(x)

        @nbmap.remote
        def inside(x):
            import nbmap as there

            @there.per_worker
            def loader():
                return [x]

            return loader()

        with nbmap.connect(bare_workers):
            out = list(f.map(["a", "b"] * 10))
            assert inside(1) == [1]
        assert [row[0] for row in out] == ["a", "b"] * 10
        assert all(row[2] for row in out)
        assert len({row[1] for row in out}) == 2
        assert sorted(recorded(folder)) == ["a", "b"]
