"""Objects to bytes and back: functions to blobs, inputs and outputs to packs.

Sent to workers by value; imports only the model and cloudpickle.

Inputs and outputs are pickled one by one, so that what can't be pickled or loaded costs only
itself. Scalars are the exception: a batch of them is one pickle, a hundred times cheaper, and
can't fail. Out-of-band buffers are copied once: the user may go on writing to an array that a run
still has to send, and a generator that yields the same array again and again is common.
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import linecache
import os
import pickle
import re
import sys
import threading
import time
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar

import cloudpickle

from .model import Blob, Frames, Pack, size_of

_SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_TUPLE = frozenset({tuple})

# Buffers from this size on travel as frames of their own: below, a frame costs more than a copy.
OUT_OF_BAND = 32 << 10

# A pickle that names one of these refers to what only the near side has.
_NEAR_ONLY = re.compile(rb"__main__|nbmap\.")

# cloudpickle's list of modules that are sent by value is global to the process. It is changed with
# this held, but nothing is pickled with it held: user code runs then, which may take long, or for
# ever, and other threads have their own to pickle.
_changing = threading.RLock()
_by_value: Counter[str] = Counter()  # module -> threads that need it there
PATIENCE = 5.0  # seconds to wait for the list to be empty


class CannotPickleError(Exception):
    """An object could not be pickled; `variable` names what holds it, where that is known."""

    def __init__(self, reason: str, variable: str = "") -> None:
        super().__init__(reason)
        self.variable = variable


class Unloadable:
    """Stands for an object that could not be unpickled; `error` is what was raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


# --- values ----------------------------------------------------------------------------------


def are_plain(values: Sequence[Any]) -> bool:
    """Tell whether all values are scalars, or tuples of scalars: no code runs to load them."""
    types = set(map(type, values))
    if types <= _SCALARS:
        return True
    return types == _TUPLE and set(map(type, chain.from_iterable(values))) <= _SCALARS


def near_only() -> re.Pattern[bytes]:
    """Return what tells that a pickle refers to what only this side has."""
    names = [re.escape(module.__name__.encode()) for module in beside()]
    return re.compile(b"|".join([_NEAR_ONLY.pattern, *names]))  # re keeps what it has compiled


def dump(value: Any, near: re.Pattern[bytes] = _NEAR_ONLY) -> Frames:
    """Pickle one object into frames: the pickle, then its large buffers.

    What refers to the notebook's own modules is pickled by value (by cloudpickle), so that the
    other side needs none of them.
    """
    if isinstance(value, BaseException):
        return _dump_by_value(value, _ExceptionPickler)
    try:
        frames = _dump(pickle.Pickler, value)
    except Exception:
        return _dump_by_value(value)
    return _dump_by_value(value) if near.search(frames[0]) else frames


def _dump_by_value(value: Any, pickler: Callable[..., Any] | None = None) -> Frames:
    with _beside_by_value():
        return _dump(pickler or _ByValuePickler, value)


def _dump(pickler: Callable[..., Any], value: Any) -> Frames:
    try:
        return _write(pickler, value, out_of_band=True)
    except BufferError:  # memory that is not contiguous
        return _write(pickler, value, out_of_band=False)


