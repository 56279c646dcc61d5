"""What a test of JupyterLab has in hand."""

from __future__ import annotations

import subprocess
import sys

import nbformat

from helpers.lab.notebook import LAB, Notebook
from helpers.lab.tab import Tab


class Lab:
    """Opens notebooks in pages of one browser, and cleans up after them."""

    def __init__(self, server, context, name):
        self.server = server
        self.context = context
        self.name = name
        self.tabs = []

    def open(self, cells, kernel="newest", app=LAB):
        """Open a new notebook of these code cells, and wait for its kernel."""
        code = [nbformat.v4.new_code_cell(source) for source in cells]
        return self.open_as(nbformat.v4.new_notebook(cells=code), kernel, app)

    def open_file(self, path, kernel="newest"):
        """Open a file: itself if it lies in the server's folder, otherwise a copy."""
        if path.is_relative_to(self.server.root):
            return self.show(path)
        return self.open_as(nbformat.read(path, as_version=4), kernel)

    def open_as(self, notebook, kernel, app=LAB):
        """Store a notebook for that kernel, and open it."""
        notebook.metadata["kernelspec"] = {
            "name": kernel,
            "display_name": kernel,
            "language": "python",
        }
        path = self.server.root / f"{self.name}-{len(self.tabs)}.ipynb"
        nbformat.write(notebook, path)
        return self.show(path, app)

    def show(self, path, app=LAB):
        """Open a stored notebook in a new page."""
        notebook = Notebook(self.context.new_page(), self.server, path, app)
        self.tabs.append(notebook)
        return notebook.open()

    def to_html(self, path):
        """Let nbconvert make a page of a saved notebook; return the page's path."""
        subprocess.run(
            [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level", "ERROR", path],
            env=self.server.env,
            check=True,
            timeout=60,
        )
        return path.with_suffix(".html")

    def open_html(self, path):
        """Open a local page in the browser."""
        tab = Tab(self.context.new_page(), self.server.url)
        self.tabs.append(tab)
        tab.page.goto(path.as_uri())
        return tab

    def take_pictures(self):
        """Keep how all pages look that are still open."""
        pages = [tab for tab in self.tabs if not tab.page.is_closed()]
        for n, tab in enumerate(pages):
            tab.screenshot(f"{self.name}-{n}" if n else self.name)

    def end(self):
        """Close the pages, end the kernels, and forget changed settings."""
        for tab in self.tabs:
            tab.page.close()
        self.server.shut_down_kernels()
        self.server.reset_settings()
