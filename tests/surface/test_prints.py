"""What inputs print: kept with their input, bounded, and never with another one."""

import asyncio
import contextlib
import ctypes
import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from helpers.files import await_file, touch

import nbmap

KEPT = 64 << 10  # characters of what one input writes

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def plain_cluster():
    """A plain Dask cluster of one process with two threads, which nbmap did not start."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    ) as cluster:
        yield cluster


@pytest.fixture(params=["own", "plain"])
def cluster(request):
    """Nbmap's own cluster, and one that it did not start."""
    if request.param == "own":
        request.getfixturevalue("own_cluster")
        name = "local"
    else:
        name = request.getfixturevalue("plain_cluster")
    with nbmap.connect(name):
        yield request.param


def printed(function, inputs=1, **options):
    """Run a function on the numbers from 0 on, one at a time; return what each of them printed."""
    run = nbmap.remote(function, concurrency=1, **options).map(range(inputs))
    assert len(list(run)) == inputs
    return [run.stdout(i) for i in range(inputs)]


# --- much -----------------------------------------------------------------------------------------


def test_f16_of_ten_megabytes_of_lines_head_and_tail_are_kept(cluster):
    """The text says how many characters were left out between them."""

    def chatter(x):
        for line in range(100_000):
            print(f"{line:08d} " + 90 * "x")

    [text] = printed(chatter)
    assert text.startswith("00000000 xxx")
    assert text.endswith(90 * "x" + "\n")
    assert "00099999 " in text
    assert left_out(text) == 100_000 * 100


