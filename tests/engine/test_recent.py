"""The newest outputs as text: the last ones, short, and not more often than is cheap."""

from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine.recent import BURST, EACH, LINES, Recent, brief


@given(st.lists(st.tuples(st.integers(0, 9), st.text(max_size=3)), max_size=2 * LINES))
def test_the_newest_lines_are_kept_in_their_order(told):
    """With numbers that go on, so that a view can ask for what it does not have."""
    recent = Recent()
    for index, text in told:
        recent.add(index, text)
    lines = recent.since(0)
    assert [(index, text) for _, index, text in lines] == told[-LINES:]
    assert [number for number, *_ in lines] == [*range(len(told) + 1)][1:][-LINES:]
    assert recent.since(len(told) - 1) == lines[-1:]


def test_of_one_message_the_last_outputs_are_written():
    """Each with its place, so that what is not new can be left out."""
    recent = Recent()
    assert recent.written(range(3)) == [(0, "0"), (1, "1"), (2, "2")]
    assert recent.written(range(100)) == [(at, str(at)) for at in range(100 - EACH, 100)]


def test_many_messages_are_not_all_looked_at():
    """A burst is, then only now and then."""
    recent = Recent()
    assert sum(recent.due() for _ in range(10_000)) < 10 * BURST


def test_nobody_looks_for_long_after_a_look_that_took_long():
    """Whose repr is slow would otherwise slow the run down."""

    class Slow:
        def __repr__(self):
            return str(sum(range(30_000_000)))

    recent = Recent()
    assert recent.due()
    recent.written([Slow()])
    assert not recent.due()


@given(
    st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_a_text_is_short_whatever_the_output(value):
    """Also of nested and of long ones."""
    assert len(brief(value)) < 20_000


def test_a_dictionary_keeps_its_order_and_a_broken_repr_is_told():
    """As in {"epoch": 1, "loss": 0.5}."""

    class Broken:
        def __repr__(self):
            raise KeyError

    assert (
        brief({"z": 1, "a": [0.5] * 20})
        == "{'z': 1, 'a': [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]}"
    )
    assert "Broken" in brief(Broken())
    assert brief({n: n for n in range(100)}).endswith(", 7: 7, ...}")
