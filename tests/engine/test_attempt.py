"""Attempts, what they print, and a lease's loop, run in this process."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from queue import Queue

import pytest

from nbmap.engine.model import (
    CALL,
    CANCELLED,
    EACH,
    SPREAD,
    UNPICKLABLE,
    USER,
    Back,
    Bye,
    Done,
    Failure,
    Hello,
    Load,
    Mark,
    Out,
    Pack,
    Print,
    Quit,
    Recall,
    Stop,
    Work,
)
from nbmap.engine.pickling import freeze, load, pack, unpack
from nbmap.worker import attempt, capture, serve
from nbmap.worker.coroutines import Coroutines

WAIT = 20  # seconds after which a test is stuck


# --- one attempt ------------------------------------------------------------------------------


def tried(function, value=1, style=EACH, **kwargs):
    """Return the outcome of one attempt."""
    return attempt.run(attempt.caller(function, kwargs, style, Coroutines()), 7, value, function)


@pytest.mark.parametrize(
    ("style", "value", "kwargs", "expected"),
    [
        (EACH, 1, {}, (1, 2, 3)),
        (EACH, (1, 5), {}, ((1, 5), 2, 3)),
        (EACH, 1, {"c": 9}, (1, 2, 9)),
        (SPREAD, (1, 5), {}, (1, 5, 3)),
        (SPREAD, (1, 5), {"c": 9}, (1, 5, 9)),
        (CALL, ((1,), {"c": 4}), {}, (1, 2, 4)),
    ],
)
def test_an_input_becomes_arguments_as_its_style_says(style, value, kwargs, expected):
    """One argument, spread over several, or arguments and keywords."""

    def collect(a, b=2, c=3):
        return a, b, c

    assert load(tried(collect, value, style, **kwargs)) == expected


@pytest.mark.parametrize("output", [1, 1.5, 1j, True, "x", b"x", None])
def test_scalars_leave_an_attempt_as_they_are(output):
    """They are pickled together later."""
    assert tried(lambda _x: output) is output


def test_other_outputs_leave_pickled():
    """An output is what it was when the function returned it."""
    shared = [1]
    outcome = tried(lambda _x: shared)
    shared.append(2)
    assert type(outcome) is attempt.Pickled
    assert load(outcome) == [1]


def test_a_returned_exception_is_an_output():
    """Returning is not raising."""
    again = load(tried(lambda _x: ValueError("x")))
    assert (type(again), again.args) == (ValueError, ("x",))


ERRORS = [
    ValueError("ohno"),
    StopIteration(1),
    StopAsyncIteration(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    RecursionError("deep"),
    MemoryError(),
    asyncio.CancelledError(),
    BaseException("base"),
    ExceptionGroup("several", [ValueError("a")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_the_function_raises_is_a_failure_of_the_user(error):
    """No exception ends the worker."""

    def fails(_x):
        raise error

    outcome = tried(fails)
    assert isinstance(outcome, Failure)
    assert (outcome.index, outcome.kind, outcome.type) == (7, USER, type(error).__name__)
    assert outcome.input == "1"
    assert type(load(outcome.pickled)) is type(error)


def test_a_failure_is_plain():
    """Its header form holds nothing that a wire can't carry."""

    def fails(_x):
        raise ValueError("\ud800")

    told = tried(fails, "\ud800").plain()
    assert isinstance(told, list)
    for text in (told[2], told[3], told[4], told[6]):
        assert type(text) is str
        text.encode("utf-8")


class Hostile(Exception):
    """Fights back wherever it is touched."""

    def __str__(self):
        raise KeyboardInterrupt

    def __repr__(self):
        raise SystemExit

    def __reduce_ex__(self, protocol):
        raise RecursionError

    @property
    def args(self):
        raise ValueError


class Odd:
    def __repr__(self):
        raise SystemExit


def test_a_hostile_exception_is_told_all_the_same():
    """Neither its methods nor the input's repr get in the way."""

    def fails(_x):
        raise Hostile

    outcome = tried(fails, Odd())
    assert (outcome.kind, outcome.type) == (USER, "Hostile")
    assert "__str__ raised KeyboardInterrupt" in outcome.message
    assert outcome.input == "<Odd whose repr raises SystemExit>"
    assert outcome.traceback
    assert outcome.stack[-1][2] == "fails"


