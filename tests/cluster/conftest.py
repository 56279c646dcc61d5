"""Clusters for the tests: nbmap's own, and some that nbmap did not start."""

import contextlib

import pytest

import nbmap


@pytest.fixture(scope="module")
def own():
    """Nbmap's own cluster, with two worker processes."""
    nbmap.start(workers=2)
    yield
    nbmap.stop()


@pytest.fixture
def existing():
    """Yield a function that makes a plain Dask cluster which nbmap did not start."""
    from distributed import LocalCluster

    with contextlib.ExitStack() as stack:

        def make(workers=2, threads=1, **options):
            return stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=threads,
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    silence_logs=50,
                    **options,
                )
            )

        yield make
