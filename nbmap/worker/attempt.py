"""One attempt at one input: call the function or iterate it, catch everything, pickle the outcome.

An attempt never raises and never fails to be told: whatever the user's code did, its outcome is
plain values and bytes by the time it leaves here.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..engine.model import (
    CALL,
    CANCELLED,
    EACH,
    SPREAD,
    TIMEOUT,
    UNPICKLABLE,
    USER,
    Failure,
    Frames,
)
from ..engine.pickling import (
    Unloadable,
    because_of,
    dump,
    dump_exception,
    safe_repr,
    safe_str,
    shorten,
    type_name,
)
from . import coroutines as _coroutines
from . import standin
from .coroutines import Coroutines

MESSAGE = 2_000  # characters of an exception's message that are kept
TRACEBACK = 64_000  # and of its formatted traceback
STACK = 50  # frames, the outermost and the innermost halves
INPUT = 200  # characters of the input's repr

_HERE = inspect.currentframe().f_code.co_filename  # type: ignore[union-attr]
_OURS = {_HERE, _coroutines.FILE}
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Stopped(BaseException):
    """Raised in a running function to stop it.

    A class of its own: a KeyboardInterrupt that escapes would end Dask's worker.
    """


class Arguments(tuple[Any, ...]):
    """The arguments of a single call, which look as they were written."""

    __slots__ = ()

    @staticmethod
    def of(loaded: Any) -> Any:
        """Return (args, kwargs) as this; what could not be loaded stays what it is."""
        return loaded if type(loaded) is Unloadable else Arguments(loaded)

    def __repr__(self) -> str:
        named = (f"{name}={value!r}" for name, value in self[1].items())
        return ", ".join([*map(repr, self[0]), *named])


class Unknown:
    """Stands for an input that was not loaded."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()


class Pickled(list[Any]):
    """The frames of one output."""


def caller(
    function: Callable[..., Any], kwargs: dict[str, Any], style: int, coroutines: Coroutines
) -> Callable[..., Any]:
    """Return what is to be called with one input."""
    if _is_async(function):
        plain = _caller(function, kwargs, style)
        return lambda x: _run_to_end(coroutines, plain(x))
    return _caller(function, kwargs, style)


def _run_to_end(coroutines: Coroutines, coroutine: Any) -> Any:
    try:
        return coroutines.run(coroutine)
    except asyncio.CancelledError:
        if coroutines.cancelled:
            raise Stopped from None
        raise


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that is called
    )


def _caller(function: Callable[..., Any], kwargs: dict[str, Any], style: int) -> Callable[..., Any]:
    if style == EACH:
        return function if not kwargs else lambda x: function(x, **kwargs)
    if style == SPREAD:
        return lambda x: function(*x, **kwargs)
    assert style == CALL
    return lambda x: function(*x[0], **x[1])


def run(call: Callable[[Any], Any], index: int, value: Any, function: Any) -> Any:
    """Try one input; return its output (a scalar, or Pickled), or a Failure.

    Only `Stopped` gets out.
    """
    if type(value) is Unloadable:
        return _unloadable(value, index)
    try:
        output = call(value)
    except Stopped:
        raise
    except BaseException as error:
        return _users(error, index, value, function)
    try:
        return sendable(output)
    except Stopped:
        raise
    except BaseException as error:
        prefix = _unsendable("the output", output)
        return failure(error, index, UNPICKLABLE, value, prefix)


class _UnsendableError(Exception):
    """An output of a generator could not be pickled."""

    def __init__(self, error: BaseException, prefix: str) -> None:
        super().__init__(prefix)
        self.error = error
        self.prefix = prefix


def iterate(
    call: Callable[[Any], Any],
    index: int,
    value: Any,
    function: Any,
    emit: Callable[[Any], None],
    coroutines: Coroutines,
) -> Failure | None:
    """Run the generator of one input, handing each output (a scalar, or Pickled) to `emit`.

    Returns how it failed, or None. Only `Stopped` gets out; the generator is closed by then.
    """
    if type(value) is Unloadable:
        return _unloadable(value, index)
    try:
        outputs = call(value)
        if hasattr(outputs, "__aiter__"):
            _run_to_end(coroutines, _push_async(outputs, emit))
        else:
            _push(outputs, emit)
    except Stopped:
        raise
    except _UnsendableError as error:
        return failure(error.error, index, UNPICKLABLE, value, error.prefix)
    except BaseException as error:
        return _users(error, index, value, function)
    return None


def _push(generator: Any, emit: Callable[[Any], None]) -> None:
    number = 0  # not by enumerate, which holds on to what it gave last
    try:
        for output in generator:
            emit(_item(number, output))
            number += 1
            del output  # it may be large, and the generator makes the next one now
    finally:
        # Where it was left in the middle its `finally` runs now, and not when it is collected.
        if hasattr(generator, "close"):
            with suppress(Exception, SystemExit, GeneratorExit, KeyboardInterrupt):
                generator.close()