def test_an_output_that_can_not_be_sent_is_told():
    """It is a failure of its own kind that names the type."""
    outcome = tried(lambda _x: threading.Lock())
    assert outcome.kind == UNPICKLABLE
    assert outcome.message.startswith("the output, a lock, can't be sent: ")


def test_a_wrong_number_of_arguments_shows_the_signature():
    """Who called the function wrongly is told how it is called."""

    def two(a, b):
        return a + b

    outcome = tried(two)
    assert outcome.type == "TypeError"
    assert "missing 1 required positional argument: 'b'" in outcome.message
    assert "(the signature is two(a, b))" in outcome.message
    assert "the signature is two(a, b)" in str(load(outcome.pickled))


@pytest.mark.parametrize(("style", "value"), [(SPREAD, (1,)), (CALL, ((), {}))])
def test_the_signature_is_shown_in_every_style(style, value):
    """Spreading an input over the arguments does not change it."""

    def two(a, b):
        return a + b

    assert "(the signature is two(a, b))" in tried(two, value, style).message


def test_a_type_error_from_inside_the_function_is_left_alone():
    """Only a call that never got in shows the signature."""
    outcome = tried(lambda x: x + "a")
    assert outcome.type == "TypeError"
    assert "signature" not in outcome.message


def test_the_traceback_has_frames_of_the_user_only():
    """It begins where the user's code begins."""

    def inner(x):
        return 1 / x

    def outer(x):
        return inner(x)

    outcome = tried(outer, 0)
    assert [frame[2] for frame in outcome.stack] == ["outer", "inner"]
    assert all(frame[0] == __file__ for frame in outcome.stack)
    assert outcome.stack[-1][3] == "return 1 / x"
    assert "worker/attempt.py" not in outcome.traceback
    assert outcome.traceback.rstrip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("style", [EACH, SPREAD, CALL])
def test_the_traceback_hides_how_arguments_were_spread(style):
    """Our lambdas are not the user's business."""

    def fails(_x, k=0):
        raise ValueError(k)

    value = {EACH: 1, SPREAD: (1,), CALL: ((1,), {})}[style]
    outcome = tried(fails, value, style, **({"k": 1} if style != CALL else {}))
    assert [frame[2] for frame in outcome.stack] == ["fails"]
    assert "worker/attempt.py" not in outcome.traceback


def test_a_chained_exception_shows_its_cause():
    """What came before is part of the traceback."""

    def fails(x):
        try:
            return 1 / x
        except ZeroDivisionError as error:
            raise ValueError("bad") from error

    traceback = tried(fails, 0).traceback
    assert "ZeroDivisionError" in traceback
    assert "direct cause" in traceback
    assert "worker/attempt.py" not in traceback


def test_a_deep_stack_keeps_its_ends():
    """A RecursionError does not bring a thousand frames along."""

    def down(x):
        return down(x + 1)

    outcome = tried(down)
    assert outcome.type == "RecursionError"
    assert len(outcome.stack) <= attempt.STACK
    assert len(outcome.traceback) < 2 * attempt.TRACEBACK


def test_only_a_stop_gets_out():
    """It is raised to end the input, so it is nobody's failure."""

    def stopped(_x):
        raise attempt.Stopped

    with pytest.raises(attempt.Stopped):
        tried(stopped)


# --- what an input writes ---------------------------------------------------------------------


def texts(pieces):
    return "".join(text for _stream, text, _dropped in pieces)


def test_a_short_text_is_kept_as_it_was_written():
    """Streams stay apart and in order; the two writes of a print are one piece."""
    text = capture.Text()
    for stream, piece in [("stdout", "a"), ("stdout", "\n"), ("stderr", "b"), ("stdout", "c")]:
        text.add(stream, piece)
    assert text.take(last=True) == [("stdout", "a\n", 0), ("stderr", "b", 0), ("stdout", "c", 0)]
    assert text.take(last=True) == []


