"""Runs in this process, without a cluster."""

import contextlib

import nbmap
from nbmap.engine.transport import InProcess


@contextlib.contextmanager
def in_process(slots):
    """Have handles run in threads of this process, which end at once when this does."""
    cluster = InProcess(slots)
    try:
        with nbmap.connect(cluster):
            yield cluster
    finally:
        cluster.engine.wait_for(cluster.quit)
