"""Text that views show: true to the snapshot, and harmless whatever user code put into it."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine.model import Failure, FailureLine, GPUUse, Snapshot
from nbmap.view import render

BASE = Snapshot(
    name="train",
    number=1,
    status="running",
    total=100,
    waiting=36,
    sent=2,
    running=2,
    done=58,
    failed=2,
    cancelled=0,
    elapsed=5.0,
    rate=12.3,
    slots=2,
    note="",
    failures=(),
)
LINE = FailureLine(7, "x=3", "user", "ValueError", "bad", 1, "tcp://10.0.0.1:4000")

# Any code point, surrogates too, with what attacks a terminal made likely.
nasty = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp")),
        st.sampled_from("\x1b\x9b\x07\u202e\u2066\u200f\n\r\t"),
    )
)
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in BIDI for c in text)


def snapshot(**changes: object) -> Snapshot:
    return dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]


@given(nasty, st.one_of(st.none(), st.integers(0, 300)))
def test_plain_is_harmless(text: str, limit: int | None) -> None:
    """Whatever the text, nothing in the result can move, colour, link or reorder."""
    shown = render.plain(text, limit)
    assert is_harmless(shown)
    shown.encode()


@given(nasty, st.integers(0, 300))
def test_plain_keeps_newlines_where_allowed(text: str, limit: int) -> None:
    """With newlines allowed they, and only they, stay as they are."""
    assert is_harmless(render.plain(text, limit, newlines=True).replace("\n", ""))
    assert render.plain(text, None, newlines=True).count("\n") == text.count("\n")


@given(st.text(min_size=0, max_size=1000), st.integers(40, 300))
def test_plain_keeps_to_the_limit(text: str, limit: int) -> None:
    """The result is never longer than the limit."""
    assert len(render.plain(text, limit)) <= limit


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=1000))
def test_plain_counts_what_it_leaves_out(text: str) -> None:
    """What is shown and the number of characters left out add up to the text."""
    shown = render.plain(text, 100)
    head, cut, rest = shown.partition(" … ")
    if not cut:
        assert shown == text
        return
    number, _, tail = rest.partition(" characters left out … ")
    assert len(head) + int(number.replace(",", "")) + len(tail) == len(text)
    assert text.startswith(head)
    assert text.endswith(tail)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]8;;http://evil\x07click", r"\x1b]8;;http://evil\x07click"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("\ud800", r"\ud800"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u2028", r"\u2028"),
        ("héllo 日本 👩\u200d🔬", "héllo 日本 👩\u200d🔬"),
        ("[bold]markup[/bold]", "[bold]markup[/bold]"),
    ],
)
def test_plain_shows_escapes(text: str, shown: str) -> None:
    """Escapes are visible, and people's scripts and emoji stay readable."""
    assert render.plain(text) == shown


def test_plain_of_huge_text_is_cheap() -> None:
    """Only what is shown of a huge text is looked at."""
    shown = render.plain("\x1b" * 50_000_000)
    assert len(shown) <= 200
    assert "characters left out" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (0.0001, "under 1 ms"),
        (0.35, "350 ms"),
        (0.9999, "1 s"),
        (3, "3 s"),
        (3.24, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (273600, "3 d 4 h"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """Times are written for people, rounded before the unit is chosen."""
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "train  60 % · 58 of 100 done, 2 failed, 2 running, 38 waiting · 12.3/s · 4 s left",
        ),
        ({"rate": 0.0}, "train  60 % · 58 of 100 done, 2 failed, 2 running, 38 waiting"),
        (
            {"total": None, "waiting": 0},
            "train  58 done, 2 failed, 2 running, 2 waiting · 12.3/s · for 5 s",
        ),
        (
            {"status": "finished", "waiting": 0, "sent": 0, "running": 0, "done": 98},
            "train  98 of 100 done, 2 failed, finished in 5 s",
        ),
        (
            {"status": "cancelled", "waiting": 0, "sent": 0, "running": 0, "cancelled": 40},
            "train  58 of 100 done, 2 failed, 40 cancelled, cancelled after 5 s",
        ),
        (
            dict.fromkeys(("total", "waiting", "sent", "running", "done", "failed"), 0)
            | {"status": "finished"},
            "train  0 of 0, finished",
        ),
        (
            {"done": 999_999, "failed": 0, "total": 1_000_000, "waiting": 0, "sent": 0}
            | {"running": 1, "rate": 12345.6},
            "train  99 % · 999,999 of 1,000,000 done, 1 running · 12,346/s · 1 s left",
        ),
        (
            {"note": "slow", "rate": 0.05, "sent": 0, "waiting": 0},
            "train  60 % · 58 of 100 done, 2 failed, 2 running · 3/min · 13 min 20 s left · slow",
        ),
        (
            {"name": "a\x1b[2J\n", "note": "b\u202e", "rate": 0.0},
            r"a\x1b[2J\n  60 % · 58 of 100 done, 2 failed, 2 running, 38 waiting · b\u202e",
        ),
    ],
)
def test_summary(changes: dict[str, object], text: str) -> None:
    """A run is one line that says what counts."""
    assert render.summary(snapshot(**changes)) == text


