"""A cell under %%remote: its functions become handles, the rest runs as in any cell."""

from __future__ import annotations

import sys
import textwrap

import pytest

import nbmap


def cell(text, line=""):
    """Return the text of a cell under %%remote."""
    return f"%%remote {line}\n" + textwrap.dedent(text)


def test_each_function_of_the_cell_becomes_a_handle(notebook):
    """Several at once, with the line's options each; further down they are handles already."""
    ran = notebook.run(
        cell(
            """\
            def square(x):
                return x * x
            def double(x):
                return 2 * x
            kinds = [type(square).__name__, type(double).__name__]
            """,
            "concurrency=2",
        )
    )
    assert ran.error is None
    assert notebook.ns["kinds"] == ["RemoteFunction"] * 2
    assert repr(notebook.ns["square"]) == "<nbmap handle square, concurrency=2>"
    assert list(notebook.ns["double"].map([1, 2, 3])) == [2, 4, 6]


def test_functions_in_blocks_at_module_level_become_handles(notebook):
    """In if, try, with, for and while; not those inside functions and classes."""
    ran = notebook.run(
        cell(
            """\
            import contextlib
            if True:
                def a(): return 1
            try:
                def b(): return 2
            finally:
                with contextlib.nullcontext():
                    def c(): return 3
            for _ in [1]:
                def d():
                    def inner(): return 4
                    return inner
            while True:
                def e(): return 5
                break
            match 1:
                case 1:
                    def g(): return 6
            class Holder:
                def method(self): return 7
            """
        )
    )
    assert ran.error is None
    for name in "abcdeg":
        assert isinstance(notebook.ns[name], nbmap.RemoteFunction), name
    assert not isinstance(notebook.ns["d"].local(), nbmap.RemoteFunction)
    assert notebook.ns["Holder"]().method() == 7


def test_every_kind_of_function_becomes_a_handle(notebook):
    """Async functions and generators too."""
    assert notebook.run(
        cell("async def a(x): return x\ndef g(x): yield x\nasync def ag(x): yield x\n")
    ).result.success
    assert notebook.run("a(1), list(g(2)), list(ag.map([3, 4])) == [3, 4]").value[:2] == (1, [2])
    assert all(isinstance(notebook.ns[name], nbmap.RemoteFunction) for name in ("a", "g", "ag"))


def test_the_value_of_the_last_expression_is_shown(notebook):
    """As in any cell it becomes Out, unless a semicolon ends it."""
    assert notebook.run(cell("def f(x): return x\nf(3)")).value == 3
    silent = notebook.run(cell("def f(x): return x\nf(4);"))
    assert (silent.value, silent.out) == (None, "")
    statement = notebook.run(cell("f2 = 5\ndef f(x): return x\n"))
    assert (statement.value, statement.out) == (None, "")


def test_shell_commands_and_line_magics_work_in_the_cell(notebook):
    """IPython's own syntax is rewritten first, as in any cell."""
    ran = notebook.run(cell("def f(x): return x\nsaid = !echo hello\nplace = %pwd\n"))
    assert ran.error is None
    assert list(notebook.ns["said"]) == ["hello"]
    assert notebook.ns["place"]


def test_nothing_of_the_line_or_the_cell_is_expanded(notebook):
    """Neither {braces} nor $dollars are IPython's here."""
    notebook.ns["x"] = 3
    ran = notebook.run(cell("def f(y): return '{x} $x'\nf(0)", "name={x}"))
    assert ran.value == "{x} $x"
    assert notebook.ns["f"].__name__ == "{x}"


def test_a_variable_on_the_line_is_the_notebooks(notebook):
    """`$name` is looked up when the cell runs."""
    notebook.run("n = 7")
    notebook.run(cell("def f(y): return y", "concurrency=$n"))
    assert "concurrency=7" in repr(notebook.ns["f"])


