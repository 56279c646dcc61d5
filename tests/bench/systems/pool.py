"""multiprocessing.Pool.imap, with the chunk size that suits the work best."""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.pool import Pool

PACKAGES: tuple[str, ...] = ()


class System:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def map(self, fn: Callable[[Any], Any], inputs: list[Any], chunk: int) -> list[Any]:
        return list(self.pool.imap(fn, inputs, chunk))

    def call(self, fn: Callable[[Any], Any], x: Any) -> Any:
        return self.pool.apply(fn, (x,))


@contextlib.contextmanager
def start(processes: int) -> Iterator[System]:
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield System(pool)
