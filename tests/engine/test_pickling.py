"""What users make becomes bytes and comes back, or says why it does not."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import textwrap
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmap.engine import pickling
from nbmap.engine.model import EACH, UNPICKLABLE, USER, Blob, Failure, Pack
from nbmap.engine.pickling import (
    CannotPickleError,
    Unloadable,
    are_plain,
    concat,
    cut,
    dump,
    dump_exception,
    freeze,
    join,
    load,
    load_or_error,
    pack,
    pack_plain,
    parts,
    safe_repr,
    shorten,
    unpack,
)
from nbmap.worker import attempt
from nbmap.worker.coroutines import Coroutines

LARGE = 4 * pickling.OUT_OF_BAND


# --- the crash table --------------------------------------------------------------------------


class AtPickle:
    """Raises where it is pickled."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        raise self.kind("at pickle")


class AtUnpickle:
    """Raises where it is unpickled."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return raise_it, (self.kind,)


class ErrorAtPickle(Exception):
    def __init__(self, kind):
        super().__init__("user")
        self.kind = kind

    def __reduce__(self):
        raise self.kind("at pickle")


class ErrorAtUnpickle(Exception):
    def __init__(self, kind):
        super().__init__("user")
        self.kind = kind

    def __reduce__(self):
        return raise_it, (self.kind,)


def raise_it(kind):
    raise kind("at unpickle")


def endless():
    """Return lists in each other, deeper than any recursion goes."""
    nested = []
    for _ in range(200_000):
        nested = [nested]
    return nested


AT_PICKLE = [ValueError, SystemExit, RecursionError, MemoryError]
AT_UNPICKLE = [*AT_PICKLE, KeyboardInterrupt, GeneratorExit]


@pytest.mark.parametrize("kind", AT_PICKLE)
def test_an_output_that_crashes_its_pickling_costs_only_itself(kind):
    """Whatever pickling an output raises, the attempt tells that it can't be sent."""
    outcome = attempt.run(lambda _x: AtPickle(kind), 3, 0, print)
    assert isinstance(outcome, Failure)
    assert (outcome.index, outcome.kind) == (3, UNPICKLABLE)
    assert outcome.type == ("PicklingError" if kind is RecursionError else kind.__name__)
    assert "the output, a AtPickle, can't be sent" in outcome.message


@pytest.mark.parametrize("kind", AT_UNPICKLE)
def test_an_input_that_crashes_its_unpickling_costs_only_itself(kind):
    """Whatever unpickling an input raises, the others of the pack arrive."""
    packed = join([dump([1]), dump(AtUnpickle(kind)), dump([2])])
    first, bad, last = unpack(packed)
    assert (first, last) == ([1], [2])
    assert isinstance(bad, Unloadable)
    assert type(bad.error) is kind
    outcome = attempt.run(lambda x: x, 1, bad, print)
    assert (outcome.kind, outcome.type) == (UNPICKLABLE, kind.__name__)


@pytest.mark.parametrize("kind", AT_UNPICKLE)
def test_an_output_that_crashes_its_unpickling_is_told(kind):
    """An output that leaves the worker and can't be loaded here becomes an Unloadable."""
    outcome = attempt.run(lambda _x: AtUnpickle(kind), 0, 0, print)
    assert isinstance(outcome, attempt.Pickled)
    assert type(load_or_error(outcome).error) is kind


@pytest.mark.parametrize("kind", AT_PICKLE)
def test_an_input_that_crashes_its_pickling_says_so(kind):
    """What pickling an input raises reaches the reader, who makes a failure of it."""
    with pytest.raises((kind, pickle.PicklingError), match=r"at pickle|recursion"):
        dump(AtPickle(kind))


@pytest.mark.parametrize("kind", AT_PICKLE)
def test_an_exception_that_crashes_its_pickling_is_told_in_parts(kind):
    """An exception with a bad __reduce__ arrives by its type, arguments and attributes."""
    outcome = attempt.run(partial(_raise, ErrorAtPickle(kind)), 0, 0, print)
    assert (outcome.kind, outcome.type, outcome.message) == (USER, "ErrorAtPickle", "user")
    assert type(load(outcome.pickled)) is ErrorAtPickle


