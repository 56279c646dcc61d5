"""The grammar of the lines of `%%remote` and `%nbmap`; pure.

A line is words, up to a comment. A word is `name=value`, whose value may be quoted, or be `$name`:
a variable of the user's, which is looked up and never evaluated. Any other word is bare. What is
wrong with a line is told as a UsageError of at most three lines.
"""

from __future__ import annotations

import difflib
import itertools
import keyword
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from IPython.core.error import UsageError

from ..cluster import gpu
from ..errors import NbmapError
from ..options import Options, check, from_text, shown

__all__ = [
    "LINE_OPTIONS",
    "Word",
    "asks_for_help",
    "looked_up",
    "options_of",
    "pairs",
    "usage",
    "variables",
    "words",
]

LINE_OPTIONS = tuple(name for name in Options.__dataclass_fields__ if name != "cluster")

_WIDTH, _LINES = 90, 3  # of a UsageError

# Each alternative begins where a word begins. A quote that does not end its word makes it "bare".
_WORD = re.compile(
    r"""
      (?P<comment> \# .* )
    | (?P<name> [^\s=]* ) = (?P<value> "[^"]*" | '[^']*' | [^\s"'] \S* | ) (?= \s | \Z )
    | (?P<bare> (?: "[^"]*" | '[^']*' ) (?= \s | \Z ) | \S+ )
    """,
    re.VERBOSE | re.DOTALL,
)


_CURLY = re.compile("[\u2018-\u201f\u00ab\u00bb]")


