"""Run: one map in progress, and what became of each of its inputs."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from itertools import chain, repeat
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakValueDictionary

from .engine.driver import Driver
from .engine.model import (
    CALL,
    CANCELLED,
    LOST,
    SHOWN_STATUSES,
    TIMEOUT,
    USER,
    Failure,
    FailureLine,
    Snapshot,
)
from .engine.outcomes import EMPTY
from .engine.pickling import Unloadable, load_or_error, safe_repr
from .engine.seen import line_of
from .engine.streams import Streams
from .errors import (
    InputCancelled,
    InputFailed,
    InputTimeout,
    RunCancelled,
    RunError,
    TooManyFailures,
    Unpicklable,
    UserCodeException,
    WorkerLost,
    interrupt,
    misuse,
)
from .twins import twin
from .view import render, watch
from .worker import standin

__all__ = ["Failures", "Run", "Runs", "runs"]

_runs: WeakValueDictionary[int, Run] = WeakValueDictionary()  # by number


class Failures(list[FailureLine]):
    """The failures of a run, as a table: index, input, kind, type, message, attempts, worker."""

    def __repr__(self) -> str:
        return "\n".join(render.failure(line) for line in self) or "no failures"


class Runs(list["Run"]):
    """Some runs, as a table."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no runs"


def runs() -> Runs:
    """Return the runs of this process that go on, and those that ended and are still held.

    Returns:
        A list of `Run`, the oldest first.

    Example:
        >>> import nbmap
        >>> nbmap.runs()
        no runs
    """
    return Runs(run for _, run in sorted(_runs.items()))


def enlist(run: Run) -> None:
    """Have `runs` know a run that is going to start; also if nobody holds it while it goes on."""
    run._driver.front = run  # noqa: SLF001 - the driver lets go of it at the end
    _runs[run._driver.number] = run  # noqa: SLF001


_Outputs = TypeVar("_Outputs")

_TRACEBACK = BaseException.__dict__["__traceback__"]  # which a class may hide
MOMENT = 0.2  # seconds that an interrupt waits for functions that stop at once, to tell of them


class _Cursor:
    """How far somebody has taken the outputs of a run.

    Where `stepwise`, the batches stop before they wait, so that the taker can wait in its own way.
    """

    def __init__(self, *, stepwise: bool = False) -> None:
        self.position = 0
        self.ordered = False
        self.stepwise = stepwise