@pytest.mark.parametrize("kind", AT_UNPICKLE)
def test_an_exception_that_crashes_its_unpickling_is_told_in_parts(kind):
    """An exception that can't be loaded is found out before it is sent."""
    outcome = attempt.run(partial(_raise, ErrorAtUnpickle(kind)), 0, 0, print)
    assert (outcome.kind, outcome.message) == (USER, "user")
    again = load(outcome.pickled)
    assert (type(again), again.kind) == (ErrorAtUnpickle, kind)


def _raise(error, _x):
    raise error


@pytest.mark.parametrize("kind", [ValueError, RecursionError, MemoryError])
def test_a_function_that_crashes_its_pickling_names_the_variable(kind):
    """What stands in the way of a function is named."""
    troublemaker = AtPickle(kind)
    with pytest.raises(CannotPickleError, match=r"at pickle|recursion") as caught:
        freeze(lambda: troublemaker, {})
    assert caught.value.variable == "troublemaker"


@pytest.mark.parametrize("kind", AT_UNPICKLE)
def test_a_function_that_crashes_its_unpickling_is_frozen_all_the_same(kind):
    """Loading it is the worker's business; it raises there what it raises."""
    troublemaker = AtUnpickle(kind)
    blob = freeze(lambda: troublemaker, {})
    with pytest.raises(kind, match="at unpickle"):
        load(blob.frames)


def test_an_output_nested_too_deep_is_a_failure():
    """A real RecursionError of the pickler is told like any other."""
    nested = endless()
    outcome = attempt.run(lambda _x: nested, 0, 0, print)
    assert outcome.kind == UNPICKLABLE
    assert "recursion" in outcome.message
    while nested:  # freed by hand: not every Python frees it without recursion
        nested = nested.pop()


def test_a_captured_value_nested_too_deep_is_named():
    """A function that drags it along is refused with its name."""
    nested = endless()
    with pytest.raises(CannotPickleError) as caught:
        freeze(lambda: nested, {})
    assert caught.value.variable == "nested"
    while nested:
        nested = nested.pop()


# --- packs ------------------------------------------------------------------------------------

