"""Snapshot → text and HTML. Pure, and the one place that escapes what came from user code.

The HTML is what stays in a saved notebook. It has no script and no style, since GitHub and an
untrusted JupyterLab take those away; in a live page the widget puts itself in its place.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.model import Failure, FailureLine, GPUUse, Snapshot

__all__ = [
    "brief",
    "duration",
    "failure",
    "folded",
    "line",
    "page",
    "pages_text",
    "plain",
    "printed",
    "summary",
    "traceback",
    "without_secrets",
]

# Characters that turn the reading direction around without being seen: with them a message can
# show "safe" for "efas". They are category Cf, which must not go as a whole: emoji and Persian
# are written with other characters of it.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters (C0, DEL, C1: all that starts an ANSI or OSC escape), lone surrogates, and
# the two separators that many terminals and str.splitlines take for a newline.
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_WORD = re.compile(r"\S+")

_FAILED = {"user": "failed", "lost": "was lost", "timeout": "timed out", "cancelled": "cancelled"}
_ENDED = {
    "finished": "finished in {}",
    "cancelled": "cancelled after {}",
    "stopped": "stopped after {}",
    "broken": "its cluster ended after {}",
}
_PAGE_FAILURES = 20
_OUTPUTS = 10  # of the newest, that a page keeps
_OPEN = 10  # folded runs that are seen without a click
_GPUS = 16  # that are shown of a run's
_GIB = 1 << 30
_PAGE_TRACEBACK = 8_000  # characters of one
_PAGE_BYTES = 56_000  # of all together, as HTML
_TEXT_FAILURES = 10
_LEFT = '<div align="left">{}</div>'  # JupyterLab aligns what is in tables to the right
_PRINTED = 65_536  # characters of what one input has printed
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


def without_secrets(text: str) -> str:
    """Take names, passwords and queries out of the addresses in a text.

    What may be part of a password counts as one, up to the last "@" of the word, since passwords
    hold slashes, too: a text that lost too much is better than one that tells a secret.

    >>> without_secrets("tls://me:secret@host:8786 and https://host/hub?token=secret")
    'tls://host:8786 and https://host/hub?…'
    """
    return _WORD.sub(_without_secrets, text) if "@" in text or "?" in text else text


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
        parts.append(f"{_counts(s)}, {_how(s)}")
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


def line(snapshot: Snapshot) -> str:
    """Write what stands at the head of the live view: how far, how fast, how long, on what."""
    s = snapshot
    ended = _ended(s)
    if s.total == 0:
        return f"0 of 0, {s.status}"
    if s.total is None:
        far = f"{ended:,} ended"
    else:
        far = f"{ended:,}/{s.total:,} ({100 * ended // s.total}%)"
    if s.status != "running":
        return f"{far} · {_how(s)}"
    parts = [far, *_pace(s)]
    if s.total is not None and s.elapsed >= 1:
        parts.append(f"for {duration(int(s.elapsed))}")
    if s.slots:
        parts.append(f"on {s.slots:,} slot{'' if s.slots == 1 else 's'}")
    return " · ".join(parts)


def inputs(n: int) -> str:
    """Write a number of inputs: "1 input", "1,000 inputs"."""
    return f"{n:,} input{'' if n == 1 else 's'}"


def gpus(snapshot: Snapshot) -> list[str]:
    """Write the GPUs of a run, a line each: the name, the memory in use, the load."""
    uses = snapshot.gpus
    lines = [gpu(use) for use in uses[:_GPUS]]
    more = len(uses) - _GPUS
    return lines if more <= 0 else [*lines, f"and {more} more"]


def gpu(use: GPUUse) -> str:
    """Write how full and how busy a GPU is; "n/a" for what it does not tell."""
    name = f"GPU{'' if use.index is None else f' {use.index}'}: {plain(use.name, 80)}"
    if use.lost:
        return f"{name} · does not answer any more"
    memory = "memory n/a"
    if use.used is not None and use.total is not None:
        memory = f"{use.used / _GIB:.1f} of {use.total / _GIB:.1f} GiB"
    return f"{name} · {memory} · {'load n/a' if use.busy is None else f'{use.busy} % busy'}"


def printed(text: str) -> str:
    """Make safe what an input has printed, in lines; of a line that was rewritten the last state."""
    lines = text.replace("\r\n", "\n").split("\n")
    last = (line.rstrip("\r").rpartition("\r")[2].expandtabs() for line in lines)
    return plain("\n".join(last), _PRINTED, newlines=True)


def traceback(failure: Failure) -> str:
    """Make the traceback of a failure safe; one without a traceback has its message."""
    return plain(failure.traceback or failure.message, _PAGE_TRACEBACK, newlines=True)


def about(failure: Failure) -> str:
    """Write what is known of a failure besides: its kind, the attempts, the worker."""
    kind = _FAILED.get(failure.kind, "failed")
    parts = [kind, f"attempt {failure.attempts}", plain(failure.worker, 80)]
    return " · ".join(part for part in parts if part)


def failure(line: FailureLine | Failure) -> str:
    """Write one failed input in one line."""
    value = f" ({plain(line.input, 80)})" if line.input else ""
    what = _FAILED.get(line.kind, "failed")
    why = ": ".join(part for part in (plain(line.type, 80), plain(line.message)) if part)
    where = f", {plain(line.worker, 80)}" if line.worker else ""
    because = f": {why}" if why else ""
    return f"input {line.index:,}{value} {what}{because} (attempt {line.attempts}{where})"


def page(
    snapshot: Snapshot,
    failures: Sequence[Failure],
    *,
    mount: str,
    clock: str = "",
    unshown: bool = False,
    outputs: Sequence[tuple[int, str]] = (),
    pictures: str = "",
) -> str:
    """Write a run as the HTML that a notebook saves: counts, and the first failures.

    Args:
        snapshot: the run.
        failures: the first of its failures.
        mount: names the run to the widget, which shows itself in this element.
        clock: the time of the snapshot as text, for a run that goes on.
        unshown: the run is so young or was so short that a line says it all.
        outputs: the newest, as (input, text).
        pictures: images of the end, as HTML of ours.

    Returns:
        One `div`, of at most 64 KiB beside the pictures.
    """
    s = snapshot
    name = _html(plain(s.name, 60))
    asof = f" · as of {_html(clock)}" if clock and s.status == "running" else ""
    if s.status == "running" and unshown and not s.failed:
        body = f"<p><b>{name}</b>: {_size(s)}, running{asof}</p>"
    else:
        said = _html(summary(s).removeprefix(plain(s.name, 60)).strip())
        body = f"<p><b>{name}</b>: {said}{asof}</p>"
        if not unshown:
            body += _counts_table(s)
            body += "".join(f"<p>{_html(line)}</p>" for line in gpus(s))
        body += _failures_table(failures[:_PAGE_FAILURES], s.failed)
        if not unshown:
            body += pictures
        if outputs and not unshown:
            lines = "\n".join(f"{index:,}: {plain(text)}" for index, text in outputs[-_OUTPUTS:])
            told = f"<summary>newest outputs</summary><pre>{_html(lines)}</pre>"
            body += f"<details>{told}</details>"
    return f'<div class="nbmap-mount nbmap-mount-{_html(mount)}">{body}</div>'


def folded(lines: Sequence[str], n: int) -> str:
    """Write runs as HTML that share a cell's output and are not shown in full any more.

    Args:
        lines: the summaries of the newest of them.
        n: how many there are.
    """
    items = "".join(f"<li>{_html(line)}</li>" for line in lines)
    before = n - len(lines)
    told = f"<p>{before:,} more before these: nbmap.runs()</p>" if before else ""
    is_open = " open" if n <= _OPEN else ""
    name = f"{n:,} earlier run{'' if n == 1 else 's'} of this cell"
    return (
        f"<details{is_open}><summary>{name}</summary>{told}"
        f'<ol start="{before + 1}">{items}</ol></details>'
    )


def pages_text(snapshot: Snapshot, failures: Sequence[FailureLine | Failure]) -> str:
    """Write a run as the text that stands beside its HTML: a line, and the first failures."""
    s = snapshot
    lines = [summary(s)]
    lines += [f"  {failure(line)}" for line in failures[:_TEXT_FAILURES]]
    more = s.failed - min(len(failures), _TEXT_FAILURES)
    if more > 0:
        lines.append(f"  and {more:,} more: run.failures")
    return "\n".join(lines)


def _without_secrets(word: re.Match[str]) -> str:
    text = word[0]
    before, at, host = text.rpartition("@")
    if at and ":" in before:  # else it is a mail address
        scheme, slashes, _ = before.partition("://")
        text = f"{scheme}{slashes}{host}" if slashes else host
    address, _, query = text.partition("?")
    return f"{address}?…" if query and ("://" in address or "=" in query) else text


def _how(s: Snapshot) -> str:
    return _ENDED.get(s.status, s.status + " after {}").format(duration(s.elapsed))


def _counts_table(s: Snapshot) -> str:
    named = (
        ("done", s.done),
        ("failed", s.failed),
        ("cancelled", s.cancelled),
        ("running", s.running),
        ("waiting", s.waiting + s.sent),
    )
    heads = "".join(f"<th>{name}</th>" for name, _ in named)
    cells = "".join(f"<td>{count:,}</td>" for _, count in named)
    return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"


def _failures_table(failures: Sequence[Failure], total: int) -> str:
    if not failures:
        return ""
    lines = [_failure_cells(failure) for failure in failures]
    room = (_PAGE_BYTES - sum(map(len, (cell for line in lines for cell in line)))) // len(lines)
    rows = ""
    for failure, (*cells, message) in zip(failures, lines, strict=True):
        told = message
        if failure.traceback:
            text = _fitting_html(failure.traceback, min(room, _PAGE_TRACEBACK))
            told = f"<details><summary>{message}</summary><pre>{text}</pre></details>"
        rows += (
            "<tr>" + "".join(f"<td>{_LEFT.format(cell)}</td>" for cell in (*cells, told)) + "</tr>"
        )
    heads = "".join(f"<th>{_LEFT.format(n)}</th>" for n in ("#", "input", "exception", "message"))
    more = total - len(failures)
    left = (
        f"<p>{more:,} more failed inputs are not shown here: run.failures</p>" if more > 0 else ""
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{left}"


def _failure_cells(f: Failure) -> tuple[str, str, str, str]:
    message = plain(f.message) or _FAILED.get(f.kind, "failed")
    return f"{f.index:,}", _html(plain(f.input)), _html(plain(f.type, 80)), _html(message)


def _fitting_html(text: str, room: int) -> str:
    """Escape text, cut so that it has at most `room` characters as HTML."""
    limit = room
    while len(shown := _html(plain(text, limit, newlines=True))) > room and limit > 40:
        limit //= 2
    return shown


def _size(s: Snapshot) -> str:
    return "inputs" if s.total is None else inputs(s.total)


def _html(text: str) -> str:
    return html.escape(text, quote=True)


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
