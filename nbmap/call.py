"""Call: one call that was started and goes on; gather: the outputs of several."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any

from .engine.interrupts import Gate, start_thread
from .engine.model import CANCELLED, Failure
from .engine.pickling import safe_repr
from .errors import InputCancelled, interrupt, misuse
from .run import Run, cancelled_task, check_wait, stop_interrupted
from .twins import twin
from .view import render, watch

__all__ = ["Call", "gather"]


class Call:
    """One call of a handle; it has started and goes on in the background.

    Made by `handle.spawn(...)`. It can be awaited, and its methods are those of
    `concurrent.futures.Future`, where `get` is another name of `result`.

    Example:
        >>> import nbmap
        >>> call = nbmap.remote(abs).spawn(-3)  # doctest: +SKIP
        >>> call.get(timeout=10), call.done()  # doctest: +SKIP
        (3, True)
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._driver = run._driver  # noqa: SLF001
        self._callbacks: list[Callable[[Call], object]] = []
        self._lock = threading.Lock()
        self._listening = False

    def __repr__(self) -> str:
        return f"<Call of {render.plain(self._driver.name, 60)}: {self._status()}>"

    def _status(self) -> str:
        if not self.done():
            return "running"
        return "cancelled" if self.cancelled() else "failed" if self._failure() else "done"

    @twin
    def get(self, timeout: float | None = None) -> Any:
        """Wait for the output and return it.

        Args:
            timeout: seconds to wait at most; 0 only looks; for ever by default. The call goes on
                when they are over.

        Raises:
            TimeoutError: it had not ended by then.
            InputCancelled: it was cancelled.
            Exception: what the function raised.
        """
        __tracebackhide__ = True
        check_wait(timeout)
        with self._run._waiting():  # noqa: SLF001
            self._driver.outcomes.get(0, timeout)
        return self._ended_output(timeout)

    @get.awaitable
    async def _get(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as get has it
        """Await the output without blocking the loop; cancelling the task cancels the call."""
        __tracebackhide__ = True
        outcomes = self._driver.outcomes
        try:
            await outcomes.until(outcomes.ended(0), timeout)
        except asyncio.CancelledError as error:
            raise cancelled_task(error, self._driver) from None
        return self._ended_output(timeout)

    result = get

    def __await__(self) -> Generator[Any, None, Any]:
        awaited: Generator[Any, None, Any] = self._get().__await__()
        return awaited

    def _ended_output(self, timeout: float | None) -> Any:
        __tracebackhide__ = True
        if not self.done():
            msg = f"the call has not ended within {timeout or 0:g} s; it goes on"
            raise TimeoutError(msg)
        return self._run[0]

    def done(self) -> bool:
        """Tell whether it has ended: with an output, a failure, or cancelled."""
        outcomes = self._driver.outcomes
        return bool(self._driver.over or outcomes.ended(0)())

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return not self.done()

    def cancelled(self) -> bool:
        """Tell whether it was cancelled before it ended."""
        failure = self._failure()
        return failure is not None and failure.kind == CANCELLED

    def _failure(self) -> Failure | None:
        value = self._driver.outcomes.get(0, 0) if self.done() else None
        return value if isinstance(value, Failure) else None

    @twin
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return what the function raised, or None.

        Args:
            timeout: as for `get`.

        Raises:
            TimeoutError: it had not ended by then.
            InputCancelled: it was cancelled.
        """
        try:
            self.get(timeout)
        except InputCancelled:
            raise
        except TimeoutError as error:
            if not self.done():
                raise
            return error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
        return None

    @exception.awaitable
    async def _exception(self, timeout: float | None = None) -> BaseException | None:  # noqa: ASYNC109
        outcomes = self._driver.outcomes
        try:
            await outcomes.until(outcomes.ended(0), timeout)
        except asyncio.CancelledError as error:
            raise cancelled_task(error, self._driver) from None
        raised: BaseException | None = self.exception(0)
        return raised

    def cancel(self) -> bool:
        """Cancel it; returns at once, and tells whether it had not ended.

        A function that runs is stopped by an exception in its thread.
        """
        pending = not self.done()
        self._run.cancel()
        return pending

    def add_done_callback(self, function: Callable[[Call], object]) -> None:
        """Have a function called with this call when it ends; at once where it has ended.

        It is called on a thread of nbmap's; what it raises is logged.
        """
        with self._lock:
            self._callbacks.append(function)
            if not self._listening:
                self._listening = True
                start_thread("nbmap-callbacks", self._call_back)

    def _call_back(self) -> None:
        self._driver.outcomes.get(0)
        while True:
            with self._lock:
                if not self._callbacks:
                    self._listening = False
                    return
                function = self._callbacks.pop(0)
            try:
                function(self)
            except Exception:
                watch.logger.exception("a callback of %r failed", self)


def _check(calls: tuple[Any, ...]) -> None:
    for call in calls:
        if not isinstance(call, Call):
            msg = (
                f"nbmap.gather takes calls, as handle.spawn(...) gives them, and not "
                f"{safe_repr(call, 80)}"
            )
            raise misuse(msg)


def gather(*calls: Call, return_exceptions: bool = False) -> list[Any]:
    """Wait for several calls and return their outputs, in the order given.

    `await nbmap.gather.aio(...)` does the same without blocking the event loop.

    Args:
        *calls: as `handle.spawn(...)` gives them.
        return_exceptions: what a call raised takes its place instead of being raised.

    Raises:
        Exception: what the first of them to fail raised; the others go on.

    Example:
        >>> import nbmap
        >>> square = nbmap.remote(lambda x: x * x)
        >>> nbmap.gather(square.spawn(2), square.spawn(3))  # doctest: +SKIP
        [4, 9]
    """
    __tracebackhide__ = True
    _check(calls)
    try:
        if not return_exceptions:
            _first_failure(calls)
        return [_value(call, return_exceptions) for call in calls]
    except KeyboardInterrupt:
        for call in calls:
            stop_interrupted(call._driver)  # noqa: SLF001
        ended = sum(call.done() and not call.cancelled() for call in calls)
        told = f"gather cancelled: {ended} of {len(calls)} calls had ended"
        raise interrupt(told) from None


async def _gather(*calls: Call, return_exceptions: bool = False) -> list[Any]:
    _check(calls)
    try:
        return await asyncio.gather(*calls, return_exceptions=return_exceptions)
    except asyncio.CancelledError:
        for call in calls:  # also those that nobody had begun to await
            call.cancel()
        raise


gather.aio = _gather  # type: ignore[attr-defined]


def _value(call: Call, as_value: bool) -> Any:
    __tracebackhide__ = True
    try:
        return call.get()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not as_value:
            raise
        return error


def _first_failure(calls: tuple[Call, ...]) -> None:
    """Raise what the first call to fail raised, as soon as it does."""
    __tracebackhide__ = True
    gate = Gate()
    stops = [call._driver.outcomes.listen(gate.open) for call in calls]  # noqa: SLF001
    try:
        waiting = list(calls)
        while waiting:
            gate.shut()
            for call in [call for call in waiting if call.done()]:
                waiting.remove(call)
                call.get()
            if waiting:
                gate.wait(0.5)
    finally:
        for stop in stops:
            stop()
