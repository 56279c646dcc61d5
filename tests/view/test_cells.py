"""What a browser is told of the statuses adds up to what they are."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine.model import SHOWN_STATUSES, Statuses
from nbmap.view import cells

WAITING, RUNNING, DONE, FAILED, CANCELLED = range(5)
STEP = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(0, 4)), max_size=6)


def unpacked(count, data):
    """Read ranges as the JavaScript does."""
    starts = struct.unpack_from(f"<{count}I", data)
    lengths = struct.unpack_from(f"<{count}I", data, 4 * count)
    return list(zip(starts, lengths, data[8 * count :], strict=True))


class Browser:
    """Keeps the statuses as a page does."""

    def __init__(self):
        self.column = bytearray()

    def take(self, told, cells_):
        if told is None:
            self.column[:] = cells_.column
            return
        self.column += bytes(len(cells_.column) - len(self.column))
        for start, length, status in unpacked(len(told), cells.packed(told)):
            self.column[start : start + length] = bytes([status]) * length


@given(st.lists(STEP, max_size=12))
def test_a_browser_that_takes_every_change_has_the_statuses(steps):
    """Whatever ranges change between two looks, the page shows the column as it is."""
    column, known, browser = bytearray(), cells.Cells(), Browser()
    for step in steps:
        for start, length, status in step:
            column += bytes(max(0, start + length - len(column)))
            column[start : start + length] = bytes([status]) * length
        browser.take(known.take(Statuses(0, bytes(column))), known)
        assert browser.column == column


def test_a_row_of_inputs_that_ended_is_one_range():
    """The size of a change does not grow with the number of inputs that it tells of."""
    known = cells.Cells()
    known.take(Statuses(0, bytes(1_000_000)))
    done = bytes([DONE]) * 500_000 + bytes(500_000)
    assert known.take(Statuses(0, done)) == [(0, 500_000, DONE)]
    assert known.take(Statuses(0, done)) == []


def test_changes_all_over_are_told_as_the_whole_column():
    """Where ranges would be longer than the column, the column is sent."""
    known = cells.Cells()
    known.take(Statuses(0, bytes(1000)))
    assert known.take(Statuses(0, bytes([DONE, FAILED] * 500))) is None
    assert known.column == bytes([DONE, FAILED] * 500)


def test_inputs_that_were_dropped_unseen_have_ended():
    """A run that keeps nothing forgets the statuses of what has ended; the page counts it as done."""
    known = cells.Cells()
    known.take(Statuses(0, bytes([DONE, FAILED, RUNNING, WAITING])))
    known.take(Statuses(6, bytes([RUNNING])))
    assert known.column == bytes([DONE, FAILED, DONE, DONE, DONE, DONE, RUNNING])


def test_an_input_that_failed_and_was_dropped_unseen_has_failed():
    """What a fast run forgets between two looks is not shown as done where it failed."""
    known = cells.Cells()
    known.take(Statuses(0, bytes([WAITING] * 6)))
    known.take(Statuses(4, bytes([RUNNING])), [2, 4])
    assert known.column == bytes([DONE, DONE, FAILED, DONE, RUNNING])
    known.take(Statuses(6, b""))
    assert known.column == bytes([DONE, DONE, FAILED, DONE, DONE, DONE])


def test_of_very_many_inputs_none_is_drawn():
    """Beyond four million inputs there are only counts, so that memory is bounded."""
    known = cells.Cells()
    assert known.take(Statuses(1 << 40, b"")) == []
    assert known.column == b""


def test_the_page_and_the_kernel_mean_the_same_statuses():
    """A status travels as its place in a list, and both sides have the same list."""
    script = (Path(cells.__file__).parent / "static" / "view.js").read_text("utf-8")
    [names] = re.findall(r"^const STATUSES = \[(.*)\];$", script, re.MULTILINE)
    assert tuple(json.loads(f"[{names}]")) == SHOWN_STATUSES
    assert len(SHOWN_STATUSES) == CANCELLED + 1
