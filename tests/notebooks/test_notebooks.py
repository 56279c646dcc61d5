"""The notebooks do what they tell."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
GUARD = 360  # for a busy machine; alone on two cores the longest notebook takes about a minute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(GUARD + 30)]


def said_by(cell):
    """What a cell printed, and the text of its value; not what views show."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type == "execute_result":
            parts.append(output.data["text/plain"] + "\n")
    return "".join(parts)


def has_picture(notebook):
    """Tell whether a cell shows a picture."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return any("image/png" in output.get("data", {}) for output in outputs)


def demo(source, target):
    """Run a notebook as `make demo` does."""
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "demo.py", source, target],
        capture_output=True,
        text=True,
        timeout=GUARD,
    )


def executed(name, tmp_path):
    """Run a guide; return it, the text of each cell by its id, and what its last cell printed.

    No cell raises, and none writes to stderr: what nbmap has to say of failures is in its view.
    """
    target = tmp_path / "executed.ipynb"
    ended = demo(ROOT / "notebooks" / name, target)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert str(target) in ended.stdout
    notebook = nbformat.read(target, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    texts = {cell.id: said_by(cell) for cell in notebook.cells}
    assert [cell for cell, text in texts.items() if "Traceback" in text] == []
    return notebook, texts, ended.stdout


def test_grid_search(tmp_path):
    """The grid search scores at least 60 settings, keeps the failed one, and sums up."""
    notebook, texts, said = executed("01-grid-search.ipynb", tmp_path)

    summary = dict(re.findall(r"^([a-z -]+): +([0-9.]+)", said, re.MULTILINE))
    assert 0.95 < float(summary["best score"]) < 1
    assert int(summary["settings"]) >= 60
    assert float(summary["sequential"]) + float(summary["mapped"]) < 120
    assert float(summary["speed-up"]) > 0

    assert "best score: " in texts["result"]
    assert "kept as a value: UserCodeException of InvalidParameterError" in texts["failure"]
    scored = int(summary["settings"]) - 1
    assert f"{scored} of {scored} scores are equal" in texts["sequential"]
    assert has_picture(notebook)


def test_streaming(tmp_path):
    """Networks report while they train; some are stopped, and the others go on to the end."""
    notebook, texts, said = executed("02-streaming.ipynb", tmp_path)

    reports = [ast.literal_eval(line) for line in texts["one"].splitlines()]
    assert [report["epoch"] for report in reports] == [1, 2, 3]
    assert re.findall(r"^epoch (\d+): (\d+) go on", texts["map"], re.MULTILINE) == [
        ("20", "6"),
        ("60", "3"),
    ]
    counts = ast.literal_eval(texts["map"].splitlines()[-1])
    assert counts["done"] >= 3
    assert counts["cancelled"] >= 6  # up to 9: a quick one may have ended before it is stopped
    assert counts["done"] + counts["cancelled"] == 12

    summary = dict(re.findall(r"^([a-z -]+): +([0-9.]+)", said, re.MULTILINE))
    assert 0.95 < float(summary["best accuracy"]) < 1
    epochs, of = map(int, re.findall(r"^epochs: (\d+) of (\d+)$", said, re.MULTILINE)[0])
    assert of * 3 / 12 < epochs < of
    assert has_picture(notebook)


def test_async_and_scripts(tmp_path):
    """Every way to run a function gives what the notebook says."""
    _, texts, _ = executed("03-async-and-scripts.ipynb", tmp_path)

    def lines(cell):
        return texts[cell].splitlines()

    assert texts["await"].split() == ["9", "0", "1", "4", "9", "16"]
    assert lines("group") == ["[16, 25]", "36 49", "[64, 81]"]
    assert lines("remote-async-calls") == ["{'ready!'}", "[3, 2, 1]", "[3, 2, 1]"]
    assert lines("spawn") == ["121 144", "[169, 196]"]
    attempts = ["0 at attempt 1", "1 at attempt 1", "2 at attempt 3", "3 at attempt 1"]
    assert ast.literal_eval(lines("again-map")[-1]) == attempts
    assert "InputTimeout('input 1 (30) of wait" in texts["timeout-map"]
    loads = re.search(
        r"^sum 328350, loaded (\d+) times for 100 inputs$", lines("per-worker-map")[-1]
    )
    assert 1 <= int(loads[1]) <= os.cpu_count()
    assert lines("nested-map") == ["[5, 14, 30]"]
    assert lines("pipe-map") == ["[1, 2, 5, 10, 17, 26, 37, 50]"]
    assert lines("fails-map")[-1].startswith("input 2 (0) failed: ZeroDivisionError")
    assert lines("replay") == ["computing 0", "here too: division by zero"]
    assert lines("retry") == ["[1.0, 0.5, inf, 0.25]", "['done', 'done', 'done', 'done']"]
    printed = [line for line in lines("script-run") if not line.startswith("square ")]  # the bar
    assert printed == ["sum of 20 squares: 2470", "144"]


def test_failures(tmp_path):
    """Workers are really killed, and what is left is what the notebook says."""
    notebook, texts, _ = executed("failures.ipynb", tmp_path)

    def lines(cell):
        return texts[cell].splitlines()

    assert "UserCodeException(ZeroDivisionError" in texts["user"]
    assert lines("user-failures")[1:] == ["[0.25, 0.5, 1.0, -1.0]", "inverting 0"]
    assert texts["again"].strip() == "[0.25, 0.5, 1.0, inf, -1.0]"
    assert lines("lost")[0] == "19 done"
    assert "input 7 (7) was lost" in texts["lost"]
    assert "signal 9 (SIGKILL)" in texts["lost"]
    assert lines("stranger") == ["200 done, 0 failed", "at a second attempt: True"]
    assert lines("generator") == ["[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "1 takeover"]
    assert "input 1 (1) timed out" in texts["timeout"]
    assert lines("cancel") == ["cancelled True 10000", "[0, 1, 2, 3, 4, 5]"]
    assert "can't be sent because of ['lock']" in texts["unpicklable"]
    assert "its variable 'lock' can't" in texts["refused"]
    assert "C code, a child process or a thread of your own writes" in notebook.cells[-2].source
    readme = " ".join((ROOT / "README.md").read_text().split())
    [promise] = re.findall(r"> (Every input ends .+)", notebook.cells[0].source)
    assert promise in readme


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
