"""What remote code may use of nbmap: handles, `current_input`, `devices`, `per_worker`.

Sent by value along with the function that refers to it, so workers need not have nbmap; where they
do, the real one's names are these. Every copy of this file in a process, of whatever version, meets
in one place (`_place`): the current lease of a thread, and what `per_worker` has loaded.

A handle in remote code is an ordinary function when it is called. Its `map`, `remote` and `spawn`
go to the cluster, as runs that the notebook makes: limits hold, and views show them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import hashlib
import importlib.util
import inspect
import logging
import pickle
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_PLACE = "_nbmap_place"


def _place() -> Any:
    """Return the module in which all copies of this file meet."""
    place = sys.modules.get(_PLACE)
    if place is None:
        new: Any = ModuleType(_PLACE)
        new.current = contextvars.ContextVar("nbmap_current", default=None)
        new.index = contextvars.ContextVar("nbmap_index", default=None)
        new.making = threading.local()  # .versions: of the loaders that are being looked at
        new.lock = threading.RLock()
        new.loaded = {}
        place = sys.modules.setdefault(_PLACE, new)
        if place is new:
            atexit.register(tear_down)
    return place


# --- where this code runs ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Input:
    """The input that the calling code works on."""

    index: int
    attempt: int


def enter(lease: Any) -> None:
    """Have the code of this thread know the lease that it runs for."""
    _place().current.set(lease)


def leave() -> None:
    """Undo `enter`."""
    _place().current.set(None)


def current() -> Any:
    """Return the lease that the calling code runs for; None in the notebook."""
    return _place().current.get()


def current_input() -> Input:
    """Return the index and the attempt of the input that the calling code works on.

    Returns:
        An object with two fields: `index` is the input's place among the inputs of its run, from 0; `attempt` is 1,
        and more where the input is tried again.

    Raises:
        RuntimeError: no input runs here: the code was called in the notebook itself, or in a
            thread that a remote function has started by itself.

    Example:
        >>> import nbmap
        >>> @nbmap.remote
        ... def where(x):
        ...     return nbmap.current_input().index
        >>> list(where.map("abc"))  # doctest: +SKIP
        [0, 1, 2]
    """
    lease = current()
    if lease is not None:
        return Input(*lease.here())
    index = _place().index.get()
    if index is not None:
        return Input(index, 1)
    msg = "nbmap.current_input() is for remote code: no input runs in this thread"
    raise RuntimeError(msg)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that the calling code may use."""

    index: int  # by which CUDA knows it in this process, as in torch.device(f"cuda:{index}")
    uuid: str
    name: str
    memory: int | None  # bytes; None where it shares the host's


def devices() -> list[Device]:
    """Return the GPUs that the input may use on which the calling code works.

    A worker may see more than these: those of dask-cuda see all of their machine, and a request for
    two of four GPUs leaves two to another input.

    Returns:
        A list of objects with the fields `index` (by which CUDA knows it in this process), `uuid`,
        `name`, and `memory` in bytes. Empty without `gpu=`; where no remote code runs, all that
        this process sees.

    Example:
        >>> import nbmap
        >>> @nbmap.remote(gpu="A100")
        ... def where(x):
        ...     return nbmap.devices()[0].name
        >>> list(where.map([1]))  # doctest: +SKIP
        ['NVIDIA A100-SXM4-80GB']
    """
    lease = current()
    if lease is not None:
        return [Device(*device) for device in lease.devices()]
    from . import gpus

    seen = gpus.look()["gpus"]
    return [Device(at, *gpu[:3]) for at, gpu in enumerate(seen)]


@contextmanager
def here(index: int) -> Iterator[None]:
    """Have `current_input` answer in this process too: under `.local` and in a replay."""
    variable = _place().index
    token = variable.set(index)
    try:
        yield
    finally:
        variable.reset(token)


def install() -> None:
    """Let remote code `import nbmap` in a process that does not have it."""
    if "nbmap" in sys.modules or importlib.util.find_spec("nbmap") is not None:
        return
    from .. import errors

    here = sys.modules[__name__]
    module: Any = ModuleType("nbmap", "The names of nbmap that remote code may use.")
    module.__path__ = []
    module.__getattr__ = _missing
    for name in ("current_input", "devices", "per_worker"):
        setattr(module, name, getattr(here, name))
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            value.__module__ = "nbmap.errors"  # by which the notebook knows it
            setattr(module, name, value)
    module.errors = errors
    sys.modules.setdefault("nbmap", module)
    sys.modules.setdefault("nbmap.errors", errors)


