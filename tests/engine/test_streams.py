"""Outputs of generators: every history of attempts gives each output once, in its input's order."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmap.engine import state
from nbmap.engine.model import USER, Failure
from nbmap.engine.pickling import pack_plain
from nbmap.engine.streams import Segment, Streams

SIZE = 10  # bytes that an output is said to have


@dataclass
class Source:
    """The run, as far as its outcomes ask for it."""

    keep_bytes: int = 1 << 20
    full: bool = False
    over: bool = False
    unread_bytes: int = 0
    on_wait = None
    told: list = field(default_factory=list)

    def check_modules(self):
        """Be what this module was made with."""

    def check(self):
        """Be in the run's process."""

    def tell(self, event):
        self.told.append(event)


def segment(index, values, *, sealed):
    """Return outputs as they come: scalars sealed, or objects that are open."""
    frame = pack_plain(values).frames[0] if sealed else None
    return Segment(index, len(values), SIZE * len(values), None if sealed else values, frame)


@dataclass(frozen=True)
class Attempt:
    """How many of its input's outputs an attempt yields, and in which batches."""

    upto: int
    cuts: tuple[int, ...]
    sealed: bool

    def batches(self):
        """Yield (first, stop) of each batch."""
        edges = [0, *sorted({cut for cut in self.cuts if 0 < cut < self.upto}), self.upto]
        return [(a, b) for a, b in pairwise(edges) if a < b]


@st.composite
def histories(draw):
    """What happens to some inputs: attempts, the last of which yields everything or fails."""
    inputs = []
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.integers(0, 8))
        attempts = [
            Attempt(
                draw(st.integers(0, n)),
                tuple(draw(st.lists(st.integers(0, 8), max_size=4))),
                draw(st.booleans()),
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        fails = draw(st.booleans())
        # A last attempt that fails may come less far than one before it.
        upto = draw(st.integers(0, n)) if fails else n
        cuts = tuple(draw(st.lists(st.integers(0, 8), max_size=4)))
        inputs.append(([*attempts, Attempt(upto, cuts, draw(st.booleans()))], fails))
    return inputs


def steps_of(index, attempts, fails):
    """Yield what the engine does for one input, in order."""
    for number, attempt in enumerate(attempts, 1):
        for first, stop in attempt.batches():
            values = [f"{index}.{k}" for k in range(first, stop)]
            yield "add", index, first, number, values, attempt.sealed
    yield "store", index, Failure(index, USER, "E", "") if fails else None


class Consumer:
    """Takes what is there, as an iterator does."""

    def __init__(self, streams):
        self.streams = streams
        self.position = 0
        self.got = []

    def take(self):
        """Take one entry of the log; return whether there was one."""
        before = self.position
        if not self.streams.arrived(before)():
            return False
        self.position, pairs = self.streams.take_arrivals(before)
        if self.position == before:
            return False
        self.got += pairs
        self.streams.handed_arrival(self.position)
        return True


def play(data, history, source, streams, consumers):
    """Interleave the inputs' steps with each other and with the consumers'."""
    waiting = [list(steps_of(i, *one)) for i, one in enumerate(history)]
    new = 0
    streams.expect(len(history))
    while any(waiting):
        able = [i for i, steps in enumerate(waiting) if steps]
        what, index, *rest = waiting[data.draw(st.sampled_from(able))].pop(0)
        if what == "add":
            first, number, values, sealed = rest
            new += streams.add(index, first, number, segment(index, values, sealed=sealed))
        else:
            streams.store(index, rest)
        for consumer in consumers:
            for _ in range(data.draw(st.integers(0, 2))):
                consumer.take()
    source.over = True
    for consumer in consumers:
        while consumer.take():
            pass
    return new


def expected(index, attempts, fails):
    """Return all that comes of one input: as many outputs as its best attempt had, and its end."""
    n = max(attempt.upto for attempt in attempts)
    return [f"{index}.{k}" for k in range(n)], fails


@settings(max_examples=300, deadline=None)
@given(st.data(), histories(), st.booleans(), st.booleans())
def test_every_output_comes_once_and_in_order(data, history, keep, full):
    """Whatever attempts repeat, and however far the consumers are while they do."""
    source = Source(full=full)
    streams = Streams(source, keep=keep)
    consumers = [Consumer(streams) for _ in range(2 if keep else 1)]
    new = play(data, history, source, streams, consumers)

    total = 0
    for index, (attempts, fails) in enumerate(history):
        outputs, _ = expected(index, attempts, fails)
        total += len(outputs)
        for consumer in consumers:
            own = [value for i, value in consumer.got if i == index]
            assert own[: len(outputs)] == outputs
            assert [type(x) for x in own[len(outputs) :]] == [Failure] * fails
        if keep:
            assert streams.outputs(index) == outputs
    assert new == SIZE * total
    if keep:
        again = Consumer(streams)
        while again.take():
            pass
        assert again.got == consumers[0].got == consumers[1].got


@settings(max_examples=200, deadline=None)
@given(st.data(), histories(), st.sampled_from([1, 2, 1 << 16]))
def test_what_is_handed_out_is_told_and_forgotten(data, history, trim):
    """Without keeping, every byte and input that was handed out is told, and nothing stays."""
    source = Source(full=True)
    streams = Streams(source, keep=False)
    before, state.TRIM = state.TRIM, trim
    try:
        new = play(data, history, source, streams, [Consumer(streams)])
    finally:
        state.TRIM = before
    handed = [event for event in source.told if isinstance(event, state.Handed)]
    assert sum(event.n for event in handed) == len(history)
    assert sum(event.nbytes for event in handed) == new
    assert not streams._log
    assert not streams._had
    assert not streams._of
    assert not streams._arrivals


@settings(max_examples=200, deadline=None)
@given(st.data(), histories())
def test_kept_outputs_count_as_handed_out_once(data, history):
    """However often they are iterated, and asked for by index."""
    source = Source(full=True)
    streams = Streams(source, keep=True)
    new = play(data, history, source, streams, [Consumer(streams), Consumer(streams)])
    for index in range(len(history)):
        streams.outputs(index)
    handed = [event for event in source.told if isinstance(event, state.Handed)]
    assert sum(event.nbytes for event in handed) == new


@settings(max_examples=200, deadline=None)
@given(st.data(), histories())
def test_takeovers_tell_where_another_attempt_went_on(data, history):
    """One entry for each attempt that had something new, with its first new output."""
    source = Source()
    streams = Streams(source, keep=True)
    play(data, history, source, streams, [])
    wanted = []
    for index, (attempts, _) in enumerate(history):
        had = 0
        for number, attempt in enumerate(attempts, 1):
            if attempt.upto > had and number > 1:
                wanted.append((index, number, had))
            had = max(had, attempt.upto)
    assert sorted(streams.takeovers) == wanted


@pytest.mark.parametrize("keep", [True, False])
def test_the_end_of_a_run_wakes_whoever_waits(keep):
    """Nothing comes any more: the position stays, and there are no outputs."""
    source = Source(over=True)
    streams = Streams(source, keep=keep)
    assert streams.take_arrivals(0) == (0, [])


def test_several_inputs_may_end_together():
    """The ends of a range are one entry, of which only the failures are handed out."""
    source = Source()
    streams = Streams(source, keep=False)
    streams.expect(3)
    failure = Failure(1, USER, "E", "")
    streams.store(0, [None, failure, None])
    assert streams.take_arrivals(0) == (1, [(1, failure)])
    streams.handed_arrival(1)
    assert source.told == [state.Handed(3, 0)]
