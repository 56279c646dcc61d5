"""User code that fails: what the caller sees, and what goes on."""

import asyncio
import contextlib
import os
import sys
import traceback
import types

import pytest
from helpers.files import recorded, there, touch

import nbmap


def fail_on_two(x):
    if x == 2:
        raise ValueError("two is wrong", x)  # the failing line
    return x


class Own(Exception):
    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code


def test_s8_the_exception_keeps_its_type_and_arguments(transport):
    """What is raised here is what was raised there."""
    with pytest.raises(ValueError, match="two is wrong") as caught:
        list(nbmap.remote(fail_on_two).map(range(4)))
    assert type(caught.value) is ValueError
    assert caught.value.args == ("two is wrong", 2)


def test_s8_the_users_own_class_arrives_as_itself(transport):
    """Also where the class is the user's own."""

    def fail(x):
        raise Own("mine", x)

    with pytest.raises(Own) as caught:
        list(nbmap.remote(fail).map([404]))
    assert (caught.value.args, caught.value.code) == (("mine", 404), 404)


def test_s8_the_traceback_shows_the_failing_line(transport):
    """The remote frames are in the traceback, the user's failing line last."""
    run = nbmap.remote(fail_on_two).map(range(4))
    with pytest.raises(ValueError) as caught:
        list(run)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.name, last.filename) == ("fail_on_two", __file__)
    assert "# the failing line" in (last.line or "")
    assert "# the failing line" in "".join(traceback.format_exception(caught.value))
    assert "# the failing line" in run.traceback(2)
    assert run.traceback(1) == ""


def test_s8_a_note_names_index_and_input(transport):
    """A note says which input it was, once however often it is raised."""
    run = nbmap.remote(fail_on_two).map([9, 8, 2])
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            list(run)
        assert len(caught.value.__notes__) == 1
        assert "input 2 (2) of fail_on_two" in caught.value.__notes__[0]


@pytest.mark.parametrize("keep", [True, False])
def test_s8_the_outputs_before_it_come_first(transport, keep):
    """In input order the exception is raised at its place."""
    got = []
    with pytest.raises(ValueError):
        got.extend(nbmap.remote(fail_on_two).map([5, 6, 7, 2, 8], keep=keep))
    assert got == [5, 6, 7]


def test_s8_the_others_go_on(transport):
    """All other inputs are called, and their outputs stay on the run."""
    run = nbmap.remote(fail_on_two).map([2, *range(10, 60), 2])
    with pytest.raises(ValueError):
        list(run)
    assert run.wait(60)
    assert run.status == "finished"
    assert run.results(errors="drop") == list(range(10, 60))
    assert (run.counts["done"], run.counts["failed"]) == (50, 2)


def test_s8_handle_and_cluster_work_after_a_failure(transport):
    """A failure costs neither the handle nor a worker."""
    handle = nbmap.remote(lambda x: (1 / x, os.getpid()))
    pids = {pid for _, pid in handle.map(range(1, 40))}
    with pytest.raises(ZeroDivisionError):
        list(handle.map([1, 0, 2]))
    outputs = list(handle.map([1, 2]))
    assert [value for value, _ in outputs] == [1, 0.5]
    assert {pid for _, pid in outputs} <= pids


def test_s8_a_cause_is_in_the_text(transport):
    """What an exception was raised from can be read."""

    def fail(x):
        try:
            return {}[x]
        except KeyError as error:
            raise RuntimeError("outer") from error

    run = nbmap.remote(fail).map(["inner"])
    with pytest.raises(RuntimeError, match="outer"):
        list(run)
    assert "KeyError: 'inner'" in run.traceback(0)
    assert "RuntimeError: outer" in run.traceback(0)