class Run:
    """One `.map` or `.starmap`; it has started and goes on in the background.

    Made by a handle, never by hand. Iterating it gives the outputs in input order as soon as they
    are there; a failed input raises its exception at its place (or is handed out as a value, with
    `return_exceptions=True`).

    Example:
        >>> import nbmap
        >>> run = nbmap.remote(abs).map([-1, 2, -3])  # doctest: +SKIP
        >>> list(run), run[0], run.counts["done"]  # doctest: +SKIP
        ([1, 2, 3], 1, 3)
    """

    def __init__(
        self,
        driver: Driver,
        *,
        ordered: bool,
        return_exceptions: bool = False,
        wrap: bool = True,
        max_failures: object = None,
    ) -> None:
        self._driver = driver
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._wrap = wrap
        self._max_failures = max_failures
        self._iterated = False
        self._errors: dict[int, BaseException] = {}
        self._retried: Run | None = None

    # -- taking outputs

    def __iter__(self) -> Iterator[Any]:
        self._must_not_block()
        self._begin_to_iterate()
        return self._closing(self._each(self._batches(_Cursor())))

    def __aiter__(self) -> AsyncIterator[Any]:
        self._begin_to_iterate()
        cursor = _Cursor(stepwise=True)
        return self._closing(self._each_async(self._batches(cursor), cursor))

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Await all outputs, as a list."""

        async def all_outputs() -> list[Any]:
            return [output async for output in self]

        return all_outputs().__await__()

    def _begin_to_iterate(self) -> None:
        if not self._driver.keep:
            if self._iterated:
                msg = (
                    "this run keeps no outputs, so it can be iterated once; "
                    "map with keep=True to iterate again, or keep `it = iter(run)` to go on later"
                )
                raise RunError(msg)
            self._iterated = True

    def _each(self, batches: Iterator[list[Any]]) -> Iterator[Any]:
        __tracebackhide__ = True
        for batch in batches:
            yield from batch

    async def _each_async(
        self, batches: Iterator[list[Any]], cursor: _Cursor
    ) -> AsyncIterator[Any]:
        __tracebackhide__ = True
        outcomes = self._driver.outcomes
        try:
            while True:
                ready = outcomes.ended if cursor.ordered else outcomes.arrived
                await outcomes.until(ready(cursor.position))
                batch = next(batches, None)
                if batch is None:
                    return
                for output in batch:
                    yield output
        except asyncio.CancelledError as error:
            raise cancelled_task(error, self._driver) from None

    def _batches(self, cursor: _Cursor) -> Iterator[list[Any]]:
        """Yield the outputs as the run was made to hand them out, as many at once as are there."""
        cursor.ordered = self._ordered
        if self._ordered:
            return self._in_input_order(cursor, as_values=self._return_exceptions)
        return self._in_order_of_arrival(cursor)

    def _in_input_order(self, cursor: _Cursor, *, as_values: bool) -> Iterator[list[Any]]:
        __tracebackhide__ = True
        driver = self._driver
        with self._waiting():
            while True:
                position, values = driver.outcomes.take(cursor.position)
                if not values:
                    break
                cursor.position = position + len(values)
                if Failure not in set(map(type, values)):
                    yield values
                else:
                    for index, value in enumerate(values, position):
                        yield list(self._output(index, value, as_values=as_values))
                driver.outcomes.handed(position, len(values))
                if cursor.stepwise:
                    yield []
            if as_values:
                yield list(map(_cancelled, self._never_read()))
            self._raise_how_it_ended(as_values=as_values)

    def _in_order_of_arrival(self, cursor: _Cursor) -> Iterator[list[Any]]:
        __tracebackhide__ = True
        for pairs in self._arriving(cursor):
            yield [output for _, output in pairs]

    @twin
    def as_completed(self) -> Iterator[tuple[int, Any]]:
        """Iterate over (index, output) in order of completion; of generators, as they yield.

        `async for index, output in run.as_completed.aio()` does not block the event loop.

        Raises:
            Exception: what an input raised, when it comes to its turn, unless the run was made
                with `return_exceptions=True`.
        """
        self._must_not_block()
        self._begin_to_iterate()
        return self._closing(self._each(self._arriving(_Cursor())))

    @as_completed.awaitable
    def _as_completed(self) -> AsyncIterator[tuple[int, Any]]:
        self._begin_to_iterate()
        cursor = _Cursor(stepwise=True)
        return self._closing(self._each_async(self._arriving(cursor), cursor))

    def _closing(self, outputs: _Outputs) -> _Outputs:
        """Have a run that keeps no outputs cancelled when its iterator is dropped or closed.

        `finally` in the generator would not do: it does not run in one that was never started.
        """
        if not self._driver.keep:
            weakref.finalize(outputs, _cancel_rest, self._driver).atexit = False
        return outputs

    def _arriving(self, cursor: _Cursor) -> Iterator[list[tuple[int, Any]]]:
        __tracebackhide__ = True
        driver = self._driver
        outcomes = driver.outcomes
        as_values = self._return_exceptions
        with self._waiting():
            while True:
                position, pairs = outcomes.take_arrivals(cursor.position)
                if position == cursor.position:
                    break
                cursor.position = position
                if Failure not in {type(value) for _, value in pairs}:
                    yield pairs
                else:
                    for index, value in pairs:
                        shown = self._output(index, value, as_values=as_values)
                        yield list(zip(repeat(index), shown, strict=False))  # no frame to show
                if isinstance(outcomes, Streams):
                    outcomes.handed_arrival(position)
                else:
                    outcomes.handed(pairs[0][0], len(pairs), arrived=True)
                if cursor.stepwise:
                    yield []
            if as_values:
                yield [(index, _cancelled(index)) for index in self._never_read()]
            self._raise_how_it_ended(as_values=as_values)

    def _output(self, index: int, value: Any, *, as_values: bool) -> Iterator[Any]:
        """Yield what stands for an outcome among the outputs; raise where it is an exception."""
        __tracebackhide__ = True
        if type(value) is not Failure:
            yield value
        elif value.kind == CANCELLED and index not in self._driver.singled:
            if as_values and self._driver.ending != "stopped":
                yield self._as_value(value, index)
        elif as_values:
            yield self._as_value(value, index)
        else:
            raise self._as_raised(value, index)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Wait for an input's outcome; return its output or raise its failure."""
        __tracebackhide__ = True
        self._must_keep("run[i]")
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = self._position(index)
        self._must_not_block()
        with self._waiting():
            value = self._driver.outcomes.get(index)
        if value is EMPTY:
            if index in self._never_read():
                raise _cancelled(index)
            self._raise_how_it_ended(as_values=False)
            msg = f"input {index} does not exist: the run has {self._driver.total} inputs"
            raise IndexError(msg)
        if type(value) is Failure:
            raise self._as_raised(value, index)
        return self._value(index, value)

    def _value(self, index: int, value: Any) -> Any:
        """Return what stands for an input that has ended well: a generator's outputs as a list."""
        outcomes = self._driver.outcomes
        if isinstance(outcomes, Streams):
            return outcomes.outputs(index)
        outcomes.handed(index, 1)
        return value

    @twin
    def results(self, errors: str = "raise") -> list[Any]:
        """Wait for all outcomes and return them as a list, in input order.

        Of a generator function, the outputs of each input are a list of their own.

        Args:
            errors: "raise" raises the first failure; "keep" puts each failure as an exception
                object at its place; "drop" leaves failed inputs out.

        Raises:
            ValueError: for any other `errors`.
            RunError: where outputs are not kept.
        """
        __tracebackhide__ = True
        if errors not in {"raise", "keep", "drop"}:
            msg = f'errors={errors!r} is not one of "raise", "keep" and "drop"'
            raise ValueError(msg)
        self._must_keep("run.results()")
        if errors == "raise" and not self.streams:
            batches = self._in_input_order(_Cursor(), as_values=False)
            return list(chain.from_iterable(batches))
        self.wait()
        out = []
        for index in range(self._driver.outcomes.known()):
            value = self._driver.outcomes.get(index)
            if type(value) is Failure:
                if errors == "raise" and value.kind != CANCELLED:
                    raise self._as_raised(value, index)
                if errors == "keep":
                    out.append(self._as_value(value, index))
            elif value is not EMPTY:
                out.append(self._value(index, value) if self.streams else value)
        if errors == "keep":
            out += map(_cancelled, self._never_read())
        if errors == "raise":
            self._raise_how_it_ended(as_values=False)
        return out

    @results.awaitable
    async def _results(self, errors: str = "raise") -> list[Any]:
        await self._wait()
        return self.results(errors)  # type: ignore[no-any-return]

    def _never_read(self) -> range:
        """Return the inputs that a cancelled run will not read any more."""
        driver = self._driver
        if driver.status != "cancelled" or driver.total is None:
            return range(0)
        return range(driver.outcomes.known(), driver.total)

    # -- looking

    @property
    def streams(self) -> bool:
        """Whether the function is a generator's, so that an input has any number of outputs."""
        return self._driver.rules.stream

    def __len__(self) -> int:
        total = self._driver.total
        if total is None:
            msg = "the number of inputs is not known: they come from an iterator without a length"
            raise TypeError(msg)
        return total

    @property
    def counts(self) -> dict[str, int]:
        """Number of inputs in each status: waiting, sent, running, done, failed, cancelled."""
        return self._driver.counts()

    @property
    def status(self) -> str:
        """running, finished, cancelled, stopped (too many failures) or broken (cluster lost)."""
        return self._driver.status

    @property
    def failures(self) -> Failures:
        """The failures so far, in input order; what was cancelled is not among them."""
        return Failures(line_of(failure) for failure in self._driver.outcomes.failures())

    @property
    def keep_bytes(self) -> int:
        """Bytes of outputs that may wait to be handed out before the run pauses; can be set."""
        return self._driver.keep_bytes

    @keep_bytes.setter
    def keep_bytes(self, nbytes: int) -> None:
        self._driver.set_keep_bytes(nbytes)

    def stdout(self, index: int) -> str:
        """Return what input `index` wrote to stdout and stderr, warnings and logging included."""
        return self._driver.seen.printed(self._position(index))

    def traceback(self, index: int) -> str:
        """Return the traceback of a failed input as text; empty for any other."""
        index = self._position(index)
        failed = [f for f in self._driver.outcomes.failures() if f.index == index]
        return failed[0].traceback or failed[0].message if failed else ""

    @property
    def takeovers(self) -> list[tuple[int, int, int]]:
        """Where a further attempt of a generator took over: (index, attempt, its first new output).

        What an attempt repeats of an earlier one is not handed out again.
        """
        return list(self._driver.takeovers)

    def records(self) -> list[dict[str, Any]]:
        """Return what became of each input so far, as a list of dicts.

        Returns:
            For each input that was read: `index`; `input`, None where it is not kept any more;
            `status`: waiting, running, done, failed or cancelled; `output`, of a generator the
            list of its outputs so far, also where it failed or was cancelled; `failure`, the exception; `attempts`; `worker`, its address;
            `seconds`, the time it took on its worker, where short inputs that came back together
            share their mean.

        Raises:
            RunError: where outputs are not kept.

        Example:
            >>> import nbmap
            >>> nbmap.remote(abs).map([-1]).records()[0]["output"]  # doctest: +SKIP
            1
        """
        self._must_keep("run.records()")
        driver = self._driver
        column, extra = driver.tried()
        shown = driver.statuses().column
        values, ledger = driver.values(), _by_input(driver.ledger)
        rows = []
        for index in range(len(column)):
            worker, seconds = ledger.get(index, (None, None))
            value = driver.outcomes.get(index, 0)
            failed = type(value) is Failure
            row = {
                "index": index,
                "input": values.get(index),
                "status": SHOWN_STATUSES[shown[index]] if index < len(shown) else "waiting",
                "output": self._had(index, value),
                "failure": self._as_value(value, index) if failed else None,
                "attempts": value.attempts if failed else 1 + extra.get(index, 0),
                "worker": (value.worker if failed else None) or worker,
                "seconds": seconds,
            }
            rows.append(row)
        return rows

    def _had(self, index: int, value: Any) -> Any:
        outcomes = self._driver.outcomes
        if isinstance(outcomes, Streams):
            return outcomes.outputs(index)
        return None if value is EMPTY or type(value) is Failure else self._value(index, value)

    def to_frame(self) -> Any:
        """Return `records()` as a pandas DataFrame, with the index as its index.

        Raises:
            ImportError: pandas is not installed.
            RunError: where outputs are not kept.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            msg = "run.to_frame() needs pandas: pip install pandas; run.records() does without"
            raise ImportError(msg) from None
        columns = ["index", *_COLUMNS]
        return pd.DataFrame(self.records(), columns=columns).set_index("index")

    def snapshot(self) -> Snapshot:
        """Return the plain picture of the run that views draw."""
        return self._driver.snapshot()

    def _ipython_display_(self) -> None:
        """Show the run in the notebook's cell, where it is not shown there already."""
        if not watch.show_again(self._driver):
            raise NotImplementedError  # which has IPython show the repr

    def _repr_html_(self) -> str:
        """Return the run as HTML, for where it is not shown as a live view."""
        mount = f"run-{self._driver.number}"
        return render.page(self.snapshot(), self._driver.seen.failures, mount=mount)

    def __repr__(self) -> str:
        return f"<Run {self._driver.number}: {render.summary(self.snapshot())}>"

    # -- waiting and stopping

    def done(self) -> bool:
        """Tell whether every input has an outcome, or the run ended without."""
        return self._driver.over

    @twin
    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run.

        Args:
            timeout: seconds to wait at most; for ever by default.

        Returns:
            Whether the run has ended. Failures do not raise here.
        """
        self._must_not_block()
        check_wait(timeout)
        with self._waiting():
            over = self._driver.outcomes.wait(timeout)
        if over:
            watch.settle(self._driver)
        return over

    @wait.awaitable
    async def _wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as wait has it
        outcomes = self._driver.outcomes
        try:
            return await outcomes.until(outcomes.over, timeout)
        except asyncio.CancelledError as error:
            raise cancelled_task(error, self._driver) from None

    def cancel(self, index: int | None = None) -> None:
        """Cancel the run, or one input; returns at once.

        What waits stops at once; what runs is asked to stop, by an exception in its thread.
        What is done stays. Cancelling what has ended does nothing.
        """
        self._driver.cancel(-1 if index is None else self._position(index))

    # -- once more

    def retry(self) -> Run:
        """Run again what failed, was cancelled or never ran, and take over what is done.

        On today's version of the function - also one of a cell that was run again since - and on
        the cluster that it would run on today.

        Returns:
            A new run over the same inputs.

        Raises:
            RunError: this run goes on, or keeps no outputs.

        Example:
            >>> import nbmap
            >>> run = nbmap.remote(int).map(["1", "x"])  # doctest: +SKIP
            >>> run.retry().counts  # doctest: +SKIP
        """
        __tracebackhide__ = True
        self._must_keep("run.retry()")
        if not self._driver.over:
            msg = "run.retry() is for a run that has ended: wait for it, or cancel it first"
            raise RunError(msg)
        again: Run = self._driver.owner.today()._again(self)  # type: ignore[attr-defined] # noqa: SLF001
        self._retried = again
        return again

    @property
    def retried(self) -> Run | None:
        """The newest run that `retry()`, or the Retry button, has made of this one; or None."""
        return self._retried

    def _like(self, driver: Driver) -> Run:
        """Return a run that hands out its outputs as this one does."""
        return Run(
            driver,
            ordered=self._ordered,
            return_exceptions=self._return_exceptions,
            wrap=self._wrap,
            max_failures=self._max_failures,
        )

    def replay(self, index: int) -> Any:
        """Run input `index` here, in this process, so that `%debug` and breakpoints work.

        On today's version of the function, without options and limits. The run is not changed.

        Args:
            index: int, of the input; negative ones count from the end.

        Returns:
            What the function returns; of a generator function the list of its outputs.

        Raises:
            Exception: what the function raises.
            RunError: the input is not kept any more.

        Example:
            >>> import nbmap
            >>> run = nbmap.remote(abs).map([-1, 2])  # doctest: +SKIP
            >>> run.replay(0)  # doctest: +SKIP
            1
        """
        __tracebackhide__ = True
        index = self._position(index)
        while index >= self._driver.outcomes.known() and not self._driver.over:
            time.sleep(0.01)  # it is being read
        value = self._driver.value(index)
        if value is EMPTY:
            msg = (
                f"input {index} is not kept any more; call the function itself: "
                f"{render.plain(self._driver.name, 60)}.local(...)"
            )
            raise RunError(msg)
        if isinstance(value, Unloadable):
            raise value.error
        handle = self._driver.owner.today()  # type: ignore[attr-defined]
        return handle.replay(index, self._driver.style, value, self._driver.kwargs)

    # -- shared

    def _position(self, index: Any) -> int:
        if not isinstance(index, int):
            msg = f"an input's index is an int, not {index!r}"
            raise TypeError(msg)
        total = self._driver.total
        if index < 0:
            index += len(self)
        if index < 0 or (total is not None and index >= total):
            msg = f"input {index} does not exist: the run has {total} inputs"
            raise IndexError(msg)
        return int(index)

    def _must_not_block(self) -> None:
        """Refuse to block the very loop that has to read the inputs."""
        loop = self._driver.loop
        if loop is None or self._driver.over:
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is loop:
            msg = (
                "this would wait for ever: the run's inputs are read in this event loop, which it "
                "would block. Use `await run` or `async for output in run`"
            )
            raise RunError(msg)

    def _must_keep(self, what: str) -> None:
        if not self._driver.keep:
            msg = f"{what} needs outputs that are kept, and this run keeps none; map with keep=True"
            raise RunError(msg)

    def _waiting(self) -> Waiting:
        """Return what cancels the run where the user interrupts what is done in it."""
        return Waiting(self._driver)

    def _raise_how_it_ended(self, *, as_values: bool) -> None:
        __tracebackhide__ = True
        driver = self._driver
        watch.settle(driver)
        if driver.broken is not None:
            raise driver.broken
        if driver.status == "stopped":
            failed = driver.counts()["failed"]
            msg = (
                f"stopped: {failed} inputs failed, more than max_failures={self._max_failures} "
                "allows. run.failures tells which, run.results(errors='drop') has what was done"
            )
            raise TooManyFailures(msg)
        if driver.status == "cancelled" and not as_values:
            counts = driver.counts()
            msg = f"cancelled with {counts['done']} inputs done and {counts['cancelled']} not"
            raise RunCancelled(msg)
        if driver.error is not None:
            raise driver.error

    def _as_value(self, failure: Failure, index: int) -> BaseException:
        error = self._error(failure, index)
        if failure.kind != USER or not self._wrap:
            return error
        wrapped = UserCodeException(error)
        return wrapped.with_traceback(_TRACEBACK.__get__(error))

    def _as_raised(self, failure: Failure, index: int) -> BaseException:
        """Return what to raise: the user's exception, unless raising it would mean another thing.

        A StopIteration would end the caller's loop, a SystemExit the caller's process.
        """
        error = self._error(failure, index)
        odd = (StopIteration, StopAsyncIteration)
        if isinstance(error, Exception) and not isinstance(error, odd):
            return error
        wrapped = UserCodeException(error)
        wrapped.__cause__ = error
        return wrapped

    def _error(self, failure: Failure, index: int) -> BaseException:
        error = self._errors.get(index)
        if error is None:
            call = self._driver.style == CALL
            name = self._driver.name
            error = self._errors[index] = build_exception(failure, index, name, call=call)
        if failure.kind == USER:
            _TRACEBACK.__set__(error, remote_traceback(failure.stack))
        return error


class Waiting:
    """Cancels a run where the user interrupts, or closes the iterator of one that keeps none.

    The interrupt is raised anew, with a message, so that its traceback ends at the user's line.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        __tracebackhide__ = True
        if isinstance(error, KeyboardInterrupt):
            raise interrupted(error, self._driver) from None
        if isinstance(error, GeneratorExit) and not self._driver.keep:
            _cancel_rest(self._driver)


