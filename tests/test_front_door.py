"""The files that a visitor sees first say what is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("*.md"))
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
IMAGE = re.compile(r'<(?:img|source)[^>]* (?:src|srcset)="([^"]+)"')
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOUR_MINUTES = 240


def name(path):
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page):
    """Each relative link of a page leads to a file of the repository."""
    text = page.read_text("utf-8")
    targets = [link.partition("#")[0] for link in LINK.findall(text) + IMAGE.findall(text)]
    relative = [target for target in targets if target and "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_the_readme_links_to_something():
    """The test above has links to look at."""
    assert len(LINK.findall((ROOT / "README.md").read_text("utf-8"))) >= 5


@pytest.mark.slow
@pytest.mark.timeout(FOUR_MINUTES + 30)
def test_the_python_of_the_readme_runs(tmp_path):
    """The README's Python blocks, one after the other, are a script that runs."""
    blocks = PYTHON_BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(blocks) >= 3
    script = tmp_path / "readme.py"
    script.write_text("\n\n".join(blocks), "utf-8")
    ended = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=FOUR_MINUTES,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[:4] == ["9", "0", "1", "4"]
    assert "[0.5, UserCodeException(ZeroDivisionError('division by zero')), 0.25]" in lines
    after_failures = lines.index("['A', 'B']")
    assert lines[after_failures:] == [
        *("['A', 'B']", "[0.5, 0.0, 0.25]", "0.0 done"),
        *("[32, 81]", "[32, 81]", "[4, 4]"),
        *("0 0.5", "1 0.25", "2 0.125", "0 is slow", "[(0, 0.5), (1, 0.25), (2, 0.125)]"),
        *("[4, 9]", "0", "1", "4"),
        *("16 True", "[25, 36]"),
        "[9, 36]",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_stored_without_outputs(path):
    """A stored notebook is valid, and holds no output and no execution count."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []


def test_binder_installs_this_repository_on_a_python_that_it_supports():
    """What Binder runs is a script that bash can read, on a Python that pyproject.toml allows."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    version = (ROOT / "binder" / "runtime.txt").read_text("utf-8").strip().removeprefix("python-")
    least = needs["requires-python"].removeprefix(">=")
    assert [int(n) for n in version.split(".")] >= [int(n) for n in least.split(".")]
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "'.[lab]'" in script.read_text("utf-8")
    assert "lab" in needs["optional-dependencies"]


@pytest.mark.parametrize("picture", sorted(ROOT.glob("notebooks/pictures/*")), ids=name)
def test_the_readme_shows_each_picture(picture):
    """No picture is kept that nobody sees."""
    assert f"notebooks/pictures/{picture.name}" in (ROOT / "README.md").read_text("utf-8")