async def _push_async(generator: Any, emit: Callable[[Any], None]) -> None:
    number = 0
    try:
        async for output in generator:
            emit(_item(number, output))
            number += 1
            del output
    finally:
        if hasattr(generator, "aclose"):
            with suppress(Exception, SystemExit, GeneratorExit, KeyboardInterrupt):
                await generator.aclose()


def _item(number: int, output: Any) -> Any:
    try:
        return sendable(output)
    except Stopped:
        raise
    except BaseException as error:
        raise _UnsendableError(error, _unsendable(f"output {number}", output)) from None


def _unsendable(what: str, output: Any) -> str:
    kind = _clean(type_name(output), MESSAGE)
    return f"{what}, a {kind}, can't be sent{because_of(output)}: "


def sendable(output: Any) -> Any:
    """Return an output as it travels: a scalar as it is, anything else as Pickled frames."""
    return output if type(output) in _PLAIN else Pickled(dump(output))


def _unloadable(value: Unloadable, index: int) -> Failure:
    if isinstance(value.error, Stopped):  # it was stopped while it was loaded
        raise value.error
    prefix = f"the input can't be unpickled: {type_name(value.error)}: "
    return failure(value.error, index, UNPICKLABLE, UNKNOWN, prefix)


def _users(error: BaseException, index: int, value: Any, function: Any) -> Failure:
    if issubclass(type(error), TypeError) and _not_entered(error):  # it may hide its `__class__`
        _add_signature(error, function)
    with suppress(Exception):
        if (lease := standin.current()) is not None:
            lease.explain(error)
    return failure(error, index, USER, value)


def timed_out(index: int, value: Any, seconds: float) -> Failure:
    """Return the failure of an input that was stopped because it took too long."""
    text = f"it took longer than timeout={seconds:g} s"
    return Failure(index, TIMEOUT, "InputTimeout", text, input=_repr(value))


def dead_on_gpu(index: int, value: Any) -> Failure:
    """Return the failure of an input that has left CUDA dead, though its function has returned."""
    error = RuntimeError(
        "CUDA failed after the function had returned, as where a kernel uses a wrong address. To "
        "have the line, wait in the function, as by torch.cuda.synchronize()"
    )
    return failure(error, index, USER, value)


def cancelled(index: int, value: Any) -> Failure:
    """Return the failure of an input that was stopped."""
    return Failure(index, CANCELLED, "InputCancelled", "cancelled", input=_repr(value))


def failure(error: BaseException, index: int, kind: str, value: Any, prefix: str = "") -> Failure:
    """Tell an exception in plain values, whatever its own methods do."""
    user = _user_traceback(error)
    pickled: Frames = dump_exception(error) if kind == USER else []
    return Failure(
        index=index,
        kind=kind,
        type=_clean(type_name(error), MESSAGE),
        message=_clean(prefix + safe_str(error), MESSAGE),
        traceback=_clean(_format(error, user), TRACEBACK),
        stack=_stack(user),
        input=_repr(value),
        pickled=pickled,
    )


def _repr(value: Any) -> str:
    return _clean(safe_repr(value, INPUT), 2 * INPUT)


def _clean(text: str, limit: int) -> str:
    """Bound a text and make it fit for the wire, which knows no lone surrogates."""
    return shorten(text, limit).encode("utf-8", "backslashreplace").decode()


_TRACEBACK = BaseException.__dict__["__traceback__"]  # which a class may hide


def _user_traceback(error: BaseException) -> Any:
    """Skip our own frames at the start; None where the user's code was never entered."""
    tb = _TRACEBACK.__get__(error)
    while tb is not None and tb.tb_frame.f_code.co_filename in _OURS:
        tb = tb.tb_next
    return tb


def _not_entered(error: BaseException) -> bool:
    return _user_traceback(error) is None


def _add_signature(error: BaseException, function: Any) -> None:
    try:
        name = getattr(function, "__name__", "the function")
        text = f"{error.args[0]} (the signature is {name}{inspect.signature(function)})"
        error.args = (text, *error.args[1:])
    except Exception:
        return


def _format(error: BaseException, user: Any) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, user))
    except BaseException:
        return _format_roughly(error, user)


def _format_roughly(error: BaseException, user: Any) -> str:
    try:
        frames = "".join(traceback.format_tb(user))
    except BaseException:
        frames = ""
    return f"Traceback (most recent call last):\n{frames}{type_name(error)}\n"


def _stack(user: Any) -> list[list[Any]]:
    """Return file, line, function, text of the line and first line of the function, per frame."""
    try:
        firsts = [frame.f_code.co_firstlineno for frame, _ in traceback.walk_tb(user)]
        frames = list(zip(traceback.extract_tb(user), firsts, strict=False))
    except BaseException:
        return []
    if len(frames) > STACK:
        frames = frames[: STACK // 2] + frames[-STACK // 2 :]
    return [
        [_clean(f.filename, MESSAGE), f.lineno or 1, f.name, _clean(f.line or "", MESSAGE), first]
        for f, first in frames
    ]
