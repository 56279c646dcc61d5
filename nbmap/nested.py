"""Makes the runs that inputs ask for: a handle was used in remote code.

Each is an ordinary run of the notebook, so that limits hold and it can be seen; what comes of it
travels back over the stream of the lease that asked. A thread each: it waits for outputs.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .engine.driver import Driver
from .engine.model import OUTPUT, OUTPUT_COST, OVER, RAISED, Answer, Ask, Frames, size_of
from .engine.pickling import dump, dump_exception, load
from .errors import Unpicklable

WINDOW = 8 << 20  # bytes of outputs that an input is sent before it has taken those before

_serving = contextvars.ContextVar("nbmap_serving", default=False)


def is_serving() -> bool:
    """Tell whether the calling code makes a run that an input has asked for."""
    return _serving.get()


def serve(driver: Driver, ask: Ask, find: Callable[[Mapping[str, Any]], Any]) -> None:
    """Answer a request, on a thread of its own; called on the engine's.

    Args:
        driver: the run whose input asks.
        ask: the request.
        find: returns the handle that a request names.
    """
    key = (ask.chunk, abs(ask.number))
    known = driver.children.get(key)
    if ask.number < 0 or not ask.frames:
        if isinstance(known, _Child):
            known.cancel() if ask.number < 0 else known.took(ask.taken)
        return
    child = driver.children[key] = _Child(driver, key)
    arguments = (child, ask, find)
    threading.Thread(target=_answer, args=arguments, name="nbmap-nested", daemon=True).start()


class _Child:
    """A run on its way: cancelled at once where that is asked for before it exists."""

    def __init__(self, driver: Driver, key: tuple[int, int]) -> None:
        self.driver = driver
        self.key = key
        self.run: Any = None
        self.detached = False  # a call that was spawned goes on when its maker has ended
        self._cancelled = False
        self._lock = threading.Condition()
        self._sizes: deque[int] = deque()  # of outputs that were sent and not taken
        self._sent = 0
        self._window = 0  # their bytes

    def cancel(self) -> None:
        """Cancel the run."""
        with self._lock:
            self._cancelled = True
            self._lock.notify_all()
            run = self.run
        if run is not None:
            run.cancel()

    def made(self, run: Any) -> None:
        """Take the run that was made."""
        with self._lock:
            self.run = run
            cancelled = self._cancelled
        if cancelled:
            run.cancel()

    def took(self, taken: int) -> None:
        """Hear that so many of the outputs were taken."""
        with self._lock:
            while self._sizes and self._sent - len(self._sizes) < taken:
                self._window -= self._sizes.popleft()
            self._lock.notify_all()

    def give(self, frames: Frames) -> None:
        """Send an output; before, wait while many that were sent have not been taken."""
        nbytes = size_of(frames) + OUTPUT_COST
        with self._lock:
            while self._window > WINDOW and not self._cancelled:
                self._lock.wait(1.0)
            self._sizes.append(nbytes)
            self._sent += 1
            self._window += nbytes
        self.send(OUTPUT, frames)

    def send(self, kind: str, frames: Frames) -> None:
        """Send something to the input that asked; it may be gone."""
        transport, (chunk, number) = self.driver.transport, self.key
        transport.engine.call(transport.answer, chunk, Answer(number, kind, frames))

    def end(self) -> None:
        """Forget the run."""
        self.driver.transport.engine.call(self.driver.children.pop, self.key, None)


def _answer(child: _Child, ask: Ask, find: Callable[[Mapping[str, Any]], Any]) -> None:
    _serving.set(True)
    try:
        request = load(ask.frames)
        for output in _outputs(child, request, find(request)):
            child.give(_packed(output))
        child.send(OVER, [])
    except BaseException as error:
        child.send(RAISED, dump_exception(error) or dump(RuntimeError(f"{error!r}")))
    finally:
        child.end()


def _outputs(child: _Child, request: Mapping[str, Any], handle: Any) -> Iterator[Any]:
    args, kwargs, flags = request["args"], request["kwargs"], request["flags"]
    how = request["how"]
    if how == "call" and not handle._stream:  # noqa: SLF001
        child.detached = True
        call = handle.spawn(*args, **kwargs)
        child.made(call)
        yield call.get()
        return
    if how == "call":
        run = handle._one(args, kwargs, keep=False)  # noqa: SLF001
    else:
        # Over there outputs are kept; here they would be a second time.
        run = getattr(handle, how)(*args, kwargs=kwargs, **{**flags, "keep": False})
    child.made(run)
    yield from run


def _packed(output: Any) -> Frames:
    try:
        return dump(output)
    except Exception as error:
        msg = f"an output, a {type(output).__name__}, can't be sent on: {error}"
        raise Unpicklable(msg) from None