def usage(message: object) -> UsageError:
    """Return a UsageError of at most three lines.

    Args:
        message: what it says; its text is wrapped, and cut where it is too long.
    """
    lines = textwrap.wrap(
        str(message), _WIDTH, max_lines=_LINES, placeholder=" …", break_on_hyphens=False
    )
    return UsageError("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a line: `name=value`, or a bare one.

    Attributes:
        text: as it was written.
        name: what stands before the `=`; None for a bare word.
        value: what stands behind it, without its quotes.
        quoted: whether it had quotes.
    """

    text: str
    name: str | None = None
    value: str = ""
    quoted: bool = False

    @property
    def is_variable(self) -> bool:
        """Whether the value is `$name`; in quotes it is text."""
        return self.value.startswith("$") and not self.quoted


def words(line: str) -> list[Word]:
    """Split a line at its blanks, up to a comment.

    Args:
        line: any text.
    """
    found: list[Word] = []
    for match in _WORD.finditer(line):
        if match["comment"] is not None:
            break
        if match["bare"] is not None:
            found.append(Word(match["bare"]))
            continue
        value = match["value"]
        quoted = value[:1] in {"'", '"'}
        value = value[1:-1] if quoted else value
        found.append(Word(match[0], match["name"], value, quoted))
    return found


def asks_for_help(line: list[Word]) -> bool:
    """Tell whether one of the words asks for help.

    Args:
        line: the words of a line.
    """
    return any(word.text in {"--help", "-h"} for word in line)


def pairs(line: list[Word], known: Iterable[str], example: str) -> Iterator[tuple[str, Word]]:
    """Yield the words of a line that is all `name=value`, with their names.

    Args:
        line: its words.
        known: the names that may be meant by a word without a value; others are yielded as well.
        example: what a right line looks like.

    Raises:
        UsageError: a word is anything else, or a name comes twice.
    """
    seen = set()
    for word, after in itertools.zip_longest(line, line[1:]):
        follows = after.text if after is not None else ""
        if word.name is None:
            raise usage(_why_bare(word.text, follows, known, example))
        if not word.name or (not word.value and not word.quoted):
            raise usage(_why_half(word, follows, example))
        if word.name in seen:
            raise usage(f"{shown(word.name)[1:-1]}= is given twice; keep one.")
        seen.add(word.name)
        yield word.name, word


def _why_bare(text: str, follows: str, known: Iterable[str], example: str) -> str:
    name, equals, rest = text.partition("=")
    if equals and rest[:1] in {"'", '"'}:
        return (
            f"the quotes in {shown(text)} don't enclose the whole value; "
            'write for example name="my run", with nothing behind the last quote.'
        )
    if _CURLY.search(text):
        return f"the quotes in {shown(text)} are typographic ones; write straight ones, \" or '."
    if follows.startswith("="):
        return f'{shown(text)} has blanks around its "="; write them together, as in {example}.'
    near = difflib.get_close_matches(name[:80].lower(), list(known), 1)
    if near:
        return f"{shown(text)} has no value: write {near[0]}=…, as in {example}."
    return f"{shown(text)} is no option: options are written name=value, as in {example}."


def _why_half(word: Word, follows: str, example: str) -> str:
    if not word.name or (follows and "=" not in follows):
        return (
            f'{shown(word.text)} has blanks around its "="; write them together, as in {example}.'
        )
    return f"{shown(word.text)} has no value: write one behind it, as in {example}."


def looked_up(text: str, namespace: Mapping[str, object]) -> object:
    """Return the user's variable that `$name` names; looked up, never evaluated.

    Args:
        text: the dollar and the name.
        namespace: the user's variables.

    Raises:
        UsageError: it is no name, or there is no such variable.
    """
    name = unicodedata.normalize("NFKC", text[1:])  # as Python reads names
    if not name.isidentifier() or keyword.iskeyword(name):
        raise usage(
            f"{shown(text)} is no variable: behind the $ stands a variable's name and nothing else; "
            "expressions are not evaluated here. Put the value into a variable first."
        )
    if name not in namespace:
        near = difflib.get_close_matches(name, variables(namespace), 1)
        hint = f"; did you mean ${near[0]}?" if near else ". Define it in a cell above."
        raise usage(f"{shown(text)}: there is no variable {shown(name)}{hint}")
    return namespace[name]


def variables(namespace: Mapping[str, object]) -> list[str]:
    """Return the names that may stand behind a `$`, but for those that begin with `_`.

    Args:
        namespace: the user's variables; any object may be a key there.
    """
    names = [name for name in list(namespace) if isinstance(name, str)]
    return sorted(name for name in names if name.isidentifier() and name[0] != "_")


def options_of(line: str, namespace: Mapping[str, object]) -> dict[str, object] | None:
    """Read the options on the line of `%%remote`.

    Args:
        line: what stands behind `%%remote`; any text.
        namespace: the user's variables, for values that are `$name`.

    Returns:
        The options as `nbmap.options.check` returns them; None where help is asked for.

    Raises:
        UsageError: the line is wrong; says what, in at most three lines.

    >>> options_of("concurrency=5 timeout=$t  # every function", {"t": "10m"})
    {'concurrency': 5, 'timeout': 600.0}
    """
    split = words(line)
    if asks_for_help(split):
        return None
    found: dict[str, object] = {}
    for name, word in pairs(split, LINE_OPTIONS, "gpu=A100 concurrency=5"):
        if name == "cluster":
            raise usage(
                "cluster= is not for this line: choose the notebook's cluster by `%nbmap connect "
                "ADDRESS`, or one function's by @nbmap.remote(cluster=...)."
            )
        if word.is_variable:
            found[name] = looked_up(word.value, namespace)
        else:
            found[name] = from_text(name, word.value)
    try:
        options = check(found, known=LINE_OPTIONS)
        gpu.parse(options.get("gpu"))
    except NbmapError as error:
        raise usage(f"{error}{_what_else(split)}") from None
    return options


def _what_else(line: list[Word]) -> str:
    """Return what else there is to say of a line with a wrong value."""
    if any(word.value.startswith(("Retries(", "nbmap.Retries(")) for word in line):
        return " Calls are not evaluated here: put it into a variable r and write retries=$r."
    if any(word.value.endswith(",") and not word.quoted for word in line[:-1]):
        return " Options are separated by blanks, without commas."
    return ""
