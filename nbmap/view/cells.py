"""What a browser knows of the inputs' statuses, and how it learns what has changed. Pure.

Inputs mostly end in rows, so a change is told in ranges: the next message is as short as what
happened, however many inputs there are. Where it is not, the whole column is sent instead.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Sequence

from ..engine.model import SHOWN_STATUSES, Statuses

__all__ = ["MOST", "Cells", "Range", "packed"]

Range = tuple[int, int, int]  # start, length, status

MOST = 1 << 22  # inputs of which the grid shows each; of larger runs it shows none
RANGE = 9  # bytes: two u32 and a u8

_WAITING, _RUNNING, _DONE, _FAILED = map(SHOWN_STATUSES.index, SHOWN_STATUSES[:4])
_ENDED = bytes.maketrans(bytes((_WAITING, _RUNNING)), bytes((_DONE, _DONE)))
_CHANGED = re.compile(rb"[^\0]+")
_SAME = re.compile(rb"(.)\1*", re.DOTALL)


class Cells:
    """The statuses of one run's inputs, from input 0 on, as a browser was told them last."""

    def __init__(self) -> None:
        self.column = b""

    def take(self, statuses: Statuses, failed: Sequence[int] = ()) -> list[Range] | None:
        """Take the newest statuses.

        Args:
            statuses: of the same run.
            failed: inputs that have failed since the last look, which may be dropped already.

        Returns:
            The changes, or None where the whole column is shorter.
        """
        old, new = self.column, self._joined(statuses, failed)
        self.column = new
        if old == new:
            return []
        ranges: list[Range] = []
        for changed in _CHANGED.finditer(_differing(old, new)):
            ranges += (
                (same.start(), same.end() - same.start(), new[same.start()])
                for same in _SAME.finditer(new, changed.start(), changed.end())
            )
            if RANGE * len(ranges) > len(new):
                return None
        return ranges

    def _joined(self, statuses: Statuses, failed: Sequence[int]) -> bytes:
        """Return the column from input 0 on; what was dropped unseen is done unless it failed."""
        length = min(statuses.base, MOST + 1)
        before = bytearray(self.column[:length].translate(_ENDED))
        before += bytes([_DONE]) * (length - len(before))
        for index in failed:
            if index < length:
                before[index] = _FAILED
        column = bytes(before) + statuses.column
        return column if len(column) <= MOST else b""


def packed(ranges: list[Range]) -> bytes:
    """Return ranges as bytes: all starts and all lengths (u32, little endian), all statuses."""
    numbers = array("I", [start for start, _, _ in ranges] + [length for _, length, _ in ranges])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes() + bytes(status for _, _, status in ranges)


def _differing(old: bytes, new: bytes) -> bytes:
    """Return a byte for each of `new`: 0 where `old` has the same; what it lacks counts as 0."""
    length = max(len(old), len(new))
    differing = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    return differing.to_bytes(length, "little")[: len(new)]
