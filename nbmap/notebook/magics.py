"""What `%%remote` and `%nbmap` do.

A cell under `%%remote` goes this way:

    line ── options_of ── options ──────────────────┐
    body ── IPython's own rewriting ── syntax tree ──┴─ each function decorated ── run here

Nothing runs before the line and the body are known to be right. What is wrong with them is told as
a UsageError of at most three lines; what the cell's own code raises, as IPython tells it of any
cell: with the cell's lines, and none of ours.
"""

from __future__ import annotations

import ast
import bdb
import difflib
import itertools
import linecache
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from traceback import walk_tb
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from ..cluster import connect, gpu
from ..errors import NbmapError
from ..handle import RemoteFunction, remote
from ..options import Options, check, from_text, shown
from . import display

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult

__all__ = ["LINE_OPTIONS", "command", "hint", "options_of", "run_cell"]

LINE_OPTIONS = tuple(name for name in Options.__dataclass_fields__ if name != "cluster")
COMMANDS = ("status", "connect", "start", "restart", "stop", "runs", "dashboard", "doctor")
_STARTS_WITH = ("workers", "threads", "memory")

_WIDTH, _LINES = 90, 3  # of a UsageError
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_HELP = {"--help", "-h"}

# Each alternative begins where a word begins. A quote that does not end its word makes it "bare".
_WORD = re.compile(
    r"""
      (?P<comment> \# .* )
    | (?P<name> [^\s=]* ) = (?P<value> "[^"]*" | '[^']*' | [^\s"'] \S* | ) (?= \s | \Z )
    | (?P<bare> \S+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def _usage(message: object) -> UsageError:
    """Return a UsageError of at most three lines that says this."""
    lines = textwrap.wrap(
        str(message), _WIDTH, max_lines=_LINES, placeholder=" …", break_on_hyphens=False
    )
    return UsageError("\n".join(lines))


# --- the line -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Word:
    """One word of a magic's line: `name=value`, or a bare one, which is no value's name."""

    text: str
    name: str | None = None
    value: str = ""
    quoted: bool = False


def _words(line: str) -> list[_Word]:
    """Split a magic's line at its blanks, up to a comment."""
    found: list[_Word] = []
    for match in _WORD.finditer(line):
        if match["comment"] is not None:
            break
        if match["bare"] is not None:
            found.append(_Word(match["bare"]))
            continue
        value = match["value"]
        quoted = value[:1] in {"'", '"'}
        value = value[1:-1] if quoted else value
        found.append(_Word(match[0], match["name"], value, quoted))
    return found


def _pairs(words: list[_Word], known: Iterable[str], example: str) -> Iterator[_Word]:
    """Yield words that are name=value; refuse any other, and a name that comes twice."""
    seen = set()
    for word, after in itertools.zip_longest(words, words[1:]):
        follows = after.text if after is not None else ""
        if word.name is None:
            raise _usage(_why_bare(word.text, follows, known, example))
        if not word.name or (not word.value and not word.quoted):
            raise _usage(_why_half(word, follows, example))
        if word.name in seen:
            raise _usage(f"{shown(word.name)[1:-1]}= is given twice; keep one.")
        seen.add(word.name)
        yield word


def _why_bare(text: str, follows: str, known: Iterable[str], example: str) -> str:
    name, equals, rest = text.partition("=")
    if equals and rest[:1] in {"'", '"'}:
        return (
            f"the quotes in {shown(text)} don't enclose the whole value; "
            'write for example name="my run", with nothing behind the last quote.'
        )
    if follows.startswith("="):
        return f'{shown(text)} has blanks around its "="; write them together, as in {example}.'
    near = difflib.get_close_matches(name[:80].lower(), list(known), 1)
    if near:
        return f"{shown(text)} has no value: write {near[0]}=…, as in {example}."
    return f"{shown(text)} is no option: options are written name=value, as in {example}."


def _why_half(word: _Word, follows: str, example: str) -> str:
    if not word.name or (follows and "=" not in follows):
        return (
            f'{shown(word.text)} has blanks around its "="; write them together, as in {example}.'
        )
    return f"{shown(word.text)} has no value: write one behind it, as in {example}."


def _looked_up(text: str, namespace: Mapping[str, object]) -> object:
    """Return the user's variable that `$name` names; looked up, never evaluated."""
    name = text[1:]
    if not name.isidentifier():
        raise _usage(
            f"{shown(text)} is no variable: behind the $ stands a variable's name and nothing else; "
            "expressions are not evaluated here. Put the value into a variable first."
        )
    if name not in namespace:
        near = difflib.get_close_matches(name, [n for n in namespace if n[:1] != "_"], 1)
        hint = f"; did you mean ${near[0]}?" if near else ". Define it in a cell above."
        raise _usage(f"{shown(text)}: there is no variable {shown(name)}{hint}")
    return namespace[name]


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
    words = _words(line)
    if any(word.text in _HELP for word in words):
        return None
    found: dict[str, object] = {}
    for word in _pairs(words, LINE_OPTIONS, "gpu=A100 concurrency=5"):
        assert word.name is not None
        if word.name == "cluster":
            raise _usage(
                "cluster= is not for this line: choose the notebook's cluster by `%nbmap connect "
                "ADDRESS`, or one function's by @nbmap.remote(cluster=...)."
            )
        if word.value.startswith("$") and not word.quoted:
            found[word.name] = _looked_up(word.value, namespace)
        else:
            found[word.name] = from_text(word.name, word.value)
    try:
        options = check(found)
        gpu.parse(options.get("gpu"))
    except NbmapError as error:
        # Calls are not evaluated here.
        more = (
            " Put that into a variable r and write retries=$r." if "Retries(" in str(error) else ""
        )
        raise _usage(f"{error}{more}") from None
    return options


# --- the body -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a body stands in its notebook.

    Attributes:
        number: the n of In[n].
        raw: the text of the whole notebook cell, if the magic is all there is in it.
        above: lines of the notebook cell above the body.
        result: IPython's record of the cell, to mark it as failed; None where the magic is called
            by other code, which then gets the exception.
    """

    number: int
    raw: str | None
    above: int
    result: ExecutionResult | None


def _place_of(shell: Any, cell: str) -> _Place:
    result = getattr(shell.displayhook, "exec_result", None)
    raw = getattr(getattr(result, "info", None), "raw_cell", None) or ""
    number = getattr(result, "execution_count", None) or shell.execution_count
    ended = raw if raw.endswith("\n") else raw + "\n"
    if not raw.lstrip().startswith("%%") or not ended.endswith(cell):
        return _Place(number, None, 1, None)
    above = ended.removesuffix(cell)
    by_itself = above.lstrip().startswith("%%remote")
    return _Place(number, raw, above.count("\n"), result if by_itself else None)


@dataclass(frozen=True, slots=True)
class _Code:
    """A body, ready to run: its statements, and the trailing expression whose value is shown."""

    statements: CodeType
    expression: CodeType | None


def run_cell(shell: Any, line: str, cell: str, help_text: str) -> Any:
    """Run a cell under `%%remote`: its functions become handles, the rest runs here.

    Args:
        shell: the IPython that it runs in.
        line: what stands behind `%%remote`.
        cell: the lines below.
        help_text: what `%%remote --help` prints.

    Returns:
        The value of the cell's last expression.

    Raises:
        UsageError: the line or the cell is wrong; nothing ran.
    """
    __tracebackhide__ = True
    options = options_of(line, shell.user_ns)
    if options is None:
        print(help_text)  # noqa: T201 - that is what --help does
        return None
    display.install()
    place = _place_of(shell, cell)
    helper = f"__nbmap_remote_{next(_numbers)}__"
    try:
        code = _read(shell, cell, place, helper)
    except (SyntaxError, ValueError, OverflowError, MemoryError) as error:
        if place.result is None:
            raise
        shell.showsyntaxerror()
        place.result.error_before_exec = error
        return None
    shell.user_ns[helper] = lambda name: lambda function: _handle(name, function, options)
    try:
        return _execute(shell, code)
    except (SystemExit, bdb.BdbQuit, *shell.custom_exceptions):
        raise  # IPython has a way of its own with these
    except BaseException as error:
        if place.result is None:
            raise
        _show(shell, error)
        place.result.error_in_exec = error
        return None
    finally:
        shell.user_ns.pop(helper, None)


_numbers = itertools.count(1)


def _show(shell: Any, error: BaseException) -> None:
    """Show an exception of the cell as if IPython had run the cell itself.

    Raised on, it would come with frames of ours, of IPython's `run_cell_magic` and of the cell that
    IPython made of the magic. So it is shown here, without them, and the caller marks the cell as
    failed. What IPython expects on top and leaves out is its own frame that runs code.
    """
    traceback = error.__traceback__  # run_cell, _execute, the user's frames
    for _ in range(2):
        traceback = traceback.tb_next if traceback is not None else None
    runs: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented way to look at callers
    while runs is not None and runs.f_code.co_name != "run_code":
        runs = runs.f_back
    if runs is not None:
        traceback = TracebackType(traceback, runs, runs.f_lasti, runs.f_lineno)
    shell.showtraceback((type(error), error.with_traceback(traceback), traceback))


def _execute(shell: Any, code: _Code) -> Any:
    __tracebackhide__ = True
    exec(code.statements, shell.user_global_ns, shell.user_ns)  # noqa: S102 - it is the user's cell
    if code.expression is None:
        return None
    return eval(code.expression, shell.user_global_ns, shell.user_ns)  # noqa: S307 - as above


def _read(shell: Any, cell: str, place: _Place, helper: str) -> _Code:
    """Compile a body with its functions decorated; lines are numbered as in the notebook cell.

    Raises:
        UsageError: it has no function, or a top-level await.
        SyntaxError: it is no Python.
    """
    try:
        # IPython takes empty lines at the beginning away.
        empty = cell[: len(cell) - len(cell.lstrip())].count("\n")
        source = "\n" * (place.above + empty) + shell.transform_cell(cell)
    except SyntaxError:  # its line is not the notebook's; Python finds the same error below
        source = "\n" * place.above + cell
    name = shell.compile.cache(source, place.number, raw_code=place.raw or source)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=name))
    functions = list(_functions_of(tree.body))
    _refuse(tree, functions)
    for function in functions:
        _decorate(function, helper)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    # `shell.compile` remembers the notebook's `from __future__`.
    statements = shell.compile(tree, name, "exec")
    if last is None:
        return _Code(statements, None)
    return _Code(statements, shell.compile(ast.Expression(last.value), name, "eval"))


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions_of(statements: Iterable[ast.AST]) -> Iterator[_Function]:
    """Yield the functions that statements define at module level, in blocks of theirs too."""
    for statement in statements:
        if isinstance(statement, _Function):
            yield statement
        elif not isinstance(statement, ast.ClassDef | ast.expr):
            yield from _functions_of(ast.iter_child_nodes(statement))


def _refuse(tree: ast.Module, functions: list[_Function]) -> None:
    if (line := _awaits_in(tree)) is not None:
        raise _usage(
            f"line {line} waits with await or async at the top level of the cell, which %%remote "
            "can't run: put it into a cell of its own."
        )
    if not functions:
        raise _usage(
            "this cell defines no function at its top level, so there is nothing for %%remote to "
            "run on the cluster, and nothing ran. Define one with def, or take the line out."
        )


def _awaits_in(node: ast.AST) -> int | None:
    """Return the line of the first await, async for or async with outside of functions."""
    if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
        return node.lineno
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, _Function):
        children = [*node.decorator_list, node.args]  # those run at the top level
    elif isinstance(node, ast.Lambda):
        children = [node.args]
    for child in children:
        if isinstance(child, ast.comprehension) and child.is_async:
            return child.iter.lineno
        if (line := _awaits_in(child)) is not None:
            return line
    return None


def _decorate(function: _Function, helper: str) -> None:
    """Put `@helper("name")` above all decorators, without moving the function's first line."""
    at = function.decorator_list[0] if function.decorator_list else function
    call = ast.Call(ast.Name(helper, ast.Load()), [ast.Constant(function.name)], [])
    for node in ast.walk(call):
        if isinstance(node, ast.expr):
            node.lineno, node.col_offset = at.lineno, at.col_offset
            node.end_lineno, node.end_col_offset = at.lineno, at.col_offset
    function.decorator_list.insert(0, call)


def _handle(name: str, function: Any, options: Mapping[str, object]) -> RemoteFunction:
    """Make the handle of one function of the cell."""
    if isinstance(function, RemoteFunction):
        raise _usage(
            f"{name} is decorated with nbmap.remote as well: keep the decorator or %%remote."
        )
    if isinstance(function, type) or not callable(function):
        what = "class" if isinstance(function, type) else type(function).__name__
        raise _usage(
            f"the decorators of {name} make a {shown(what)[1:-1]} of it, and %%remote takes "
            "functions: take them off, or define it in another cell."
        )
    try:
        return remote(function, **options)
    except (NbmapError, TypeError) as error:
        raise _usage(error) from None


# --- square(xs).map() ---------------------------------------------------------------------------


def hint(shell: Any, error: BaseException) -> None:
    """After a cell that failed, say what to write where it maps the output of a call.

    `square(xs).map()` calls square once, with all of xs, and then looks for `map` in its output.

    Args:
        shell: the IPython that ran the cell.
        error: what the cell raised; the lines of it that are the user's are looked at.
    """
    for frame, line in walk_tb(error.__traceback__):
        if frame.f_globals is not shell.user_ns:
            continue
        try:
            tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if (text := _mapped_output(node, line, shell.user_ns)) is not None:
                print(f"nbmap: {text}", file=sys.stderr)  # noqa: T201 - below the traceback
                return


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


# --- %nbmap -------------------------------------------------------------------------------------


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
    words = _words(line)
    if any(word.text in _HELP for word in words):
        print(help_text)  # noqa: T201 - that is what --help does
        return None
    name = words[0].text if words else "status"
    if name not in _COMMANDS:
        begins = [known for known in COMMANDS if known.startswith(name.lower())]
        near = begins or difflib.get_close_matches(name[:80].lower(), COMMANDS, 1)
        wish = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        raise _usage(f"%nbmap can't {shown(name)}; {wish}")
    try:
        return _COMMANDS[name](shell, words[1:])
    except NbmapError as error:
        raise _usage(error) from None


def _nothing_behind(name: str, words: list[_Word]) -> None:
    if words:
        raise _usage(f"%nbmap {name} takes nothing behind it, and found {shown(words[0].text)}.")


def _status(_shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("status", words)
    return connect.status()


def _connect(shell: Any, words: list[_Word]) -> Any:
    if len(words) != 1:
        raise _usage(
            "%nbmap connect takes one address, such as tcp://host:8786, a scheduler file, $client "
            "(your variable client), or none, which undoes it."
        )
    text = words[0].text
    if len(text) > 1 and text[0] == text[-1] and text[0] in {"'", '"'}:
        text = text[1:-1]
    target: object = _looked_up(text, shell.user_ns) if text.startswith("$") else text
    connect.connect(None if text.lower() == "none" else target)
    return connect.status()


def _start(shell: Any, words: list[_Word]) -> Any:
    found: dict[str, Any] = {}
    for word in _pairs(words, _STARTS_WITH, "workers=2 memory=4GiB"):
        assert word.name is not None
        if word.name not in _STARTS_WITH:
            near = difflib.get_close_matches(word.name[:80].lower(), _STARTS_WITH, 1)
            wish = f"did you mean {near[0]!r}?" if near else "there are workers, threads, memory."
            raise _usage(f"%nbmap start has no option {shown(word.name)}; {wish}")
        value: object = word.value
        if value and not word.quoted and word.value.startswith("$"):
            value = _looked_up(word.value, shell.user_ns)
        elif word.name != "memory" and _WHOLE.fullmatch(word.value):
            value = int(word.value)
        found[word.name] = value
    return connect.start(**found)


def _restart(_shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("restart", words)
    return connect.restart()


def _stop(_shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("stop", words)
    connect.stop()
    return connect.status()


def _runs(_shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("runs", words)
    from ..run import runs

    return runs()


def _dashboard(_shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("dashboard", words)
    return _Text(connect.dashboard())


def _doctor(shell: Any, words: list[_Word]) -> Any:
    _nothing_behind("doctor", words)
    from .. import doctor
    from . import extension

    return doctor.examine(magics=extension.loaded(shell))


class _Text(str):
    """Text that is shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_COMMANDS: dict[str, Callable[[Any, list[_Word]], Any]] = {
    "status": _status,
    "connect": _connect,
    "start": _start,
    "restart": _restart,
    "stop": _stop,
    "runs": _runs,
    "dashboard": _dashboard,
    "doctor": _doctor,
}
