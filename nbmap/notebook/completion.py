"""What TAB offers on the lines of `%%remote` and `%nbmap`; never in a cell's body."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion

from .command import COMMANDS, START_OPTIONS
from .line import LINE_OPTIONS, variables

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext, SimpleMatcherResult

__all__ = ["complete"]

_TIMES = ("30s", "1m", "10m", "1h")
_VALUES = {
    "gpu": ("any", "A100", "A100-80GB", "H100", "H200", "L4", "L40S", "T4", "V100", "A10G", "cpu"),
    "concurrency": ("1", "2", "4", "8"),
    "retries": ("1", "2", "3"),
    "timeout": _TIMES,
    "worker_losses": ("1", "2", "3"),
    "grace": ("1s", "5s", "30s"),
    "wait_for_gpu": _TIMES,
    "workers": ("1", "2", "4"),
    "threads": ("1", "2", "4"),
    "memory": ("1GiB", "2GiB", "4GiB", "8GiB"),
}
_ALIASES = {"concurrency_limit": "concurrency", "max_containers": "concurrency"}

_REMOTE = re.compile(r"%%remote\s(.*)", re.DOTALL)
_NBMAP = re.compile(r"(?:.*=)?\s*%nbmap\s+(.*)", re.DOTALL)


def complete(context: CompletionContext, shell: Any) -> SimpleMatcherResult:
    """Offer what may stand at the cursor.

    Args:
        context: IPython's, with the text and the cursor.
        shell: the IPython, for the user's variables.

    Returns:
        A matcher's result: the names of options that are not given yet, values behind `=`,
        variables behind `$`, and the commands of `%nbmap`; nothing on other lines.
    """
    before = context.text_until_cursor
    above = context.full_text.split("\n")[: context.cursor_line]
    if (line := _REMOTE.match(before)) and not "".join(above).strip():
        return _options(line[1], context.line_with_cursor, LINE_OPTIONS, shell)
    if line := _NBMAP.fullmatch(before):
        return _of_nbmap(line[1], context.line_with_cursor, shell)
    return {"completions": []}


def _of_nbmap(text: str, line: str, shell: Any) -> SimpleMatcherResult:
    command, blank, behind = text.partition(" ")
    if not blank:
        return _offer(COMMANDS, command)
    if command == "start":
        return _options(behind, line, START_OPTIONS, shell)
    if command == "connect" and " " not in behind.strip():
        return _variables(behind, shell) if behind[:1] == "$" else _offer(["none"], behind)
    return {"completions": []}


def _options(text: str, line: str, names: Iterable[str], shell: Any) -> SimpleMatcherResult:
    """Complete the word at the end of `text`: an option's name, or its value."""
    if re.search(r"(?:^|\s)#", text):  # a comment
        return {"completions": []}
    word = re.split(r"\s", text)[-1]
    name, equals, value = word.partition("=")
    if not equals:
        given = {_ALIASES.get(n, n) for n in re.findall(r"(\w+)=", line)}
        return _offer([f"{n}=" for n in names if n not in given], word)
    if value[:1] == "$":
        return _variables(value, shell)
    return _offer(_VALUES.get(_ALIASES.get(name, name), ()), value)


def _variables(text: str, shell: Any) -> SimpleMatcherResult:
    hidden = getattr(shell, "user_ns_hidden", ())
    names = [name for name in variables(shell.user_ns) if name not in hidden]
    return _offer([f"${name}" for name in names], text)


def _offer(texts: Iterable[str], typed: str) -> SimpleMatcherResult:
    """Offer those that begin with what was typed, in whatever case, and nobody else's."""
    found = [text for text in texts if text.lower().startswith(typed.lower())]
    return {
        "completions": [SimpleCompletion(text=text, type="param") for text in found],
        # Not IPython's idea of the word, which begins behind any punctuation.
        "matched_fragment": typed,
        "suppress": bool(found),
        "ordered": True,
    }
