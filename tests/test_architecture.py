"""The house of the design: who may import whom, and the one home of each third-party library."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nbmap"

# From top to bottom; a module imports of nbmap what lies below it, or beside it in its own layer.
# The first pattern that fits a module decides.
LAYERS = [
    ["notebook", "cli", "__main__"],
    ["doctor", "app"],
    ["handle"],
    ["call", "nested"],
    ["run"],
    ["view", "engine.driver", "cluster"],
    ["engine.streams", "engine.seen"],
    ["engine.outcomes", "engine.reading", "engine.recent", "engine.series"],
    ["engine.state", "engine.transport", "worker", "view.render", "cluster.gpu"],
    ["engine.pickling"],
    ["engine.model", "engine.memory", "engine.interrupts", "options", "errors", "twins"],
]
# Within a layer: what these may import of the others there; the rest may import any.
BESIDE = {
    "view": [],
    "call": [],
    "nested": [],
    "engine.driver": [],
    "engine.outcomes": [],
    "engine.reading": [],
    "engine.recent": [],
    "engine.seen": [],
    "engine.series": [],
    "engine.state": [],
    "engine.transport": ["worker"],
    "worker": [],
    "view.render": [],
    "cluster.gpu": [],
}

# Library -> the modules that may import it.
HOMES = {
    "distributed": ["cluster"],
    "dask_cuda": ["cluster"],
    "cuda": ["worker.gpus"],
    "pynvml": ["worker.gpus"],
    "dask": ["cluster", "options"],
    "anywidget": ["view.widget"],
    "ipywidgets": ["view.widget"],
    "traitlets": ["view.widget", "notebook"],
    "rich": ["view.terminal"],
    "IPython": ["notebook"],
    "ipykernel": ["notebook"],
    "click": ["cli"],
    "pandas": ["run"],
    "cloudpickle": ["engine.pickling", "engine.transport", "worker", "cluster"],
    "cryptography": ["cluster"],
}

FAR = ["worker", "errors", "engine.model", "engine.pickling", "cluster.relay", "cluster.far"]
PURE = {
    "engine.state": ["__future__", "bisect", "collections", "dataclasses", "math", "typing"],
    "engine.model": ["__future__", "dataclasses", "typing"],
}


def modules():
    """Return module name (without nbmap.) -> path, of all modules that are there."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


MODULES = modules()


class Imports(ast.NodeVisitor):
    """Collects what a module imports, but for what only type checkers see."""

    def __init__(self, module, path):
        self.package = ["nbmap", *(module.split(".") if module else [])]
        if path.name != "__init__.py":
            self.package.pop()
        self.found = []  # (line, full name)

    def visit_If(self, node):
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        for child in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node):
        self.found += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node):
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        base = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            is_module = name.removeprefix("nbmap.") in MODULES and name.startswith("nbmap.")
            self.found.append((node.lineno, name if is_module else base))

    def visit_Call(self, node):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = called or getattr(node.func, "id", "")
        if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
            self.found.append((node.lineno, str(node.args[0].value)))
        self.generic_visit(node)


def imports(module):
    """Return (line, full name) of all that a module imports."""
    visitor = Imports(module, MODULES[module])
    visitor.visit(ast.parse(MODULES[module].read_text("utf-8")))
    return visitor.found


def inside(module, patterns):
    """Tell whether a module is one of those, or lies in one of those packages."""
    return any(module == pattern or module.startswith(pattern + ".") for pattern in patterns)


def layer_of(module):
    """Return (number of the layer, the pattern that put it there); the longest pattern decides."""
    fits = [
        (len(pattern), number, pattern)
        for number, layer in enumerate(LAYERS)
        for pattern in layer
        if inside(module, [pattern])
    ]
    return max(fits)[1:] if fits else (None, "")


def told(module, line, name, rule):
    return f"{MODULES[module]}:{line} imports {name}: {rule}"


NAMES = sorted(name for name in MODULES if name)


@pytest.mark.parametrize("module", [name for name in NAMES if MODULES[name].stat().st_size > 200])
def test_each_module_has_a_layer(module):
    """A new module is put into a layer before anybody imports it."""
    assert layer_of(module)[1], (
        f"nbmap/{module} is in no layer of design.md §4: add it to LAYERS in this test and to the "
        "house in the design, at the height where its imports point down"
    )


@pytest.mark.parametrize("module", NAMES)
def test_imports_point_down(module):
    """No module imports one of a layer above, nor one beside that it has nothing to do with."""
    own, pattern = layer_of(module)
    refused = []
    for line, name in imports(module):
        other = name.removeprefix("nbmap.")
        if not name.startswith("nbmap.") or other == module:
            continue
        theirs, there = layer_of(other)
        if theirs is None:  # a package whose __init__ is empty
            continue
        if theirs < own:
            rule = (
                f"{there} is in a layer above {pattern}. Hand what is needed down as an argument, "
                f"or move it to a module that both may import ({' · '.join(LAYERS[-1])})"
            )
            refused.append(told(module, line, name, rule))
        elif theirs == own and there != pattern and not inside(other, BESIDE.get(pattern, [other])):
            rule = f"{pattern} and {there} lie side by side and don't know each other"
            refused.append(told(module, line, name, rule))
    assert refused == [], "\n".join(refused)


