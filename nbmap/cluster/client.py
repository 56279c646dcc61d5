"""The Dask client that nbmap reaches a cluster with."""

from __future__ import annotations

import contextlib
from typing import Any

from distributed import Client

__all__ = ["connected"]


def connected(target: object, **options: Any) -> Client:
    """Return a client of a scheduler's address or of a cluster object, never Dask's default one.

    Args:
        target: an address, or a cluster object.
        options: what `distributed.Client` takes besides.

    Raises:
        Exception: whatever Dask raises where it can't connect.
    """
    return _Whole(target, set_as_default=False, **options)  # type: ignore[no-untyped-call]


class _Whole(Client):
    """A client that is either connected or closed.

    One that Dask could not start would close itself when it is collected: in any thread, which may
    be starting a client at that moment, and holds the lock that the closing needs.
    """

    def start(self, **kwargs: Any) -> None:
        try:
            super().start(**kwargs)  # type: ignore[no-untyped-call]
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()  # type: ignore[no-untyped-call]
            raise
