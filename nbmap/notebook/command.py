"""What `%nbmap` does: each of its commands calls the Python twin of the same name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

from ..cluster import connect
from ..errors import NbmapError
from ..options import shown
from .line import Word, asks_for_help, looked_up, pairs, usage, words

__all__ = ["COMMANDS", "START_OPTIONS", "command"]

START_OPTIONS = ("workers", "threads", "memory")

_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)


def command(shell: Any, line: str, help_text: str) -> Any:
    """Do what `%nbmap` was asked for.

    Args:
        shell: the IPython that it runs in.
        line: what stands behind `%nbmap`.
        help_text: what `%nbmap --help` prints.

    Returns:
        What there is to show: what handles run on, runs, a sentence; None for help.

    Raises:
        UsageError: the line is wrong, or it can't be done; says why, in at most three lines.
    """
    __tracebackhide__ = True
    split = words(line)
    if asks_for_help(split):
        print(help_text)  # noqa: T201 - that is what --help does
        return None
    name = split[0].text if split else "status"
    if name not in _DO:
        begins = [known for known in COMMANDS if known.startswith(name.lower())]
        near = begins or difflib.get_close_matches(name[:80].lower(), COMMANDS, 1)
        wish = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        raise usage(f"%nbmap can't {shown(name)}; {wish}")
    try:
        return _DO[name](shell, split[1:])
    except NbmapError as error:
        raise usage(error) from None


def _nothing_behind(name: str, line: list[Word]) -> None:
    if line:
        raise usage(f"%nbmap {name} takes nothing behind it, and found {shown(line[0].text)}.")


def _status(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("status", line)
    return connect.status()


def _connect(shell: Any, line: list[Word]) -> Any:
    if len(line) != 1:
        raise usage(
            "%nbmap connect takes one address, such as tcp://host:8786, a scheduler file, $client "
            "(your variable client), or none, which undoes it."
        )
    text = line[0].text
    if len(text) > 1 and text[0] == text[-1] and text[0] in {"'", '"'}:
        text = text[1:-1]
    target: object = looked_up(text, shell.user_ns) if text.startswith("$") else text
    connect.connect(None if text.lower() == "none" else target)
    return connect.status()


def _start(shell: Any, line: list[Word]) -> Any:
    found: dict[str, Any] = {}
    for name, word in pairs(line, START_OPTIONS, "workers=2 memory=4GiB"):
        if name not in START_OPTIONS:
            near = difflib.get_close_matches(name[:80].lower(), START_OPTIONS, 1)
            wish = (
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(START_OPTIONS)}."
            )
            raise usage(f"%nbmap start has no option {shown(name)}; {wish}")
        if word.is_variable:
            found[name] = looked_up(word.value, shell.user_ns)
        elif name != "memory" and _WHOLE.fullmatch(word.value):
            found[name] = int(word.value)
        else:
            found[name] = word.value
    return connect.start(**found)


def _restart(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("restart", line)
    return connect.restart()


def _stop(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("stop", line)
    connect.stop()
    return connect.status()


def _runs(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("runs", line)
    from ..run import runs

    return runs()


def _dashboard(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("dashboard", line)
    return _Text(connect.dashboard())


def _doctor(_shell: Any, line: list[Word]) -> Any:
    _nothing_behind("doctor", line)
    from .. import doctor

    return doctor.examine(magics=True)  # it was asked for by one


class _Text(str):
    """Text that is shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_DO: dict[str, Callable[[Any, list[Word]], Any]] = {
    "status": _status,
    "connect": _connect,
    "start": _start,
    "restart": _restart,
    "stop": _stop,
    "runs": _runs,
    "dashboard": _dashboard,
    "doctor": _doctor,
}

COMMANDS = tuple(_DO)
