"""Loading: what `%load_ext nbmap` and the startup file do to IPython and to kernels."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[2] / "jupyter-config" / "ipython" / "startup" / "50-nbmap.py"
HEAVY = {"dask", "distributed", "cloudpickle", "rich", "anywidget", "ipywidgets", "numpy", "pandas"}
MODULES = "import sys; print(*sys.modules)"


def plain(error):
    """Return the traceback that a kernel published, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))


def registered(notebook):
    magics = notebook.shell.magics_manager.magics
    return magics["cell"].get("remote"), magics["line"].get("nbmap")


def footprint(notebook):
    """Return all of IPython's lists that an extension may add to."""
    shell = notebook.shell
    return (
        registered(notebook),
        list(shell.Completer.custom_matchers),
        list(shell.events.callbacks["post_run_cell"]),
        list(shell.input_transformers_cleanup),
        set(shell.user_ns),
    )


def test_loading_is_undone_by_unloading(bare):
    """The magics, the completion and the hooks come and go together."""
    before = footprint(bare)
    bare.shell.extension_manager.load_extension("nbmap")
    assert None not in registered(bare)
    assert footprint(bare)[1:4] != before[1:4]
    bare.shell.extension_manager.unload_extension("nbmap")
    assert footprint(bare) == before


def test_loading_twice_is_loading_once(bare):
    """Also when somebody calls it past IPython's own book-keeping."""
    import nbmap

    bare.shell.extension_manager.load_extension("nbmap")
    once = footprint(bare)
    nbmap.load_ipython_extension(bare.shell)
    assert bare.shell.extension_manager.load_extension("nbmap") == "already loaded"
    assert footprint(bare) == once
    bare.shell.extension_manager.unload_extension("nbmap")
    nbmap.unload_ipython_extension(bare.shell)
    assert registered(bare) == (None, None)


def test_another_cell_magic_of_the_same_name_comes_back(bare):
    """Unloading restores what loading replaced, and leaves what came later."""

    def theirs(line, cell):
        return "theirs"

    table = bare.shell.magics_manager.magics["cell"]
    try:
        bare.shell.register_magic_function(theirs, "cell", "remote")
        bare.shell.extension_manager.load_extension("nbmap")
        assert table["remote"] is not theirs
        bare.shell.extension_manager.unload_extension("nbmap")
        assert table["remote"] is theirs
        bare.shell.extension_manager.load_extension("nbmap")
        bare.shell.register_magic_function(theirs, "cell", "remote")
        bare.shell.extension_manager.unload_extension("nbmap")
        assert table["remote"] is theirs
    finally:
        table.pop("remote", None)


def test_loading_again_and_again_leaves_one_pair_of_magics(bare):
    """What `%reload_ext` replaces is gone from the shell."""
    before = len(bare.shell.configurables)
    for _ in range(3):
        bare.shell.extension_manager.load_extension("nbmap")
        bare.shell.extension_manager.unload_extension("nbmap")
    assert len(bare.shell.configurables) == before


def test_reloading_in_the_middle_of_a_run_leaves_it_going(notebook, tmp_path):
    """`%reload_ext nbmap` replaces the magics; handles and runs are what they were."""
    notebook.ns["path"] = str(tmp_path / "go")
    notebook.run(
        "%%remote\n"
        "def wait(x):\n"
        "    import os, time\n"
        "    while not os.path.exists(path): time.sleep(0.01)\n"
        "    return x\n"
        "run = wait.map([1, 2, 3])\n"
    )
    assert notebook.run("%reload_ext nbmap").error is None
    Path(notebook.ns["path"]).touch()
    assert list(notebook.ns["run"]) == [1, 2, 3]
    assert notebook.run("%%remote\ndef f(x): return x\nf(3)").value == 3


def test_the_startup_file_loads_the_extension_and_leaves_no_name(bare, monkeypatch):
    """As an extension, so that %unload_ext knows of it."""
    monkeypatch.delenv("NBMAP_AUTOLOAD", raising=False)
    names = set(bare.ns)
    document = bare.ns.get("__doc__")
    bare.shell.safe_execfile(str(STARTUP), bare.ns, raise_exceptions=True)
    assert set(bare.ns) == names
    assert bare.ns.get("__doc__") == document
    assert "nbmap" in bare.shell.extension_manager.loaded
    assert None not in registered(bare)


def test_the_startup_file_can_be_turned_off(bare, monkeypatch):
    """NBMAP_AUTOLOAD=0 leaves the kernel as it was."""
    monkeypatch.setenv("NBMAP_AUTOLOAD", "0")
    bare.shell.safe_execfile(str(STARTUP), bare.ns, raise_exceptions=True)
    assert registered(bare) == (None, None)


def test_the_startup_file_leaves_another_magic_alone(bare, monkeypatch):
    """Whoever has a %%remote already keeps it, until %load_ext nbmap."""
    monkeypatch.delenv("NBMAP_AUTOLOAD", raising=False)
    table = bare.shell.magics_manager.magics["cell"]
    table["remote"] = "theirs"
    try:
        bare.shell.safe_execfile(str(STARTUP), bare.ns, raise_exceptions=True)
        assert table["remote"] == "theirs"
    finally:
        del table["remote"]