def test_recursion_classes_and_constants_of_the_cell_work(notebook):
    """What the function uses of the cell travels with it."""
    ran = notebook.run(
        cell(
            """\
            import dataclasses
            BASE = 10
            @dataclasses.dataclass
            class Point:
                x: int
            def factorial(n):
                return 1 if n < 2 else n * factorial(n - 1)
            def point(n):
                return Point(BASE + n).x
            factorial(5), list(point.map([1, 2]))
            """
        )
    )
    assert ran.value == (120, [11, 12]), ran.text


def test_other_decorators_apply_first(notebook):
    """The handle's is the outermost, and what the others made runs on the cluster."""
    notebook.run("def plus_one(function):\n    return lambda x: function(x) + 1")
    assert notebook.run(cell("@plus_one\ndef f(x): return x\nf(1)")).value == 2


def test_running_the_cell_again_replaces_the_handle(notebook):
    """The old run keeps the old code, the new handle has the new."""
    notebook.run(cell("def f(x): return 'old'\nold = f\nrun = f.map([1, 2])"))
    notebook.run(cell("def f(x): return 'new'"))
    assert list(notebook.ns["run"]) == ["old", "old"]
    assert notebook.ns["f"] is not notebook.ns["old"]
    assert notebook.ns["f"](1) == "new"


def test_future_imports_hold_for_the_cell(notebook):
    """The cell is compiled as IPython compiles the notebook's cells."""
    text = "from __future__ import annotations\ndef f(x: nowhere): return f.__name__\nf.local(1)"
    try:
        assert notebook.run(cell(text)).value == "f"
    finally:
        notebook.shell.compile.reset_compiler_flags()


def test_the_cell_leaves_nothing_of_nbmap_in_the_namespace(notebook):
    """The name by which functions are decorated is gone again, also after a failure."""
    before = set(notebook.ns)
    notebook.run(cell("def f(x): return x"))
    notebook.run(cell("def f(x): return x\n1/0"))
    added = {name for name in set(notebook.ns) - before if not name.startswith(("_i", "_o"))}
    assert added <= {"f", "_", "__", "___", "_1", "_2"}, added


# What is refused before anything runs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nran = 1\n", "defines no function at its top level"),
        ("\n  \n", "defines no function at its top level"),
        ("class A:\n    def m(self): pass\n", "defines no function at its top level"),
        ("f = lambda x: x\n", "defines no function at its top level"),
        ("ran = 1\ndef f(x): return x\nawait f(1)\n", "line 4 waits with await"),
        ("ran = 1\nasync for x in y: pass\ndef f(x): return x\n", "line 3 waits with await"),
        ("ran = 1\nasync with y: pass\ndef f(x): return x\n", "cell of its own"),
        ("ran = 1\n[x async for x in y]\ndef f(x): return x\n", "cell of its own"),
        ("ran = 1\n@(await g())\ndef f(x): return x\n", "cell of its own"),
    ],
)
def test_a_cell_with_nothing_to_run_remotely_is_refused(notebook, text, told):
    """No function, or a top-level await: said before anything of the cell runs."""
    assert told in " ".join(notebook.refused(cell(text)).split())
    assert "ran" not in notebook.ns


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "import nbmap\n@nbmap.remote\ndef f(x): pass\n",
            "f is decorated with nbmap.remote as well",
        ),
        ("@(lambda f: int)\ndef f(x): pass\n", "the decorators of f make a class of it"),
        ("@(lambda f: None)\ndef f(x): pass\n", "the decorators of f make a NoneType of it"),
    ],
)
def test_what_decorators_make_has_to_be_a_function(notebook, text, told):
    """A handle, a class, or what can't be called is refused with the function's name."""
    assert told in " ".join(notebook.refused(cell(text)).split())


@pytest.mark.parametrize("magic", ["%%time", "%%remote", "%%capture out"])
def test_another_cell_magic_below_is_refused(notebook, magic):
    """With the place where it belongs; nothing of the cell runs."""
    told = notebook.refused(f"%%remote\n\n{magic}\ndef f(x): return x\nran = 1\n")
    assert told.startswith(f"{magic.split()[0]} stands below %%remote")
    assert "ran" not in notebook.ns