counts = st.integers(0, 10**7)


@given(
    total=st.one_of(st.none(), counts),
    waiting=counts,
    running=counts,
    done=counts,
    failed=counts,
    elapsed=st.floats(),
    rate=st.floats(),
    status=st.sampled_from(["running", "finished", "cancelled", "stopped", "broken"]),
)
def test_no_nan_ever(**changes: object) -> None:
    """Whatever the numbers, the lines are one line each and hold no nan or inf."""
    for line in (render.summary(snapshot(**changes)), render.brief(snapshot(**changes))):
        assert "nan" not in line
        assert "inf" not in line
        assert is_harmless(line)


def test_brief() -> None:
    """What stands beside a bar leaves out what the bar shows."""
    assert render.brief(BASE) == "58 of 100, 2 failed · 12.3/s · 4 s left"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "input 7 (x=3) failed: ValueError: bad (attempt 1, tcp://10.0.0.1:4000)"),
        (
            {"kind": "lost", "type": "", "message": "killed by SIGKILL", "attempts": 2},
            "input 7 (x=3) was lost: killed by SIGKILL (attempt 2, tcp://10.0.0.1:4000)",
        ),
        (
            {"kind": "timeout", "type": "", "message": "", "worker": "", "input": ""},
            "input 7 timed out (attempt 1)",
        ),
        (
            {"input": "\x1b[2J", "message": "a\nb\u202e"},
            r"input 7 (\x1b[2J) failed: ValueError: a\nb\u202e (attempt 1, tcp://10.0.0.1:4000)",
        ),
    ],
)
def test_failure(changes: dict[str, object], text: str) -> None:
    """A failed input is one harmless line that says which, why and where."""
    assert render.failure(dataclasses.replace(LINE, **changes)) == text  # type: ignore[arg-type]


# --- the HTML that a notebook saves ------------------------------------------------------------


class Tags(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def failed(index, text="bad"):
    return Failure(index, "user", text, text, traceback=text, input=text)


ALLOWED = {
    "div",
    "p",
    "b",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "pre",
}


@given(nasty, st.sampled_from(["running", "finished", "cancelled", "stopped", "broken"]))
def test_a_page_has_no_tag_but_its_own(text, status):
    """Names, inputs, messages and tracebacks of user code add text and nothing else."""
    s = snapshot(name=text, status=status, failed=2, note=text)
    tags = read(render.page(s, [failed(1, text), failed(2, text)], mount="id", clock="12:00:00"))
    assert tags.tags <= ALLOWED
    assert tags.attributes <= {"class", "align"}
    shown = "".join(tags.text)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in shown if c != "\n")
    assert not any(c in BIDI for c in shown)


