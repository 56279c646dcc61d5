"""A notebook in JupyterLab, used as people use it: by clicks, keys and menus."""

from __future__ import annotations

import contextlib
import re

from playwright.sync_api import TimeoutError as TookTooLong
from playwright.sync_api import expect

from helpers.lab.tab import Tab
from helpers.lab.traffic import Traffic

LAB, NOTEBOOK_7 = "lab/tree", "notebooks"  # where the server has the applications
DONE = re.compile(r"^\[\d+\]:$")
# JupyterLab drops offers that take the kernel more than a second, as the first ones do.
TABS = 6
TAB_PATIENCE = 3_000  # ms
THEMES = {
    "dark": "JupyterLab Dark",
    "high contrast": "JupyterLab Dark High Contrast",
    "light": "JupyterLab Light",
}
WATCH = """(element) => {
    delete element.dataset.hasChanged;
    const observer = new MutationObserver(() => {
        observer.disconnect();
        element.dataset.hasChanged = "yes";
    });
    observer.observe(element, {
        subtree: true, childList: true, characterData: true, attributeFilter: ["data-status"],
    });
}"""


class Notebook(Tab):
    """An open notebook. Cells are counted from 0, as they stand in the file."""

    def __init__(self, page, server, path, app=LAB):
        super().__init__(page, server.url)
        self.server = server
        self.path = path
        self.app = app
        self.traffic = Traffic(page)

    # Coming and going

    def open(self):
        """Load the application with this notebook, and wait until its kernel is idle."""
        name = self.path.relative_to(self.server.root).as_posix()
        with self.traffic.connecting():  # before, JupyterLab calls the kernel idle, and drops cells
            self.page.goto(f"{self.server.url}{self.app}/{name}?token={self.server.token}&reset")
        self.wait_kernel("idle")
        return self

    def reload(self):
        """Reload the page; the kernel goes on, idle or busy.

        While a cell keeps it busy, JupyterLab's question for its state waits: it is "unknown".
        """
        with self.traffic.connecting():
            self.page.reload()
        self.wait_kernel("idle|busy|unknown")

    def close(self):
        """Close the page; the kernel goes on."""
        self.page.close()

    # Cells

    def cell(self, i):
        """Locate cell `i`."""
        return self.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{i}"]')

    def output(self, i):
        """Locate where cell `i` shows its outputs."""
        return self.cell(i).locator(".jp-Cell-outputArea")

    def text(self, i):
        """Return the text of what cell `i` shows now, without prompts."""
        texts = self.output(i).locator(".jp-OutputArea-output").all_inner_texts()
        return "\n".join(text.strip("\n") for text in texts)

    def prompt_of(self, i):
        return self.cell(i).locator(".jp-InputPrompt")

    def prompt(self, i):
        """Return the prompt of cell `i`: `[ ]:`, `[*]:`, `[3]:`."""
        return self.prompt_of(i).inner_text()

    def click_into(self, i):
        """Put the cursor into cell `i`."""
        self.cell(i).locator(".cm-content").click()

    def run(self, i):
        """Start cell `i`, and don't wait for its end."""
        self.click_into(i)
        with changing(self.prompt_of(i)):
            self.page.keyboard.press("Control+Enter")

    def run_all(self):
        """Start all cells, and don't wait for their end."""
        with changing(self.page.locator(".jp-CodeCell .jp-InputPrompt").last):
            self.menu("Run", "Run All Cells")

    def wait_idle(self, i, timeout=60):
        """Wait until cell `i`, which was run, has ended."""
        expect(self.prompt_of(i)).to_have_text(DONE, timeout=timeout * 1000)

    def complete(self, i, text):
        """Write `text` as all of cell `i`, press Tab, and return what is offered.

        Where JupyterLab writes an only offer down at once, that is what then stands after the last
        space or equals sign.
        """
        editor = self.cell(i).locator(".cm-content")
        offers = self.page.locator(".jp-Completer:visible .jp-Completer-item .jp-Completer-match")
        changed = editor.filter(has_not_text=whole(text))
        self.click_into(i)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        for _ in range(TABS):
            self.page.keyboard.press("Tab")
            with contextlib.suppress(TookTooLong):
                offers.or_(changed).first.wait_for(timeout=TAB_PATIENCE)
            if offers.or_(changed).count() or self.was_answered_in_time():
                break
        labels = offers.all_inner_texts()
        if labels:
            self.page.keyboard.press("Escape")  # only then: it would leave the cell otherwise
        elif changed.count():
            labels = [re.split(r"[\s=]", editor.inner_text())[-1]]
        return labels

    def was_answered_in_time(self):
        """Tell whether the kernel's last offers came so soon that JupyterLab has looked at them."""
        last = [m for m in self.messages if m.type.startswith("complete_")][-2:]
        return [m.sent for m in last] == [True, False] and last[1].at - last[0].at < 1

    # Kernel and file

    @property
    def messages(self):
        """All messages between the browser and the kernel until now; see `traffic.Message`."""
        return self.traffic.so_far()

    @property
    def kernel_status(self):
        """Locate JupyterLab's sign of how the kernel is."""
        return self.page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator")

    def wait_kernel(self, status):
        """Wait until the kernel is in a state that the pattern `status` tells."""
        pattern = re.compile(f"^({status})$")  # a kernel that starts on a busy machine takes long
        expect(self.kernel_status).to_have_attribute("data-status", pattern, timeout=60_000)

    def interrupt(self):
        """Interrupt the kernel, by the menu.

        An interrupt that comes before the cell's first line is lost: `[*]` only says that the cell
        was sent. Let it print something, and wait for that.
        """
        self.menu("Kernel", "Interrupt Kernel")

    def restart(self):
        """Restart the kernel, by the menu, and wait until it is there again."""
        with changing(self.kernel_status):
            self.menu("Kernel", "Restart Kernel…")
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_kernel("idle")

    def shutdown_kernel(self):
        """Shut the kernel down, by the menu; the page stays."""
        with self.page.expect_response(lambda r: r.request.method == "DELETE" and "/api/" in r.url):
            self.menu("Kernel", "Shut Down Kernel")

    def save(self):
        """Save, by the menu; `path` has it then."""
        with self.page.expect_response(
            lambda r: r.request.method == "PUT" and "/api/contents/" in r.url
        ):
            self.menu("File", "Save Notebook")

    def theme(self, name):
        """Switch to another theme, by the menu: one of `THEMES`."""
        self.menu("Settings", "Theme", THEMES[name])
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", THEMES[name])
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def menu(self, first, *others):
        """Click through a menu."""
        self.page.locator("#jp-MainMenu .lm-MenuBar-item", has_text=whole(first)).click()
        for name in others:
            label = self.page.locator(".lm-Menu-itemLabel", has_text=whole(name))
            self.page.locator(".lm-Menu-item:visible", has=label).click()


@contextlib.contextmanager
def changing(element):
    """Wait, after the body, until the element has changed at all, for however short a time."""
    element.evaluate(WATCH)
    yield
    expect(element).to_have_attribute("data-has-changed", "yes")


def whole(text):
    """Return a pattern of just this text."""
    return re.compile(rf"^\s*{re.escape(text)}\s*$")
