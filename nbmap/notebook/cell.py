"""What happens to a cell under `%%remote`.

    line ── options_of ── options ──────────────────┐
    body ── IPython's own rewriting ── syntax tree ──┴─ each function decorated ── run here

Nothing runs before the line and the body are known to be right. What is wrong with them is told as
a UsageError of at most three lines; what the cell's own code raises, as IPython tells it of any
cell: with the cell's lines, and none of ours.
"""

from __future__ import annotations

import ast
import bdb
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import NbmapError
from ..handle import RemoteFunction, remote
from ..options import shown
from . import display
from .line import options_of, usage

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult

__all__ = ["run_cell"]


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
    _refuse_magics_in(cell)
    display.install()
    place = _place_of(shell, cell)
    helper = f"__nbmap_remote_{next(_numbers)}__"
    try:
        code = _read(shell, cell, place, helper)
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
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
    told = (type(error), error.with_traceback(traceback), traceback)
    shell.showtraceback(told, running_compiled_code=True)


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
    functions = list(_functions_of(tree))
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


def _functions_of(tree: ast.Module) -> Iterator[_Function]:
    """Yield the functions that a body defines at module level, in blocks of it too."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, _Function):
            yield node
        elif not isinstance(node, ast.ClassDef | ast.expr):
            left.extend(reversed(list(ast.iter_child_nodes(node))))


def _refuse_magics_in(cell: str) -> None:
    first = cell.split(maxsplit=1)[0] if cell.strip() else ""
    if first.startswith("%%"):
        raise usage(
            f"{shown(first)[1:-1]} stands below %%remote, where functions are expected, and nothing "
            "ran. Put it above %%remote, or take it out."
        )


def _refuse(tree: ast.Module, functions: list[_Function]) -> None:
    if (line := _awaits_in(tree)) is not None:
        raise usage(
            f"line {line} waits with await or async at the top level of the cell, which %%remote "
            "can't run: put it into a cell of its own."
        )
    if not functions:
        raise usage(
            "this cell defines no function at its top level, so there is nothing for %%remote to "
            "run on the cluster, and nothing ran. Define one with def, or take the line out."
        )


def _awaits_in(tree: ast.Module) -> int | None:
    """Return the line of the first await, async for or async with outside of functions."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return node.lineno
        if isinstance(node, ast.comprehension) and node.is_async:
            return node.iter.lineno
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, _Function):
            children = [*node.decorator_list, node.args]  # those run at the top level
        elif isinstance(node, ast.Lambda):
            children = [node.args]
        left.extend(reversed(list(children)))
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
        raise usage(
            f"{name} is decorated with nbmap.remote as well: keep the decorator or %%remote."
        )
    if isinstance(function, type) or not callable(function):
        what = "class" if isinstance(function, type) else type(function).__name__
        raise usage(
            f"the decorators of {name} make a {shown(what)[1:-1]} of it, and %%remote takes "
            "functions: take them off, or define it in another cell."
        )
    try:
        return remote(function, **options)
    except (NbmapError, TypeError) as error:
        raise usage(error) from None
