"""Clusters for the tests: nbmap's own, and some that nbmap did not start."""

import contextlib
import os

import pytest

import nbmap

SCHEDULER = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def own():
    """Nbmap's own cluster, with two worker processes."""
    nbmap.start(workers=2)
    yield
    nbmap.stop()


@pytest.fixture(scope="module")
def two_workers():
    """A plain Dask cluster of two processes, whose workers come back however often they die."""
    import dask.config
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs=SCHEDULER,
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(params=["own", "two_workers"])
def anywhere(request):
    """Nbmap's own cluster, and one that it did not start, each with two processes."""
    cluster = request.getfixturevalue(request.param)
    return None if request.param == "own" else cluster


@pytest.fixture
def existing():
    """Yield a function that makes a plain Dask cluster which nbmap did not start."""
    from distributed import LocalCluster

    with contextlib.ExitStack() as stack:

        def make(workers=2, threads=1, scheduler_options=None, **options):
            return stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=threads,
                    dashboard_address=None,
                    scheduler_kwargs={**SCHEDULER, **(scheduler_options or {})},
                    silence_logs=50,
                    **options,
                )
            )

        yield make


@pytest.fixture(scope="module")
def one_slot():
    """A Dask cluster of one worker process with one thread."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs=SCHEDULER,
        silence_logs=50,
    ) as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path):
    """A folder that functions and tests meet in, as text."""
    return os.fspath(tmp_path)
