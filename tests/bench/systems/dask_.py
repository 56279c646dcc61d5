"""Client.map and gather on a LocalCluster as it comes: one task an input, plain TCP."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from distributed import Client, LocalCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGES = ("dask", "distributed")


class System:
    def __init__(self, client: Client) -> None:
        self.client = client

    def map(self, fn: Callable[[Any], Any], inputs: list[Any], chunk: int) -> list[Any]:
        return self.client.gather(self.client.map(fn, inputs))

    def call(self, fn: Callable[[Any], Any], x: Any) -> Any:
        return self.client.submit(fn, x).result()


@contextlib.contextmanager
def start(processes: int) -> Iterator[System]:
    with (
        LocalCluster(n_workers=processes, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield System(client)