def test_s8_completion_order_raises_on_arrival(transport):
    """With order_outputs=False a failure is raised when it comes; the others are kept."""
    run = nbmap.remote(fail_on_two).map([2, 1], order_outputs=False)
    with pytest.raises(ValueError):
        list(run)
    assert run.wait(60)
    assert run[1] == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_s8_max_failures_stops_a_run_that_fails_too_often(transport, ordered):
    """Once more than that many inputs failed, the run stops, though inputs are left."""

    def inputs():
        n = 0
        while True:
            yield n
            n += 1

    def fail(x):
        raise ValueError(x)

    run = nbmap.remote(fail).map(
        inputs(), max_failures=3, return_exceptions=True, order_outputs=ordered
    )
    got = []
    with pytest.raises(nbmap.TooManyFailures, match="max_failures=3"):
        got.extend(run)
    assert run.wait(60)
    assert run.status == "stopped"
    assert all(isinstance(output, nbmap.UserCodeException) for output in got)


def test_s8_as_many_as_max_failures_are_allowed(transport):
    """The number itself is not too many."""
    run = nbmap.remote(fail_on_two).map([2, 1, 2, 3], max_failures=2, return_exceptions=True)
    assert [type(output).__name__ for output in run] == [
        "UserCodeException",
        "int",
        "UserCodeException",
        "int",
    ]
    assert run.status == "finished"


def test_s8_max_failures_in_percent_counts_from_twenty_inputs_on(transport):
    """A share is looked at from 20 finished inputs on, and then stops the run."""
    few = nbmap.remote(fail_on_two).map([2] * 19, max_failures="5%", return_exceptions=True)
    assert len(list(few)) == 19
    many = nbmap.remote(fail_on_two).map([2] * 2000, max_failures="5%", return_exceptions=True)
    with pytest.raises(nbmap.TooManyFailures, match="5%"):
        list(many)
    rare = nbmap.remote(fail_on_two).map(
        [2, *range(10, 110)], max_failures="50%", return_exceptions=True
    )
    assert len(list(rare)) == 101


def test_s9_failures_as_values_print_as_the_page_prints_them(transport, capsys):
    """The exact line of the page."""

    @nbmap.remote
    def my_func(a):
        if a == 2:
            raise Exception("ohno")
        return a

    print(list(my_func.map(range(3), return_exceptions=True)))
    assert capsys.readouterr().out == "[0, 1, UserCodeException(Exception('ohno'))]\n"


def test_s9_the_users_exception_is_inside(transport):
    """`.exc` is what the user raised, with its remote traceback."""
    (output,) = nbmap.remote(fail_on_two).map([2], return_exceptions=True)
    assert isinstance(output, nbmap.UserCodeException)
    assert isinstance(output, nbmap.InputFailed)
    assert (type(output.exc), output.exc.args) == (ValueError, ("two is wrong", 2))
    assert "# the failing line" in "".join(traceback.format_exception(output.exc))


def test_s9_unwrapped_failures_are_the_users_exceptions(transport):
    """`wrap_returned_exceptions=False` gives the bare ones."""
    outputs = list(
        nbmap.remote(fail_on_two).map(
            [1, 2], return_exceptions=True, wrap_returned_exceptions=False
        )
    )
    assert outputs[0] == 1
    assert type(outputs[1]) is ValueError


def test_s9_a_returned_exception_is_a_value(transport):
    """An exception object that is returned is an output like any other."""
    handle = nbmap.remote(lambda x: ValueError(x, 0))
    for options in ({}, {"return_exceptions": True}):
        run = handle.map([1, 2], **options)
        outputs = list(run)
        assert [(type(o), o.args) for o in outputs] == [(ValueError, (1, 0)), (ValueError, (2, 0))]
        assert (run.counts["done"], run.failures) == (2, [])
    assert type(handle(3)) is ValueError


def test_s9_failures_of_a_run_that_keeps_nothing_are_values_too(transport):
    """The same from an iterator, in both orders."""
    for ordered in (True, False):
        run = nbmap.remote(fail_on_two).map(
            iter(range(5)), return_exceptions=True, order_outputs=ordered
        )
        outputs = list(run)
        assert sum(isinstance(o, nbmap.UserCodeException) for o in outputs) == 1
        assert sorted(o for o in outputs if isinstance(o, int)) == [0, 1, 3, 4]


def recurse(n):
    return recurse(n + 1) + 1


