"""`%%remote` as a new user meets it: nbmap from its wheel, a new notebook, no set-up."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WHEEL = "ipykernel-6.31"  # the kernel whose environment has the wheel


def run(notebook, *cells):
    """Run cells one after the other, and return what the last of them shows."""
    for cell in cells:
        notebook.run(cell)
        notebook.wait_idle(cell)
    return notebook.text(cells[-1])


@pytest.mark.parametrize("kernel", [WHEEL, "newest"])
def test_s1_v19_a_cell_of_functions_becomes_handles_without_any_set_up(lab, kernel):
    """In a new notebook `%%remote` is there, and all that a cell defines works in remote code."""
    notebook = lab.open(
        [
            "import sys\nsorted({'dask', 'distributed', 'anywidget'} & set(sys.modules))",
            """%%remote concurrency=2
            import dataclasses
            import math

            OFFSET = 100

            @dataclasses.dataclass
            class Point:
                x: int
                y: int

            def length(point):
                return math.hypot(point.x, point.y)

            def factorial(n):
                return 1 if n < 2 else n * factorial(n - 1)

            def shifted(x, by=OFFSET):
                return Point(x + by, 0)

            [length(Point(3, 4)), factorial(5), shifted(1).x]
            """.replace("\n            ", "\n"),
            (
                "print(list(length.map([Point(3, 4), Point(6, 8)])))\n"
                "print(list(factorial.map(range(5))), shifted.map([1])[0])\n"
                "print(length, list(map(factorial, [3, 4])))"
            ),
            "%%remote\ndef factorial(n):\n    return -n",
            "print(factorial(3), factorial.local(3))",
        ],
        kernel=kernel,
    )
    assert run(notebook, 0) == "[]"
    assert run(notebook, 1) == "[5.0, 120, 101]"
    views = re.compile(r"done|\binputs?, ")  # what is under the cell of runs that took a while
    lines = [line for line in run(notebook, 2).splitlines() if line and not views.search(line)]
    assert lines == [
        "[5.0, 10.0]",
        "[1, 1, 2, 6, 24] Point(x=101, y=0)",
        "<nbmap handle length, concurrency=2> [6, 24]",
    ]
    assert run(notebook, 3, 4) == "-3 -3"
    assert notebook.console_errors == []


def test_v19_a_gpu_is_one_line_at_the_first_map(lab):
    """What this machine does not have is said in one line, without a traceback."""
    notebook = lab.open(["%%remote gpu=T4\ndef f(x):\n    return x", "f.map([1])"], kernel=WHEEL)
    assert run(notebook, 0) == ""
    assert len(run(notebook, 1).splitlines()) == 1
    assert "gpu='T4'" in notebook.text(1)


def test_v19_tab_lists_gpus_options_and_the_magic(lab):
    """Completion knows the magic, its options and the names of GPUs."""
    notebook = lab.open([""], kernel=WHEEL)
    assert {"any", "A100", "H100", "L4", "T4"} <= set(notebook.complete(0, "%%remote gpu="))
    assert "concurrency=" in notebook.complete(0, "%%remote gpu=A100 con")
    assert "%%remote" in notebook.complete(0, "%%rem")


def test_a_mistake_on_the_line_is_a_line_and_runs_nothing(lab):
    """A wrong option is told in words, the cell fails, and what stands in it has not run."""
    notebook = lab.open(
        ["%%remote concurency=5\nran = True\ndef f(x):\n    return x", "'ran' in globals()"],
        kernel=WHEEL,
    )
    assert run(notebook, 0) == (
        "UsageError: There is no option 'concurency'; did you mean 'concurrency'?"
    )
    assert run(notebook, 1) == "False"


def test_a_syntax_error_points_at_the_users_own_line(lab):
    """The line number is that of the notebook's cell, and the caret is under the mistake."""
    notebook = lab.open(["%%remote\n\ndef f(x):\n    return x +\n"], kernel=WHEEL)
    text = run(notebook, 0)
    assert "line 4" in text
    assert "return x +" in text
    assert "SyntaxError" in text
    assert "nbmap" not in text


def test_s12_calling_with_all_inputs_says_what_to_write(lab):
    """`square(xs).map()` fails, and a line says that it is written `square.map(xs)`."""
    notebook = lab.open(
        ["%%remote\ndef square(x):\n    return x * x", "square([1, 2]).map()"], kernel=WHEEL
    )
    text = run(notebook, 0, 1)
    assert "TypeError" in text
    assert "square.map(" in text


def test_autoload_can_be_turned_off(lab):
    """With NBMAP_AUTOLOAD=0 there is no magic before `%load_ext nbmap`."""
    notebook = lab.open(
        [
            (
                "import os, subprocess, sys\n"
                'code = \'print("remote" in get_ipython().magics_manager.magics["cell"])\'\n'
                "for autoload in ('0', '1'):\n"
                "    env = os.environ | {'NBMAP_AUTOLOAD': autoload}\n"
                "    print(subprocess.check_output([sys.executable, '-m', 'IPython', '-c', code], env=env, text=True))"
            ),
            "%unload_ext nbmap",
            "%%remote\ndef f(x):\n    return x",
            "%load_ext nbmap",
            "%%remote\ndef f(x):\n    return x",
            "f(3)",
        ],
        kernel=WHEEL,
    )
    assert run(notebook, 0).split() == ["False", "True"]
    assert "not found" in run(notebook, 1, 2)
    assert run(notebook, 3, 4, 5) == "3"


def test_the_help_names_every_option_of_the_line(lab):
    """`%%remote?` opens help with each option."""
    notebook = lab.open(["%%remote?"], kernel=WHEEL)
    notebook.run(0)
    notebook.wait_idle(0)
    pager = notebook.page.locator(".jp-OutputArea, .jp-Tooltip, .jp-Pager").last
    for name in ("gpu", "concurrency", "retries", "timeout", "worker_losses", "grace", "name"):
        expect(pager).to_contain_text(name)