def stop_interrupted(driver: Driver) -> None:
    """Cancel a run; if it was cancelled before and goes on, end its grace."""
    driver.cancel(now=driver.ending != "running")


def interrupted(error: KeyboardInterrupt, driver: Driver) -> KeyboardInterrupt:
    """Cancel a run and return what is to be raised in the place of an interrupt."""
    if error.args:  # it has come through here, further in
        return error.with_traceback(None)
    if driver.over:
        return interrupt(f"{_which(driver)} had ended")
    try:
        stop_interrupted(driver)
        if driver.outcomes.wait(MOMENT):
            watch.settle(driver)
        return interrupt(f"{_which(driver)} cancelled{_how_far(driver)}")
    except KeyboardInterrupt:
        driver.cancel(now=True)  # it was interrupted twice
        return interrupt(f"{_which(driver)} cancelled")


def cancelled_task(error: asyncio.CancelledError, driver: Driver) -> asyncio.CancelledError:
    """Cancel the run that a cancelled task has waited for, and return what to raise.

    What has cancelled the task may look for its own words, and for this very class.
    """
    driver.cancel()
    told = f"{_which(driver)} cancelled"
    new = asyncio.CancelledError(*(error.args or (told,)))
    new._render_traceback_ = [f"CancelledError: {told}"].copy  # type: ignore[attr-defined]
    return new


