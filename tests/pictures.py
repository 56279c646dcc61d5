"""Take the README's pictures: the guides in a real JupyterLab, while they run.

python tests/pictures.py notebooks/pictures
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

sys.path.insert(0, str(Path(__file__).parent))

from helpers.lab.notebook import Notebook
from helpers.lab.server import LabServer
from helpers.lab.session import Lab
from helpers.lab.tab import browser_path
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
GRID_SEARCH = ROOT / "notebooks" / "01-grid-search.ipynb"
STREAMING = ROOT / "notebooks" / "02-streaming.ipynb"
HALF_WAY = re.compile(r"^[345]\d$")  # of 65 settings
TALL = {"width": 1100, "height": 4200}  # so that no cell is scrolled away


def start(lab: Lab, theme: str, source: Path) -> tuple[Notebook, int]:
    """Run a notebook up to its map, start that, and return the number of its cell too."""
    cells = nbformat.read(source, as_version=4).cells
    code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
    mapping = next(i for i, cell in enumerate(cells) if cell.id == "map")
    notebook = lab.open_file(source)
    notebook.page.set_viewport_size(TALL)
    notebook.theme(theme)
    for cell in code[: code.index(mapping)]:
        notebook.run(cell)
        notebook.wait_idle(cell)
    notebook.run(mapping)
    return notebook, mapping


def take_grid_search(lab: Lab, theme: str, target: Path) -> None:
    """Keep how the cell of the grid search looks half-way and at its end."""
    notebook, mapping = start(lab, theme, GRID_SEARCH)
    shown = notebook.cell(mapping)
    done = shown.locator(".nbmap-legend b[data-status=done]")
    expect(done).to_have_text(HALF_WAY, timeout=120_000)
    shown.screenshot(path=target / f"running-{theme}.png")
    notebook.wait_idle(mapping, timeout=120)
    # The traceback stays closed: it would show where this machine has its packages.
    shown.screenshot(path=target / f"failed-{theme}.png")
    assert notebook.console_errors == []


def take_streaming(lab: Lab, theme: str, target: Path) -> None:
    """Keep how the cell of the networks looks when nine are stopped and three go on."""
    notebook, mapping = start(lab, theme, STREAMING)
    shown = notebook.cell(mapping)
    cancelled = shown.locator(".nbmap-legend b[data-status=cancelled]")
    expect(cancelled).to_have_text("9", timeout=120_000)
    shown.screenshot(path=target / f"streaming-{theme}.png")
    notebook.wait_idle(mapping, timeout=120)
    assert notebook.console_errors == []


def main(target: Path) -> None:
    """Take all pictures."""
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        server = LabServer(Path(folder) / "lab", Path(folder) / "server.log")
        try:
            server.start()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=browser_path(), env=server.env)
                context = browser.new_context(device_scale_factor=1.5)
                for theme in ("light", "dark"):
                    for take in (take_grid_search, take_streaming):
                        lab = Lab(server, context, theme)
                        take(lab, theme, target)
                        lab.end()
                browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
