"""The handle: what a decorated function becomes."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, overload

from .cluster import connect, gpu
from .engine.driver import Driver
from .engine.model import CALL, EACH, SPREAD, Blob
from .engine.pickling import CannotPickleError, freeze, largest_variable, safe_repr
from .errors import OptionError, Unpicklable, misuse
from .options import NAMES, Options, check, check_max_failures, resolve
from .run import Run, enlist
from .view import watch
from .worker import standin

__all__ = ["RemoteFunction", "remote"]

LARGE = 10 << 20  # bytes of a pickled function that are worth a warning


@overload
def remote(function: Callable[..., Any], /, **options: Any) -> RemoteFunction: ...
@overload
def remote(**options: Any) -> Callable[[Callable[..., Any]], RemoteFunction]: ...
def remote(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a handle of a function: its calls and maps run on a Dask cluster.

    Used bare or with options. They are checked here, before anything runs.

    Args:
        function: a function, lambda, builtin, partial or bound method.
        concurrency: int, inputs of this handle that may run at once, over all its maps and calls;
            as many as the cluster has slots by default. `concurrency_limit` and `max_containers`
            are other names for it.
        worker_losses: int, worker processes that an input may take with it before it is lost; 2.
        grace: time that a stopped function has to end; 5 seconds.
        name: str, for views and logs; the function's name by default.
        cluster: where to run: "local", an address, a scheduler file, a Dask client or cluster.
        gpu, retries, timeout, wait_for_gpu: checked, and refused at the first call: this version
            does not have them yet.
        **options: the above; times are seconds, or texts such as "90s" and "10m".

    Returns:
        The handle, or a decorator that makes one.

    Raises:
        OptionError: an option is unknown, or has a wrong value.
        TypeError: `function` is a class, a handle, or can't be called.

    Example:
        >>> import nbmap
        >>> @nbmap.remote(concurrency=2)
        ... def square(x):
        ...     return x * x
        >>> list(square.map(range(4)))  # doctest: +SKIP
        [0, 1, 4, 9]
    """
    given = check(options)
    gpu.parse(given.get("gpu"))
    if function is None:
        return functools.partial(_make, given=given)
    return _make(function, given)


def _make(function: Any, given: Mapping[str, object]) -> RemoteFunction:
    if isinstance(function, RemoteFunction):
        name = function.__name__
        msg = (
            f"{name} is a handle already; to change its options, decorate the function itself: "
            f"nbmap.remote({name}.__wrapped__, ...)"
        )
        raise misuse(msg)
    if isinstance(function, type):
        msg = (
            f"{function.__name__} is a class; nbmap runs functions. Decorate a function that makes "
            f"one and uses it"
        )
        raise misuse(msg)
    if not callable(function):
        msg = f"nbmap.remote takes a function, not {safe_repr(function)}"
        raise misuse(msg)
    handle = RemoteFunction(function, given)
    connect.warm_up(given.get("cluster"))
    return handle


