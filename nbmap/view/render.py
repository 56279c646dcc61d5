"""Snapshot → text. Pure, and the one place that escapes what came from user code."""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.model import FailureLine, Snapshot

__all__ = ["brief", "duration", "failure", "plain", "summary"]

# Characters that turn the reading direction around without being seen: with them a message can
# show "safe" for "efas". They are category Cf, which must not go as a whole: emoji and Persian
# are written with other characters of it.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters (C0, DEL, C1: all that starts an ANSI or OSC escape), lone surrogates, and
# the two separators that many terminals and str.splitlines take for a newline.
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_FAILED = {"user": "failed", "lost": "was lost", "timeout": "timed out", "cancelled": "cancelled"}
_ENDED = {
    "finished": "finished in {}",
    "cancelled": "cancelled after {}",
    "stopped": "stopped after {}",
    "broken": "the cluster was lost after {}",
}
_LONGEST_LEFT = 100 * 86400.0  # an estimate of more than this says nothing


def plain(text: str, limit: int | None = 200, *, newlines: bool = False) -> str:
    r"""Make text from user code safe to show in a terminal.

    What could move the cursor, colour, link, hide or reorder text is shown as a visible escape
    such as ``\x1b``. Text longer than `limit` as shown is cut in the middle and says how many
    characters were left out; `newlines` keeps newlines as they are.
    """
    if limit is None:
        return _escaped(text, newlines)
    if len(text) <= limit:
        shown = _escaped(text, newlines)
        if len(shown) <= limit:
            return shown
    # Only what can be seen is escaped, so that 100 MB of text cost no more than 200 characters.
    room = max(limit - len(_left_out(len(text))), 0)
    head = _fitting(text[:limit], room - room // 3, newlines)
    rest = text[max(len(head), len(text) - limit) :]
    tail = _fitting(rest[::-1], room // 3, newlines)[::-1]
    return "".join(head) + _left_out(len(text) - len(head) - len(tail)) + "".join(tail)


def duration(seconds: float) -> str:
    """Write a time for people: "350 ms", "3.2 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds <= 0:
        return "0 s"
    if seconds < 0.001:
        return "under 1 ms"
    if round(seconds, 3) < 1:
        return f"{round(seconds * 1000)} ms"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, part, step in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if whole < size * (60 if unit == "min" else 24):
            return _two(whole, unit, size, part, step)
    return _two(whole, "d", 86400, "h", 3600)


def summary(snapshot: Snapshot) -> str:
    """Write a run in one line: its counts, its rate and the time left or taken."""
    s = snapshot
    ended = _ended(s)
    parts: list[str] = []
    if s.total == 0 and s.status == "finished":
        parts.append("0 of 0, finished")
    elif s.status == "running":
        if s.total:
            parts.append(f"{100 * min(ended, s.total) // s.total} %")
        parts.append(_counts(s))
        parts += _pace(s)
    else:
        how = _ENDED.get(s.status, s.status + " after {}").format(duration(s.elapsed))
        parts.append(f"{_counts(s)}, {how}")
    if s.note:
        parts.append(plain(s.note))
    return f"{plain(s.name, 60)}  {' · '.join(parts)}"


def brief(snapshot: Snapshot) -> str:
    """Write what stands beside a bar: the counts that matter most, the rate, the time left."""
    s = snapshot
    counts = f"{s.done:,} done" if s.total is None else f"{s.done:,} of {s.total:,}"
    if s.failed:
        counts += f", {s.failed:,} failed"
    parts = [counts, *_pace(s)]
    if s.note:
        parts.append(plain(s.note))
    return " · ".join(parts)


def failure(line: FailureLine) -> str:
    """Write one failed input in one line."""
    value = f" ({plain(line.input, 80)})" if line.input else ""
    what = _FAILED.get(line.kind, "failed")
    why = ": ".join(part for part in (plain(line.type, 80), plain(line.message)) if part)
    where = f", {plain(line.worker, 80)}" if line.worker else ""
    because = f": {why}" if why else ""
    return f"input {line.index:,}{value} {what}{because} (attempt {line.attempts}{where})"


def _escaped(text: str, newlines: bool) -> str:
    if text.isascii() and text.isprintable():  # the common case, a hundred times faster
        return text
    return "".join([_visible(c, newlines) for c in text])


def _visible(c: str, newlines: bool) -> str:
    if c == "\n" and newlines:
        return c
    if c in _SHORT:
        return _SHORT[c]
    if c in _BIDI or unicodedata.category(c) in _UNSAFE:
        return f"\\x{ord(c):02x}" if ord(c) < 0x100 else f"\\u{ord(c):04x}"
    return c


def _fitting(text: str, room: int, newlines: bool) -> list[str]:
    shown: list[str] = []
    for c in text:
        piece = _visible(c, newlines)
        room -= len(piece)
        if room < 0:
            break
        shown.append(piece)
    return shown


def _left_out(count: int) -> str:
    return f" … {count:,} characters left out … "


def _two(whole: int, unit: str, size: int, part: str, step: int) -> str:
    rest = whole % size // step
    return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")


def _ended(s: Snapshot) -> int:
    return s.done + s.failed + s.cancelled


def _counts(s: Snapshot) -> str:
    parts = [f"{s.done:,} done" if s.total is None else f"{s.done:,} of {s.total:,} done"]
    named = (
        (s.failed, "failed"),
        (s.cancelled, "cancelled"),
        (s.running, "running"),
        # What is sent but not started waits at its worker; to a reader it waits.
        (s.waiting + s.sent, "waiting"),
    )
    parts += [f"{count:,} {name}" for count, name in named if count > 0]
    return ", ".join(parts)


def _pace(s: Snapshot) -> list[str]:
    parts: list[str] = []
    moving = math.isfinite(s.rate) and s.rate > 0
    if moving:
        parts.append(_rate(s.rate))
    if s.total is None:
        parts.append(f"for {duration(s.elapsed)}")
    elif moving:
        left = max(s.total - _ended(s), 0) / s.rate
        if 0 < left < _LONGEST_LEFT:
            parts.append(f"{duration(math.ceil(left))} left")
    return parts


def _rate(rate: float) -> str:
    for per, unit in ((1, "s"), (60, "min")):
        if rate * per >= 1:
            shown = f"{rate * per:,.1f}" if rate * per < 100 else f"{rate * per:,.0f}"
            return shown.removesuffix(".0") + f"/{unit}"
    return f"{rate * 3600:,.1f}".removesuffix(".0") + "/h"