@pytest.mark.parametrize("piece", [7, 1000, 300_000])
def test_a_long_text_keeps_its_head_and_its_tail(piece):
    """The middle is left out and counted, however it was written."""
    text = capture.Text()
    total = 300_000
    whole = "".join(f"{n:09d}\n" for n in range(total // 10))
    for at in range(0, total, piece):
        text.add("stdout", whole[at : at + piece])
    pieces = text.take(last=True)
    kept = texts(pieces)
    dropped = sum(dropped for _, _, dropped in pieces)
    assert kept[: capture.HEAD] == whole[: capture.HEAD]
    assert kept[capture.HEAD :] == whole[-capture.TAIL :]
    assert dropped == total - capture.HEAD - capture.TAIL


def test_what_is_held_stays_bounded():
    """An input that writes for ever costs no more memory than its head and two tails."""
    text = capture.Text()
    for _ in range(1000):
        text.add("stdout", "x" * 1000)
        text.add("stderr", "y" * 1000)
    held = sum(len(piece) for _, piece in [*text.head, *text.tail])
    assert held <= capture.HEAD + 2 * capture.TAIL


def test_the_head_can_be_sent_before_the_end():
    """A running input's head is shown early, its tail when it has ended."""
    text = capture.Text()
    text.add("stdout", "early")
    assert text.take(last=False) == [("stdout", "early", 0)]
    text.add("stdout", " late" + "x" * capture.HEAD)
    first = texts(text.take(last=False))
    assert first.startswith(" late")
    assert texts(text.take(last=True)) == "x" * (capture.HEAD + 10 - capture.HEAD)


def test_a_lone_surrogate_is_written_as_its_escape():
    """The wire knows no surrogates."""
    text = capture.Text()
    text.add("stdout", "a\ud800b")
    assert texts(text.take(last=True)) == "a\\ud800b"


def test_only_the_thread_that_entered_is_captured():
    """Others write where they always did, and the streams are put back at the end."""
    before = sys.stdout, sys.stderr
    mine = []
    capture.enter(lambda stream, text: mine.append((stream, text)))
    try:
        print("mine")
        print("error", file=sys.stderr)
        thread = threading.Thread(target=print, args=("theirs",))
        thread.start()
        thread.join()
    finally:
        capture.leave()
    assert (sys.stdout, sys.stderr) == before
    assert "".join(text for _, text in mine) == "mine\nerror\n"
    assert {stream for stream, _ in mine} == {"stdout", "stderr"}


# --- a lease ----------------------------------------------------------------------------------


class Near:
    """The near side of a lease: collects what comes and waits for it."""

    def __init__(self):
        self.inbox = Queue()
        self.got = []
        self.closed = threading.Event()

    def send(self, message, *, wait=False):
        self.inbox.put(message)

    def close(self):
        self.closed.set()

    def until(self, kind, **fields):
        """Return the next message of a kind; keep all that came before it."""
        while True:
            message = self.inbox.get(timeout=WAIT)
            self.got.append(message)
            if isinstance(message, kind) and all(
                getattr(message, name) == value for name, value in fields.items()
            ):
                return message

    def has(self, kind, **fields):
        """Tell whether such a message has come."""
        while not self.inbox.empty():
            self.got.append(self.inbox.get())
        return any(
            all(getattr(message, name) == value for name, value in fields.items())
            for message in self.all(kind)
        )

    def all(self, kind):
        return [message for message in self.got if isinstance(message, kind)]

    def outcomes(self, chunk):
        """Return index -> output or Failure of a chunk."""
        found = {}
        for out in self.all(Out):
            if out.chunk != chunk:
                continue
            values = unpack(Pack(out.n, out.counts, out.frames))
            failed = {plain[0]: plain for plain in out.failures}
            for index, value in enumerate(values, out.start):
                assert index not in found
                found[index] = tuple(failed[index][1:3]) if index in failed else value
        return found

    def printed(self, index):
        return "".join(p.text for p in self.all(Print) if p.index == index)


class Host:
    name = "here"

    def __init__(self):
        self.tasks = []
        self.state = "running"

    def status(self):
        return self.state

    def waiting(self):
        return list(self.tasks)


class Served:
    """A lease on a thread of this process."""

    def __init__(self):
        self.host = Host()
        self.process = serve.Process(self.host)
        self.lease = serve.Lease("lease", self.process)
        self.near = Near()
        self.lease.open(self.near)
        self.reasons = []
        self.thread = threading.Thread(target=lambda: self.reasons.append(self.lease.run()))
        self.chunks = 0

    def start(self):
        """Start where the test runs: pytest puts its own stdout in place before."""
        if self.thread.ident is None:
            self.thread.start()

    def load(self, function, **kwargs):
        self.start()
        blob = freeze(function, kwargs)
        self.lease.receive(Load(blob.digest, blob.sources, blob.frames))
        return blob.digest

    def work(self, function, values, *, start=0, style=EACH, careful=False, budget=60.0, **options):
        self.chunks += 1
        packed = pack(values)
        digest = function if isinstance(function, str) else self.load(function)
        credit = options.get("credit", 1 << 30)
        self.lease.receive(
            Work(
                self.chunks,
                digest,
                style,
                start,
                packed.n,
                packed.counts,
                budget,
                credit,
                careful,
                frames=packed.frames,
            )
        )
        return self.chunks

    def close(self):
        self.start()
        self.lease.receive(Quit())
        self.thread.join(WAIT)
        assert not self.thread.is_alive()


@pytest.fixture
def served():
    """A lease that is there, and is given back."""
    served = Served()
    yield served
    served.close()


def test_a_lease_says_who_it_is_and_why_it_ends(served):
    """Hello comes first, Bye last."""
    served.start()
    served.near.until(Hello)
    served.lease.receive(Quit())
    assert served.near.until(Bye).reason == "asked"
    served.thread.join(WAIT)
    assert served.reasons == ["asked"]
    assert served.near.closed.is_set()


def test_the_outcomes_of_a_chunk_come_in_order(served):
    """Outputs of all kinds and failures take their places."""

    def mixed(x):
        return [None, 1, [x], "s"][x] if x < 4 else 1 / 0

    chunk = served.work(mixed, [0, 1, 2, 3, 4], start=10)
    done = served.near.until(Done)
    assert (done.chunk, done.ran) == (chunk, 5)
    assert served.near.outcomes(chunk) == {
        10: None,
        11: 1,
        12: [2],
        13: "s",
        14: ("user", "ZeroDivisionError"),
    }


def test_a_bad_input_in_the_middle_costs_only_itself(served):
    """Failures of a chunk leave its outputs alone."""
    chunk = served.work(lambda x: [10 / x], [1, 0, 2])
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: [10.0], 1: ("user", "ZeroDivisionError"), 2: [5.0]}


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_no_exception_ends_a_lease(served, error):
    """After each bad exception the next input runs."""
    kind = type(error)

    def fails(x):
        if x == 1:
            raise (kind("a", [ValueError()]) if issubclass(kind, BaseExceptionGroup) else kind())
        return x

    chunk = served.work(fails, [0, 1, 2])
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: 0, 1: ("user", kind.__name__), 2: 2}


