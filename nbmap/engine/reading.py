"""Reads a run's inputs on threads of its own and pickles them, as far as it is allowed to."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from itertools import chain, islice
from queue import Empty as NothingThere
from queue import SimpleQueue
from typing import Any

from .interrupts import start_thread
from .model import UNPICKLABLE, Failure, Pack
from .pickling import (
    are_plain,
    because_of,
    dump,
    join,
    near_only,
    pack_plain,
    safe_repr,
    safe_str,
    shorten,
)
from .transport import EngineLoop

READ_AT_ONCE = 5_000

# Takes what was read and pickled, what the user's iterator raised, and whether that was all.
Take = Callable[[list["Pack | Refused"], BaseException | None, bool], None]

LOOK = 0.5  # seconds after which who waits for an item looks whether its loop runs
_ENDED = "the event loop in which the inputs are read has ended"
_END = object()  # what `next` returns at the end of the inputs
_EMPTIES: tuple[Iterable[Any], ...] = ([], (), range(0), range(1 << 70), {}, set(), "", b"")
_BUILTIN = {type(iter(empty)) for empty in _EMPTIES}


@dataclass(frozen=True, slots=True)
class _End:
    """The end of the inputs, with what their iterator raised."""

    error: BaseException | None


class _Ending:
    """Tells whether an event loop has begun to end, and closes the generators that it runs.

    One that was closed looks like one that came to its end. So a generator of ours is in the same
    loop, which closes all in one go.
    """

    def __init__(self) -> None:
        self.begun = False
        self._canary: AsyncGenerator[None] | None = None

    async def watch(self) -> None:
        """Have the running loop watched."""
        if self._canary is None:
            self._canary = self._until_closed()
            await anext(self._canary)

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self.begun = True


class FromAsync:
    """Iterates an async iterable from a thread.

    Args:
        inputs: the async iterable.
        loop: in which it is read, running in another thread; None for a loop of its own, which
            runs on a thread, so that a collection never finds it in the middle of something.
    """

    def __init__(self, inputs: AsyncIterable[Any], loop: asyncio.AbstractEventLoop | None) -> None:
        self._iterator = aiter(inputs)
        self._loop = loop
        self._own: asyncio.AbstractEventLoop | None = None
        self._ending = _Ending()

    def __iter__(self) -> FromAsync:
        return self

    def __next__(self) -> Any:
        loop = self._loop
        if loop is None:
            loop = self._loop = self._own = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(loop,), name="nbmap-loop", daemon=True).start()
        if self._own is None and not loop.is_running():
            raise RuntimeError(_ENDED)
        next_one = _next(self._iterator, self._ending)
        try:
            item = self._wait(asyncio.run_coroutine_threadsafe(next_one, loop), loop)
        except BaseException as error:
            ours = self._own is not None
            if not loop.is_running() and inspect.getcoroutinestate(next_one) == "CORO_CREATED":
                next_one.close()  # it never began, and Python would complain of that
            self.close()
            if not ours and isinstance(error, CancelledError):
                raise RuntimeError(_ENDED) from None
            raise
        if item is _END:
            cut = self._own is None and self._ending.begun
            self.close()
            if cut:
                raise RuntimeError(_ENDED)
            raise StopIteration
        return item

    @staticmethod
    def _wait(future: Future[Any], loop: asyncio.AbstractEventLoop) -> Any:
        """Return the item; a loop that ends before it has begun with it never tells."""
        while not wait([future], LOOK).done:
            if not loop.is_running():
                raise RuntimeError(_ENDED)
        return future.result()

    def close(self) -> None:
        """Close the async iterator, so that its `finally` runs, and the loop that is ours."""
        loop, self._own = self._own, None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                asyncio.run_coroutine_threadsafe(_shut(loop), loop)

    def __del__(self) -> None:
        """Close what was not read to its end; a loop that is not ours sees to its iterator."""
        self.close()


async def _next(iterator: AsyncIterator[Any], ending: _Ending) -> Any:
    await ending.watch()
    item = await anext(iterator, _END)
    if item is _END:
        await asyncio.sleep(0)  # a loop that closes generators has begun with all of them by then
    return item


async def _shut(loop: asyncio.AbstractEventLoop) -> None:
    await loop.shutdown_asyncgens()
    loop.stop()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


@dataclass(slots=True)
class Refused:
    """An input that can't be pickled, with how it failed."""

    item: Any
    failure: Failure