def test_a_page_tells_counts_and_the_first_failures():
    """What is saved has the counts, the failures with their tracebacks, and how many more there are."""
    s = snapshot(status="finished", total=500, done=470, failed=30, waiting=0, sent=0, running=0)
    shown = " ".join(read(render.page(s, [failed(i) for i in range(30)], mount="id")).text)
    assert "470 of 500 done" in shown
    assert "finished in 5 s" in shown
    assert "10 more failed inputs" in shown


def test_a_page_of_a_run_that_goes_on_says_of_when_it_is():
    """A notebook that was saved in the middle of a run does not pretend to know how it ended."""
    page = render.page(snapshot(), [], mount="id", clock="12:00:00")
    assert "as of 12:00:00" in page
    assert "as of" not in render.page(snapshot(status="finished"), [], mount="id", clock="12:00:00")


def test_a_page_stays_small():
    """Failures with endless tracebacks make no endless notebook."""
    long = [failed(i, "<&>" * 100_000) for i in range(1000)]
    assert len(render.page(snapshot(failed=1000), long, mount="id")) < 64 << 10


@pytest.mark.parametrize("total", [0, 1, None])
def test_no_page_has_a_number_that_is_none(total):
    """Runs of nothing, and of an unknown number, show no NaN, infinity or percentage of it."""
    for status in ("running", "finished"):
        s = snapshot(total=total, done=0, failed=0, waiting=0, sent=0, running=0, status=status)
        for rate in (0.0, math.inf, math.nan):
            moving = dataclasses.replace(s, rate=rate)
            text = render.page(moving, [], mount="id") + render.line(moving)
            assert not re.search(r"\b(nan|inf|infinity|none)\b", text, re.IGNORECASE)


def test_an_empty_run_is_one_line():
    """A run over nothing says so."""
    s = snapshot(total=0, done=0, failed=0, waiting=0, sent=0, running=0, status="finished")
    assert render.line(s) == "0 of 0, finished"
    assert "0 of 0, finished" in render.page(s, [], mount="id", unshown=True)
    assert "<table>" not in render.page(s, [], mount="id", unshown=True)


def test_the_line_of_the_live_view_says_how_far_a_run_is():
    """Ended of all, in percent, and how it goes on or ended."""
    s = snapshot(status="finished", total=5, done=5, failed=0, waiting=0, sent=0, running=0)
    assert render.line(s) == "5/5 (100%) · finished in 5 s"
    assert render.line(snapshot()) == "60/100 (60%) · 12.3/s · 4 s left · for 5 s · on 2 slots"
    early = snapshot(elapsed=0.4, slots=1, rate=0.0)
    assert render.line(early) == "60/100 (60%) · on 1 slot"


def test_of_a_line_that_was_rewritten_the_last_state_is_shown():
    """A progress bar in the prints of an input is one line, and escapes show as text."""
    assert render.printed("10%\r50%\r100%\r\nnext\x1b[31m") == "100%\nnext\\x1b[31m"


def test_g16_g20_a_gpu_is_shown_by_name_memory_and_load() -> None:
    """What it does not tell is "n/a"; of very many the first are shown."""
    gib = 1 << 30
    uses = (
        GPUUse("NVIDIA A100-SXM4-80GB", 0, 40 * gib, 80 * gib, 77),
        GPUUse("NVIDIA GB10", 1),
        GPUUse("<b>Tesla</b>\x1b[31m T4", lost=True),
    )
    snapshot = dataclasses.replace(BASE, gpus=uses)
    assert render.gpus(snapshot) == [
        "GPU 0: NVIDIA A100-SXM4-80GB · 40.0 of 80.0 GiB · 77 % busy",
        "GPU 1: NVIDIA GB10 · memory n/a · load n/a",
        r"GPU: <b>Tesla</b>\x1b[31m T4 · does not answer any more",
    ]
    page = render.page(snapshot, [], mount="1")
    assert "<p>GPU 0: NVIDIA A100-SXM4-80GB · 40.0 of 80.0 GiB · 77 % busy</p>" in page
    assert "&lt;b&gt;Tesla" in page
    assert render.gpus(dataclasses.replace(BASE, gpus=uses[:1] * 100))[-1] == "and 84 more"
