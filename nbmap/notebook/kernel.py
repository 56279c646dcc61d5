"""What nbmap needs of ipykernel beyond its documented API; nothing else is used of it.

`Kernel.control_handlers` maps the types of control messages to functions. Jupyter's protocol lets
a kernel take messages of its own there, and the channel is read while a cell runs, on a thread of
its own: that is how a click in the view reaches a busy kernel. Kernels that lack it (xeus-python,
pyodide) have the Interrupt button only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython

REQUEST, REPLY = "nbmap_request", "nbmap_reply"

Answer = Callable[[str, dict[str, Any]], "dict[str, Any] | None"]


def cell() -> str:
    """Name the execution of the cell that runs now."""
    header = _kernel().get_parent().get("header", {})
    return str(header.get("msg_id", ""))


def cell_has_id() -> bool:
    """Tell whether the page has told which of its cells runs; programs without a page don't."""
    return "cellId" in _kernel().get_parent().get("metadata", {})


def answer_requests(answer: Answer) -> bool:
    """Have requests of the page answered while a cell runs.

    Args:
        answer: takes the id of a run and a request, and returns the answer; is called on the
            thread of the control channel.

    Returns:
        Whether this kernel can do that.
    """
    kernel = _kernel()
    handlers = getattr(kernel, "control_handlers", None)
    if not isinstance(handlers, dict):
        return False

    def handle(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = parent.get("content") or {}
        result = answer(str(content.get("run")), content.get("body") or {})
        reply = {"status": "ok", "result": result}
        kernel.session.send(stream, REPLY, reply, parent, ident=ident)

    handlers[REQUEST] = handle
    return True


def _kernel() -> Any:
    return getattr(get_ipython(), "kernel", None)
