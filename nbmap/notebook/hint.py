"""What is said below the traceback of a cell that mapped the output of a call.

`square(xs).map()` calls square once, with all of xs, and then looks for `map` in its output.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Mapping
from traceback import walk_tb
from typing import Any

from ..handle import RemoteFunction

__all__ = ["hint"]

_NOTE, _OF_A_MAP = "nbmap: ", "nbmap: input "  # how notes begin, and those that are no call's


def hint(shell: Any, error: BaseException) -> None:
    """After a cell that failed, say what to write where it maps the output of a call.

    `square(xs).map()` calls square once, with all of xs, and then looks for `map` in its output.

    Args:
        shell: the IPython that ran the cell.
        error: what the cell raised; the lines of it that are the user's are looked at.
    """
    frames = list(walk_tb(error.__traceback__))
    places = [(f.f_code.co_filename, line) for f, line in frames if f.f_globals is shell.user_ns]
    if not places or not _is_about_it(error, inside=frames[-1][0].f_globals is not shell.user_ns):
        return
    filename, line = places[-1]
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if (text := _mapped_output(node, line, shell.user_ns)) is not None:
            print(f"nbmap: {text}", file=sys.stderr)  # noqa: T201 - below the traceback
            return


def _is_about_it(error: BaseException, *, inside: bool) -> bool:
    """Tell whether the output has no such method, or the call with all inputs has failed."""
    if isinstance(error, AttributeError) and error.name in {"map", "starmap"}:
        return True
    notes = getattr(error, "__notes__", ())
    return inside and any(n.startswith(_NOTE) and not n.startswith(_OF_A_MAP) for n in notes)


def _mapped_output(node: ast.AST, line: int, namespace: Mapping[str, object]) -> str | None:
    match node:
        case ast.Call(
            func=ast.Attribute(
                value=ast.Call(func=ast.Name(id=name), args=inner),
                attr="map" | "starmap" as method,
            ),
            args=outer,
            lineno=first,
            end_lineno=last,
        ) if first <= line <= (last or first) and isinstance(namespace.get(name), RemoteFunction):
            inputs = ", ".join(ast.unparse(argument) for argument in inner or outer)
            inputs = inputs if len(inputs) <= 60 else "..."
            return (
                f"{name}({inputs}) is one call of {name}; "
                f"to call it with each input, write {name}.{method}({inputs})"
            )
    return None
