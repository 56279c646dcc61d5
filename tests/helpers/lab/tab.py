"""A page of the browser, and what it complains about."""

from __future__ import annotations

import re
import shutil

from helpers.processes import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURES = ROOT / "build" / "lab"

# What a plain notebook causes: nothing in JupyterLab 4.6, an error in Notebook 7.6, and in what
# nbconvert 7.17 exports, two scripts that it loads for every notebook.
OTHERS_OWN = (
    "Cannot read properties of undefined (reading 'schema')",
    "https://cdnjs.cloudflare.com/ajax/libs/mathjax/",
    "https://cdnjs.cloudflare.com/ajax/libs/require.js/",
)


def browser_path():
    """Return where the system's browser is."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, f"make test installs one of {', '.join(BROWSERS)}"
    return path


def plain(name):
    """Return a name without what files' names should not have."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


class Tab:
    """A page whose errors, and whose requests to elsewhere, are written down."""

    def __init__(self, page, origin):
        self.page = page
        self.origin = origin
        self.said = []
        self.requests = []
        page.on("console", self.console)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked(request.url))
        page.on("websocket", lambda socket: self.asked(socket.url))
        page.on("dialog", lambda dialog: dialog.accept())  # "Leave site?"

    def console(self, message):
        if message.type == "error":
            self.said.append(f"{message.text} ({message.location['url']})")

    def asked(self, url):
        """Keep the url if it leads away from the server."""
        scheme, _, rest = url.partition("://")
        local = self.origin.partition("://")[2]
        away = scheme in {"http", "https", "ws", "wss"} and not rest.startswith(local)
        if away and not url.startswith(OTHERS_OWN):
            self.requests.append(url)

    @property
    def console_errors(self):
        """What went wrong in the page, without what goes wrong in every one."""
        self.page.evaluate("0")  # events are delivered while a call waits
        return [text for text in self.said if not any(own in text for own in OTHERS_OWN)]

    def screenshot(self, name):
        """Keep a picture of the page in build/lab; return its path."""
        path = PICTURES / f"{plain(name)}.png"
        self.page.screenshot(path=path)
        return path
