"""How much memory this process may use."""

from __future__ import annotations

import contextlib
import os
import resource


def kept_bytes() -> int:
    """Return the quarter of this process's memory that kept outputs may take."""
    return memory_limit() // 4


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the cgroup's limit, or the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:  # noqa: PTH123
            limits.append(int(file.read()))
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)