@pytest.mark.parametrize("module", ["", *NAMES])
def test_each_library_has_one_home(module):
    """Third-party libraries are imported where the design says, and nowhere else."""
    refused = []
    for line, name in imports(module):
        library = name.partition(".")[0]
        if library in sys.stdlib_module_names or library == "nbmap":
            continue
        homes = HOMES.get(library)
        if homes is None:
            rule = "this library has no home: say in HOMES which one module may import it"
            refused.append(told(module, line, name, rule))
        elif not inside(module, homes):
            rule = f"only {', '.join(homes)} may import {library}: call something of theirs instead"
            refused.append(told(module, line, name, rule))
    assert refused == [], "\n".join(refused)


def test_options_read_the_configuration_of_dask_and_nothing_else_of_it():
    """Outside nbmap/cluster Dask is known for its configuration only."""
    names = [name for _, name in imports("options") if name.partition(".")[0] == "dask"]
    assert set(names) <= {"dask.config"}, f"nbmap/options.py imports {names}, allowed: dask.config"


@pytest.mark.parametrize("module", [name for name in NAMES if inside(name, FAR)])
def test_the_far_side_needs_next_to_nothing(module):
    """Workers have the standard library, cloudpickle and Dask, so what is sent uses no more."""
    refused = []
    for line, name in imports(module):
        library, _, rest = name.partition(".")
        allowed = library in sys.stdlib_module_names or library == "cloudpickle"
        allowed = allowed or (library == "distributed" and inside(module, ["cluster"]))
        allowed = allowed or (library == "nbmap" and inside(rest, FAR))
        # Which says so where one is missing; dask-cuda brings both along.
        allowed = allowed or (library in {"cuda", "pynvml"} and module == "worker.gpus")
        if not allowed:
            rule = (
                "this module runs on workers, which may have the standard library, cloudpickle "
                f"and (in nbmap/cluster) distributed; of nbmap only {', '.join(FAR)}"
            )
            refused.append(told(module, line, name, rule))
    assert refused == [], "\n".join(refused)


def shipped():
    """Return the list FAR of cluster/stream.py, read without importing Dask."""
    for node in ast.walk(ast.parse(MODULES["cluster.stream"].read_text("utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FAR":
            return [name.removeprefix("nbmap.") for name in ast.literal_eval(node.value)]
    pytest.fail("nbmap/cluster/stream.py has no tuple FAR any more")
    return []


def test_what_runs_on_workers_is_shipped():
    """Every far module is on the list of what is sent, but those that are sent by other ways."""
    by_other_ways = {"worker.boot", "worker.standin"}
    far = {name for name in NAMES if inside(name, FAR)} - by_other_ways
    missing = far - set(shipped())
    assert not missing, f"{missing} run on workers and are not in FAR of nbmap/cluster/stream.py"


def test_what_is_shipped_comes_after_what_it_imports():
    """The list FAR is in the order of its imports, and complete."""
    seen = []
    for module in shipped():
        path = MODULES.get(module) or MODULES[""]
        names = [] if path.name == "__init__.py" else [name for _, name in imports(module)]
        for name in names:
            if name.startswith("nbmap."):
                other = name.removeprefix("nbmap.")
                assert other in seen, f"{module} imports {other}, which FAR does not send before it"
        seen.append(module.removeprefix("nbmap"))


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_pure_modules_import_no_world(module):
    """The state and the model know no clock, thread, loop or Dask."""
    refused = []
    for line, name in imports(module):
        if name.partition(".")[0] not in PURE[module] and name != "nbmap.engine.model":
            rule = f"{module} is pure; it may import {', '.join(PURE[module])}; leave the rest to "
            refused.append(told(module, line, name, rule + "nbmap/engine/driver.py"))
    assert refused == [], "\n".join(refused)


HEAVY = (
    "distributed dask IPython ipykernel anywidget ipywidgets pandas numpy rich cloudpickle click"
)


def test_importing_nbmap_imports_nothing_heavy():
    """`import nbmap` loads no third-party library, so it takes no time."""
    code = f"import sys, nbmap; print(*sorted(set(sys.modules) & set({HEAVY.split()!r})))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


def test_the_pure_modules_load_alone():
    """The state machine can be used in a process that has only the standard library."""
    code = (
        "import sys; from nbmap.engine import state, model;"
        "print(*sorted(set(sys.modules) & {'asyncio', 'dask', 'distributed', 'cloudpickle'}))"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


def test_the_checks_see_imports_in_functions_and_of_every_form():
    """Lazy imports count, relative ones are resolved, and what only type checkers see does not."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import dask\n"
        "from ..errors import OptionError\n"
        "from . import model\n"
        "def f():\n    import distributed.client\n    importlib.import_module('rich.text')\n"
    )
    visitor = Imports("engine.state", PACKAGE / "engine/state.py")
    visitor.visit(ast.parse(source))
    names = [name for _, name in visitor.found]
    assert names == [
        "typing",
        "nbmap.errors",
        "nbmap.engine.model",
        "distributed.client",
        "rich.text",
    ]
    assert importlib.util.find_spec("nbmap") is not None
