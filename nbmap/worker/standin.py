"""What a handle is in remote code: a plain function that is called in the same process.

Sent along with the function that refers to it, so workers need not have nbmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Handle:
    """Stands for a handle on the far side; calling it is an ordinary call."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here."""
        return self.local(*args, **kwargs)

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here."""
        assert self.function is not None
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in {"map", "starmap", "remote"}:
            msg = (
                f".{name} inside a remote function is not available in this version of nbmap; "
                "call the handle itself, which runs here, or map over it from the notebook"
            )
            raise RuntimeError(msg)
        raise AttributeError(name)