@pytest.mark.parametrize("above", ["%%time", "%%capture out"])
def test_another_cell_magic_above_has_the_cell_run(notebook, above):
    """What it does with a cell it does with this one."""
    ran = notebook.run(f"{above}\n%%remote\ndef f(x): return x\ny = f(1)\n")
    assert ran.error is None
    assert notebook.ns["y"] == 1


def test_the_text_of_a_cell_may_come_from_anywhere(notebook):
    """With Windows' line ends, indented as a whole, by tabs."""
    for text in ("def f(x):\r\n    return x + 1\r\nf(1)", "\tdef f(x):\n\t\treturn x + 1\n\tf(1)"):
        assert notebook.run(f"%%remote\n{text}").value == 2
    ran = notebook.run("%%remote\r\ndef f(x):\r\n    return x\r\n1/0  # here\r\n")
    assert "----> 4 1/0  # here" in ran.out


def test_a_deeply_nested_cell_fails_as_elsewhere(notebook):
    """What Python can compile, we can look at; what it can't is told without our frames."""
    head = "def f(x): return x\n"
    assert notebook.run(cell(head + "y = " + "+".join("1" * 900) + "\ny")).value == 900
    ran = notebook.run(cell(head + "y = " + "-" * 100_000 + "1"))
    assert isinstance(ran.error, (RecursionError, MemoryError, SyntaxError))
    assert "cell.py" not in ran.text


def test_a_syntax_error_while_the_cell_runs_is_shown_as_elsewhere(notebook):
    """With the cell's line, since the error is not in the cell's own text."""
    ran = notebook.run(cell("def f(x): return x\nexec('1 +')  # here\n"))
    assert isinstance(ran.error, SyntaxError)
    assert "exec('1 +')  # here" in ran.out


def test_help_is_printed_and_nothing_runs(notebook):
    """`--help` and `-h`, with and without a body."""
    for text in ("%%remote --help", "%%remote -h", cell("ran = 1\ndef f(): pass", "--help")):
        ran = notebook.run(text)
        assert ran.error is None
        assert "concurrency" in ran.out
    assert not {"ran", "f"} & set(notebook.ns)


def test_a_terminal_waits_for_the_body(notebook):
    """The magic's line by itself is not a whole cell yet, but help is."""
    check = notebook.shell.check_complete
    assert check("%%remote gpu=A100")[0] == "incomplete"
    assert check("%%remote\ndef f(x): return x")[0] == "incomplete"
    assert check("%%remote\ndef f(x): return x\n\n")[0] == "complete"
    assert check("%%remote --help")[0] == "complete"


# What goes wrong in the user's code


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("def f(x):\n    return x +\n", 3, "    return x +"),
        ("\n\n\ndef f(x):\n    return x +\n", 6, "    return x +"),
        ("def f(x):\n  return x\n return 2\n", 4, " return 2"),
        ("ran = 1\ndef f(x): return x\nreturn 3\n", 4, "return 3"),
        ("ran = 1\ndef f(x):\n    nonlocal y\n", 4, "nonlocal y"),
        ("ran = 1\ndef f(x): return [await y async for y in x]\n", 3, "def f(x)"),
    ],
)
def test_a_syntax_error_points_at_the_users_line(notebook, text, line, told):
    """With the notebook cell's line number, a caret, and no frame of ours; nothing ran."""
    ran = notebook.run(cell(text))
    assert isinstance(ran.error, SyntaxError)
    assert ran.error.lineno == line
    assert f", line {line}" in ran.out
    assert told in ran.out
    assert "^" in ran.out
    assert "cell.py" not in ran.text
    assert not ran.result.success
    assert "ran" not in notebook.ns


def test_an_exception_shows_the_cells_lines_only(notebook):
    """Numbered as in the notebook, under the cell's own name, with none of our frames."""
    ran = notebook.run("\n" + cell("\n\ndef f(x):\n    return x\n\n\n1/0  # here\n"))
    assert isinstance(ran.error, ZeroDivisionError)
    assert not ran.result.success
    number = ran.result.execution_count
    assert f"Cell In[{number}], line 9" in ran.out
    assert "1/0  # here" in ran.out
    for alien in (
        "cell.py",
        "extension.py",
        "run_cell_magic",
        "skipping hidden",
        "interactiveshell",
    ):
        assert alien not in ran.text