def exit_with(kind):
    """Do what would end a process or a thread that is not prepared."""
    match kind:
        case "sys.exit":
            sys.exit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "StopIteration":
            next(iter(()))
        case "StopAsyncIteration":
            raise StopAsyncIteration
        case "CancelledError":
            raise asyncio.CancelledError
        case "RecursionError":
            recurse(0)
        case "BaseException":
            raise BaseException("bare")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sys.exit", SystemExit),
        ("KeyboardInterrupt", KeyboardInterrupt),
        ("GeneratorExit", GeneratorExit),
        ("StopIteration", StopIteration),
        ("StopAsyncIteration", StopAsyncIteration),
        ("CancelledError", asyncio.CancelledError),
        ("RecursionError", RecursionError),
        ("BaseException", BaseException),
    ],
)
def test_f1_what_ends_threads_is_a_user_failure(transport, kind, expected):
    """It is that input's failure, and the same process serves the next input."""

    @nbmap.remote(concurrency=1)
    def work(kind):
        exit_with(kind)
        return os.getpid()

    run = work.map(["fine", kind, "fine"], return_exceptions=True)
    before, failed, after = run
    assert before == after
    assert isinstance(failed, nbmap.UserCodeException)
    assert type(failed.exc) is expected
    assert [(f.index, f.kind, f.attempts) for f in run.failures] == [(1, "user", 1)]
    assert expected.__name__ in run.traceback(1)
    assert work("fine") == before


@pytest.mark.parametrize("kind", ["sys.exit", "KeyboardInterrupt", "GeneratorExit"])
def test_f1_raised_here_it_does_not_end_the_callers_process(transport, kind):
    """Where it would end the caller's process or be taken for the user's own, it comes wrapped."""
    handle = nbmap.remote(exit_with)
    with pytest.raises(nbmap.UserCodeException) as caught:
        list(handle.map([kind]))
    assert not isinstance(caught.value.exc, Exception)
    with pytest.raises(nbmap.UserCodeException):
        handle(kind)


def test_f1_a_stop_iteration_does_not_end_the_callers_loop_quietly(transport):
    """`list(map(handle, xs))` raises, instead of being cut short."""
    with pytest.raises(nbmap.UserCodeException):
        list(map(nbmap.remote(exit_with), ["fine", "StopIteration", "fine"]))


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no str")


class BadRepr(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")


class BadReduce(Exception):
    def __reduce__(self):
        raise RuntimeError("no reduce")


class ExitingReduce(Exception):
    def __reduce__(self):
        raise SystemExit


class ManyArguments(Exception):
    def __init__(self, a, b, *, c):
        super().__init__(f"{a}-{b}-{c}")
        self.c = c


class HoldsALock(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = __import__("threading").Lock()


def nasty(kind):
    class Local(Exception):
        pass

    match kind:
        case "str":
            raise BadStr("text")
        case "repr":
            raise BadRepr("text")
        case "reduce":
            raise BadReduce("text")
        case "exit in reduce":
            raise ExitingReduce("text")
        case "arguments":
            raise ManyArguments(1, 2, c=3)
        case "local":
            raise Local("text")
        case "lock":
            raise HoldsALock("text")
        case "long":
            raise ValueError("x" * 5_000_000)
        case "surrogate":
            raise ValueError("lone \ud800 surrogate")
        case "group":
            inner = ExceptionGroup("inner", [ValueError(1), KeyError(2)])
            middle = ExceptionGroup("middle", [inner, OSError(3)])
            raise ExceptionGroup("outer", [middle])
        case "foreign":
            module = types.ModuleType("only_there")
            exec("class Foreign(Exception): pass", vars(module))
            sys.modules["only_there"] = module
            raise module.Foreign("text")


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("str", "BadStr", None),
        ("repr", "BadRepr", "text"),
        ("reduce", "BadReduce", "text"),
        ("exit in reduce", "ExitingReduce", "text"),
        ("arguments", "ManyArguments", "1-2-3"),
        ("local", "Local", "text"),
        ("lock", "HoldsALock", "text"),
        ("long", "ValueError", "xxxx"),
        ("surrogate", "ValueError", "surrogate"),
        ("group", "ExceptionGroup", "outer"),
        ("foreign", "Foreign", "text"),
    ],
)
def test_f2_nasty_exceptions_have_their_name_and_bounded_text(transport, kind, name, text):
    """Type name and bounded text always, the object where it can be had; the others are right."""
    run = nbmap.remote(nasty).map(["fine", kind, "fine"], return_exceptions=True)
    before, failed, after = run
    assert before is after is None
    assert isinstance(failed, nbmap.UserCodeException)
    (line,) = run.failures
    assert (line.index, line.kind, line.type) == (1, "user", name)
    assert text is None or text in line.message
    assert len(line.message) < 10_000
    assert len(run.traceback(1)) < 100_000
    assert name in run.traceback(1)
    if kind in {"surrogate", "long", "group", "arguments", "local", "lock", "repr", "str"}:
        assert type(failed.exc).__name__ == name
    else:
        with contextlib.suppress(RuntimeError):
            assert type(failed.exc).__name__ == name or name in str(failed.exc)


