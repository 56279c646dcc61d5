"""The handle: what a decorated function becomes."""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import functools
import inspect
import os
import sys
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload
from weakref import WeakValueDictionary

from . import nested
from .call import Call
from .cluster import connect, gpu
from .engine.driver import Driver, Rules
from .engine.model import CALL, EACH, SPREAD, Ask, Blob
from .engine.pickling import CannotPickleError, freeze, largest_variable, safe_repr
from .engine.reading import FromAsync
from .engine.transport import Pending, Transport
from .errors import OptionError, RunError, Unpicklable, interrupt, misuse
from .options import NAMES, Options, Retries, check, check_max_failures, resolve
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
        retries: int, or `nbmap.Retries`: how often an input that failed or took too long is tried
            again; 0.
        timeout: time that one attempt may take; none by default.
        gpu: the GPUs that each input has to itself: "A100", "RTX 4090", "A100-80GB", "40GB+",
            "A100:2"; True for any; 0.5 for half of one; a list of these, the first that the
            cluster has counts, and "cpu" may be the last; none by default.
        wait_for_gpu: time that a run waits for such a GPU to join the cluster; 0.
        **options: the above; times are seconds, or texts such as "90s" and "10m".

    Returns:
        The handle, or a decorator that makes one.

    Raises:
        OptionError: an option is unknown, or has a wrong value.
        TypeError: `function` is a class, a handle, or can't be called.

    Its calls and maps raise NoMatchingGPU where the cluster has no such GPU.

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
    if gpu.parse(given.get("gpu")) is None:
        connect.warm_up(given.get("cluster"))
    return handle