def test_an_exception_looks_as_in_a_cell_without_the_magic(notebook):
    """Line for line the same text, but for the number of the cell and the magic's line."""
    body = "def f(x):\n    return g(x)\ndef g(x):\n    return x / 0\nlist(map(f.local, [1]))\n"
    ran = notebook.run(cell(body))
    plain = notebook.run("\n" + body.replace("f.local", "f"))
    assert ", line 6" in ran.out
    assert ran.out.count("ZeroDivisionError") == plain.out.count("ZeroDivisionError")


def test_a_remote_exception_shows_the_users_remote_lines(notebook):
    """The function's own line, as it stands in the cell, is in the traceback."""
    ran = notebook.run(cell("def f(x):\n    y = x\n    return y / 0  # far away\nf(1)\n"))
    assert isinstance(ran.error, ZeroDivisionError)
    assert "return y / 0  # far away" in ran.out
    assert "f(1)" in ran.out


def test_the_debugger_and_tb_have_the_users_frames(notebook):
    """sys.last_value is the cell's exception, and its innermost frame the user's."""
    notebook.run(cell("def f(x): return x\ninner = 1\n1/0\n"))
    assert isinstance(sys.last_value, ZeroDivisionError)
    names, traceback = [], sys.last_value.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names == ["run_code", "<module>"]
    again = notebook.run("%tb")
    assert "1/0" in again.text


def test_code_that_calls_the_magic_gets_the_exception(notebook):
    """Only a cell of its own shows it; a caller can catch it."""
    ran = notebook.run(
        "try:\n"
        "    get_ipython().run_cell_magic('remote', '', 'def f(x): return x\\n1/0')\n"
        "except ZeroDivisionError:\n"
        "    caught = True\n"
    )
    assert ran.error is None
    assert notebook.ns["caught"]


def test_system_exit_and_usage_errors_are_ipythons(notebook):
    """What has a meaning to IPython keeps it."""
    with pytest.warns(UserWarning, match="To exit"):
        ran = notebook.run(cell("def f(x): return x\nraise SystemExit(3)\n"))
    assert isinstance(ran.error, SystemExit)
    ran = notebook.run(cell("def f(x): return x\n%nonsense\n"))
    assert "UsageError" in ran.err
    assert not ran.result.success


def test_a_failed_cell_is_one_to_ipython(notebook):
    """Also in the flag that prompts and other extensions look at."""
    notebook.run(cell("def f(x): return x\n"))
    assert notebook.shell.last_execution_succeeded
    notebook.run(cell("def f(x): return x\n1/0\n"))
    assert not notebook.shell.last_execution_succeeded


def test_handlers_that_the_user_set_for_exceptions_are_asked(notebook):
    """IPython's set_custom_exc holds for these cells too."""
    handled = []

    def handler(shell, kind, error, traceback, tb_offset=None):
        handled.append(error)

    notebook.shell.set_custom_exc((ZeroDivisionError,), handler)
    try:
        ran = notebook.run(cell("def f(x): return x\n1/0\n"))
    finally:
        notebook.shell.set_custom_exc((), None)
    assert handled == [ran.error]


@pytest.mark.parametrize("kind", [nbmap.OptionError, nbmap.NoMatchingGPU, nbmap.ClusterError])
def test_what_nbmap_refuses_is_one_line_in_any_cell(notebook, kind):
    """Errors of options and clusters come without a traceback; it would only show our own code."""
    notebook.ns["kind"] = kind
    ran = notebook.run("raise kind('what to do')")
    assert ran.out.strip() == f"{kind.__name__}: what to do"
    assert not ran.result.success


def test_a_call_that_no_gpu_fits_is_one_line(notebook):
    """As a user meets it: the handle is made, and its first call says what is wrong."""
    notebook.run(cell("def f(x): return x", "gpu=T4"))
    ran = notebook.run("f(1)")
    assert ran.out.startswith("NoMatchingGPU: gpu=")
    assert len(ran.out.strip().splitlines()) == 1