scalars = (
    st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.tuples(inner, inner)
        | st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
large = st.integers(0, 255).map(lambda n: bytearray([n]) * LARGE).map(pickle.PickleBuffer)
batches = (
    st.lists(scalars, min_size=1, max_size=12)
    | st.lists(st.tuples(scalars, scalars), min_size=1, max_size=12)
    | st.lists(values, min_size=1, max_size=12)
    | st.lists(values | large, min_size=1, max_size=4)
)


def plainly(value):
    """Turn what came back of a buffer into bytes, to compare it."""
    return bytes(value) if isinstance(value, (pickle.PickleBuffer, bytearray)) else value


@given(batch=batches)
def test_a_pack_holds_what_was_put_in(batch):
    """Any mix of values comes back equal and of the same types."""
    packed = pack(batch)
    assert packed.n == len(batch)
    again = unpack(packed)
    assert [plainly(x) for x in again] == [plainly(x) for x in batch]
    told = [type(x) for x in batch if not isinstance(x, pickle.PickleBuffer)]
    assert [type(x) for x, was in zip(again, batch, strict=True) if type(was) in set(told)] == told
    assert (packed.counts is None) == are_plain(batch)


@given(batch=batches, data=st.data())
def test_a_pack_can_be_cut_anywhere(batch, data):
    """A cut holds the same objects as the slice."""
    packed = pack(batch)
    start = data.draw(st.integers(0, len(batch)))
    stop = data.draw(st.integers(start, len(batch)))
    piece = cut(packed, start, stop)
    assert piece.n == stop - start
    assert [plainly(x) for x in unpack(piece)] == [plainly(x) for x in batch[start:stop]]


@given(pieces=st.lists(batches, min_size=1, max_size=4))
def test_packs_of_all_kinds_can_be_joined(pieces):
    """Plain packs and others make one pack of all their objects, in order."""
    together = concat([pack(batch) for batch in pieces])
    flat = [x for batch in pieces for x in batch]
    assert together.n == len(flat)
    assert [plainly(x) for x in unpack(together)] == [plainly(x) for x in flat]


@given(batch=batches, data=st.data())
def test_cutting_and_joining_again_loses_nothing(batch, data):
    """The pieces of a pack joined are the pack."""
    at = data.draw(st.integers(0, len(batch)))
    packed = pack(batch)
    again = concat([cut(packed, 0, at), cut(packed, at, len(batch))])
    assert [plainly(x) for x in unpack(again)] == [plainly(x) for x in batch]


def test_an_empty_pack_is_plain():
    """Nothing packed is nothing unpacked."""
    assert unpack(pack([])) == []
    assert unpack(join([])) == []


@pytest.mark.parametrize(
    "batch",
    [[1, "a", None, 2.5, b"x", 1j, True], [(1, "a"), ()], []],
    ids=["scalars", "tuples", "none"],
)
def test_plain_batches_are_one_frame(batch):
    """Scalars and tuples of scalars are pickled together."""
    packed = pack(batch)
    assert packed.counts is None
    assert len(packed.frames) == 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("batch", [[1, (1,)], [(1, [2])], [Text("a")], [[1]], [((1,),)]])
def test_everything_else_is_pickled_one_by_one(batch):
    """What may run code, or nests, is no plain batch."""
    packed = pack(batch)
    assert packed.counts == [1] * len(batch)
    assert unpack(packed) == batch


def test_lone_surrogates_and_huge_integers_are_scalars_too():
    """A plain batch can't fail, whatever scalars it has."""
    batch = ["\ud800", 10**10_000, float("inf"), ""]
    assert unpack(pack_plain(batch)) == batch


def test_an_object_of_a_pack_may_be_missing():
    """No frames stand for an object that is not there, as for the output of a failed input."""
    packed = join([dump([1]), [], dump([2])])
    assert unpack(packed) == [[1], None, [2]]
    assert [len(frames) for frames in parts(packed)] == [1, 0, 1]


# --- buffers ----------------------------------------------------------------------------------


def arrays():
    import numpy as np

    return np


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_arrays_come_back_equal_and_writable(size):
    """Small ones travel in the pickle, large ones beside it, and both can be changed."""
    np = arrays()
    array = np.arange(size)
    frames = dump({"a": array})
    assert len(frames) == (1 if size == 10 else 2)
    again = load([bytes(frame) for frame in frames])["a"]
    assert (again == array).all()
    assert again.flags.writeable
    again += 1


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_changing_an_array_after_its_dump_changes_nothing(size):
    """What is to be sent is the value at that moment."""
    np = arrays()
    array = np.arange(size)
    frames = dump(array)
    array[:] = -1
    assert (load(frames) == np.arange(size)).all()


def test_arrays_that_are_not_contiguous_come_back_equal():
    """Slices, transposes and orders of Fortran are no obstacle."""
    np = arrays()
    array = np.arange(1_000_000).reshape(1000, 1000)
    for view in (array[::2, ::3], array.T, np.asfortranarray(array), array[:, ::-1]):
        assert (load(dump(view)) == view).all()


def test_read_only_arrays_can_be_sent():
    """An array that can't be written to is copied like any other."""
    np = arrays()
    array = np.arange(100_000)
    array.flags.writeable = False
    assert (load(dump(array)) == array).all()


def test_an_array_of_objects_comes_back():
    """Object arrays have no buffer to travel beside the pickle."""
    np = arrays()
    array = np.array([{"a": 1}, None, "x"] * 10_000, dtype=object)
    assert (load(dump(array)) == array).all()


def test_raw_buffers_are_copied():
    """A bytearray out of band is a copy as well."""
    buffer = bytearray(LARGE)
    frames = dump(pickle.PickleBuffer(buffer))
    buffer[:] = b"x" * LARGE
    assert bytes(load(frames)) == bytes(LARGE)


# --- exceptions -------------------------------------------------------------------------------


class TwoArguments(Exception):
    """Hands less to Exception than it wants, so it can't be loaded as it is."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Holding(Exception):
    def __init__(self, what):
        super().__init__("held", what)
        self.what = what


class Keyword(Exception):
    def __init__(self, *, code):
        super().__init__("by keyword")
        self.code = code


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit

    __repr__ = __str__


class Impossible(Exception):
    """Can't be made a second time."""

    made = False

    def __new__(cls, *args):
        if cls.made:
            raise SystemExit
        cls.made = True
        return super().__new__(cls, *args)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        KeyError("k"),
        OSError(2, "No such file", "x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        SystemExit(1),
        KeyboardInterrupt(),
        ExceptionGroup("several", [ValueError(1), TypeError(2)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_come_back_as_they_are(error):
    """Type, arguments and text are those of the original, also where tblib has its own reducers."""
    from tblib import pickling_support

    pickling_support.install()  # as distributed does sooner or later
    again = load(dump_exception(error))
    assert type(again) is type(error)
    assert (str(again), len(again.args)) == (str(error), len(error.args))


def test_an_exception_with_more_arguments_than_it_hands_on_keeps_its_type():
    """Its attributes are kept, and its __init__ is not called again."""
    again = load(dump_exception(TwoArguments(404, "gone")))
    assert (type(again), str(again)) == (TwoArguments, "404: gone")
    assert (again.code, again.text) == (404, "gone")


def test_an_exception_with_keyword_arguments_keeps_its_type():
    """Classes that take keywords only are no exception."""
    again = load(dump_exception(Keyword(code=7)))
    assert (type(again), str(again), again.code) == (Keyword, "by keyword", 7)


def test_an_exception_that_holds_a_lock_keeps_its_type():
    """What can't be pickled is told by its repr."""
    again = load(dump_exception(Holding(threading.Lock())))
    assert type(again) is Holding
    assert "lock" in again.what
    assert again.args[0] == "held"


def test_an_exception_that_holds_what_can_not_be_unpickled_keeps_its_type():
    """What pickles and does not load is told by its repr, too."""
    again = load(dump_exception(Holding(AtUnpickle(ValueError))))
    assert type(again) is Holding
    assert "AtUnpickle" in again.what


def test_notes_of_an_exception_arrive():
    """What add_note added is kept."""
    error = ValueError("x")
    error.add_note("while it was hot")
    assert load(dump_exception(error)).__notes__ == ["while it was hot"]


def test_an_exception_defined_in_a_function_arrives():
    """Its class travels by value."""

    class Local(Exception):
        pass

    again = load(dump_exception(Local("x")))
    assert (type(again).__name__, again.args) == ("Local", ("x",))


def test_an_exception_that_can_not_be_had_is_an_empty_list():
    """Where nothing helps its text is all there is."""
    error = Impossible("x")
    assert dump_exception(error) == []
    told = attempt.failure(error, 0, USER, 1)
    assert (told.type, told.message, told.pickled) == ("Impossible", "x", [])


def test_an_exception_with_a_message_of_five_megabytes_is_bounded():
    """Each failed input is kept, so none may be large."""
    told = attempt.failure(ValueError("x" * 5_000_000), 0, USER, "y" * 5_000_000)
    size = sum(memoryview(frame).nbytes for frame in told.pickled)
    assert size <= pickling.EXCEPTION_BYTES
    assert len(told.message) < 2 * attempt.MESSAGE
    assert len(told.input) < 2 * attempt.INPUT + 100
    assert len(told.traceback) < 2 * attempt.TRACEBACK
    assert told.type == "ValueError"


def test_an_exception_with_a_message_of_five_megabytes_keeps_its_type():
    """The caller still gets a ValueError, with the middle of its message left out."""
    again = load(dump_exception(ValueError("x" * 5_000_000)))
    assert type(again) is ValueError
    assert "characters left out" in again.args[0]


def test_an_exception_whose_str_raises_is_told():
    """What its own methods raise costs nothing."""
    told = attempt.failure(Unprintable("x"), 0, USER, 1)
    assert "__str__ raised SystemExit" in told.message


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_repr_that_raises_is_replaced(kind):
    """safe_repr never raises."""

    class Bad:
        def __repr__(self):
            raise kind

    assert safe_repr(Bad()) == f"<Bad whose repr raises {kind.__name__}>"


@given(text=st.text(max_size=300), limit=st.integers(2, 200))
def test_shorten_cuts_only_what_is_too_long(text, limit):
    """A text within the limit stays; of others both ends are kept and the loss is told."""
    short = shorten(text, limit)
    if len(text) <= limit:
        assert short == text
        return
    half = limit // 2
    assert short.startswith(text[:half])
    assert short.endswith(text[-half:])
    assert f"[{len(text) - 2 * half} characters left out]" in short


# --- functions --------------------------------------------------------------------------------

SCALE = 1
LOCK = threading.Lock()


def scaled(x, y=2):
    return SCALE * x + y


def locked(x):
    with LOCK:
        return x


def even(n):
    return odd(n - 1) if n else LOCK


def odd(n):
    return even(n - 1) if n else False


def by_value(function):
    """Return a function that is pickled by value, as those of a notebook are."""
    function.__module__ = "__main__"
    return function


def test_a_frozen_function_comes_back_with_its_keywords():
    """The blob holds the function and its constant arguments."""
    blob = freeze(scaled, {"y": 5})
    assert isinstance(blob, Blob)
    function, kwargs = load(blob.frames)
    assert function(1, **kwargs) == 6


def test_functions_keep_the_name_of_their_file_however_they_travel():
    """With the functions inside them; tracebacks find the lines of a cell by it."""
    names = {}
    exec(compile("def f():\n    return lambda: 0", "<cell-7>", "exec"), names)
    frozen, _ = load(freeze(names["f"], {}).frames)
    error = ValueError(names["f"])
    for function in (frozen, load(dump(names["f"])), load(dump(error)).args[0]):
        assert function.__code__.co_filename == "<cell-7>"
        assert function().__code__.co_filename == "<cell-7>"


def test_equal_functions_have_equal_digests():
    """The same function frozen twice is found on the worker by its digest."""
    function = by_value(lambda x: SCALE * x)
    assert freeze(function, {"k": 1}).digest == freeze(function, {"k": 1}).digest
    assert freeze(function, {"k": 1}).digest != freeze(function, {"k": 2}).digest


def test_the_digest_changes_with_a_captured_global(monkeypatch):
    """A new value is a new version of the function."""
    function = by_value(lambda x: SCALE * x)
    before = freeze(function, {})
    monkeypatch.setitem(globals(), "SCALE", 2)
    after = freeze(function, {})
    assert before.digest != after.digest
    assert [load(blob.frames)[0](3) for blob in (before, after)] == [3, 6]


def test_what_a_function_captured_is_as_it_was_when_it_was_frozen():
    """Later changes to a captured object do not reach the blob."""
    weights = [1, 2]
    blob = freeze(lambda: weights, {})
    weights.append(3)
    assert load(blob.frames)[0]() == [1, 2]


class Model:
    def __init__(self):
        self.weights = [1]
        self.lock = threading.Lock()

    def predict(self, x):
        return x


def lock_in_default(x, lock=LOCK):
    return x


CASES = {
    "global": (by_value(locked), "LOCK"),
    "default": (by_value(lock_in_default), "lock"),
    "method": (Model().predict, "self.lock"),
    "partial": (partial(scaled, y=LOCK), "y"),
    "position": (partial(scaled, LOCK), "argument 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_variable_that_can_not_be_pickled_is_named(case):
    """Wherever a function has it from, the error says what it is called."""
    function, name = CASES[case]
    with pytest.raises(CannotPickleError, match="lock") as caught:
        freeze(function, {})
    assert caught.value.variable == name


def test_a_variable_of_a_function_that_is_called_is_named():
    """The search goes through the functions that are captured."""
    inner = by_value(lambda x: LOCK and x)
    outer = by_value(lambda x: inner(x) + 1)
    with pytest.raises(CannotPickleError) as caught:
        freeze(outer, {})
    assert caught.value.variable == "LOCK"


def test_functions_that_call_each_other_do_not_lead_the_search_in_a_circle():
    """What stands in the way of two functions that know each other is named as well."""
    by_value(even)
    by_value(odd)
    try:
        freeze(even, {})
    except (CannotPickleError, RecursionError) as error:
        name = getattr(error, "variable", type(error).__name__)
    assert name == "LOCK"


def test_a_constant_argument_that_can_not_be_pickled_is_named():
    """kwargs= is looked through too."""
    with pytest.raises(CannotPickleError) as caught:
        freeze(scaled, {"x": 1, "y": LOCK})
    assert caught.value.variable == "y"


def test_an_open_file_is_refused_by_name(tmp_path):
    """A copy of its text is not what the user meant."""
    path = tmp_path / "data.txt"
    path.write_text("x")
    with path.open() as data:
        with pytest.raises(CannotPickleError, match="an open file") as caught:
            freeze(lambda: data.read() + "x", {})
        assert caught.value.variable == "data"
        assert str(path) in str(caught.value)


def test_files_in_memory_may_travel():
    """StringIO and BytesIO are values."""
    text = io.StringIO("hello")
    assert load(freeze(lambda: text.getvalue() + "!", {}).frames)[0]() == "hello!"


def test_the_largest_variable_is_named():
    """The warning about a large function can say what makes it large."""
    small, big = b"x", b"y" * 100_000
    assert pickling.largest_variable(lambda: (small, big), {}) == "big"


def test_the_source_of_a_cell_travels_along():
    """A function of no file brings its text, so that tracebacks on the worker show lines."""
    import linecache

    source = "def cell_function(x):\n    return 1 / x\n"
    name = "<ipython-input-1-abc>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), namespace)
    assert freeze(namespace["cell_function"], {}).sources == {name: source}
    assert freeze(scaled, {}).sources == {}


# --- modules beside the notebook --------------------------------------------------------------

HELPER = """
from dataclasses import dataclass

FACTOR = 3

@dataclass
class Point:
    x: int

class Trouble(Exception):
    pass

def triple(x):
    return FACTOR * x
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A module beside the notebook, imported."""
    name = "nbmap_test_helper"
    (tmp_path / f"{name}.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pickling, "_beside", (None, []))
    __import__(name)
    yield sys.modules[name]
    del sys.modules[name]
    pickling._beside = (None, [])


def elsewhere(frames, expression, tmp_path):
    """Evaluate an expression of `loaded` in a process that does not know our path."""
    stored = tmp_path / "frames.pickle"
    stored.write_bytes(pickle.dumps([bytes(frame) for frame in frames]))
    code = f"""
        import pickle, sys
        assert not any({str(tmp_path)!r} == entry for entry in sys.path)
        frames = pickle.load(open({str(stored)!r}, "rb"))
        loaded = pickle.loads(frames[0], buffers=frames[1:])
        print({expression})
    """
    return subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )


def test_a_function_of_a_module_beside_the_notebook_travels_by_value(helper, tmp_path):
    """Workers need not find the module."""
    blob = freeze(helper.triple, {})
    ended = elsewhere(blob.frames, "loaded[0](4)", tmp_path)
    assert ended.stdout.strip() == "12", ended.stderr


def test_a_function_that_uses_such_a_module_takes_it_along(helper, tmp_path):
    """What a notebook's function calls there is sent with it."""
    triple = helper.triple
    blob = freeze(by_value(lambda x: triple(x) + 1), {})
    ended = elsewhere(blob.frames, "loaded[0](4)", tmp_path)
    assert ended.stdout.strip() == "13", ended.stderr


def test_an_input_of_a_class_of_such_a_module_travels_by_value(helper, tmp_path):
    """Inputs and outputs need the module no more than functions do."""
    frames = dump([helper.Point(5)], pickling.near_only())
    ended = elsewhere(frames, "loaded[0].x", tmp_path)
    assert ended.stdout.strip() == "5", ended.stderr


def test_modules_that_are_installed_travel_by_name():
    """The standard library and site-packages are on the workers."""
    import json

    beside = {module.__name__ for module in pickling.beside()}
    assert not beside & {"json", "pytest", "hypothesis", "cloudpickle", "nbmap"}
    assert len(freeze(json.dumps, {}).frames[0]) < 200


def test_nothing_stays_registered_after_freezing(helper):
    """The list of cloudpickle is global, so it is left as it was."""
    import cloudpickle

    before = set(cloudpickle.list_registry_pickle_by_value())
    freeze(helper.triple, {})
    assert set(cloudpickle.list_registry_pickle_by_value()) == before


def test_a_module_that_was_imported_again_is_sent_as_it_is_now(helper, tmp_path):
    """After an edit and a new import the new text travels."""
    name = helper.__name__
    path = tmp_path / f"{name}.py"
    path.write_text(HELPER.replace("FACTOR = 3", "FACTOR = 30000"))
    del sys.modules[name]
    module = __import__(name)
    ended = elsewhere(freeze(module.triple, {}).frames, "loaded[0](4)", tmp_path)
    assert ended.stdout.strip() == "120000", ended.stderr


def test_freezing_from_many_threads_works(helper):
    """Two runs may start at the same moment."""
    digests = []

    def go():
        digests.extend(freeze(helper.triple, {}).digest for _ in range(20))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 80
    assert len(set(digests)) == 1


@settings(max_examples=50)
@given(batch=st.lists(scalars, min_size=1, max_size=5))
def test_what_style_a_call_has_changes_nothing_about_packing(batch):
    """A chunk's inputs reach the function one by one, in order."""
    call = attempt.caller(lambda x: x, {}, EACH, Coroutines())
    packed = Pack(len(batch), None, pack_plain(batch).frames)
    assert [attempt.run(call, i, x, None) for i, x in enumerate(unpack(packed))] == batch
