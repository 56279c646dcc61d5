"""Progress in terminals and logs, on real pseudo-terminals: what a person sees in the end."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import select
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import pytest

from nbmap.engine.model import FailureLine, Snapshot
from nbmap.view import terminal

ROOT = Path(__file__).resolve().parents[2]
BASE = Snapshot("train", 1, "running", 100, 98, 0, 2, 0, 0, 0, 0.5, 10.0, 2, "", ())

PREAMBLE = """
import dataclasses, io, os, sys, threading, time, contextlib
from nbmap.engine.model import FailureLine, Snapshot
from nbmap.view import terminal

def snap(done=0, failed=0, status="running", total=100, name="train", note=""):
    lines = tuple(
        FailureLine(i, str(i), "user", "ValueError", "bad", 1, "") for i in range(failed)
    )[-5:]
    waiting = 0 if total is None else total - done - failed
    return Snapshot(
        name, 1, status, total, waiting, 0, 0, done, failed, 0, 2.0, 10.0, 2, note, lines
    )
"""


@dataclasses.dataclass
class Seen:
    raw: str  # what the terminal received
    piped: str  # what went to stdout, where that was a pipe

    @property
    def screen(self) -> list[str]:
        """The lines that a person sees in the end, without the empty ones at the end."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", self.raw):
            if token == "\r":
                column = 0
            elif token == "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            elif token == "\x1b[2K":
                lines[row] = ""
            elif token == "\x1b[1A":
                assert row > 0, "the cursor left the top of the screen"
                row -= 1
            elif token.startswith("\x1b"):
                assert token.endswith("m"), f"an unexpected escape: {token!r}"
            else:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + token + line[column + 1 :]
                column += 1
        return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def on_terminal(
    script: str, *, stdout: str = "terminal", size: tuple[int, int] = (24, 100), term: str = "xterm"
) -> Seen:
    """Run a script in a process of its own whose stderr is a pseudo-terminal."""
    near, far = os.openpty()
    termios.tcsetwinsize(far, size)
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    environment |= {"TERM": term, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        stdin=far,
        stdout=far if stdout == "terminal" else subprocess.PIPE,
        stderr=far,
        env=environment,
        cwd=ROOT,
    )
    os.close(far)
    raw = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([near], [], [], 0.2)[0]:
            continue
        try:
            raw += os.read(near, 65536)
        except OSError:  # Linux says so when the last writer is gone
            break
    else:
        child.kill()
        pytest.fail(f"the script did not end: {raw!r}")
    piped = child.communicate(timeout=30)[0] or b""
    os.close(near)
    assert child.returncode == 0, raw.decode()
    return Seen(raw.decode().replace("\r\n", "\n\r"), piped.decode())


def test_bar_gives_way_to_its_summary() -> None:
    """A bar moves while the run goes on, and leaves one line."""
    seen = on_terminal("""
        bar = terminal.open_display(name="train")
        for done in (10, 50, 90):
            bar.update(snap(done))
            time.sleep(0.06)
        bar.close(snap(100, status="finished"))
        bar.close(snap(100, status="finished"))
        bar.update(snap(100))
    """)
    assert "━" in seen.raw
    assert "10 of 100" in seen.raw
    assert "90 of 100 · 10/s · 1 s left" in seen.raw
    assert seen.screen == ["train  100 of 100 done, finished in 2 s"]


def test_short_run_prints_nothing() -> None:
    """A run that ends before its first update leaves nothing, and does not load rich."""
    seen = on_terminal("""
        bar = terminal.open_display(name="train")
        bar.close(snap(100, status="finished"))
        assert "rich" not in sys.modules
    """)
    assert seen.raw == ""


def test_short_run_shows_failures_and_prints() -> None:
    """Failures and prints of a short run are shown all the same."""
    seen = on_terminal("""
        bar = terminal.open_display(name="train")
        bar.printed(3, "stdout", "hello\\nwor")
        bar.printed(4, "stderr", "careful\\n")
        bar.close(snap(98, 2, status="finished"))
    """)
    assert seen.screen == [
        "[3] hello",
        "[4] careful",
        "[3] wor",
        "train  98 of 100 done, 2 failed, finished in 2 s",
        "input 0 (0) failed: ValueError: bad (attempt 1)",
        "input 1 (1) failed: ValueError: bad (attempt 1)",
    ]


def test_failures_are_shown_once_and_counted() -> None:
    """Failures appear above the bar as they come, five of them, and the rest is a number."""
    seen = on_terminal("""
        bar = terminal.open_display(name="train")
        for failed in (0, 1, 3, 8, 20):
            bar.update(snap(50, failed))
        bar.close(snap(70, 30, status="finished"))
    """)
    shown = [line for line in seen.screen if line.startswith("input ")]
    assert [line.split()[1] for line in shown] == ["0", "1", "2", "3", "4"]
    assert seen.screen[-2:] == [
        "train  70 of 100 done, 30 failed, finished in 2 s",
        "and 25 more: run.failures",
    ]


def test_prints_stand_above_the_bar() -> None:
    """What inputs and the script itself print stays, whole and in order, above the bar."""
    seen = on_terminal("""
        before = sys.stdout, sys.stderr
        bar = terminal.open_display(name="train")
        bar.update(snap(10))
        bar.printed(1, "stdout", "from far\\n")
        print("mine", 1)
        print("x" * 150)
        print("to stderr", file=sys.stderr)
        print("a", end="")
        bar.update(snap(20))
        print("b")
        time.sleep(0.06)
        bar.update(snap(30))
        print("unfinished", end="")
        bar.close(snap(100, status="finished"))
        assert (sys.stdout, sys.stderr) == before
        print("after")
    """)
    assert seen.screen == [
        "[1] from far",
        "mine 1",
        "x" * 150,
        "to stderr",
        "ab",
        "unfinished",
        "train  100 of 100 done, finished in 2 s",
        "after",
    ]


def test_piped_stdout_stays_clean() -> None:
    """With stdout in a pipe, it carries what was printed and nothing else; the bar is on stderr."""
    seen = on_terminal(
        """
        bar = terminal.open_display(name="train")
        bar.update(snap(10))
        print("y" * 300)
        bar.printed(5, "stdout", "far\\n")
        bar.close(snap(100, status="finished"))
        """,
        stdout="pipe",
    )
    assert seen.piped == "y" * 300 + "\n[5] far\n"
    assert seen.screen == ["train  100 of 100 done, finished in 2 s"]


def test_runs_share_the_terminal() -> None:
    """Several runs at once have a row each, and each leaves its own line."""
    seen = on_terminal("""
        a, b = terminal.open_display(name="a"), terminal.open_display(name="b")
        for done in (10, 20, 30):
            a.update(snap(done, name="a"))
            b.update(snap(done, total=None, name="b"))
            time.sleep(0.06)
        print("between")
        a.update(snap(40, name="a"))
        assert len(terminal._bars._rows) == 2
        a.close(snap(100, status="finished", name="a"))
        b.update(snap(50, total=None, name="b"))
        b.close(snap(60, total=None, status="cancelled", name="b"))
    """)
    assert seen.screen == [
        "between",
        "a  100 of 100 done, finished in 2 s",
        "b  60 done, cancelled after 2 s",
    ]


def test_more_runs_than_rows() -> None:
    """More runs than the terminal has rows, from as many threads, leave a clean screen."""
    seen = on_terminal(
        """
        def go(n):
            bar = terminal.open_display(name=f"r{n}")
            for done in range(0, 100, 10):
                bar.update(snap(done, name=f"r{n}"))
                time.sleep(0.01)
            bar.close(snap(100, status="finished", name=f"r{n}"))
        threads = [threading.Thread(target=go, args=(n,)) for n in range(12)]
        for t in threads: t.start()
        for t in threads: t.join()
        """,
        size=(6, 80),
    )
    assert sorted(seen.screen) == sorted(
        f"r{n}  100 of 100 done, finished in 2 s" for n in range(12)
    )


def test_narrow_terminal() -> None:
    """A row never wraps, however narrow the terminal and long the name and the note."""
    seen = on_terminal(
        """
        bar = terminal.open_display(name="a_very_long_name_of_a_function_indeed")
        for done in (10, 20):
            bar.update(snap(done, note="2 of 5: the cluster has 2 slots"))
            time.sleep(0.06)
        bar.close(snap(100, status="finished"))
        """,
        size=(24, 30),
    )
    assert seen.screen == ["train  100 of 100 done, finished in 2 s"]


def test_f19_nothing_gets_through_to_the_terminal() -> None:
    """Escapes in names, prints, notes and failures are shown, not obeyed; markup is just text."""
    seen = on_terminal("""
        evil = "\\x1b[2J\\x9b2J\\x1b]0;owned\\x07\\u202e[bold]{task}"
        bar = terminal.open_display(name=evil)
        bar.printed(1, "stdout", evil + "\\n")
        line = FailureLine(0, evil, "user", evil, evil, 1, evil)
        bad = dataclasses.replace(snap(1, 1, name=evil, note=evil), failures=(line,))
        bar.update(bad)
        bar.close(dataclasses.replace(bad, status="finished"))
    """)
    own = re.sub(r"\x1b\[(?:[0-9;]*m|2K|1A)", "", seen.raw)
    assert re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", own) == []
    assert r"\x1b[2J\x9b2J\x1b]0;owned\x07\u202e[bold]{task}" in seen.screen[0]


def test_redirected_stdout_is_left_alone() -> None:
    """A stdout that the script puts away while a bar is there comes back as it was."""
    seen = on_terminal("""
        first = sys.stdout
        bar = terminal.open_display(name="train")
        with contextlib.redirect_stdout(io.StringIO()) as kept:
            bar.update(snap(10))
            print("kept")
        bar.update(snap(20))
        with contextlib.redirect_stdout(io.StringIO()):
            bar.close(snap(100, status="finished"))
        print("shown")
        assert kept.getvalue() == "kept\\n"
        again = terminal.open_display(name="again")
        again.update(snap(10))
        print("shown too")
        again.close(snap(100, status="finished", name="again"))
        assert sys.stdout is first
    """)
    assert seen.screen == [
        "train  100 of 100 done, finished in 2 s",
        "shown",
        "shown too",
        "again  100 of 100 done, finished in 2 s",
    ]


def test_exit_with_a_bar_leaves_a_clean_screen() -> None:
    """A script that ends while a run goes on takes its bar with it."""
    seen = on_terminal("""
        terminal.open_display(name="train").update(snap(10))
        print("bye")
    """)
    assert seen.screen == ["bye"]


def test_a_printing_loop_is_not_slowed() -> None:
    """A script that prints a lot under a bar pays for the text, not for a frame each time."""
    seen = on_terminal(
        """
        bar = terminal.open_display(name="train")
        bar.update(snap(10))
        for n in range(20000):
            print(n)
        bar.close(snap(100, status="finished"))
        """,
    )
    assert seen.screen[:20000] == [str(n) for n in range(20000)]
    assert seen.raw.count("10 of 100") < 400


def test_hang_up_ends_nothing() -> None:
    """A stderr that is closed or broken while a bar is there silences it, and that is all."""
    seen = on_terminal(
        """
        bar = terminal.open_display(name="train")
        bar.update(snap(10))
        os.close(2)
        for done in (20, 30):
            time.sleep(0.06)
            bar.update(snap(done, 3))
        bar.printed(1, "stderr", "lost\\n")
        bar.close(snap(100, status="finished"))
        print("went on")
        """,
        stdout="pipe",
    )
    assert seen.piped == "went on\n"


def test_dumb_terminal_gets_lines() -> None:
    """A terminal that can't move its cursor gets the lines of a log."""
    seen = on_terminal(
        """
        bar = terminal.open_display(name="train")
        bar.update(snap(10))
        bar.close(snap(100, status="finished"))
        assert "rich" not in sys.modules
        """,
        term="dumb",
    )
    assert seen.raw.count("\x1b") == 0
    assert len(seen.screen) == 2


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_log_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """A fast run writes a line for each tenth of its inputs, and a summary."""
    log = terminal.LogLines(clock=Clock())
    for done in range(0, 101, 3):
        log.update(dataclasses.replace(BASE, done=done, waiting=100 - done, running=0))
    log.close(dataclasses.replace(BASE, done=100, waiting=0, running=0, status="finished"))
    log.close(BASE)
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(line.split()[1] for line in lines[:-1]) == "12 21 30 42 51 60 72 81 90"
    assert lines[-1] == "train  100 of 100 done, finished in 500 ms"


def test_log_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """A slow run, or one of unknown length, writes a line every 10 s."""
    for total in (10_000, None):
        clock = Clock()
        log = terminal.LogLines(clock=clock)
        for second in range(95):
            clock.now = 1000.0 + second
            log.update(dataclasses.replace(BASE, total=total, done=second))
        assert len(capsys.readouterr().err.splitlines()) == 9


def test_log_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was never updated leaves nothing, or its failures."""
    terminal.LogLines().close(dataclasses.replace(BASE, status="finished"))
    assert capsys.readouterr().err == ""
    line = FailureLine(7, "7", "user", "ValueError", "bad", 1, "")
    failed = dataclasses.replace(BASE, status="finished", failed=1, failures=(line,))
    terminal.LogLines().close(failed)
    assert "input 7 (7) failed: ValueError: bad (attempt 1)\n" in capsys.readouterr().err


def test_log_shows_failures_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is in the log before the next line is due, once."""
    line = FailureLine(7, "7", "user", "ValueError", "bad", 1, "")
    log = terminal.LogLines(clock=Clock())
    for _ in range(3):
        log.update(dataclasses.replace(BASE, failed=1, failures=(line,)))
    assert capsys.readouterr().err == "input 7 (7) failed: ValueError: bad (attempt 1)\n"


def test_prints_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines go to the stream they came from with their input's index, each whole."""
    log = terminal.LogLines()
    log.printed(1, "stdout", "a")
    log.printed(2, "stdout", "b\n")
    log.printed(1, "stderr", "warned\n")
    log.printed(1, "stdout", "c\n\nd")
    log.printed(3, "stdout", "10%\r50%\r100%\n")
    log.printed(3, "stdout", "a\tb\r\n")
    out, err = capsys.readouterr()
    assert out == "[2] b\n[1] ac\n[1] \n[3] 100%\n[3] a       b\n"
    assert err == "[1] warned\n"
    log.close(dataclasses.replace(BASE, status="finished"))
    assert capsys.readouterr() == ("[1] d\n", "")
    log.printed(1, "stdout", "late")
    assert capsys.readouterr() == ("[1] late\n", "")


def test_endless_line_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Text that never gets a newline does not pile up."""
    log = terminal.LogLines()
    for _ in range(10):
        log.printed(1, "stdout", "x" * 50_000)
    assert capsys.readouterr().out.count("x") == 500_000


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed(), None])
def test_gone_streams(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log whose streams are broken, closed or absent is silent."""
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    display = terminal.open_display(name="train")
    display.update(dataclasses.replace(BASE, done=50))
    display.printed(1, "stdout", "a\n")
    display.printed(1, "stderr", "a\n")
    display.close(dataclasses.replace(BASE, status="finished", failed=1))


def test_ascii_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that can't write a character gets its escape, not an error."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    terminal.LogLines().printed(1, "stdout", "日\n")
    assert raw.getvalue() == b"[1] \\u65e5\n"
