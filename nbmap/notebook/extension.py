"""What `%load_ext nbmap` puts into IPython: `%%remote`, `%nbmap`, and their completion.

Every kernel of an environment with nbmap loads this when it starts, so it has to cost next to
nothing: what the magics do is imported when one is first used, and only their help is here.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from IPython.core.completer import context_matcher
from IPython.core.magic import (
    Magics,
    cell_magic,
    line_magic,
    magics_class,
    no_var_expand,
    output_can_be_silenced,
)

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext, SimpleMatcherResult
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

__all__ = ["NbmapMagics", "load", "unload"]

# For each shell, what undoes the loading.
_undo: WeakKeyDictionary[InteractiveShell, list[Callable[[], object]]] = WeakKeyDictionary()


@magics_class
class NbmapMagics(Magics):
    """The cell magic `%%remote` and the line magic `%nbmap`."""

    @no_var_expand
    @output_can_be_silenced
    @cell_magic
    def remote(self, line: str, cell: str) -> Any:
        """Make every function that this cell defines run on a Dask cluster.

            %%remote gpu=A100 concurrency=5
            def train(lr):
                ...

        Each function defined at the top level of the cell becomes a handle, with these options:
        `train.map(inputs)` runs many inputs in parallel, `train(0.1)` one, `train.local(0.1)` runs
        it here. They may be async, and may yield. The rest of the cell runs as always. Options are
        written name=value:

        gpu            GPUs for each input: any, A100, A100-80GB:2, 40GB+, "RTX 4090"; default none
        concurrency    inputs that run at once, a whole number from 1 on; default as many as the
                       cluster has slots; also written concurrency_limit or max_containers
        retries        how often an input is tried again that failed or took too long, one second
                       later; $r where r = nbmap.Retries(...) has other delays; default 0
        timeout        time for one attempt: 90 (seconds), 90s, 10m, 1h30m; default none
        worker_losses  workers that an input may take with it before it is lost, from 1 on;
                       default 2
        grace          time that a stopped function gets to end by itself; default 5s
        wait_for_gpu   time to wait for a matching GPU to join; default 0
        name           text for views and logs; default the function's name

        Values with blanks are quoted: name="my run". A value $x is your variable x. What follows
        a # is a comment. Which cluster: see %nbmap?
        """
        __tracebackhide__ = True
        from .cell import run_cell

        return run_cell(self.shell, line, cell, _help_of(NbmapMagics.remote))

    @no_var_expand
    @line_magic
    def nbmap(self, line: str) -> Any:
        """Show and choose the cluster that handles run on.

        %nbmap                        what handles run on now (also: %nbmap status)
        %nbmap connect ADDRESS        run on that Dask cluster: tcp://host:8786, a scheduler
                                      file, or $client, your variable; none undoes it
        %nbmap start                  start nbmap's own cluster on this machine; it starts by
                                      itself when it is needed
            workers=N                 processes, by default one per core
            threads=N                 slots per process, by default 1
            memory=4GiB               per process, by default an equal share
        %nbmap restart                stop nbmap's own cluster and start it as it was
        %nbmap stop                   stop it, and cancel what runs there
        %nbmap runs                   the runs of this notebook
        %nbmap dashboard              where the cluster's dashboard is
        %nbmap doctor                 what is installed, reachable and wrong
        """
        __tracebackhide__ = True
        from .command import command

        return command(self.shell, line, _help_of(NbmapMagics.nbmap))


def _help_of(magic: Callable[..., Any]) -> str:
    return inspect.getdoc(magic) or ""


def load(shell: InteractiveShell) -> None:
    """Register the magics and their completion; once, however often it is called.

    Args:
        shell: the IPython to register them in.
    """
    if shell in _undo:
        return
    undo: list[Callable[[], object]] = []
    _undo[shell] = undo
    _register_magics(shell, undo)
    _register_completion(shell, undo)
    _register_epilogue(shell, undo)
    _let_help_have_no_body(shell, undo)


def unload(shell: InteractiveShell) -> None:
    """Undo `load`: what it replaced is there again; runs and clusters go on.

    Args:
        shell: the IPython that `load` was called with.
    """
    for undo in reversed(_undo.pop(shell, [])):
        undo()


def _register_magics(shell: Any, undo: list[Callable[[], object]]) -> None:
    magics = NbmapMagics(shell=shell)
    undo.append(lambda: shell.configurables.remove(magics))
    for kind, name in (("cell", "remote"), ("line", "nbmap")):
        table = shell.magics_manager.magics[kind]
        mine, before = magics.magics[kind][name], table.get(name)
        table[name] = mine

        def restore(
            table: Any = table, name: str = name, mine: Any = mine, b: Any = before
        ) -> None:
            if table.get(name) is not mine:  # somebody registered another one since
                return
            if b is None:
                del table[name]
            else:
                table[name] = b

        undo.append(restore)


def _register_completion(shell: Any, undo: list[Callable[[], object]]) -> None:
    matchers = getattr(getattr(shell, "Completer", None), "custom_matchers", None)
    if matchers is None:
        return

    @context_matcher(identifier="nbmap")  # type: ignore[untyped-decorator]
    def matcher(context: CompletionContext) -> SimpleMatcherResult:
        line = context.line_with_cursor
        if "%%remote" not in line and "%nbmap" not in line:
            return {"completions": []}
        from . import completion

        return completion.complete(context, shell)

    def remove() -> None:
        with contextlib.suppress(ValueError):
            matchers.remove(matcher)

    matchers.append(matcher)
    undo.append(remove)


def _register_epilogue(shell: Any, undo: list[Callable[[], object]]) -> None:
    """After a cell that failed by `square(xs).map()`, say what to write instead."""

    def after_cell(result: ExecutionResult) -> None:
        if not result.success:  # IPython does not look at what a magic noted there
            shell.last_execution_succeeded = False
        # Without a handle there is nothing to say, and nothing to import.
        if result.error_in_exec is not None and "nbmap.handle" in sys.modules:
            from .hint import hint

            hint(shell, result.error_in_exec)

    shell.events.register("post_run_cell", after_cell)
    undo.append(lambda: shell.events.unregister("post_run_cell", after_cell))


def _let_help_have_no_body(shell: Any, undo: list[Callable[[], object]]) -> None:
    """Have a cell of nothing but `%%remote --help` reach the magic.

    IPython itself refuses a cell magic without a body.
    """

    def add_an_empty_line(lines: list[str]) -> list[str]:
        if len(lines) == 1 and _HELP.match(lines[0]):
            return [lines[0].rstrip("\n") + "\n", "\n"]
        return lines

    shell.input_transformers_cleanup.append(add_an_empty_line)
    undo.append(lambda: shell.input_transformers_cleanup.remove(add_an_empty_line))


_HELP = re.compile(r"%%remote\s+(-h|--help)\s*$")