def _which(driver: Driver) -> str:
    return f"{'call' if driver.style == CALL else 'run'} of {render.plain(driver.name, 60)}"


def _how_far(driver: Driver) -> str:
    """Tell what a cancelled run has done, and what it has still to stop."""
    counts, parts = driver.counts(), []
    if driver.style != CALL:
        of = "" if driver.total is None else f" of {driver.total}"
        parts.append(f": {counts['done']}{of} done")
    if running := counts["running"]:
        which = "it" if driver.style == CALL else running
        still = "still stops" if running == 1 else "still stop"
        parts.append(f", {which} {still} (grace {driver.rules.grace:g} s)")
    return "".join(parts)


_COLUMNS = ("input", "status", "output", "failure", "attempts", "worker", "seconds")


def _by_input(ledger: list[tuple[int, int, str, float]]) -> dict[int, tuple[str, float]]:
    """Return worker and seconds of each input; the last attempt counts."""
    out = {}
    for start, n, worker, seconds in ledger:
        for index in range(start, start + n):
            out[index] = (worker, seconds / n)
    return out


def check_wait(timeout: object) -> None:
    """Refuse a time to wait that is no number of seconds."""
    if timeout is not None and not isinstance(timeout, (int, float)):
        msg = f"timeout={safe_repr(timeout, 60)} has to be a number of seconds"
        raise misuse(msg)