@pytest.mark.parametrize("kind", ["str", "reduce", "arguments", "long", "surrogate", "foreign"])
def test_f2_nasty_exceptions_can_be_raised_and_shown(transport, kind):
    """Raising one gives an exception that the traceback module can show."""
    with pytest.raises(Exception) as caught:
        list(nbmap.remote(nasty).map([kind]))
    shown = "".join(traceback.format_exception(caught.value))
    assert "input 0" in shown
    assert "in nasty" in shown


def test_f2_an_exception_group_keeps_its_members(transport):
    """A group nested three deep comes back whole."""
    with pytest.raises(ExceptionGroup) as caught:
        list(nbmap.remote(nasty).map(["group"]))
    middle = caught.value.exceptions[0]
    inner, error = middle.exceptions
    assert [type(e) for e in (*inner.exceptions, error)] == [ValueError, KeyError, OSError]


class Unreadable:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_f2_inputs_without_a_repr_do_not_hide_the_failure(transport):
    """An input whose repr raises is told by its type."""
    handle = nbmap.remote(lambda x: 1 / 0)
    run = handle.map([Unreadable(), "y" * 100_000], return_exceptions=True)
    assert [type(output.exc) for output in run] == [ZeroDivisionError] * 2
    assert "Unreadable" in run.failures[0].input
    assert len(run.failures[1].input) < 1000


def test_s8_outputs_and_inputs_that_cannot_be_pickled_fail_alone(transport, folder):
    """Such an input is `unpicklable`; the others are right."""
    import threading

    handle = nbmap.remote(lambda x: threading.Lock() if x == 1 else x)
    outputs = list(handle.map([0, 1, 2], return_exceptions=True))
    assert [outputs[0], outputs[2]] == [0, 2]
    assert isinstance(outputs[1], nbmap.Unpicklable)
    outputs = list(handle.map([0, threading.Lock(), 2], return_exceptions=True))
    assert [outputs[0], outputs[2]] == [0, 2]
    assert isinstance(outputs[1], nbmap.Unpicklable)
    with pytest.raises(nbmap.Unpicklable):
        handle(1)
    assert recorded(folder) == []
    touch(folder, "end")
    assert there(folder, "end")


class Unspeakable(Exception):
    """Has no repr."""

    def __repr__(self):
        raise ValueError


def raise_unspeakable(_):
    """Fail with it."""
    raise Unspeakable


def test_f2_a_failing_repr_hides_nothing_else(transport):
    """A list of outputs with such an exception among them can be shown."""
    outputs = list(nbmap.remote(raise_unspeakable).map([1], return_exceptions=True))
    expected = "[UserCodeException(<Unspeakable whose repr raises ValueError>)]"
    assert repr(outputs) == expected


class Hostile:
    def __repr__(self):
        return "\x1b]8;;http://evil\x07\u202etxt"


def test_the_note_of_an_exception_shows_no_control_character(transport):
    """The input's repr is text of the user's code; terminals and notebooks print the note."""

    def fail(x):
        raise ValueError

    with pytest.raises(ValueError) as caught:
        list(nbmap.remote(fail).map([Hostile()]))
    assert "\\x1b]8;;http://evil\\x07\\u202etxt" in caught.value.__notes__[0]
