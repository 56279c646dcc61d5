"""The notebooks do what they tell."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
GUARD = 360  # for a busy machine; alone on two cores the notebook takes about a minute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(GUARD + 30)]


def stdout_of(notebook):
    """What the cells printed, and the text of what they showed."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                parts.append(output.text)
            elif "data" in output:
                parts.append(output.data.get("text/plain", "") + "\n")
    return "".join(parts)


def demo(source, target):
    """Run a notebook as `make demo` does."""
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "demo.py", source, target],
        capture_output=True,
        text=True,
        timeout=GUARD,
    )


def test_grid_search(tmp_path):
    """The grid search scores at least 60 settings, keeps the failed one, and sums up."""
    target = tmp_path / "executed.ipynb"
    ended = demo(ROOT / "notebooks" / "01-grid-search.ipynb", target)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert str(target) in ended.stdout

    summary = dict(re.findall(r"^([a-z -]+): +([0-9.]+)", ended.stdout, re.MULTILINE))
    assert 0.95 < float(summary["best score"]) < 1
    assert int(summary["settings"]) >= 60
    assert float(summary["sequential"]) + float(summary["mapped"]) < 120
    assert float(summary["speed-up"]) > 0

    notebook = nbformat.read(target, as_version=4)
    text = stdout_of(notebook)
    assert "best score: " in text
    assert "kept as a value: UserCodeException of InvalidParameterError" in text
    scored = int(summary["settings"]) - 1
    assert f"{scored} of {scored} scores are equal" in text
    assert any(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_a_failing_cell_fails_the_demo(tmp_path):
    """A notebook that raises ends the demo with the cell's error, and is saved as far as it came."""
    source, target = tmp_path / "bad.ipynb", tmp_path / "executed.ipynb"
    cells = [nbformat.v4.new_code_cell(code) for code in ("print('before')", "1 / 0", "print(2)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    ended = demo(source, target)
    assert ended.returncode == 1
    assert "before" in ended.stdout
    assert "ZeroDivisionError" in ended.stderr
    assert "ZeroDivisionError" in target.read_text("utf-8")
