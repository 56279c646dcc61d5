"""What IPython shows of an error: the user's own lines and the remote ones, and none of ours."""

from __future__ import annotations

import pickle
import re

import pytest

import nbmap
from nbmap import errors

OURS = ("handle.py", "run.py", "driver.py", "standin.py", "cell.py")
ARROWS = re.compile(r"^-+> \d+ .*# (.*)$", re.MULTILINE)
DEFINED = """
def outer(x):
    def unused(z): return z
    return inner(x)  # calls the other
def inner(x):
    y = x
    return 1 / y  # fails
"""


@pytest.fixture(params=["%%remote", "import nbmap"])
def defined(request, notebook):
    """Define two functions, one that calls the other, under %%remote or by decorators."""
    text = DEFINED
    if request.param != "%%remote":
        text = text.replace("\ndef ", "\n@nbmap.remote\ndef ")
    assert notebook.run(request.param + text).error is None
    return notebook


@pytest.mark.parametrize(
    "text",
    [
        "list(outer.map([1, 0]))  # mine",
        "outer(0)  # mine",
        "outer.remote(0)  # mine",
        "list(map(outer, [1, 0]))  # mine",
        "outer.map([1, 0])[1]  # mine",
        "outer.map([1, 0]).results()  # mine",
        "list(outer.starmap([(0,)]))  # mine",
        "list(outer.map([1, 0], order_outputs=False))  # mine",
        "list(outer.map([1, 0]).as_completed())  # mine",
    ],
)
def test_a_failure_shows_the_users_line_and_the_remote_lines(defined, text):
    """With their arrows, whichever way an output is asked for."""
    ran = defined.run(f"a = 1\n{text}\n")
    assert isinstance(ran.error, ZeroDivisionError)
    assert f"----> 2 {text}" in ran.out
    assert ARROWS.findall(ran.out) == ["mine", "calls the other", "fails"]
    assert [name for name in OURS if name in ran.out] == []


def test_an_error_of_the_users_own_iterable_shows_its_lines(defined):
    """What `iter` raises comes through a method of ours, which is not shown."""
    ran = defined.run(
        "class Broken:\n"
        "    def __iter__(self):\n"
        "        raise KeyError  # there\n"
        "outer.map(Broken())  # here\n"
    )
    assert isinstance(ran.error, KeyError)
    assert ARROWS.findall(ran.out) == ["here", "there"]
    assert [name for name in OURS if name in ran.out] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("outer.map(5)", "TypeError: outer.map was given 5, which is not iterable"),
        ("outer.map()", "TypeError: outer.map needs at least one iterable"),
        ("outer.starmap([1], [2])", "TypeError: outer.starmap takes one iterable"),
        ("for x in outer.map: pass", "TypeError: outer.map has to be called with the inputs"),
        ("outer.map([1], concurrency=3)", "TypeError: outer.map has no option 'concurrency'"),
        ("outer.map([1], kwargs=3)", "TypeError: kwargs=3 has to be a dict"),
        ("nbmap.remote(outer)", "TypeError: outer is a handle already"),
        ("nbmap.remote(int)", "TypeError: int is a class"),
        ("nbmap.remote(gpu='T4')(len)(1)", "NoMatchingGPU: gpu="),
        ("nbmap.connect('nowhere')", "ClusterError: 'nowhere' is not a scheduler's address"),
        ("outer.map([lock], kwargs={'a': lock})", "Unpicklable: outer can't be sent"),
        ("list(cancelled)", "RunCancelled: cancelled with 0 inputs done"),
    ],
)
def test_what_nbmap_refuses_is_told_without_a_traceback(defined, text, told):
    """One line says what was wrong and what to do; where nbmap raised it helps nobody."""
    defined.run(
        "import threading, time, nbmap\nlock = threading.Lock()\n"
        "cancelled = nbmap.remote(lambda x: time.sleep(0.1)).map(range(99))\ncancelled.cancel()"
    )
    ran = defined.run(text)
    (line,) = ran.out.strip().splitlines()
    assert line.startswith(told)
    assert not ran.result.success


def test_a_refusal_inside_a_function_names_its_line(defined):
    """Where the statement is not the cell's own, the message says where it stands."""
    ran = defined.run("def sweep(xs):\n    return outer.map(xs)  # here\n\nsweep(5)\n")
    first, second = ran.out.strip().splitlines()
    assert first.startswith("TypeError: outer.map was given 5")
    assert second == "in sweep, line 2: return outer.map(xs)  # here"


def test_a_misuse_is_a_plain_type_error_elsewhere():
    """By its name in other tracebacks, when it is caught, and after pickling."""
    with pytest.raises(TypeError) as caught:
        nbmap.remote(int)
    kind = type(caught.value)
    assert (kind.__module__, kind.__qualname__) == ("builtins", "TypeError")
    again = pickle.loads(pickle.dumps(errors.misuse("what was wrong")))
    assert (type(again), again.args) == (TypeError, ("what was wrong",))
