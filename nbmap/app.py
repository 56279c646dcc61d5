"""Scripts in the style of Modal's page "Scaling out": functions, and entrypoints that use them.

An app is a name and two tables. `nbmap run` looks them up; nothing else does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import misuse
from .handle import RemoteFunction, remote
from .options import NAMES, check, shown
from .view.watch import in_kernel

__all__ = ["App", "Stub"]

_F = TypeVar("_F", bound=Callable[..., Any])


class App:
    """What a script in Modal's style makes first; its decorators make handles and entrypoints.

    `nbmap.Stub`, its older name, is the same class. Nothing starts when an app is made, and none is
    needed: `nbmap.remote` makes handles without one.

    Args:
        name: str, for people who read the script.
        **unknown: refused; options are for `App.function`.

    Attributes:
        name: the name, or None.
        functions: dict, the handles that `App.function` has made, by name.
        entrypoints: dict, the functions under `App.local_entrypoint`, by name.

    Raises:
        OptionError: `name` is not a text, or there is an unknown keyword.
        TypeError: there is an option that belongs to a function.

    Example:
        >>> import nbmap
        >>> app = nbmap.App("squares")
        >>> @app.function(concurrency=5)
        ... def square(x):
        ...     return x * x
        >>> @app.local_entrypoint()
        ... def main(n: int = 3):
        ...     print(list(square.map(range(n))))
        >>> main()  # doctest: +SKIP
        [0, 1, 4]

        In a file squares.py, `nbmap run squares.py --n 4` runs `main`.
    """

    def __init__(self, name: str | None = None, **unknown: Any) -> None:
        for option, value in unknown.items():
            if option in NAMES:
                msg = (
                    f"an app has no options: give {option}={shown(value)} to the function, as in "
                    f"@app.function({option}={shown(value)})"
                )
                raise misuse(msg)
        self.name = check({"name": name, **unknown}, known=["name"])["name"]
        self.functions: dict[str, RemoteFunction] = {}
        self.entrypoints: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name}"
        tables = (("function", self.functions), ("entrypoint", self.entrypoints))
        parts = [f", {kind} {name}" for kind, table in tables for name in table]
        return f"<nbmap app{name}{''.join(parts)}>"

    if not TYPE_CHECKING:  # type checkers are to refuse what there is not

        def __getattr__(self, name: str) -> Any:
            if name == "run":
                msg = (
                    "an nbmap app needs no run(): call its functions and entrypoints as they are, or "
                    "run the script by `nbmap run`"
                )
            else:
                msg = f"an nbmap app has no {name!r}: it has function and local_entrypoint"
            raise AttributeError(msg, name=name, obj=self)

    @overload
    def function(self, function: Callable[..., Any], /, **options: Any) -> RemoteFunction: ...
    @overload
    def function(self, /, **options: Any) -> Callable[[Callable[..., Any]], RemoteFunction]: ...
    def function(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a handle of a function: its calls and maps run on a Dask cluster.

        Used as `@app.function()`, with options, or bare.

        Args:
            function: as for `nbmap.remote`.
            **options: those of `nbmap.remote`; `concurrency` is also called `concurrency_limit`
                and `max_containers`, as Modal does.

        Returns:
            The handle, or a decorator that makes one.

        Raises:
            OptionError: an option is unknown, or has a wrong value.
            TypeError: `function` is a class, a handle, or can't be called.

        Example:
            >>> import nbmap
            >>> app = nbmap.App()
            >>> @app.function(concurrency_limit=5)
            ... def square(x):
            ...     return x * x
            >>> square.map(range(3)).results()  # doctest: +SKIP
            [0, 1, 4]
        """
        decorate = remote(**options)

        def make(function: Callable[..., Any]) -> RemoteFunction:
            handle = decorate(function)
            self.functions[handle.__name__] = handle
            return handle

        return make if function is None else make(function)

    @overload
    def local_entrypoint(self, function: _F, /, *, name: str | None = None) -> _F: ...
    @overload
    def local_entrypoint(self, /, *, name: str | None = None) -> Callable[[_F], _F]: ...
    def local_entrypoint(
        self, function: Callable[..., Any] | None = None, /, *, name: str | None = None
    ) -> Any:
        """Let `nbmap run` call this function; its parameters become the command's options.

        Used as `@app.local_entrypoint()`, or bare. The function runs here, in the process of the
        script, and not on a worker.

        Args:
            function: a function, or an async one. Its parameters may be str, int, float, bool,
                datetime, date, Path, a Literal, an Enum, each of these or None, or not annotated,
                which is text. `*args` alone takes the arguments as they are.
            name: str, under which it is run; the function's name by default.

        Returns:
            The function itself, or a decorator that returns it.

        Raises:
            OptionError: `name` is not a text.
            TypeError: the name is taken, or `function` is none, or one that yields, or a handle.

        Example:
            >>> import nbmap
            >>> app = nbmap.App()
            >>> @app.local_entrypoint()
            ... def main(greeting: str, times: int = 1):
            ...     print(" ".join([greeting] * times))
            >>> main("hello", times=2)
            hello hello
        """
        given = check({"name": name})["name"]

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            _refuse_as_entrypoint(function)
            called = str(given or function.__name__)
            # In a notebook a cell that runs again defines it again.
            if called in self.entrypoints and not in_kernel():
                msg = (
                    f"there are two entrypoints named {called!r} in this app: rename one, or say "
                    'how it is called, as in @app.local_entrypoint(name="other")'
                )
                raise misuse(msg)
            self.entrypoints[called] = function
            return function

        return register if function is None else register(function)


def _refuse_as_entrypoint(function: object) -> None:
    if isinstance(function, RemoteFunction):
        msg = (
            f"{function.__name__} is a handle, and `nbmap run` runs handles without an entrypoint: "
            "keep one of @app.function and @app.local_entrypoint"
        )
    elif not inspect.isroutine(function):
        msg = f"local_entrypoint takes a function, not {shown(function)}"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"{function.__name__} yields, and nobody would ask an entrypoint for its values"
    else:
        return
    raise misuse(msg)


Stub = App
