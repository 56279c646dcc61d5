"""Methods that block, with an awaitable twin as `.aio`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Bound:
    """A method of one object: called, it blocks; its `aio` is to be awaited."""

    def __init__(self, function: Callable[..., Any], aio: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.aio = aio

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the method that blocks."""
        __tracebackhide__ = True
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self._function.__qualname__}, awaitable as .aio>"


class twin:  # noqa: N801 - a decorator, as property is
    """Decorates a method that blocks; `@name.awaitable` decorates its twin.

    >>> class Door:
    ...     @twin
    ...     def open(self):
    ...         return "open"
    ...     @open.awaitable
    ...     async def _open(self):
    ...         return "open"
    >>> Door().open()
    'open'
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function
        self._function = function
        self._aio: Callable[..., Any] = function

    def awaitable(self, aio: Callable[..., Any]) -> Callable[..., Any]:
        """Take the twin; it stays a method under its own name too."""
        self._aio = aio
        return aio

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return Bound(self._function.__get__(instance), self._aio.__get__(instance))
