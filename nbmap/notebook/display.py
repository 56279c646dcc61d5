"""Shows runs in the cells of a notebook: the page that the view is given.

In a kernel this is installed when nbmap is first used, so that `@nbmap.remote` has its view also
where the magics are not loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from ..view import watch
from ..view.terminal import Display
from ..view.watch import Watched
from . import kernel

# The notebooks of these show each output in a frame of its own, where no widget can reach the HTML
# of another. The variables are set in whatever VS Code starts.
ISOLATING_VARIABLES = ("VSCODE_PID", "VSCODE_CWD")
ISOLATING_MODULES = ("google.colab",)

OWN = 3  # runs of a cell that have outputs of their own; those after them share one


def install() -> None:
    """Show runs in cells from now on, where this process is a notebook's kernel; does it once."""
    if watch.notebook is None and watch.in_kernel():
        watch.notebook = Cells()


@dataclass(frozen=True)
class Shown:
    """What was displayed, by that publisher.

    `%%capture` puts another in its place while its cell runs; what is in other cells must not be
    captured with it.
    """

    publisher: DisplayPublisher
    display_id: str

    def update(self, bundle: dict[str, Any]) -> None:
        """Replace it by display id, which reaches the right cell from any thread."""
        self._publish(bundle, update=True)

    def show(self, bundle: dict[str, Any]) -> None:
        """Display it."""
        self._publish(bundle, update=False)

    def _publish(self, bundle: dict[str, Any], *, update: bool) -> None:
        transient = {"display_id": self.display_id}
        self.publisher.publish(bundle, {}, transient=transient, update=update)


class Cells:
    """The cells of this kernel's notebook."""

    def __init__(self) -> None:
        isolated = any(name in os.environ for name in ISOLATING_VARIABLES)
        isolated = isolated or any(name in sys.modules for name in ISOLATING_MODULES)
        self.mounts = not isolated
        self._views: WeakKeyDictionary[Watched, Any] = WeakKeyDictionary()
        self._cell = ""  # in which runs were made last
        self._made = 0  # how many
        self._list: Any = None  # the view whose output those share that come
        InteractiveShell.instance().events.register("post_run_cell", self._flush)

    # -- for nbmap.view.watch

    def open(self, run: Watched) -> Display:
        """Display a run in the cell that runs now."""
        # Here and not above: with anywidget it takes a while, and only runs need it.
        from ..view.widget import View, answer

        kernel.answer_requests(answer)
        above = watch.under.get()
        if isinstance(above, View):
            view = View(run, self, under=above)
        else:
            cell = self.cell()
            if cell != self._cell:
                self._cell, self._made, self._list = cell, 0, None
            self._made += 1
            view = View(run, self, under=self._list, listed=True)
            if self._made > OWN and self._list is None:
                self._list = view
        self._views[run] = view
        return view

    def _flush(self, _result: object) -> None:
        """Show how runs stand before their cell ends: a program that runs cells reads no further."""
        if self._list is not None:
            self._list.flush()

    def show_again(self, run: Watched) -> bool:
        """Display a run in the cell that runs now, unless it is there."""
        view = self._views.get(run)
        if view is None:
            return False
        view.show()
        return True

    # -- for nbmap.view.widget

    def show(self, bundle: dict[str, Any], display_id: str) -> Shown:
        """Display something in the cell that runs now."""
        shown = Shown(InteractiveShell.instance().display_pub, display_id)
        shown.show(bundle)
        return shown

    def cell(self) -> str:
        """Name the execution of the cell that runs now."""
        return kernel.cell()

    def watched(self) -> bool:
        """Tell whether a browser may show widgets.

        Where a program runs the cells (nbclient, papermill) none does, and that program would
        keep the widgets' state, with their code, in the notebook.
        """
        return not self.mounts or kernel.cell_has_id()