def test_a_function_that_can_not_be_loaded_fails_its_inputs(served):
    """Each input of the chunk says that the function could not be loaded."""

    class Bad:
        def __reduce__(self):
            return exit_now, ()

    bad = Bad()
    chunk = served.work(lambda _x: bad, [1, 2])
    served.near.until(Done)
    assert served.near.outcomes(chunk) == dict.fromkeys(range(2), (UNPICKLABLE, "SystemExit"))


def exit_now():
    raise SystemExit


def test_prints_belong_to_the_input_that_wrote_them(served):
    """stdout, stderr and logging are told by input."""

    def speak(x):
        print("out", x)
        print("err", x, file=sys.stderr)
        logging.getLogger("nbmap-test").warning("log %s", x)

    handler = logging.StreamHandler(_Stderr())
    logging.getLogger("nbmap-test").addHandler(handler)
    try:
        served.work(speak, [0, 1])
        served.near.until(Done)
    finally:
        logging.getLogger("nbmap-test").removeHandler(handler)
    for index in range(2):
        assert f"out {index}\nerr {index}\nlog {index}\n" in served.near.printed(index)


class _Stderr:
    """Writes to whatever sys.stderr is at that moment, as logging's last resort does."""

    def write(self, text):
        sys.stderr.write(text)


def test_a_flood_of_prints_is_bounded(served):
    """Head and tail arrive, and the number of characters between them."""

    def flood(_x):
        for n in range(30_000):
            print(f"{n:09d}")

    served.work(flood, [0])
    served.near.until(Done)
    text = served.near.printed(0)
    dropped = sum(p.dropped for p in served.near.all(Print))
    assert text.startswith("000000000\n")
    assert text.endswith("000029999\n")
    assert len(text) + dropped == 300_000
    assert len(text) <= capture.HEAD + capture.TAIL