def _cancelled(index: int) -> InputCancelled:
    return InputCancelled(f"input {index} was cancelled")


def _cancel_rest(driver: Driver) -> None:
    if not driver.over:
        with contextlib.suppress(RunError):  # in a forked process, which only has a copy
            driver.cancel()


# --- exceptions from plain values --------------------------------------------------------------


def build_exception(
    failure: Failure, index: int, name: str, *, call: bool = False
) -> BaseException:
    """Return the exception that a failure stands for; of a single call, or of an input of many."""
    if failure.kind == CANCELLED:
        return InputCancelled("the call was cancelled") if call else _cancelled(index)
    name, shown = render.plain(name, 60), render.plain(failure.input)
    where = f"{name}({shown})" if call else f"input {index} ({shown}) of {name}"
    if failure.kind != USER:
        kinds: dict[str, type[InputFailed]] = {LOST: WorkerLost, TIMEOUT: InputTimeout}
        return kinds.get(failure.kind, Unpicklable)(f"{where}: {failure.message}")
    error = load_or_error(failure.pickled) if failure.pickled else None
    if not isinstance(error, BaseException) or isinstance(error, Unloadable):
        # Its class can't be had here, or can't be pickled there: its name and text can.
        error = UserCodeException(Exception(f"{failure.type}: {failure.message}"))
    note = f"nbmap: {where} failed on {failure.worker}, attempt {failure.attempts}"
    try:
        error.add_note(note)
    except Exception:
        return error
    return error


def remote_traceback(stack: list[list[Any]]) -> TracebackType | None:
    """Build a traceback that shows the frames of the worker."""
    tb: TracebackType | None = None
    for filename, lineno, function, _line, first in reversed(stack):
        frame = _frame(filename, lineno, function, first)
        tb = TracebackType(tb, frame, frame.f_lasti, lineno)
    return tb


def _frame(filename: str, lineno: int, function: str, first: int) -> FrameType:
    """Return a frame that looks as if it were in that function: one of a code that just raised.

    IPython takes the function's lines from its first one on, and the frame's own line.
    """
    first = min(first, lineno)
    code: CodeType = compile("\n" * (lineno - first) + "raise LookupError", filename, "exec")
    code = code.replace(co_name=function, co_firstlineno=first)
    scope = {"__name__": function, "__tracebackhide__": filename == standin.__file__}
    try:
        exec(code, scope)  # noqa: S102 - the two words above
    except LookupError as error:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None:
            tb = tb.tb_next
        assert tb is not None
        return tb.tb_frame
    raise AssertionError
