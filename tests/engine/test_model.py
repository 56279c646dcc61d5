"""What comes over a stream is a message of the schema, or an error; nothing in it is unpickled."""

import dataclasses
import inspect
import pickle
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine import model
from nbmap.engine.model import Message, frames_of, message_from

KINDS = sorted(
    (kind for kind in vars(model).values() if inspect.isclass(kind) and issubclass(kind, Message)),
    key=lambda kind: kind.tag,
)[1:]  # the first is Message itself

unpickled = []


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        """Return what pickle calls."""
        return unpickled.append, ("unpickled",)


TRAP = pickle.dumps(Trap())

garbage = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.just(TRAP),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)
tags = st.sampled_from([kind.tag for kind in KINDS])
headers = st.one_of(
    garbage,
    st.builds(lambda tag, rest: [tag, *rest], tags, st.lists(garbage, max_size=14)),
)
frames = st.one_of(st.lists(st.one_of(st.binary(max_size=5), st.just(TRAP)), max_size=3), garbage)


def values(kind):
    """Return a strategy for the plain values of one kind of message."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name != "frames"]
    plain = st.one_of(st.integers(), st.text(max_size=3))
    of = {list[list[typing.Any]]: st.lists(st.lists(plain, max_size=3), max_size=3)}
    return st.tuples(*(of.get(hints[name], st.from_type(hints[name])) for name in names)).map(list)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)
def test_every_message_comes_back_from_its_header(kind):
    """As it was, also where lists have become tuples on the way."""

    @given(values(kind), st.lists(st.binary(max_size=5), max_size=3))
    def check(plain, frames):
        message = kind(*plain)
        if hasattr(message, "frames"):
            message.frames = frames
        back = message_from(message.header(), frames_of(message))
        assert type(back) is kind
        # Lists take the same object for equal, also a float that is no number; since Python 3.13
        # dataclasses don't.
        assert back.header() == message.header()
        assert list(frames_of(back)) == list(frames_of(message))
        message_from(tuple(message.header()), tuple(frames_of(message)))

    check()


@given(headers, frames)
def test_garbage_is_a_value_error_or_a_message_of_the_schema(header, frames):
    """Whatever comes, nothing is unpickled, and what is accepted has values of the right types."""
    unpickled.clear()
    try:
        message = message_from(header, frames)
    except ValueError as error:
        assert 0 < len(str(error)) < 300
    else:
        assert type(message) in KINDS
        hints = typing.get_type_hints(type(message))
        for field in dataclasses.fields(message):
            wanted = typing.get_origin(hints[field.name]) or hints[field.name]
            value = getattr(message, field.name)
            if wanted in {int, str, bool, dict}:
                assert type(value) is wanted
            elif wanted is float:
                assert type(value) in {int, float}
            else:
                assert value is None or isinstance(value, (list, tuple))
    assert unpickled == []


@given(st.binary(max_size=200))
def test_bytes_are_no_header(blob):
    """Nor is a pickle."""
    unpickled.clear()
    for header in (blob, [blob], TRAP, [TRAP], [[TRAP]], pickle.dumps([Trap()])):
        with pytest.raises(ValueError, match="stream"):
            message_from(header, [])
    assert unpickled == []


def test_the_schema_imports_nothing_that_unpickles():
    """The module that parses headers knows no pickle, and nothing that evaluates text."""
    source = inspect.getsource(model)
    for word in ("import pickle", "cloudpickle", "marshal", "eval(", "exec(", "loads("):
        assert word not in source.replace("cloudpickle: str", "")


@pytest.mark.parametrize(
    ("header", "frames"),
    [
        (["mark", 1], []),  # one value is missing
        (["mark", 1, 2, 3], []),  # one too many
        (["mark", "1", 2], []),
        (["mark", True, 2], []),
        (["quit"], [b"x"]),  # has no frames
        (["done", 1, 2, "soon"], []),
        (["hello", 1, "boot", "worker", "3.11", "3.0", {"a": 1}], []),
        (["out", 1, 2, 3, 0.1, 7, []], []),
        (["load", "digest", {}], ["text"]),
        (["load", "digest", {}], b"bytes"),
        (["load", "digest", {}], None),
        (["no such"], []),
        ([["mark"], 1, 2], []),
        ([], []),
        ("mark", []),
        (None, []),
        ({"tag": "mark"}, []),
    ],
)
def test_what_is_not_of_the_schema_is_refused(header, frames):
    """The error names the message where it has a known name."""
    with pytest.raises(ValueError, match="stream"):
        message_from(header, frames)