def test_a_broken_nbmap_does_not_break_the_kernel(bare, monkeypatch):
    """The startup file swallows whatever its import raises."""
    monkeypatch.delenv("NBMAP_AUTOLOAD", raising=False)
    monkeypatch.setitem(sys.modules, "nbmap", None)
    bare.shell.safe_execfile(str(STARTUP), bare.ns, raise_exceptions=True)
    assert registered(bare) == (None, None)


# In kernels


@pytest.fixture
def startup(tmp_path):
    """Put the startup file where kernels of these tests look for it."""
    folder = tmp_path / "ipython" / "profile_default" / "startup"
    folder.mkdir(parents=True)
    shutil.copy(STARTUP, folder)


@pytest.mark.slow
def test_a_new_kernel_knows_the_magics_and_has_imported_nothing(startup, new_kernel):
    """They are registered by the startup file, which adds two modules to a kernel that has none."""
    without = set(new_kernel(NBMAP_AUTOLOAD="0").printed(MODULES).split())
    kernel = new_kernel(NBMAP_AUTOLOAD="1")
    added = set(kernel.printed(MODULES).split()) - without
    assert added == {"nbmap", "nbmap.notebook", "nbmap.notebook.extension"}
    assert "%%remote" in kernel.complete("%%rem")["matches"]
    assert not HEAVY & set(kernel.printed(MODULES).split())


@pytest.mark.slow
def test_a_kernel_without_autoload_loads_by_hand(startup, new_kernel):
    """NBMAP_AUTOLOAD=0 turns the startup file off; %load_ext nbmap works."""
    kernel = new_kernel(NBMAP_AUTOLOAD="0")
    reply, _ = kernel.run("%%remote\ndef f(x): return x")
    assert (reply["status"], reply["ename"]) == ("error", "UsageError")
    kernel.printed("%load_ext nbmap")
    assert kernel.printed("%%remote\ndef f(x): return x\nf.local(3)") == "3\n"


@pytest.mark.slow
def test_a_failing_cell_fails_in_the_kernel_too(new_kernel):
    """So that Run All stops: for a syntax error, an exception, and a wrong line."""
    kernel = new_kernel(NBMAP_AUTOLOAD="0", DASK_SCHEDULER_ADDRESS="tcp://127.0.0.1:1")
    kernel.printed("%load_ext nbmap")
    cells = {
        "%%remote\ndef f(x):\n    return x +\n": "SyntaxError",
        "%%remote\ndef f(x):\n    return x\n1/0\n": "ZeroDivisionError",
        "%%remote concurency=3\ndef f(x): return x\n": "UsageError",
        "%%remote\nx = 1\n": "UsageError",
        "%%remote gpu=T4\ndef f(x): return x\nf(3)\n": "ClusterError",
    }
    for text, name in cells.items():
        reply, published = kernel.run(text)
        assert (reply["status"], reply["ename"]) == ("error", name)
        errors = [content for kind, content in published if kind == "error"]
        assert len(errors) == (name != "UsageError"), text
        shown = "".join(map(plain, errors))
        assert "cell.py" not in shown
        assert "run_cell_magic" not in shown
    reply, published = kernel.run("%%remote\ndef f(x):\n    return x\n\n1/0\n")
    (error,) = [content for kind, content in published if kind == "error"]
    assert "line 5" in plain(error)


@pytest.mark.slow
def test_a_notebook_maps_its_functions(new_kernel):
    """The whole way in a real kernel, on a cluster of its own; semicolons silence."""
    kernel = new_kernel(NBMAP_AUTOLOAD="0")
    kernel.printed("%load_ext nbmap")
    kernel.printed("%nbmap start workers=1 memory=1GiB")
    cell = (
        "%%remote concurrency=2  # both functions, isn't it nice\n"
        "import math\n"
        "class Shape:\n"
        "    def __init__(self, r): self.r = r\n"
        "def area(shape):\n"
        "    return math.floor(math.pi * shape.r ** 2)\n"
        "def fail(x):\n"
        "    raise ValueError(f'no {x}')  # on purpose\n"
        "sorted(area.map([Shape(1), Shape(2)]))"
    )
    assert kernel.printed(cell).strip().endswith("[3, 12]")
    assert "[3, 12]" not in kernel.printed(cell + ";")
    reply, published = kernel.run("list(fail.map([1]))")
    assert reply["ename"] == "ValueError"
    (error,) = [content for kind, content in published if kind == "error"]
    assert "----> 8     raise ValueError(f'no {x}')" in plain(error)
    assert "----> 1 list(fail.map([1]))" in plain(error)
    assert not [name for name in ("handle.py", "run.py", "driver.py") if name in plain(error)]
    kernel.printed("%nbmap stop")


@pytest.mark.slow
def test_completion_reaches_the_front_end(new_kernel):
    """By the kernel's own protocol: what is replaced is what follows the equals sign."""
    kernel = new_kernel(NBMAP_AUTOLOAD="0")
    kernel.printed("%load_ext nbmap")
    reply = kernel.complete("%%remote gpu=A")
    assert {"A100", "A100-80GB"} <= set(reply["matches"])
    assert (reply["cursor_start"], reply["cursor_end"]) == (13, 14)
    assert kernel.complete("%%remote gpu=")["cursor_start"] == 13