class Reader:
    """Reads and pickles the inputs of one run.

    Args:
        engine: on whose thread what was read is handed on.
        inputs: the inputs.
        keep: whether what was not read may be asked for when the reader was stopped.
    """

    def __init__(self, engine: EngineLoop, inputs: Iterator[Any], *, keep: bool) -> None:
        self._engine = engine
        self._inputs = inputs
        self._keep = keep
        self._permit = threading.Condition()
        self._allowed = 0
        self._stopped = False
        self._raw: SimpleQueue[Any] = SimpleQueue()  # read, not pickled yet

    def start(self, take: Take) -> None:
        """Begin to read; `take` gets the inputs in order, on the engine's thread.

        Only the threads hold it, so that a reader does not keep alive who has it read.
        """
        start_thread("nbmap-reader", self._read, take)

    def allow(self, upto: int) -> None:
        """Have so many inputs read in all."""
        with self._permit:
            self._allowed = upto
            self._permit.notify()

    def stop(self) -> None:
        """Have no more inputs read than are allowed now."""
        with self._permit:
            self._stopped = True
            self._permit.notify()
        self._raw.put(_End(None))  # the iterator may block for ever, the pickler not

    def __del__(self) -> None:
        """Drop what was not read on a thread of its own: user code may run when it is closed."""
        inputs = self.__dict__.pop("_inputs", None)
        if inputs is not None and type(inputs) not in {*_BUILTIN, FromAsync}:
            with contextlib.suppress(RuntimeError):  # the process ends
                start_thread("nbmap-closer", _close, [inputs])

    @property
    def rest(self) -> Iterator[Any]:
        """The inputs that `take` was never given; for a reader that was stopped and is at rest."""
        return chain(self._left(), self._inputs)

    def _left(self) -> Iterator[Any]:
        """Yield what was still read after the pickler had been told of the end."""
        while not self._raw.empty():
            item = self._raw.get()
            if not isinstance(item, _End):
                yield item

    # -- the reader's thread

    def _read(self, take: Take) -> None:
        """Read the inputs as far as they may be read, and have them pickled."""
        if type(self._inputs) in _BUILTIN:
            self._read_builtin(take)
            return
        # Next to the user's iterator, which may block at any item, another thread pickles what
        # is there: an item must not wait for the one after it.
        pickler = threading.Thread(
            target=self._pickle_raw, args=(take,), name="nbmap-pickler", daemon=True
        )
        pickler.start()
        read, allowed, error = 0, 0, None
        try:
            while True:
                if read >= allowed:
                    allowed = self._await_permit(read)
                    if allowed < 0:  # whoever stopped told the pickler
                        if not self._keep:
                            inputs, self._inputs = self._inputs, iter(())
                            _close([inputs])
                        return
                item = next(self._inputs, _END)
                if item is _END:
                    break
                self._raw.put(item)
                read += 1
        except BaseException as raised:
            error = raised
        self._inputs = iter(())  # the user's iterators are not ours any more
        self._raw.put(_End(error))

    def _read_builtin(self, take: Take) -> None:
        """Read a list, a range and the like: no code of the user's runs, so it is fast."""
        read, error, ended = 0, None, False
        while not ended:
            allowed = self._await_permit(read)
            if allowed < 0:
                return
            n = min(allowed - read, READ_AT_ONCE)
            items: list[Any] = []
            try:
                items = list(islice(self._inputs, n))
            except RuntimeError as raised:  # a dict or set that changed meanwhile
                error = raised
            read += len(items)
            ended = len(items) < n
            if ended:
                self._inputs = iter(())
            self._engine.call(take, list(pickle_inputs(items)), error, ended)

    def _await_permit(self, read: int) -> int:
        """Wait until more than `read` inputs may be read; return how many, -1 to stop."""
        with self._permit:
            while self._allowed <= read and not self._stopped:
                self._permit.wait()
            return -1 if self._stopped else self._allowed

    # -- the pickler's thread

    def _pickle_raw(self, take: Take) -> None:
        """Pickle what was read, as much at once as is there."""
        while True:
            items = [self._raw.get()]
            while len(items) < READ_AT_ONCE and not isinstance(items[-1], _End):
                try:
                    items.append(self._raw.get_nowait())
                except NothingThere:
                    break
            end = items.pop() if isinstance(items[-1], _End) else None
            error = end.error if end else None
            segments = list(pickle_inputs(items))
            del items
            self._engine.call(take, segments, error, end is not None)
            if end is not None:
                return


def _close(held: list[Any]) -> None:
    """Close an iterator, of which this is the last reference."""
    inputs = held.pop()
    with contextlib.suppress(Exception):
        if hasattr(inputs, "close"):
            inputs.close()


def pickle_inputs(items: list[Any]) -> Iterator[Pack | Refused]:
    """Pickle inputs; `Refused` stands for each that can't be."""
    if not items:
        return
    if are_plain(items):
        yield pack_plain(items)
        return
    frames, near = [], near_only()
    for item in items:
        try:
            frames.append(dump(item, near))
        except BaseException as error:
            if frames:
                yield join(frames)
                frames = []
            why = shorten(safe_str(error), 500)
            text = f"the input can't be pickled{because_of(item)}: {why}"
            kind = type(error).__name__
            yield Refused(item, Failure(-1, UNPICKLABLE, kind, text, input=safe_repr(item)))
    if frames:
        yield join(frames)
