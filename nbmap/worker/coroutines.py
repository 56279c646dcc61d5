"""Coroutines of the user's on a lease's thread: one event loop a lease, one input at a time.

The loop lives as long as its lease, so that what belongs to a loop (a client's connections) can be
used again by the next input. An exception never travels through asyncio: a SystemExit would end
the loop, and tracebacks would show its frames.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from . import capture

FILE = inspect.currentframe().f_code.co_filename  # type: ignore[union-attr]


class Coroutines:
    """Runs coroutines on the thread that calls `run`; `cancel` may come from any thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._task: asyncio.Task[Any] | None = None
        self._lock = threading.Lock()
        self.cancelled = False  # by `cancel`, and not by the user's own code
        self.heard = (
            False  # the coroutine has been told; before, code that blocks may be in the way
        )

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end; return or raise what it does."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        self.cancelled = self.heard = False
        try:
            error, value = self._runner.run(self._guarded(coroutine))
        except BaseException:  # it came between two steps of a coroutine that does not end
            self._abandon()
            raise
        finally:
            self._task = None
        if error is not None:
            raise error
        return value

    def _abandon(self) -> None:
        """Throw the running coroutine and its loop away; its `finally` runs as far as it can."""
        runner, self._runner = self._runner, None
        task = self._task
        assert runner is not None
        loop = runner.get_loop()
        loop.set_exception_handler(lambda *_: None)  # which would tell of a task that was pending
        with suppress(BaseException):
            if task is not None:
                task.get_coro().close()
        with suppress(Exception):
            loop.close()  # not the runner: it would wait for the task

    async def _guarded(
        self, coroutine: Coroutine[Any, Any, Any]
    ) -> tuple[BaseException | None, Any]:
        capture.begin()
        with self._lock:
            self._task = asyncio.current_task()
        try:
            return None, await coroutine
        except BaseException as error:
            tb = error.__traceback__
            return error.with_traceback(tb.tb_next if tb is not None else None), None
        finally:
            with self._lock:
                self._task = None

    def cancel(self) -> bool:
        """Cancel what runs; return whether a coroutine does."""
        with self._lock:
            task = self._task
            if task is None:
                return False
            self.cancelled = True

            def tell() -> None:
                self.heard = True
                task.cancel()

            with suppress(RuntimeError):  # the loop is being closed
                task.get_loop().call_soon_threadsafe(tell)
            return True

    def call(self, function: Callable[[], None]) -> None:
        """Call a function on the thread that runs the coroutine, soon; from any thread."""
        with self._lock:
            if self._task is not None:
                with suppress(RuntimeError):
                    self._task.get_loop().call_soon_threadsafe(function)

    def close(self) -> None:
        """Close the loop; on the thread that ran it."""
        if self._runner is not None:
            with suppress(Exception):
                self._runner.close()
            self._runner = None
