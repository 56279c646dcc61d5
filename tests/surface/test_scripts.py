"""Real scripts, in processes of their own: __main__, modules beside it, the terminal, Ctrl-C."""

import signal
import subprocess
import sys

from helpers.files import GUARD, wait_until

MAIN_THINGS = """
import dataclasses
import enum
import os
import beside

@dataclasses.dataclass
class Point:
    x: int

    def moved(self, by):
        return Point(self.x + by)

class Colour(enum.Enum):
    RED = 1

class Base:
    def value(self):
        return 1

class Derived(Base):
    def value(self):
        return super().value() + 1

class MyError(Exception):
    pass

SCALE = 3

@nbmap.remote
def use(n):
    point = Point(n * SCALE).moved(Derived().value())
    return point, Colour.RED, helper(n)

def helper(n):
    return n if n < 1 else helper(n - 1) + 1

@nbmap.remote
def fail(n):
    raise MyError(n)

def main():
    for n, (point, colour, helped) in enumerate(use.map(range(4))):
        assert type(point) is Point and point == Point(n * 3 + 2), point
        assert colour is Colour.RED
        assert helped == n
    assert list(nbmap.remote(beside.double).map([1, 2])) == [2, 4]
    assert list(nbmap.remote(beside.Adder(5).add).map([1, 2])) == [6, 7]
    assert list(nbmap.remote(lambda p: p.x).map([Point(1), Point(2)])) == [1, 2]
    try:
        list(fail.map([7]))
    except MyError as error:
        assert error.args == (7,)
    else:
        raise AssertionError
    print("all right")
"""

BESIDE = """
FACTOR = 2

def double(x):
    return x * FACTOR

class Adder:
    def __init__(self, n):
        self.n = n

    def add(self, x):
        return self.n + x
"""

PRINTS = """
import logging
import sys
import warnings

@nbmap.remote
def talk(x):
    print(f"print of {x}")
    print(f"error of {x}", file=sys.stderr)
    logging.warning("log of %s", x)
    warnings.warn("always the same")
    return x

def main():
    run = talk.map(range(5))
    assert list(run) == list(range(5))
    for i in range(5):
        text = run.stdout(i)
        for words in (f"print of {i}", f"error of {i}", f"log of {i}", "UserWarning: always the same"):
            assert text.count(words) == 1, (i, words, text)
        for j in set(range(5)) - {i}:
            assert f"of {j}" not in text, (i, j, text)
    print("all right")
"""

INTERRUPT = """
import itertools
import time

@nbmap.remote
def count(path):
    for n in itertools.count():
        Path(path).write_text(str(n))
        time.sleep(0.001)

def main():
    run = count.map(["counter"], keep=True)
    try:
        list(run)
    except KeyboardInterrupt:
        run.wait(20)
        print(run.status, flush=True)
        time.sleep(0.2)
        before = Path("counter").read_text()
        time.sleep(0.5)
        assert Path("counter").read_text() == before
        assert list(nbmap.remote(abs).map([-1])) == [1]
        print("all right")
"""

EMPTY = """
import sys
import nbmap

run = nbmap.remote(abs).map([])
assert list(run) == run.results() == []
assert list(nbmap.remote(max).map([], [1])) == list(nbmap.remote(max).starmap(())) == []
assert "distributed" not in sys.modules
print("all right")
"""


FORK = """
import os
import sys

@nbmap.remote
def square(x):
    return x * x

def main():
    assert list(square.map(range(4))) == [0, 1, 4, 9]
    pid = os.fork()
    if pid == 0:
        print("not closed", flush=True)
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert list(square.map(range(4))) == [0, 1, 4, 9]
    print("all right")
"""


def finish(command, folder):
    """Run a script to its end; return its output and errors."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=3 * GUARD, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1:] == ["all right"], (done.stdout, done.stderr)
    return done.stdout, done.stderr


def test_s1_functions_use_what_the_script_defines(script, tmp_path):
    """Classes, dataclasses, enums and globals of __main__, and a module beside the script."""
    finish(script(MAIN_THINGS, beside=BESIDE), tmp_path)


def test_s23_prints_warnings_and_logs_by_index_and_on_the_terminal(script, tmp_path):
    """Each input's are found by its index, and appear in the terminal with the index."""
    out, err = finish(script(PRINTS), tmp_path)
    lines = (out + err).splitlines()
    for i in range(5):
        for words in (f"print of {i}", f"error of {i}", f"log of {i}"):
            assert [line for line in lines if words in line and line.startswith(f"[{i}] ")], words
        assert any(line.startswith(f"[{i}] ") and "always the same" in line for line in lines)
    assert "[0] print of 0" in out.splitlines()
    assert "[0] error of 0" in err.splitlines()


def test_s19_ctrl_c_in_a_script_stops_the_functions(script, tmp_path):
    """SIGINT while the script waits cancels the run; its function stands still; nbmap goes on."""
    command = script(INTERRUPT)
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until((tmp_path / "counter").exists, "it to count")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=3 * GUARD)
    finally:
        process.kill()
    assert out.splitlines() == ["cancelled", "all right"], (out, err)
    assert process.returncode == 0, err


def test_f23_a_child_that_a_script_forks_ends_and_leaves_the_cluster(script, tmp_path):
    """Its exit closes nothing that is its parent's, and does not wait for that."""
    out, _ = finish(script(FORK), tmp_path)
    assert out.splitlines() == ["not closed", "all right"], out


def test_s18_empty_input_loads_no_dask(tmp_path):
    """A map over nothing starts no cluster: distributed is not even imported."""
    path = tmp_path / "empty.py"
    path.write_text(EMPTY)
    finish([sys.executable, str(path)], tmp_path)
