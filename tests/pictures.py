"""Take the README's pictures: the grid search in a real JupyterLab, while it runs.

python tests/pictures.py notebooks/pictures
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

sys.path.insert(0, str(Path(__file__).parent))

from helpers.lab.server import LabServer
from helpers.lab.session import Lab
from helpers.lab.tab import browser_path
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "notebooks" / "01-grid-search.ipynb"
HALF_WAY = re.compile(r"^[345]\d$")  # of 65 settings
TALL = {"width": 1100, "height": 4200}  # so that no cell is scrolled away


def take(lab: Lab, theme: str, target: Path) -> None:
    """Run the notebook up to the map, and keep how its cell looks half-way and at the end."""
    cells = nbformat.read(SOURCE, as_version=4).cells
    code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
    mapping = next(i for i, cell in enumerate(cells) if cell.id == "map")
    notebook = lab.open_file(SOURCE)
    notebook.page.set_viewport_size(TALL)
    notebook.theme(theme)
    for cell in code[: code.index(mapping)]:
        notebook.run(cell)
        notebook.wait_idle(cell)
    notebook.run(mapping)
    shown = notebook.cell(mapping)
    done = shown.locator(".nbmap-legend b[data-status=done]")
    expect(done).to_have_text(HALF_WAY, timeout=120_000)
    shown.screenshot(path=target / f"running-{theme}.png")
    notebook.wait_idle(mapping, timeout=120)
    # The traceback stays closed: it would show where this machine has its packages.
    shown.screenshot(path=target / f"failed-{theme}.png")
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
                    lab = Lab(server, context, theme)
                    take(lab, theme, target)
                    lab.end()
                browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