def _missing(name: str) -> Any:
    msg = f"nbmap.{name} is for the notebook; this worker does not have nbmap installed"
    raise AttributeError(msg)


# --- handles -----------------------------------------------------------------------------------


class _Method:
    """A method of a handle that can be awaited as well: `handle.remote.aio(...)`."""

    def __init__(self, function: Callable[..., Any], aio: Callable[..., Any]) -> None:
        self._function = function
        self.aio = aio

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class Handle:
    """Stands for a handle on the far side; calling it is an ordinary call.

    Args:
        function: the handle's.
        token: by which the notebook knows the handle; empty for one that was made elsewhere.
        options: that the handle was made with, or that `with_options` added.
        stream: whether the function is a generator's.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None = None,
        token: str = "",
        options: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> None:
        self.function = function
        self.token = token
        self.options = options or {}
        self.stream = stream

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here."""
        return self.local(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<nbmap handle {getattr(self.function, '__name__', self.function)}, in remote code>"

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here."""
        assert self.function is not None
        return self.function(*args, **kwargs)

    def with_options(self, **options: Any) -> Handle:
        """Return the handle with other options; its limit is its own."""
        return Handle(self.function, self.token, {**self.options, **options}, self.stream)

    def _ask(self, how: str, args: Any, kwargs: Any, flags: dict[str, Any]) -> FarRun:
        lease = current()
        if lease is None:
            msg = (
                "a handle's map, remote and spawn work in the thread in which the remote function "
                "runs; this one was started by itself"
            )
            raise RuntimeError(msg)
        request = {
            "token": self.token,
            "function": None if self.token else self.function,
            "options": self.options,
            "how": how,
            "args": args,
            "kwargs": kwargs,
            "flags": flags,
        }
        return FarRun(lease, request)

    def _map(
        self, *iterables: Iterable[Any], kwargs: dict[str, Any] | None = None, **flags: Any
    ) -> FarRun:
        if not iterables:
            msg = "map needs at least one iterable of inputs"
            raise TypeError(msg)
        columns = [list(iterable) for iterable in _as_far_as_the_shortest(iterables)]
        return self._ask("map", columns, kwargs, flags)

    def _starmap(
        self, iterable: Iterable[Any], *, kwargs: dict[str, Any] | None = None, **flags: Any
    ) -> FarRun:
        return self._ask("starmap", [list(iterable)], kwargs, flags)

    def _for_each(self, *iterables: Iterable[Any], **flags: Any) -> None:
        ignore = flags.pop("ignore_exceptions", False)
        for _ in self._map(*iterables, order_outputs=False, return_exceptions=ignore, **flags):
            pass

    def _remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._spawn(*args, **kwargs).get()

    def _spawn(self, *args: Any, **kwargs: Any) -> FarCall:
        if self.stream:
            msg = "the handle is a generator's: use remote_gen, which gives its outputs one by one"
            raise TypeError(msg)
        run = self._ask("call", args, kwargs, {})
        run.detached = True
        return FarCall(run)

    def _remote_gen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return self._generator(args, kwargs).once()

    def _remote_gen_aio(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return aiter(self._generator(args, kwargs))

    def _generator(self, args: Any, kwargs: Any) -> FarRun:
        if not self.stream:
            msg = "the handle is not a generator's: use remote"
            raise TypeError(msg)
        return self._ask("call", args, kwargs, {})

    async def _in_a_thread(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return await asyncio.to_thread(method, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a method; made when it is asked for, as most handles are only called."""
        function = type(self).__dict__.get(f"_{name}")
        if function is None or name not in _METHODS:
            msg = f"a handle has no {name!r} in remote code"
            raise AttributeError(msg)
        method = function.__get__(self)
        if name == "remote_gen":
            return _Method(method, self._remote_gen_aio)
        if name in {"map", "starmap"}:  # what they return can be awaited
            return _Method(method, method)
        return _Method(method, lambda *a, **k: self._in_a_thread(method, a, k))


_METHODS = frozenset({"map", "starmap", "for_each", "remote", "remote_gen", "spawn"})


def _as_far_as_the_shortest(iterables: tuple[Iterable[Any], ...]) -> Iterable[Iterable[Any]]:
    if len(iterables) == 1:
        return iterables
    rows = list(zip(*iterables, strict=False))
    return [[row[at] for row in rows] for at in range(len(iterables))]


class FarRun:
    """A run that an input has made; iterate it for the outputs, as often as you like."""

    def __init__(self, lease: Any, request: dict[str, Any]) -> None:
        self._lease = lease
        self._number = lease.ask(request)
        self.detached = False  # a call goes on though nobody holds it

    def once(self) -> Iterator[Any]:
        """Iterate the outputs; closing the iterator, or dropping it, cancels the run."""
        try:
            yield from self
        finally:
            self.cancel()

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while True:
            kind, value = self._lease.nested.take(self._number, position)
            if kind == "over":
                return
            if kind == "raised":
                raise value
            yield value
            position += 1

    async def __aiter__(self) -> AsyncIterator[Any]:
        position = 0
        while True:
            take = self._lease.nested.take
            kind, value = await asyncio.to_thread(take, self._number, position)
            if kind == "over":
                return
            if kind == "raised":
                raise value
            yield value
            position += 1

    def __await__(self) -> Iterator[Any]:
        async def all_outputs() -> list[Any]:
            return [output async for output in self]

        return all_outputs().__await__()

    def results(self) -> list[Any]:
        """Wait for all outputs and return them."""
        return list(self)

    def wait(self) -> None:
        """Wait for the end of the run; failures do not raise here."""
        with suppress(Exception):
            for _ in self:
                pass

    def cancel(self) -> None:
        """Cancel the run; returns at once."""
        self._lease.withdraw(self._number)

    def __del__(self) -> None:
        with suppress(Exception):
            self._lease.nested.drop(self._number)
            if not self.detached:
                self._lease.withdraw(self._number)


class FarCall:
    """A call that an input has made."""

    def __init__(self, run: FarRun) -> None:
        self._run = run

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the output; raise what the function raised, or TimeoutError."""
        kind, value = self._run._lease.nested.take(self._run._number, 0, timeout)  # noqa: SLF001
        if kind == "raised":
            raise value
        return value

    result = get

    def done(self) -> bool:
        """Tell whether it has ended."""
        return bool(self._run._lease.nested.there(self._run._number))  # noqa: SLF001

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return what the function raised, or None."""
        kind, value = self._run._lease.nested.take(self._run._number, 0, timeout)  # noqa: SLF001
        return value if kind == "raised" else None

    def cancel(self) -> None:
        """Cancel the call; returns at once."""
        self._run.cancel()

    def __await__(self) -> Iterator[Any]:
        return asyncio.to_thread(self.get).__await__()


# --- what is loaded once a worker --------------------------------------------------------------


class _Slot:
    """One object: what a loader returned for some arguments."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded = False
        self.value: Any = None
        self.generator: Any = None

    def load(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the object; of several threads that want it one loads it."""
        with self.lock:
            if not self.loaded:
                value = function(*args, **kwargs)
                if inspect.isgeneratorfunction(function):
                    self.generator, value = value, next(value)
                self.value, self.loaded = value, True
            return self.value

    def drop(self) -> None:
        """Tear the object down and forget it."""
        with self.lock:
            generator, self.generator = self.generator, None
            self.value, self.loaded = None, False
            if generator is not None:
                try:
                    next(generator, None)
                except Exception:  # no fault of the input that happens to be there
                    logging.getLogger("nbmap").exception("a per_worker object's end failed")


class _Kept:
    """What one loader has loaded, by version and arguments; `made` is the newest version's time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.made = 0
        self.versions: dict[str, dict[Any, _Slot]] = {}


class PerWorker:
    """A loader whose objects are kept by the worker's process; made by `per_worker`."""

    def __init__(
        self, function: Callable[..., Any], told: tuple[Any, str] | None = None, made: int = 0
    ) -> None:
        self.function = function
        self._told = told  # name and version, of one that was sent here
        self._mine: tuple[Any, str] | None = None  # of one that is used where it was made
        self._made = made or time.time_ns()
        self.__name__ = getattr(function, "__name__", "loader")
        self.__doc__ = getattr(function, "__doc__", None)
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<nbmap per_worker {self.__name__}>"

    def __reduce__(self) -> Any:
        """Pickle with the version as of now: what the loader refers to is a part of it."""
        told = self._told or _name_and_version(self)
        if getattr(_place().making, "versions", None) is not None:  # only to tell versions apart
            return str, (told[1],)
        # As a state, which may refer to this again: a loader may call itself.
        state = {"function": self.function, "__wrapped__": self.function, "__name__": self.__name__}
        return PerWorker, (_nothing, told, self._made), state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the object for these arguments; the first call in a process loads it."""
        self._mine = self._mine or self._told or _name_and_version(self)
        return self._slot(*self._mine, args, kwargs).load(self.function, args, kwargs)

    def _slot(self, name: Any, version: str, args: Any, kwargs: Any) -> _Slot:
        key = _key(args, kwargs)
        place = _place()
        with place.lock:
            kept = place.loaded.setdefault(name, _Kept())
        with kept.lock:  # not the place's: a loader may call another one
            if version not in kept.versions:
                if self._made > kept.made:  # an older one, of a run that goes on, drops nothing
                    kept.made = self._made
                    old, kept.versions = kept.versions, {}
                    for slot in [slot for slots in old.values() for slot in slots.values()]:
                        slot.drop()  # first: there may be room for one of them only
                kept.versions[version] = {}
            slots: dict[Any, _Slot] = kept.versions[version]
            return slots.setdefault(key, _Slot())


def _key(args: Any, kwargs: Any) -> Any:
    key = (args, tuple(sorted(kwargs.items())))
    try:
        hash(key)
    except TypeError:
        return pickle.dumps(key)
    return key


def _nothing() -> None:
    """Stand for a loader's function until it is there."""


def _name_and_version(loader: PerWorker) -> tuple[Any, str]:
    """Return what all versions of a loader have in common, and what tells this one from others.

    Loaders that a function makes have one name, and differ in what they enclose.
    """
    versions = getattr(_place().making, "versions", None)
    outermost = versions is None
    if versions is None:
        versions = _place().making.versions = {}
    try:
        if id(loader) not in versions:  # or another one, or it itself, refers to it
            versions[id(loader)] = ""
            versions[id(loader)] = _digest(loader.function)
        function: Any = loader.function
        cells = getattr(function, "__closure__", None) if outermost else None
        enclosed = _digest([_content(cell) for cell in cells or ()])
        name = (getattr(function, "__module__", ""), function.__qualname__, enclosed)
        return name, versions[id(loader)]
    finally:
        if outermost:
            _place().making.versions = None


def _digest(value: Any) -> str:
    import cloudpickle  # where it is not needed this file is only a few classes

    return hashlib.blake2b(cloudpickle.dumps(value), digest_size=12).hexdigest()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def per_worker(function: Callable[..., Any]) -> PerWorker:
    """Make a loader of what is expensive to load: each worker process loads it once.

    The first call with given arguments in a process runs the function, later ones return the same
    object, also under many inputs at once. A generator function yields its object; what follows
    the `yield` runs when the worker closes. A changed function (or a changed variable that it
    refers to) is a new version: the old objects are torn down and dropped before it loads.
    A failure is raised where it happened and not kept: the next call tries again.

    In the notebook, and under `.local`, it caches in this process.

    Args:
        function: loads and returns an object; or a generator function that yields one.

    Raises:
        TypeError: `function` is not a function, or is async.

    Example:
        >>> import nbmap
        >>> @nbmap.per_worker
        ... def model(name):
        ...     return {"name": name}  # something that takes long to load
        >>> model("large") is model("large")
        True
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        msg = "nbmap.per_worker takes a plain function: an object is loaded outside of any loop"
        raise TypeError(msg)
    if not callable(function) or not hasattr(function, "__qualname__"):
        msg = f"nbmap.per_worker takes a function, not a {type(function).__name__}"
        raise TypeError(msg)
    return PerWorker(function)


def tear_down() -> None:
    """Tear down all objects of this process."""
    place = _place()
    with place.lock:
        loaded, place.loaded = dict(place.loaded), {}
    for kept in loaded.values():
        for slots in kept.versions.values():
            for slot in slots.values():
                slot.drop()