def _write(pickler: Callable[..., Any], value: Any, *, out_of_band: bool) -> Frames:
    frames: Frames = [b""]

    def take(buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes < OUT_OF_BAND:
                return True
            frames.append(bytearray(raw))
            return False

    callback = take if out_of_band else None
    if pickler is pickle.Pickler:  # the usual way, and twice as fast
        frames[0] = pickle.dumps(value, 5, buffer_callback=callback)
    else:
        file = io.BytesIO()
        pickler(file, protocol=5, buffer_callback=callback).dump(value)
        frames[0] = file.getvalue()
    return frames


def load(frames: Sequence[Any]) -> Any:
    """Unpickle one object. Arrays come back writable, as they were."""
    if len(frames) == 1:
        return pickle.loads(frames[0])
    return pickle.loads(frames[0], buffers=[_writable(frame) for frame in frames[1:]])


def _writable(frame: Any) -> Any:
    return bytearray(frame) if memoryview(frame).readonly else frame


def pack(values: Sequence[Any]) -> Pack:
    """Pickle several objects; raises what pickling the first bad one raised."""
    if are_plain(values):
        return pack_plain(values)
    near = near_only()
    return join([dump(value, near) for value in values])


def pack_plain(values: Sequence[Any]) -> Pack:
    """Pickle scalars together."""
    return Pack(len(values), None, [pickle.dumps(list(values), 5)])


def join(parts: Sequence[Frames]) -> Pack:
    """Make a pack of objects that were pickled one by one."""
    return Pack(len(parts), [len(part) for part in parts], list(chain.from_iterable(parts)))


def unpack(packed: Pack) -> list[Any]:
    """Unpickle all objects of a pack; `Unloadable` stands for each that could not be."""
    if packed.counts is None:
        values: list[Any] = pickle.loads(packed.frames[0])
        return values
    return [load_or_error(frames) if frames else None for frames in parts(packed)]


def load_or_error(frames: Sequence[Any]) -> Any:
    """Unpickle one object, or return `Unloadable`. Runs the user's code, so anything may come."""
    try:
        return load(frames)
    except BaseException as error:
        return Unloadable(error)


def parts(packed: Pack) -> Iterator[Frames]:
    """Yield the frames of each object of a pack that is not plain."""
    at = 0
    for count in packed.counts or ():
        yield packed.frames[at : at + count]
        at += count


def cut(packed: Pack, start: int, stop: int) -> Pack:
    """Return objects `start` to `stop` of a pack. Loads only scalars."""
    if (start, stop) == (0, packed.n):
        return packed
    if packed.counts is None:
        return pack_plain(pickle.loads(packed.frames[0])[start:stop])
    first = sum(packed.counts[:start])
    counts = packed.counts[start:stop]
    return Pack(stop - start, counts, packed.frames[first : first + sum(counts)])


def concat(packs: Sequence[Pack]) -> Pack:
    """Join packs of consecutive objects into one."""
    if len(packs) == 1:
        return packs[0]
    if all(packed.counts is None for packed in packs):
        return pack_plain(list(chain.from_iterable(pickle.loads(p.frames[0]) for p in packs)))
    pieces: list[Frames] = []
    for packed in packs:
        if packed.counts is None:
            pieces += [[pickle.dumps(x, 5)] for x in pickle.loads(packed.frames[0])]
        else:
            pieces += parts(packed)
    return join(pieces)


# --- by value --------------------------------------------------------------------------------


def _reduce_code(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    """Reduce code as cloudpickle does, with the name of its file.

    From 3.1.3 on cloudpickle writes another in its place, so that pickles don't depend on where a
    function was defined; a traceback could then show no line of it.
    """
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](code)
    file = {"<dynamic-code>": code.co_filename}
    return make, tuple(file.get(arg, arg) if type(arg) is str else arg for arg in args)


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles functions and classes so that their tracebacks still tell where they are from."""

    dispatch_table: ClassVar[Mapping[type, Any]] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


# --- what stands in the way ------------------------------------------------------------------

TRIES = 500  # parts of an object that are tried, and how deep they may lie
DEEP = 20
TRIED_BYTES = 16 << 20  # a part whose pickle is larger is not what stands in the way


class _EnoughError(Exception):
    """A pickle has become as large as it may."""


class _Nowhere:
    """A file that keeps nothing, and takes only so much."""

    def __init__(self) -> None:
        self.left = TRIED_BYTES

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise _EnoughError


def because_of(value: Any, pickler: type[cloudpickle.Pickler] = _ByValuePickler) -> str:
    """Return " because of .layers[2].lock": what in a value can't be pickled; empty if it is all.

    Its parts are pickled one by one. That is bounded, and raises nothing of what they raise.
    """
    path, above, tries = "", {id(value)}, iter(range(TRIES))
    while True:
        try:
            name, value = next(_bad_parts(value, above, tries, pickler))
        except _UNPICKLABLE:  # StopIteration too: it is itself what stands in the way
            break
        path += name
        above.add(id(value))
        if len(above) > DEEP:  # the depth itself may be what stands in the way
            return ""
    return f" because of {shorten(path.strip(), 200)}" if path else ""


def _bad_parts(
    value: Any, above: set[int], tries: Iterator[int], pickler: type[cloudpickle.Pickler]
) -> Iterator[tuple[str, Any]]:
    for name, part in _parts_of(value):
        if type(part) in _SCALARS or id(part) in above:
            continue
        if next(tries, None) is None:
            return
        if not _can_be_pickled(part, above, pickler):
            yield name, part


def _can_be_pickled(value: Any, above: set[int], pickler: type[cloudpickle.Pickler]) -> bool:
    """Try it; what lies above it, which it may refer to, counts as possible."""

    class Trial(pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            return (str, ()) if id(obj) in above else super().reducer_override(obj)

    try:
        with _beside_by_value():
            Trial(_Nowhere(), protocol=5, buffer_callback=lambda _: None).dump(value)
    except _EnoughError:
        return True
    except _UNPICKLABLE:
        return False
    return True


def _parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what pickle would pickle of an object, each with how one writes it."""
    if isinstance(value, (FunctionType, partial)):
        yield from ((f" variable {name!r}", part) for name, part in captured(value))
        return
    if type(value) in {list, tuple, set, frozenset}:
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
        return
    if type(value) is dict:
        yield from ((f"[{safe_repr(key, 40)}]", part) for key, part in value.items())
        return
    try:
        made = value.__reduce_ex__(5)
    except _UNPICKLABLE:  # it is itself what stands in the way
        return
    if type(made) is not tuple:
        return
    _, args, state, items, pairs = (*made, None, None, None)[:5]
    own = [state, None] if type(state) is not tuple or len(state) != 2 else [*state]
    for attributes in own:  # its dict, and its slots
        if type(attributes) is dict:
            yield from ((f".{name}", part) for name, part in attributes.items())
        else:
            yield "", attributes
    yield from ((f"[{at}]", part) for at, part in enumerate(items or ()))
    yield from ((f"[{safe_repr(key, 40)}]", part) for key, part in pairs or ())
    name = ".args[{}]" if isinstance(value, BaseException) else ""
    yield from ((name.format(at), part) for at, part in enumerate(args or ()))


# --- exceptions ------------------------------------------------------------------------------


class _OwnReduce(dict[type, Any]):
    """The dispatch table of cloudpickle without what others registered for exceptions.

    distributed has tblib register a reducer for every class of exception. It makes instances with
    `__new__` alone, which leaves those empty that keep their state in C: a UnicodeDecodeError comes
    back without its message.
    """

    def __missing__(self, kind: type) -> Any:
        if issubclass(kind, BaseException):
            raise KeyError(kind)
        return _ByValuePickler.dispatch_table[kind]


class _ExceptionPickler(_ByValuePickler):
    """Pickles exceptions as their own classes say."""

    dispatch_table: ClassVar[Mapping[type, Any]] = _OwnReduce()


# A larger exception is told in text only: it would be kept for each failed input.
EXCEPTION_BYTES = 1 << 20
EXCEPTION_TEXT = 10_000


def dump_exception(error: BaseException) -> Frames:
    """Pickle an exception so that it loads again; an empty list where that can't be had.

    Tried in this order: as it is, checked by loading it here (classes that want more arguments
    than they hand to `Exception` load wrongly or not at all); then its type, arguments and
    attributes one by one, with the repr of what can't be pickled in its place.
    """
    for attempt in (_dump_as_is, _dump_in_parts):
        try:
            frames = attempt(error)
        except BaseException:  # noqa: S112 - a failing __reduce__ may raise anything
            continue
        if size_of(frames) <= EXCEPTION_BYTES:
            return frames
    return []


def _dump_as_is(error: BaseException) -> Frames:
    frames = dump(error)
    if type(load(frames)) is not type(error):
        msg = "it comes back as another type"
        raise CannotPickleError(msg)
    return frames


def _dump_in_parts(error: BaseException) -> Frames:
    kind = type(error)
    args = tuple(_portable(arg) for arg in error.args)
    state = {name: _portable(value) for name, value in vars(error).items()}

    class Parts(_ExceptionPickler):
        def reducer_override(self, obj: Any) -> Any:
            if obj is error:
                return copyreg.__newobj__, (kind, *args), state or None  # type: ignore[attr-defined]
            return super().reducer_override(obj)

    frames = _dump(Parts, error)
    load(frames)
    return frames


def _portable(value: Any) -> Any:
    if isinstance(value, str) and len(value) > EXCEPTION_TEXT:
        return shorten(value, EXCEPTION_TEXT)
    try:
        load(dump(value))
    except BaseException:
        return safe_repr(value)
    return value


def safe_repr(value: Any, limit: int = 200) -> str:
    """Return a bounded repr of anything, also of what raises in its own `__repr__`."""
    try:
        text = _plain(repr(value))
    except BaseException as error:
        text = f"<{type_name(value)} whose repr raises {type_name(error)}>"
    return shorten(text, limit)


def safe_str(error: BaseException) -> str:
    """Return the message of an exception, also of one whose `__str__` raises."""
    try:
        return _plain(str(error))
    except BaseException as inner:
        return f"<message not available: its __str__ raised {type_name(inner)}>"


def _plain(text: str) -> str:
    """Return a text as a str itself: a subclass has methods of its own."""
    return "".join(iter([text]))


_NAME = type.__dict__["__name__"]


def type_name(value: Any) -> str:
    """Return the name of an object's class, whatever its metaclass makes of `__name__`."""
    return str(_NAME.__get__(type(value)))


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a text longer than `limit` characters, saying how much is gone."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}…[{len(text) - 2 * half} characters left out]…{text[-half:]}"


# --- functions -------------------------------------------------------------------------------


def freeze(function: Callable[..., Any], kwargs: dict[str, Any]) -> Blob:
    """Pickle a function with its constant keyword arguments, as they are at this moment.

    Raises `CannotPickleError` naming the variable that stands in the way.
    """
    content = (function, kwargs)
    try:
        with _beside_by_value():
            frames = _dump(_FunctionPickler, content)
    except _UNPICKLABLE as first:
        # A module beside the notebook may hold what can't be pickled, and be importable on the
        # workers all the same.
        try:
            with _nothing_by_value():
                frames = _dump(_FunctionPickler, content)
        except _UNPICKLABLE:
            raise _blame(function, kwargs, first) from first
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(frame)
    return Blob(digest.hexdigest(), frames, _sources(function))


# What a failing __reduce__ may raise; a KeyboardInterrupt is the user's own.
_UNPICKLABLE = (Exception, SystemExit, GeneratorExit)


class _RefusedError(pickle.PicklingError):
    """What is refused though it could be pickled; its text is a sentence."""


class _FunctionPickler(_ByValuePickler):
    """Refuses what cloudpickle would copy silently though the copy is of no use elsewhere."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, io.IOBase) and not isinstance(obj, (io.StringIO, io.BytesIO)):
            msg = f"an open file ({getattr(obj, 'name', obj)!r})"
            raise _RefusedError(msg)
        for base in type(obj).__mro__:
            if (base.__module__, base.__name__) in _REFUSED:
                msg = f"a {_REFUSED[base.__module__, base.__name__]}, which belongs to this process"
                raise _RefusedError(msg)
        return super().reducer_override(obj)


_REFUSED = {
    ("distributed.client", "Client"): "Dask client",
    ("distributed.deploy.cluster", "Cluster"): "Dask cluster",
    ("ipywidgets.widgets.widget", "Widget"): "widget",
    # Each copy of which would lock out nobody but itself.
    ("asyncio.locks", "Lock"): "lock of asyncio",
    ("asyncio.locks", "Condition"): "condition of asyncio",
    ("asyncio.locks", "Semaphore"): "semaphore of asyncio",
    ("asyncio.locks", "Event"): "event of asyncio",
}


def _blame(
    function: Callable[..., Any],
    kwargs: dict[str, Any],
    error: BaseException,
    seen: frozenset[int] = frozenset(),
) -> CannotPickleError:
    """Find the variable that stands in the way, by trying each."""
    seen |= {id(function)}
    variables = [*captured(function), *kwargs.items()]
    # Functions come last: they may fail only for what another variable holds.
    variables.sort(key=lambda pair: isinstance(pair[1], FunctionType))
    for name, value in variables:
        try:
            with _beside_by_value():
                _dump(_FunctionPickler, value)
        except _UNPICKLABLE as cause:
            if id(value) in seen:  # functions that call each other
                continue
            if isinstance(value, FunctionType):
                deeper = _blame(value, {}, cause, seen)
                if deeper.variable:
                    return deeper
            return CannotPickleError(_reason(value, cause), name)
    return CannotPickleError(_reason(function, error))


def _reason(value: Any, error: BaseException) -> str:
    where, text = because_of(value, _FunctionPickler), shorten(safe_str(error), 200)
    if not isinstance(error, (TypeError, pickle.PicklingError)):  # whose text is a sentence
        text = f"{type_name(error)}: {text}"
    known = isinstance(error, _RefusedError) and not where  # the text says what it is
    return text if known else f"{type_name(value)}{where}: {text}"


def captured(function: Any) -> list[tuple[str, Any]]:
    """Return the variables that a function brings along: closure, globals, defaults, owner."""
    found: list[tuple[str, Any]] = []
    if (owner := getattr(function, "__self__", None)) is not None and not isinstance(
        owner, ModuleType
    ):
        found += [(f"self.{k}", v) for k, v in getattr(owner, "__dict__", {}).items()]
        function = getattr(function, "__func__", function)
    if hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial
        found += [(f"argument {i}", v) for i, v in enumerate(function.args)]
        found += list(function.keywords.items())
        return found + captured(function.func)
    code = getattr(function, "__code__", None)
    if code is None:
        return found
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    names = function.__globals__
    found += [(n, names[n]) for n in _names(code) if n in names]
    defaults = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount][-len(defaults) or code.co_argcount :]
    found += list(zip(arguments, defaults, strict=True))
    found += list((function.__kwdefaults__ or {}).items())
    return found


def _names(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)


def largest_variable(function: Callable[..., Any], kwargs: dict[str, Any]) -> str:
    """Name the captured variable or argument with the largest pickle; empty where none has."""
    sizes: dict[str, int] = {}
    for name, value in [*captured(function), *kwargs.items()]:
        try:
            with _beside_by_value():
                frames = _dump(_FunctionPickler, value)
        except Exception:  # noqa: S112
            continue
        sizes[name] = size_of(frames)
    return max(sizes, key=lambda name: sizes[name], default="")


def _sources(function: Any) -> dict[str, str]:
    """Return the text of the cell that defines the function, for tracebacks on the workers."""
    function = getattr(function, "__func__", getattr(function, "func", function))
    code = getattr(function, "__code__", None)
    if code is None or os.path.exists(code.co_filename):  # noqa: PTH110
        return {}
    lines = linecache.getlines(code.co_filename)
    return {code.co_filename: "".join(lines)} if lines else {}


# --- modules beside the notebook -------------------------------------------------------------

_beside: tuple[Any, list[ModuleType]] = (None, [])


@contextmanager
def _beside_by_value() -> Iterator[None]:
    """Let cloudpickle send the modules beside the notebook by value."""
    held: list[ModuleType] = []
    try:
        with _changing:
            own = sys.modules.get("nbmap.worker.standin")  # what handles are in remote code
            for module in [*beside(), *([own] if own is not None else [])]:
                name = module.__name__
                if not _by_value[name]:
                    if name in cloudpickle.list_registry_pickle_by_value():
                        continue  # the user's own wish, which stays
                    cloudpickle.register_pickle_by_value(module)
                _by_value[name] += 1
                held.append(module)
        yield
    finally:
        with _changing:
            for module in held:
                _by_value[module.__name__] -= 1
                if not _by_value[module.__name__]:
                    cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _nothing_by_value() -> Iterator[None]:
    """Have cloudpickle's list as the user has it, as soon as no other thread needs it otherwise."""
    until = time.monotonic() + PATIENCE
    while True:
        with _changing:
            if not any(_by_value.values()) or time.monotonic() > until:
                yield
                return
        time.sleep(0.01)


def beside() -> list[ModuleType]:
    """Return the imported modules that lie beside the notebook or script, not installed.

    Workers may not have them, or may have imported an older version.
    """
    global _beside
    homes = {_folder(path) for path in (sys.path[0] if sys.path else "", "")}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        homes.add(_folder(os.path.dirname(main)))  # noqa: PTH120
    key = (len(sys.modules), frozenset(homes))
    if _beside[0] != key:
        installed = tuple({_folder(sys.prefix), _folder(sys.base_prefix)} - homes)
        found = [
            module
            for name, module in list(sys.modules.items())
            if _is_beside(name, module, tuple(homes), installed)
        ]
        _beside = (key, found)
    return _beside[1]


def _folder(path: str) -> str:
    return os.path.join(os.path.abspath(path), "")  # noqa: PTH100, PTH118 - of many modules


def _is_beside(
    name: str, module: ModuleType, homes: tuple[str, ...], installed: tuple[str, ...]
) -> bool:
    if name.partition(".")[0] in {"nbmap", "__main__", "__mp_main__"}:
        return False
    path = getattr(module, "__file__", None)
    return (
        isinstance(path, str)
        and module.__name__ == name
        and path.endswith(".py")
        and path.startswith(homes)
        and not path.startswith(installed)
        and "site-packages" not in path
        and "dist-packages" not in path
    )