class _Method:
    """A method of a handle, with its awaitable twin as `.aio`.

    It refuses to be iterated, which `for x in handle.map:` would try. In remote code, where the
    handle of an installed module may be this class, it asks the notebook.
    """

    def __init__(
        self, handle: RemoteFunction, function: Callable[..., Any], aio: Callable[..., Any]
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._owner = weakref.ref(handle)
        self._method = function.__name__.removeprefix("_")
        self._name = f"{handle.__name__}.{self._method}"
        self._aio = aio

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if standin.current() is not None:
            return self._in_remote_code()(*args, **kwargs)
        try:
            return self._function(*args, **kwargs)
        except KeyboardInterrupt as error:
            # Where in nbmap it came helps nobody.
            raise (error if error.args else interrupt(f"in {self._name}")) from None

    @property
    def aio(self) -> Callable[..., Any]:
        """The same without blocking the event loop: to be awaited, or iterated by `async for`."""
        return self._in_remote_code().aio if standin.current() is not None else self._aio

    def _in_remote_code(self) -> Any:
        handle = self._owner()
        assert handle is not None
        return getattr(handle._far(), self._method)  # noqa: SLF001 - its own

    def __iter__(self) -> Iterator[Any]:
        msg = f"{self._name} has to be called with the inputs: `for x in {self._name}(inputs):`"
        raise misuse(msg)

    def __repr__(self) -> str:
        return f"<{self._name} of a nbmap handle>"


class RemoteFunction:
    """A function whose calls run on a Dask cluster; made by `nbmap.remote`.

    Each of the methods below blocks as long as it has to, and has an awaitable twin: `.aio`.

    Attributes:
        map: run many inputs in parallel, see `RemoteFunction.map`'s help.
        starmap: the same, each input spread over the arguments.
        for_each: the same as map, for what the function does and not for what it returns.
        remote: run one call and wait for it.
        remote_gen: run one call of a generator function, and iterate its outputs as they come.
        spawn: start one call, and get a `Call` to ask for its output later.
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
        self._stream = _is_generator(function)
        self._token = uuid.uuid4().hex
        _handles[self._token] = self

    @property
    def map(self) -> _Method:
        """Run many inputs in parallel."""
        return _Method(self, self._map, functools.partial(self._map, _soon=True))

    @property
    def starmap(self) -> _Method:
        """Run many inputs in parallel, each spread over the arguments."""
        return _Method(self, self._starmap, functools.partial(self._starmap, _soon=True))

    @property
    def for_each(self) -> _Method:
        """Run many inputs in parallel and drop what is returned."""
        return _Method(self, self._for_each, self._for_each_aio)

    @property
    def remote(self) -> _Method:
        """Run one call and wait for it."""
        return _Method(self, self._remote, self._remote_aio)

    @property
    def remote_gen(self) -> _Method:
        """Run one call of a generator function and iterate its outputs."""
        return _Method(self, self._remote_gen, self._remote_gen_aio)

    @property
    def spawn(self) -> _Method:
        """Start one call."""
        return _Method(self, self._spawn, self._spawn_aio)

    def __repr__(self) -> str:
        options = "".join(f", {name}={safe_repr(value, 40)}" for name, value in self._shown())
        return f"<nbmap handle {self.__name__}{options}>"

    def _shown(self) -> Iterator[tuple[str, object]]:
        for name, value in self._given.items():
            if isinstance(value, Retries) and value == Retries(value.max_retries, 1, 1):
                yield name, value.max_retries  # as it was given
            elif name not in {"cluster", "name"}:
                yield name, value

    def __reduce__(self) -> Any:
        """Pickle as what a handle is in remote code: a function that can ask the notebook."""
        sent = getattr(_freezing, "handles", None)
        if sent is not None:
            sent.append(self)
        return standin.Handle, (None, self._token, None, self._stream), {"function": self._function}

    def _far(self) -> standin.Handle:
        """Return what this handle is in remote code; one of a module that was imported there."""
        given = {name: value for name, value in self._given.items() if name != "cluster"}
        return standin.Handle(self._function, "", given, self._stream)

    def with_options(self, **options: Any) -> RemoteFunction:
        """Return a new handle of the same function, with some options changed.

        Its limit is its own: inputs of this handle do not count for it.

        Args:
            **options: as for `nbmap.remote`; those that are not given stay as they are.

        Raises:
            OptionError: an option is unknown, or has a wrong value.

        Example:
            >>> import nbmap
            >>> nbmap.remote(abs, retries=1).with_options(concurrency=2)
            <nbmap handle abs, retries=1, concurrency=2>
        """
        given = check(options)
        gpu.parse(given.get("gpu"))
        return RemoteFunction(self._function, {**self._given, **given})

    # -- one call

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call on the cluster and return its output; in remote code, call the function.

        Of a generator function it returns the outputs, as `remote_gen` does.

        Raises:
            Exception: what the function raised.
        """
        __tracebackhide__ = True
        if standin.current() is not None:
            return self._function(*args, **kwargs)
        return (self.remote_gen if self._stream else self.remote)(*args, **kwargs)

    def local(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function here, in this process."""
        __tracebackhide__ = True
        with standin.here(0):
            return self._function(*args, **kwargs)

    def _remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call on the cluster and return its output.

        Args:
            *args: the function's arguments.
            **kwargs: the function's keyword arguments.

        Raises:
            Exception: what the function raised.
            TypeError: the function is a generator's; use `remote_gen`.
        """
        __tracebackhide__ = True
        self._must_not_yield("remote")
        run = self._one(args, kwargs)
        with run._waiting():  # noqa: SLF001 - an interrupt may come before it waits
            try:
                return run[0]
            finally:
                if run.done():
                    watch.settle(run._driver)  # noqa: SLF001

    async def _remote_aio(self, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        self._must_not_yield("remote")
        return await Call(self._one(args, kwargs, soon=True))

    def _spawn(self, /, *args: Any, **kwargs: Any) -> Call:
        """Start one call on the cluster, and go on.

        Args:
            *args: the function's arguments.
            **kwargs: the function's keyword arguments.

        Returns:
            The call; `call.get()` waits for its output.

        Raises:
            TypeError: the function is a generator's; use `remote_gen`.

        Example:
            >>> import nbmap
            >>> call = nbmap.remote(abs).spawn(-3)  # doctest: +SKIP
            >>> call.get(timeout=10)  # doctest: +SKIP
            3
        """
        __tracebackhide__ = True
        self._must_not_yield("spawn")
        run = self._one(args, kwargs)
        with run._waiting():  # noqa: SLF001 - an interrupt may come at any instant
            enlist(run)
            return Call(run)

    async def _spawn_aio(self, /, *args: Any, **kwargs: Any) -> Call:
        self._must_not_yield("spawn")
        run = self._one(args, kwargs, soon=True)
        enlist(run)
        return Call(run)

    def _remote_gen(self, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Run one call of a generator function; iterate its outputs as they are yielded.

        Args:
            *args: the function's arguments.
            **kwargs: the function's keyword arguments.

        Returns:
            An iterator. Closing it, or leaving its loop by `break`, closes the remote generator;
            one that nobody takes outputs from is paused.

        Raises:
            TypeError: the function is not a generator's; use `remote`.
            Exception: what the function raised, after the outputs before it.

        Example:
            >>> import nbmap
            >>> @nbmap.remote
            ... def count(n):
            ...     yield from range(n)
            >>> list(count.remote_gen(3))  # doctest: +SKIP
            [0, 1, 2]
        """
        __tracebackhide__ = True
        self._must_yield("remote_gen")
        return iter(self._one(args, kwargs, keep=False))

    def _remote_gen_aio(self, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self._must_yield("remote_gen")
        return aiter(self._one(args, kwargs, keep=False, soon=True))

    def _must_not_yield(self, method: str) -> None:
        if self._stream:
            name = self.__name__
            msg = (
                f"{name} is a generator function, and {name}.{method} is for functions that "
                f"return; use {name}.remote_gen(...), which gives its outputs one by one, or "
                f"{name}.map(inputs)"
            )
            raise misuse(msg)

    def _must_yield(self, method: str) -> None:
        if not self._stream:
            name = self.__name__
            msg = (
                f"{name} is not a generator function, and {name}.{method} is for those; use "
                f"{name}.remote(...)"
            )
            raise misuse(msg)

    def _one(self, args: Any, kwargs: Any, *, keep: bool = True, soon: bool = False) -> Run:
        driver = self._driver(CALL, iter(()), {}, total=1, keep=keep, soon=soon)
        run = Run(driver, ordered=not self._stream)
        with run._waiting():  # noqa: SLF001 - an interrupt may come at any instant
            (watch.begin_unseen if nested.is_serving() else watch.begin_quietly)(driver)
            driver.start_with([(args, kwargs)])
            return run

    # -- many

    def _map(
        self,
        *iterables: Any,
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool | None = None,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
        max_failures: int | str | None = None,
        keep: bool | None = None,
        _soon: bool = False,
        **unknown: Any,
    ) -> Run:
        """Call the function with each input, in parallel on the cluster.

        Starts at once and goes on in the background. Of a generator function, one generator runs
        per input, and its outputs are handed out as they are yielded.

        Args:
            *iterables: one per argument, read together as `zip` does: the shortest ends it.
                Async iterables will do as well.
            kwargs: constant keyword arguments, the same for every input.
            order_outputs: False hands outputs out as they complete; in input order by default.
                Outputs of generators come as they are yielded; there True is an error.
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
        read = functools.partial(self._iterator, "map", soon=_soon)
        iterators = list(map(read, iterables))  # no comprehension: its frame would show
        in_loop = _soon and any(isinstance(iterator, FromAsync) for iterator in iterators)
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
            soon=_soon,
            in_loop=in_loop,
        )

    def _starmap(
        self,
        iterable: Any,
        *more: Any,
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool | None = None,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
        max_failures: int | str | None = None,
        keep: bool | None = None,
        _soon: bool = False,
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
        inputs = self._iterator("starmap", iterable, soon=_soon)
        return self._run(
            SPREAD,
            inputs,
            {} if kwargs is None else kwargs,
            total=_least_length([iterable]),
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
            wrap=wrap_returned_exceptions,
            max_failures=max_failures,
            keep=keep,
            soon=_soon,
            in_loop=_soon and isinstance(inputs, FromAsync),
        )

    def _for_each(
        self,
        *iterables: Any,
        kwargs: Mapping[str, Any] | None = None,
        ignore_exceptions: bool = False,
        **unknown: Any,
    ) -> None:
        """Call the function with each input in parallel, wait, and drop what it returns.

        Args:
            *iterables: as for map.
            kwargs: as for map.
            ignore_exceptions: go on to the end though inputs fail, and raise nothing.
            **unknown: refused.

        Raises:
            Exception: what the first input to fail raised; the others are cancelled.

        Example:
            >>> import nbmap
            >>> nbmap.remote(print).for_each(["a", "b"])  # doctest: +SKIP
        """
        __tracebackhide__ = True
        run = self._for_each_run("for_each", iterables, kwargs, ignore_exceptions, unknown)
        with run._waiting():  # noqa: SLF001 - an interrupt may come before it waits
            for _ in run:
                pass

    async def _for_each_aio(
        self,
        *iterables: Any,
        kwargs: Mapping[str, Any] | None = None,
        ignore_exceptions: bool = False,
        **unknown: Any,
    ) -> None:
        args = (iterables, kwargs, ignore_exceptions, unknown)
        async for _ in self._for_each_run("for_each", *args, soon=True):
            pass

    def _for_each_run(
        self,
        method: str,
        iterables: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        ignore_exceptions: bool,
        unknown: dict[str, Any],
        *,
        soon: bool = False,
    ) -> Run:
        __tracebackhide__ = True
        self._refuse_unknown(method, unknown, _FOR_EACH_OPTIONS)
        if type(ignore_exceptions).__name__ not in {"bool", "bool_"}:
            msg = f"ignore_exceptions={safe_repr(ignore_exceptions, 80)} has to be True or False"
            raise OptionError(msg)
        flags: dict[str, Any] = {"return_exceptions": ignore_exceptions, "keep": False}
        order = None if self._stream else False
        return self._map(*iterables, kwargs=kwargs, order_outputs=order, _soon=soon, **flags)

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
        soon: bool,
        in_loop: bool,
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
        if order_outputs and self._stream:
            msg = (
                f"order_outputs=True: {self.__name__} is a generator function, whose outputs come "
                "as they are yielded. Leave it out; run[i] has the outputs of input i"
            )
            raise OptionError(msg)
        stop_at = check_max_failures(max_failures)
        keep = total is not None if keep is None else bool(keep)
        driver = self._driver(
            style,
            inputs,
            dict(kwargs),
            total=total,
            keep=keep,
            too_many=stop_at.exceeded if stop_at else None,
            soon=soon,
        )
        driver.loop = _running_loop() if in_loop else None
        run = Run(
            driver,
            ordered=not self._stream and (order_outputs is None or bool(order_outputs)),
            return_exceptions=return_exceptions,
            wrap=wrap,
            max_failures=max_failures,
        )
        self._begin(run)
        return run

    def _begin(self, run: Run) -> None:
        driver = run._driver  # noqa: SLF001 - made by this
        with run._waiting():  # noqa: SLF001 - an interrupt may come at any instant
            enlist(run)
            (watch.begin_unseen if nested.is_serving() else watch.begin)(driver)
            driver.start()

    def _again(self, run: Run) -> Run:
        """Run what a run did not do, with this handle; see `Run.retry`."""
        old = run._driver  # noqa: SLF001
        if old.rules.stream != self._stream:
            now = "a generator function" if self._stream else "no generator function any more"
            msg = (
                f"{self.__name__} is {now}, so its outputs do not go with those that the run has; "
                "map the inputs again"
            )
            raise RunError(msg)
        inputs = old.rest()
        driver = self._driver(
            old.style,
            inputs,
            old.kwargs,
            total=old.total,
            keep=True,
            too_many=old.too_many,
            soon=False,
        )
        driver.take_over(old)
        new = run._like(driver)  # noqa: SLF001
        self._begin(new)
        return new

    def today(self) -> RemoteFunction:
        """Return the handle that has this one's name today, as its cell may have run again."""
        module = sys.modules.get(self.__module__)
        named = getattr(module, self.__qualname__, None)
        return named if isinstance(named, RemoteFunction) else self

    def replay(self, index: int, style: int, value: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run one input of a run here; see `Run.replay`."""
        __tracebackhide__ = True
        function = self._function
        with standin.here(index):
            if style == CALL:
                output = function(*value[0], **value[1])
            else:
                output = function(*(value if style == SPREAD else [value]), **kwargs)
            if hasattr(output, "__aiter__"):
                return list(FromAsync(output, None))
            if inspect.iscoroutine(output):
                return _run_here(output)
            return list(output) if self._stream else output

    # -- shared

    def _driver(
        self,
        style: int,
        inputs: Iterator[Any],
        kwargs: dict[str, Any],
        *,
        total: int | None,
        keep: bool,
        too_many: Callable[[int, int], bool] | None = None,
        soon: bool = False,
    ) -> Driver:
        options = self._resolved()
        request = gpu.parse(options.gpu)
        blob, sent = self._blob(kwargs)
        if total == 0:
            transport = connect.nowhere()
        else:
            transport = connect.transport_soon(options.cluster, request, options.wait_for_gpu)
            if isinstance(transport, Pending) and not soon:
                transport = _arrived(transport)
        rules = Rules(
            handle=id(self),
            name=self.__name__,
            limit=options.concurrency,
            worker_losses=options.worker_losses,
            grace=options.grace,
            timeout=options.timeout or 0.0,
            retries=options.retries.max_retries,
            delay=options.retries.delay,
            stream=self._stream,
            gpu=request,
            patience=options.wait_for_gpu,
        )
        driver = Driver(
            transport,
            rules,
            blob,
            style,
            inputs,
            total=total,
            keep=keep,
            too_many=too_many,
        )
        driver.kwargs = kwargs
        driver.on_ask = _serve
        # The id of a handle that is gone could be another's; remote code may use those it was sent.
        driver.owner = self
        driver.sent = sent
        return driver

    def _resolved(self) -> Options:
        if self._options is None:
            self._options = resolve(self._given)
        return self._options

    def _blob(self, kwargs: dict[str, Any]) -> tuple[Blob, list[RemoteFunction]]:
        """Return the function in bytes, and the handles that it refers to."""
        sent: list[RemoteFunction] = []
        _freezing.handles = sent
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
        finally:
            _freezing.handles = None
        if blob.nbytes > LARGE and blob.digest not in _warned:
            _warned.add(blob.digest)
            variable = largest_variable(self._function, kwargs)
            held = f" ({variable} is the largest)" if variable else ""
            msg = (
                f"{self.__name__} brings {blob.nbytes >> 20} MB along{held}; it is sent once to "
                "each worker process"
            )
            warnings.warn(msg, stacklevel=_outside())
        return blob, sent

    def _iterator(self, method: str, item: Any, *, soon: bool) -> Iterator[Any]:
        __tracebackhide__ = True
        try:
            # What is read later, on another thread, is what was given now.
            return iter(item.copy() if type(item) in _CHANGING else item)
        except TypeError:
            pass
        if hasattr(item, "__aiter__"):
            return FromAsync(item, _running_loop() if soon else None)
        what = f"{safe_repr(item, 80)}, which is not iterable"
        msg = f"{self.__name__}.{method} was given {what}; give it the inputs, e.g. a list"
        raise misuse(msg)

    def _refuse_unknown(
        self, method: str, unknown: dict[str, Any], options: tuple[str, ...] | None = None
    ) -> None:
        for name, value in unknown.items():
            what = f"{self.__name__}.{method} has no option {name!r}"
            near = difflib.get_close_matches(name, [*(options or _CALL_OPTIONS), *NAMES], 1)
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
_handles: WeakValueDictionary[str, RemoteFunction] = WeakValueDictionary()  # by their tokens
_freezing = threading.local()  # .handles: what the function that is being pickled refers to
_FOR_EACH_OPTIONS = ("kwargs", "ignore_exceptions")
_CHANGING = (list, dict, set, bytearray)  # of which a copy costs next to nothing
_CALL_OPTIONS = (
    "kwargs",
    "order_outputs",
    "return_exceptions",
    "wrap_returned_exceptions",
    "max_failures",
    "keep",
)


def _is_generator(function: Any) -> bool:
    """Tell whether calling a function gives a generator; also one that is an object's."""
    tests = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    call = getattr(type(function), "__call__", None)  # noqa: B004 - of an object that is called
    return any(test(function) or test(call) for test in tests)


def _run_here(coroutine: Any) -> Any:
    """Run a coroutine in this process, also where a loop runs already, as in a notebook."""
    if _running_loop() is None:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _serve(driver: Driver, ask: Ask) -> None:
    """Make the run that remote code asks for."""
    nested.serve(driver, ask, _asked_for)


def _asked_for(request: Mapping[str, Any]) -> RemoteFunction:
    """Return the handle that remote code uses."""
    function, options = request["function"], request["options"]
    if function is None:
        handle = _handles.get(request["token"])
        if handle is None:
            msg = "the handle that remote code uses does not exist in the notebook any more"
            raise RuntimeError(msg)
        return handle.with_options(**options) if options else handle
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    named = getattr(module, getattr(function, "__qualname__", ""), None)
    if isinstance(named, RemoteFunction):
        return named
    return RemoteFunction(function, check(options))


def _arrived(pending: Pending) -> Transport:
    """Wait for a cluster.

    It is started, or reached, on a thread: an interrupt must not leave a part of one behind, and
    the next map takes what has been started.
    """
    __tracebackhide__ = True
    try:
        while pending._arrived is None:  # noqa: SLF001
            if pending._error is not None:  # noqa: SLF001
                raise pending._error  # noqa: SLF001
            time.sleep(0.005)
    except KeyboardInterrupt:
        msg = "nothing was started; the cluster was on its way and will be there for the next map"
        raise interrupt(msg) from None
    return pending._arrived  # noqa: SLF001


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
            many = isinstance(item, Run) and item.streams  # any number of outputs for each input
            lengths.append(None if many else len(item))
        except Exception:
            lengths.append(None)
    if 0 in lengths:
        return 0
    known = [length for length in lengths if length is not None]
    return min(known) if len(known) == len(lengths) else None