def test_a_warning_is_shown_once_for_each_input():
    """Python shows it once per place; each input is to show its own, once."""
    code = """
        import sys, threading, warnings
        from nbmap.worker import capture

        def lease():
            global at
            for at in range(3):
                for _ in range(5):
                    warnings.warn("careful", UserWarning, stacklevel=1)

        got, at, before = [], 0, list(warnings.filters)
        for _ in range(2):  # also with the process's second lease, when the first has left
            capture.enter(lambda stream, text: got.append((at, stream, text)), lambda: at)
            lease()
            capture.leave()
            assert warnings.filters == before
        assert [(i, s) for i, s, _ in got] == 2 * [(i, "stderr") for i in range(3)], got
        assert all("UserWarning: careful" in text for _, _, text in got)
        del __warningregistry__
        for _ in range(2):
            warnings.warn("afterwards", UserWarning, stacklevel=1)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("UserWarning: afterwards") == 1


def test_stopping_the_running_input_stops_only_it(served):
    """The next input of the chunk runs."""

    def maybe_wait(x):
        if x == 0:
            while True:
                pass
        return x

    chunk = served.work(maybe_wait, [0, 1], careful=True)
    served.near.until(Mark, index=0)
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: (CANCELLED, "InputCancelled"), 1: 1}


def test_stopping_a_chunk_drops_what_it_has_not_started(served):
    """Nothing more runs, and no outcome is made up for it."""

    def forever(_x):
        while True:
            pass

    chunk = served.work(forever, [0, 1, 2], careful=True)
    served.near.until(Mark, index=0)
    served.lease.receive(Stop(chunk, -1))
    assert served.near.until(Done).ran == 1
    assert served.near.outcomes(chunk) == {0: (CANCELLED, "InputCancelled")}


def test_an_input_that_is_stopped_before_it_starts_goes_back(served):
    """It is handed back with all that was not started, and cancelled at the near side."""

    def first_waits(x):
        if x == 0:
            while True:
                pass
        return x

    chunk = served.work(first_waits, [0, 1, 2], careful=True)
    served.near.until(Mark, index=0)
    served.lease.receive(Stop(chunk, 1))
    assert served.near.until(Back, chunk=chunk).start == 1
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: (CANCELLED, "InputCancelled")}


def test_a_chunk_that_waits_can_be_stopped(served):
    """A chunk behind the current one ends without running."""

    def first_waits(x):
        while x == 0:
            pass
        return x

    digest = served.load(first_waits)
    first = served.work(digest, [0], careful=True)
    second = served.work(digest, [1, 2], start=1)
    served.near.until(Mark, index=0)
    served.lease.receive(Stop(second, -1))
    served.lease.receive(Stop(first, -1))
    assert served.near.until(Done, chunk=second).ran == 0
    assert served.near.outcomes(second) == {}


def test_a_function_that_swallows_its_stop_has_an_output(served):
    """Asking is asking: what is returned nevertheless counts."""

    def stubborn(x):
        try:
            print("in")
            while x == 0:
                time.sleep(0.001)  # CPython 3.13 skips the handlers around a loop without a call
        except BaseException:
            return "swallowed"
        return x

    chunk = served.work(stubborn, [0, 1], careful=True)
    served.near.until(Print, index=0)  # a start mark comes before the function is entered
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: "swallowed", 1: 1}


def test_finally_runs_when_an_input_is_stopped(served):
    """A stopped function can clean up, and its prints arrive."""

    def careful(x):
        try:
            print("in")
            while x == 0:
                time.sleep(0.001)  # CPython 3.13 skips the handlers around a loop without a call
        finally:
            print("cleaned up")

    chunk = served.work(careful, [0], careful=True)
    served.near.until(Print, index=0)
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)
    assert served.near.printed(0) == "in\ncleaned up\n"


def test_a_stop_that_comes_late_never_hits_the_next_input(served):
    """Stops that race with the end of their input hit it or nobody."""
    digest = served.load(spin)
    hit = 0
    for _ in range(300):
        chunk = served.work(digest, [20, 2000, 2000], careful=True)
        served.near.until(Mark, chunk=chunk, index=0)
        served.lease.receive(Stop(chunk, 0))
        served.near.until(Done, chunk=chunk)
        outcomes = served.near.outcomes(chunk)
        assert outcomes[0] in (20, (CANCELLED, "InputCancelled"))
        assert (outcomes[1], outcomes[2]) == (2000, 2000)
        hit += outcomes[0] != 20
        served.near.got.clear()
    assert served.thread.is_alive()


def spin(n):
    for _ in range(n):
        pass
    return n


def test_stops_from_another_thread_at_any_moment_never_hit_the_wrong_input(served):
    """A thread that stops every even input while it runs leaves the odd ones alone."""
    digest = served.load(spin)
    stopped = 0
    for turn in range(20):
        chunk = served.work(digest, [30_000] * 60)
        while not served.near.has(Done, chunk=chunk):
            index = served.lease._at
            if index >= 0 and index % 2 == 0:
                if turn % 2:
                    time.sleep(0)  # the other thread goes on meanwhile, so the stop is late
                served.lease.receive(Stop(chunk, index))
        outcomes = served.near.outcomes(chunk)
        assert all(outcome == 30_000 for index, outcome in outcomes.items() if index % 2)
        stopped += sum(outcome != 30_000 for outcome in outcomes.values())
        served.near.got.clear()
    assert stopped


def test_what_has_not_started_is_handed_back_when_asked(served):
    """An input is either run or handed back, and chunks behind go back whole."""

    def first_waits(x):
        while x == 0:
            pass
        return x

    digest = served.load(first_waits)
    first = served.work(digest, [0, 1, 2], careful=True)
    second = served.work(digest, [3, 4], start=3)
    served.near.until(Mark, index=0)
    served.lease.receive(Recall())
    assert served.near.until(Done, chunk=second).ran == 0
    assert served.near.until(Back, chunk=first).start == 1
    assert [(b.chunk, b.start) for b in served.near.all(Back)] == [(second, 3), (first, 1)]
    served.lease.receive(Stop(first, 0))
    assert served.near.until(Done, chunk=first).ran == 1


def test_what_a_slow_input_holds_up_is_handed_back(served):
    """After its budget a chunk gives away what it has not started."""

    def first_waits(x):
        while x == 0:
            pass
        return x

    chunk = served.work(first_waits, [0, 1, 2], budget=0.001)
    assert served.near.until(Back).start == 1
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)
    assert set(served.near.outcomes(chunk)) == {0}


def test_what_does_not_fit_the_credit_is_handed_back(served):
    """Large outputs bound how many a chunk makes."""
    chunk = served.work(lambda _x: b"x" * 1_000_000, [0] * 50, credit=2_000_000)
    done = served.near.until(Done)
    [back] = served.near.all(Back)
    assert back.chunk == chunk
    assert done.ran == back.start < 50


def test_a_slow_input_is_marked_as_started(served):
    """The near side learns what runs, though it has no outcome."""

    def forever(_x):
        while True:
            pass

    chunk = served.work(forever, [0])
    assert served.near.until(Mark).index == 0
    served.lease.receive(Stop(chunk, 0))
    served.near.until(Done)


def test_outcomes_do_not_wait_for_a_slow_input(served):
    """What is done is sent while the next input runs."""

    def second_waits(x):
        while x == 1:
            pass
        return x

    chunk = served.work(second_waits, [0, 1])
    assert served.near.until(Out).n == 1
    served.lease.receive(Stop(chunk, 1))
    served.near.until(Done)
    assert served.near.outcomes(chunk) == {0: 0, 1: (CANCELLED, "InputCancelled")}


def test_an_idle_lease_gives_way_to_other_peoples_tasks(served):
    """It ends as soon as somebody else waits for its slot."""
    served.start()
    served.near.until(Hello)
    served.host.tasks = [""]
    assert served.near.until(Bye).reason == "foreign"


def test_a_lease_of_a_worker_that_retires_says_so(served):
    """Nobody is blamed for its end."""
    served.start()
    served.near.until(Hello)
    served.host.state = "leaving"
    assert served.near.until(Bye).reason == "leaving"


def test_quitting_stops_what_runs(served):
    """A lease that is given back in the middle ends its input."""

    def forever(_x):
        while True:
            pass

    chunk = served.work(forever, [0, 1], careful=True)
    served.near.until(Mark, index=0)
    served.lease.receive(Quit())
    assert served.near.until(Bye).reason == "asked"
    assert served.near.outcomes(chunk) == {0: (CANCELLED, "InputCancelled")}
    assert [back.start for back in served.near.all(Back)] == [1]


def test_messages_can_be_written_down():
    """What a lease sends is plain but for its frames."""
    message = Out(1, 0, 1, 0.0, None, [], [pickle.dumps([1])])
    assert message.header() == ["out", 1, 0, 1, 0.0, None, []]
