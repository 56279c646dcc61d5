"""What is said below a cell that mapped the output of a call."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("under", ["", "%%remote\ndef other(x): return x\n"])
@pytest.mark.parametrize("body", ["return x", "return x * x"], ids=["returns", "raises"])
def test_mapping_the_output_of_a_call_is_explained(notebook, body, under):
    """`square(xs).map()` raises, and one line says what to write instead."""
    notebook.run(f"%%remote\ndef square(x):\n    {body}\nxs = [1, 2]")
    ran = notebook.run(f"{under}square(xs).map()")
    assert isinstance(ran.error, (AttributeError, TypeError))
    told = [line for line in ran.err.splitlines() if line.startswith("nbmap: ")]
    assert told == [
        "nbmap: square(xs) is one call of square; to call it with each input, write square.map(xs)"
    ]


def test_other_failures_are_not_explained(notebook):
    """Only the line that failed counts, and only handles."""
    notebook.run("%%remote\ndef square(x): return x")
    for text in ("1/0\nsquare([1]).map()", "'a'.map()", "len([1]).map()", "square.maps"):
        assert "nbmap: " not in notebook.run(text).err


def test_an_output_that_has_a_map_of_its_own_is_not_explained(notebook):
    """Where the output can be mapped, what the mapped function raises is about that function."""
    notebook.run(
        "%%remote\n"
        "class Column(list):\n"
        "    def map(self, function): return [function(x) for x in self]\n"
        "def same(x): return x\n"
        "def bad(x): raise ValueError(x)\n"
        "bad = bad.local"
    )
    ran = notebook.run("same(Column([1])).map(bad)")
    assert isinstance(ran.error, ValueError)
    assert "nbmap: same" not in ran.err