@pytest.mark.parametrize("pieces", [1, 5])
def test_f16_of_one_line_of_five_megabytes_head_and_tail_are_kept(cluster, pieces):
    """A line without an end is cut as all other text, however it was written."""

    def long(x):
        for piece in range(pieces):
            sys.stdout.write(str(piece) * (5_000_000 // pieces))

    [text] = printed(long)
    assert text.startswith("0" * 1000)
    assert text.endswith(str(pieces - 1) * 1000)
    assert left_out(text) == 5_000_000


def left_out(text):
    """Return how many characters were printed, as a shortened text says."""
    assert len(text) <= KEPT + 200
    head, cut, tail = text.partition(" characters left out")
    assert cut, text[KEPT // 2 - 200 : KEPT // 2 + 200]
    head, _, number = head.rpartition("…")
    tail = tail.partition("…")[2].lstrip()
    told = int(number.strip(" [").replace(",", ""))
    return told + len(head.rstrip()) + len(tail.removeprefix("]").lstrip())


def test_f16_what_a_run_does_not_keep_is_said(cluster):
    """Of many inputs that print much, each has its text, or a line that says it was not kept."""

    def much(x):
        print(f"begin {x} " + 70_000 * "x" + f" end {x}")

    run = nbmap.remote(much).map(range(400))
    run.wait()
    empty = [i for i in range(400) if not run.stdout(i)]
    assert empty == []


# --- whose --------------------------------------------------------------------------------------


def test_f16_a_thread_that_outlives_its_input_prints_into_no_other(cluster, folder):
    """What it writes later is nobody's, also where the next input runs on the same thread."""

    def start(x):
        if x == 0:

            def chatter():
                n = 0
                while n < 400 and not Path(folder, "stop").exists():
                    n += 1
                    print("from the thread")
                    touch(folder, f"line-{n}")
                    threading.Event().wait(0.01)

            threading.Thread(target=chatter, daemon=True).start()
            await_file(folder, "line-1")
            return
        now = len(list(Path(folder).glob("line-*")))
        print(f"input {x}")
        await_file(folder, f"line-{now + 5}")
        if x == 3:
            touch(folder, "stop")

    texts = printed(start, 4)
    assert texts[1:] == ["input 1\n", "input 2\n", "input 3\n"]


def test_f16_a_task_that_outlives_its_input_prints_into_no_other(cluster):
    """A coroutine left on the loop that inputs share writes nothing into the next input."""

    async def start(x):
        if x == 0:

            async def chatter():
                for _ in range(500):
                    await asyncio.sleep(0.002)
                    print("from the task")

            sys.modules["builtins"].nbmap_test_task = asyncio.create_task(chatter())
            await asyncio.sleep(0.02)
            return
        print(f"input {x}")
        await asyncio.sleep(0.1)

    texts = printed(start, 3)
    assert texts[1:] == ["input 1\n", "input 2\n"]


class Talks:
    """Prints when it is unpickled, and when it goes."""

    def __init__(self, number):
        self.number = number

    def __setstate__(self, state):
        """Say so."""
        self.number = state["number"]
        print(f"loading {self.number}")

    def __del__(self):
        """Say so, except here."""
        if getattr(sys.modules["builtins"], "nbmap_test_far", False):
            print(f"dropping {self.number}")


def test_f16_what_loading_an_input_prints_is_that_inputs(cluster):
    """The text of `__setstate__` stands before what the function prints."""

    def work(talks):
        print(f"input {talks.number}")

    run = nbmap.remote(work, concurrency=1).map([Talks(n) for n in range(5)])
    run.wait()
    assert run.counts["done"] == 5, run.failures
    for n in range(5):
        assert run.stdout(n) == f"loading {n}\ninput {n}\n"


def test_f16_what_is_printed_while_an_input_is_dropped_is_not_the_next_ones(cluster):
    """An object that prints when it is collected does so in its own input, or in none."""

    def work(talks):
        sys.modules["builtins"].nbmap_test_far = talks.number < 4
        print(f"input {talks.number}")

    run = nbmap.remote(work, concurrency=1).map([Talks(n) for n in range(5)])
    run.wait()
    assert run.counts["done"] == 5, run.failures
    for n in range(5):
        others = [f"dropping {m}\n" for m in range(5) if m != n]
        assert not any(other in run.stdout(n) for other in others), run.stdout(n)


def test_f16_a_handler_that_one_input_made_logs_into_the_next(cluster):
    """Logging that was set up while one input ran writes to whoever logs, not to that input."""

    def work(x):
        logger = logging.getLogger("nbmap-test-prints")
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
        logger.warning("at %d", x)
        if x == 3:
            logger.handlers.clear()

    assert printed(work, 4) == [f"at {x}\n" for x in range(4)]


def test_f16_a_stdout_that_was_replaced_and_left_so_is_put_back(cluster):
    """The next input prints as always after one has put its own file in the place of sys.stdout."""

    def work(x):
        print(f"before {x}")
        if x == 0:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as users do

    assert printed(work, 3) == ["before 0\n", "before 1\n", "before 2\n"]


def test_f16_redirects_of_inputs_that_run_at_once_stay_apart(cluster, folder):
    """Each takes its own text only, in whatever order they end, and the next input prints again."""

    def work(x):
        if x > 1:
            print(f"input {x}")
            return ""
        touch(folder, f"here-{x}")
        await_file(folder, f"here-{1 - x}")
        if x == 1:
            await_file(folder, "first")
        with contextlib.redirect_stdout(io.StringIO()) as mine:
            touch(folder, "first" if x == 0 else "second")
            await_file(folder, "second")
            print(f"redirected {x}")
            touch(folder, f"there-{x}")
            await_file(folder, f"there-{1 - x}")
            if x == 1:
                await_file(folder, "out")
        if x == 0:
            touch(folder, "out")
        print(f"after {x}")
        return mine.getvalue()

    run = nbmap.remote(work, concurrency=4).map(range(4))
    assert list(run) == ["redirected 0\n", "redirected 1\n", "", ""]
    assert [run.stdout(x) for x in range(4)] == ["after 0\n", "after 1\n", "input 2\n", "input 3\n"]


def test_f16_a_stream_that_writes_on_to_the_one_before_is_no_loop(cluster):
    """A tee in the place of sys.stdout sees the text, and so does the input."""

    def work(x):
        class Tee(io.TextIOBase):
            def __init__(self, beneath):
                self.beneath, self.seen = beneath, []

            def write(self, text):
                self.seen.append(text)
                return self.beneath.write(text)

        sys.stdout = tee = Tee(sys.stdout)
        print("both")
        assert sys.stdout is tee
        sys.stdout = tee.beneath
        print("one")
        return "".join(tee.seen)

    run = nbmap.remote(work, concurrency=1).map(range(2))
    assert list(run) == ["both\n"] * 2
    assert [run.stdout(x) for x in range(2)] == ["both\none\n"] * 2


def test_f16_a_child_that_was_forked_writes_where_the_worker_does(cluster):
    """Its text is in no input's prints, and it does not wait for a lock that nobody releases."""

    def work(x):
        print("parent")
        child = os.fork()
        if child == 0:
            print(end="")
            os._exit(0 if type(sys.stdout).__module__ == "_io" else 1)
        return os.waitpid(child, 0)[1]

    run = nbmap.remote(work, concurrency=1).map(range(2))
    assert list(run) == [0, 0]
    assert [run.stdout(x) for x in range(2)] == ["parent\n"] * 2


def test_f16_inputs_that_run_at_once_in_a_process_keep_their_prints_apart(cluster, folder):
    """Two threads of one process write at the same time, each into its own input."""

    def work(x):
        touch(folder, f"here-{x}")
        await_file(folder, f"here-{1 - x}")
        for line in range(2000):
            print(x, line)
        touch(folder, f"there-{x}")
        await_file(folder, f"there-{1 - x}")

    run = nbmap.remote(work, concurrency=2).map(range(2))
    run.wait()
    for x in range(2):
        assert run.stdout(x) == "".join(f"{x} {line}\n" for line in range(2000))


# --- what is not captured -------------------------------------------------------------------------


def test_f16_what_bypasses_python_is_not_captured_and_does_no_harm(cluster):
    """File descriptor 1, C code and child processes write where the worker's own output goes."""

    def work(x):
        print("first")
        sys.stdout.flush()
        os.write(1, b"\n")
        ctypes.CDLL(None).puts(b"")
        ctypes.CDLL(None).fflush(None)
        subprocess.run(["echo", ""], check=True)
        sys.stdout.buffer.write(b"\n")
        print("last", file=sys.stderr)
        return x

    assert printed(work, 2) == ["first\nlast\n"] * 2


# --- hostile --------------------------------------------------------------------------------------

HOSTILE = {
    "surrogates": ("a\ud800b\udfffc", "a\\ud800b\\udfffc"),
    "nul": ("a\0b", "a\0b"),
    "returns": ("10 %\r20 %\r\n", "10 %\r20 %\r\n"),
    "escapes": ("\x1b[2J\x1b]0;title\x07", "\x1b[2J\x1b]0;title\x07"),
    "link": ("\x1b]8;;http://evil\x07x\x1b]8;;\x07", "\x1b]8;;http://evil\x07x\x1b]8;;\x07"),
    "bidi": ("\u202etxt.exe", "\u202etxt.exe"),
    "markup": ("</style><script>alert(1)</script>", "</style><script>alert(1)</script>"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_f19_stdout_has_the_text_as_it_was_printed(cluster, kind):
    """`run.stdout` is data: only lone surrogates, which can't travel, are written out."""
    text, kept = HOSTILE[kind]

    def work(x):
        sys.stdout.write(text)

    assert printed(work) == [kept]


def test_f16_a_string_with_methods_of_its_own_is_a_string(cluster):
    """A subclass of str whose methods lie prints its text, and costs no worker."""

    class Odd(str):
        __slots__ = ()

        def encode(self, *_):
            return self

        def decode(self, *_):
            return object()

        def __getitem__(self, _):
            raise SystemExit

        def __len__(self):
            return 10**9

    def work(x):
        sys.stdout.write(Odd("odd"))
        return os.getpid()

    run = nbmap.remote(work, concurrency=1).map(range(3))
    assert len(set(run)) == 1
    assert [run.stdout(i) for i in range(3)] == ["odd"] * 3


def test_f16_prints_of_inputs_that_fail_are_kept(cluster):
    """What was printed before an exception, an exit or a time limit is there."""

    def work(x):
        print(f"input {x}")
        if x == 1:
            raise ValueError
        if x == 2:
            sys.exit(3)
        if x == 3:
            while True:
                time.sleep(0.001)

    run = nbmap.remote(work, timeout=2).map(range(4), return_exceptions=True)
    run.wait()
    assert run.counts["failed"] == 3
    assert [run.stdout(i) for i in range(4)] == [f"input {i}\n" for i in range(4)]


def test_f16_a_second_map_shows_its_warning_and_prints_again(cluster):
    """Input 0 of one map is another one than input 0 of the next, also for what is once an input."""

    def work(_):
        warnings.warn("careful", stacklevel=1)
        print("printed")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as users do

    handle = nbmap.remote(work, concurrency=1)
    for _ in range(3):
        run = handle.map([0])
        run.wait()
        assert "careful" in run.stdout(0)
        assert "printed" in run.stdout(0)