class _Method:
    """A method of a handle; refuses to be iterated, which `for x in handle.map:` would try."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._name = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return self._function(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        msg = f"{self._name} has to be called with the inputs: `for x in {self._name}(inputs):`"
        raise misuse(msg)

    def __repr__(self) -> str:
        return f"<{self._name} of a nbmap handle>"


class RemoteFunction:
    """A function whose calls run on a Dask cluster; made by `nbmap.remote`.

    Attributes:
        map: run many inputs in parallel, see `RemoteFunction.map`'s help.
        starmap: the same, each input spread over the arguments.
        remote: run one call and wait for it.
    """

    def __init__(self, function: Callable[..., Any], given: Mapping[str, object]) -> None:
        self._function = function
        self._given = given
        self._options: Options | None = None
        name = getattr(function, "__name__", None) or getattr(
            getattr(function, "func", None), "__name__", type(function).__name__
        )
        self.__name__: str = str(given.get("name") or name)
        self.__doc__ = getattr(function, "__doc__", None)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", None) or "builtins"
        self.__wrapped__ = function
        self.map = _Method(self._map, f"{self.__name__}.map")
        self.starmap = _Method(self._starmap, f"{self.__name__}.starmap")
        self.remote = _Method(self._remote, f"{self.__name__}.remote")

    def __repr__(self) -> str:
        options = "".join(f", {name}={safe_repr(value, 40)}" for name, value in self._shown())
        return f"<nbmap handle {self.__name__}{options}>"

    def _shown(self) -> Iterator[tuple[str, object]]:
        return ((k, v) for k, v in self._given.items() if k not in {"cluster", "name"})

    def __reduce__(self) -> Any:
        """Pickle as what a handle is in remote code: a plain function."""
        return standin.Handle, (), {"function": self._function}

    # -- one call

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call on the cluster and return its output.

        Raises:
            Exception: what the function raised.
        """
        __tracebackhide__ = True
        return self._remote(*args, **kwargs)

    def local(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function here, in this process."""
        __tracebackhide__ = True
        return self._function(*args, **kwargs)

    def _remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call on the cluster and return its output.

        Args:
            *args: the function's arguments.
            **kwargs: the function's keyword arguments.

        Raises:
            Exception: what the function raised.
        """
        __tracebackhide__ = True
        driver = self._driver(CALL, iter(()), {}, total=1, keep=True, too_many=None)
        run = Run(driver, ordered=True, return_exceptions=False, wrap=True, max_failures=None)
        watch.begin_quietly(driver)
        driver.start_with([(args, kwargs)])
        try:
            return run[0]
        finally:
            watch.settle(driver)

    # -- many

    def _map(
        self,
        *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool | None = None,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
        max_failures: int | str | None = None,
        keep: bool | None = None,
        **unknown: Any,
    ) -> Run:
        """Call the function with each input, in parallel on the cluster.

        Starts at once and goes on in the background.

        Args:
            *iterables: one per argument, read together as `zip` does: the shortest ends it.
            kwargs: constant keyword arguments, the same for every input.
            order_outputs: False hands outputs out as they complete; in input order by default.
            return_exceptions: failures take their place among the outputs instead of being raised.
            wrap_returned_exceptions: whether they are wrapped in `UserCodeException`.
            max_failures: an int, or a text such as "5%" of the finished inputs (from 20 on): the
                run stops once more than that have failed.
            keep: whether outputs are kept for iterating again; by default they are if all inputs
                have a length. Without, memory stays constant, however many inputs there are.
            **unknown: refused.

        Returns:
            The run.

        Raises:
            TypeError: there are no iterables, or one is not iterable.
            OptionError: an option has a wrong value.
            Unpicklable: the function can't be sent; says which variable is in the way.
            ClusterError: there is no cluster to run on.

        Example:
            >>> import nbmap
            >>> nbmap.remote(pow).map([2, 3], [3, 2]).results()  # doctest: +SKIP
            [8, 9]
        """
        __tracebackhide__ = True  # what `iter` of the user's own class raises comes this way
        self._refuse_unknown("map", unknown)
        if not iterables:
            msg = f"{self.__name__}.map needs at least one iterable of inputs"
            raise misuse(msg)
        iterators = list(map(functools.partial(self._iterator, "map"), iterables))
        total = _least_length(iterables)
        inputs = iterators[0] if len(iterators) == 1 else zip(*iterators, strict=False)
        return self._run(
            EACH if len(iterators) == 1 else SPREAD,
            inputs,
            {} if kwargs is None else kwargs,
            total=total,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
            wrap=wrap_returned_exceptions,
            max_failures=max_failures,
            keep=keep,
        )

    def _starmap(
        self,
        iterable: Iterable[Any],
        *more: Any,
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool | None = None,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
        max_failures: int | str | None = None,
        keep: bool | None = None,
        **unknown: Any,
    ) -> Run:
        """Call the function with each input spread over its arguments, in parallel.

        Args:
            iterable: of sequences, each one the arguments of one call.
            *more: refused; one iterable per argument is for map.
            kwargs: as for map.
            order_outputs: as for map.
            return_exceptions: as for map.
            wrap_returned_exceptions: as for map.
            max_failures: as for map.
            keep: as for map.
            **unknown: refused.

        Returns:
            The run.

        Example:
            >>> import nbmap
            >>> nbmap.remote(pow).starmap([(2, 3), (3, 2)]).results()  # doctest: +SKIP
            [8, 9]
        """
        __tracebackhide__ = True
        self._refuse_unknown("starmap", unknown)
        if more:
            name = self.__name__
            msg = (
                f"{name}.starmap takes one iterable of argument tuples, and was given "
                f"{1 + len(more)}; {name}.map takes one iterable per argument"
            )
            raise misuse(msg)
        return self._run(
            SPREAD,
            self._iterator("starmap", iterable),
            {} if kwargs is None else kwargs,
            total=_least_length([iterable]),
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
            wrap=wrap_returned_exceptions,
            max_failures=max_failures,
            keep=keep,
        )

    def _run(
        self,
        style: int,
        inputs: Iterator[Any],
        kwargs: Mapping[str, Any],
        *,
        total: int | None,
        order_outputs: bool | None,
        return_exceptions: bool,
        wrap: bool,
        max_failures: int | str | None,
        keep: bool | None,
    ) -> Run:
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            msg = (
                f"kwargs={safe_repr(kwargs, 80)} has to be a dict of the function's constant "
                "arguments, by name"
            )
            raise misuse(msg)
        flags = {
            "order_outputs": order_outputs,
            "return_exceptions": return_exceptions,
            "wrap_returned_exceptions": wrap,
            "keep": keep,
        }
        for name, value in flags.items():
            if value is not None and type(value).__name__ not in {"bool", "bool_"}:
                msg = f"{name}={safe_repr(value, 80)} has to be True or False"
                raise OptionError(msg)
        stop_at = check_max_failures(max_failures)
        keep = total is not None if keep is None else bool(keep)
        ordered = order_outputs is None or bool(order_outputs)
        driver = self._driver(
            style,
            inputs,
            dict(kwargs),
            total=total,
            keep=keep,
            too_many=stop_at.exceeded if stop_at else None,
        )
        run = Run(
            driver,
            ordered=ordered,
            return_exceptions=return_exceptions,
            wrap=wrap,
            max_failures=max_failures,
        )
        enlist(run)
        watch.begin(driver)
        driver.start()
        return run

    # -- shared

    def _driver(
        self,
        style: int,
        inputs: Iterator[Any],
        kwargs: dict[str, Any],
        *,
        total: int | None,
        keep: bool,
        too_many: Callable[[int, int], bool] | None,
    ) -> Driver:
        options = self._usable_options()
        blob = self._blob(kwargs)
        empty = total == 0
        driver = Driver(
            connect.nowhere() if empty else connect.transport_for(options.cluster),
            blob,
            style,
            inputs,
            total=total,
            keep=keep,
            name=self.__name__,
            handle=id(self),
            limit=options.concurrency,
            worker_losses=options.worker_losses,
            grace=options.grace,
            too_many=too_many,
        )
        driver.owner = self  # the id of a handle that is gone could be another's
        return driver

    def _usable_options(self) -> Options:
        """Return the options, refusing what this version can't do yet."""
        if self._options is None:
            self._options = resolve(self._given)
        options = self._options
        later = {
            "gpu": gpu.parse(options.gpu) is not None,
            "timeout": options.timeout is not None,
            "retries": options.retries.max_retries > 0,
            "wait_for_gpu": options.wait_for_gpu > 0,
        }
        for name, used in later.items():
            if used:
                value = safe_repr(getattr(options, name), 60)
                msg = (
                    f"{name}={value}: this version of nbmap does not have {name}= yet; leave it out"
                )
                raise OptionError(msg)
        kinds = {
            inspect.isgeneratorfunction: "a generator function",
            inspect.isasyncgenfunction: "an async generator function",
            inspect.iscoroutinefunction: "an async function",
        }
        for test, kind in kinds.items():
            if test(self._function):
                msg = (
                    f"{self.__name__} is {kind}: this version of nbmap can't run those remotely yet; "
                    f"return a value, or call {self.__name__}.local(...)"
                )
                raise OptionError(msg)
        return options

    def _blob(self, kwargs: dict[str, Any]) -> Blob:
        try:
            blob = freeze(self._function, kwargs)
        except CannotPickleError as error:
            name, variable = self.__name__, error.variable
            why, advice = str(error), "Make it inside the function, or pass what it is made from"
            if variable:
                why = f"its variable {variable!r} can't: {error}"
            elif hasattr(self._function, "__wrapped__"):
                why = f"its decorators make something of it that can't: {error}"
                advice = "Take them off, or use them on a function that is called inside this one"
            msg = f"{name} can't be sent to the workers, {why}. {advice}"
            raise Unpicklable(msg) from None
        if blob.nbytes > LARGE and blob.digest not in _warned:
            _warned.add(blob.digest)
            variable = largest_variable(self._function, kwargs)
            held = f" ({variable} is the largest)" if variable else ""
            msg = (
                f"{self.__name__} brings {blob.nbytes >> 20} MB along{held}; it is sent once to "
                "each worker process"
            )
            warnings.warn(msg, stacklevel=_outside())
        return blob

    def _iterator(self, method: str, item: Any) -> Iterator[Any]:
        __tracebackhide__ = True
        try:
            # What is read later, on another thread, is what was given now.
            return iter(item.copy() if type(item) in _CHANGING else item)
        except TypeError:
            pass
        if hasattr(item, "__aiter__"):
            what = "an async iterable, which this version of nbmap can't read yet"
        else:
            what = f"{safe_repr(item, 80)}, which is not iterable"
        msg = f"{self.__name__}.{method} was given {what}; give it the inputs, e.g. a list"
        raise misuse(msg)

    def _refuse_unknown(self, method: str, unknown: dict[str, Any]) -> None:
        for name, value in unknown.items():
            what = f"{self.__name__}.{method} has no option {name!r}"
            near = difflib.get_close_matches(name, [*_CALL_OPTIONS, *NAMES], 1)
            if name in NAMES and name not in self._parameters():
                said = f"{name}={safe_repr(value, 40)}"
                advice = (
                    "it is one of the handle: write it on the %%remote line, or "
                    f"@nbmap.remote({said}) above the function"
                )
            elif near and name not in self._parameters():
                advice = f"did you mean {near[0]!r}?"
            else:
                advice = f"constant arguments of the function go into kwargs={{{name!r}: ...}}"
            msg = f"{what}; {advice}"
            raise misuse(msg)

    def _parameters(self) -> Container[str]:
        try:
            return inspect.signature(self._function).parameters
        except (TypeError, ValueError):  # of a builtin
            return ()


_warned: set[str] = set()
_CHANGING = (list, dict, set, bytearray)  # of which a copy costs next to nothing
_CALL_OPTIONS = (
    "kwargs",
    "order_outputs",
    "return_exceptions",
    "wrap_returned_exceptions",
    "max_failures",
    "keep",
)


def _outside() -> int:
    """Return the stack level of the first caller outside this file."""
    frame, level = inspect.currentframe(), 0
    here = os.path.normcase(__file__)
    while frame is not None and os.path.normcase(frame.f_code.co_filename) == here:
        frame, level = frame.f_back, level + 1
    return level


def _least_length(iterables: Iterable[Any]) -> int | None:
    """Return the number of inputs where every iterable has a length, or where one is empty."""
    lengths: list[int | None] = []
    for item in iterables:
        try:
            lengths.append(len(item))
        except Exception:
            lengths.append(None)
    if 0 in lengths:
        return 0
    known = [length for length in lengths if length is not None]
    return min(known) if len(known) == len(lengths) else None
