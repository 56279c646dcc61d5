"""What nbmap has to do with the nannies of workers: learn how a process ended, and end one.

A nanny is the process that starts a worker and starts it anew when it dies. Only it knows the exit
code. These functions run on the nannies, sent by value with the rest of the far side, as Dask's own
`Client.run(..., nanny=True)` has it. What is private in distributed is used here and nowhere else,
and `tests/cluster/test_contract.py` fails when it changes: `Nanny.process.on_exit`, the hook that is
called with the exit code.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from distributed.core import Status

MEBIBYTE = 1 << 20


def watch(nanny: Any, topic: str) -> bool:
    """Have a nanny tell on a topic how its worker's process ends; return whether it can."""
    process = nanny.process
    if process is None:
        return False
    topics = getattr(process, _ATTRIBUTE, None)
    if topics is None:
        topics = set()
        setattr(process, _ATTRIBUTE, topics)
        before = process.on_exit

        def on_exit(code: Any) -> None:
            told = {"ended": nanny.worker_address, "code": code}
            told["limit"] = nanny.memory_manager.memory_limit
            if nanny.status == Status.running:  # one that closes has nobody to tell any more
                for each in topics:
                    nanny.log_event(each, told)
            if before is not None:
                before(code)

        process.on_exit = on_exit
    topics.add(topic)
    return True


def end(nanny: Any, pid: int) -> bool:
    """End a worker's process at once; its nanny starts another. Return whether it was that one."""
    if nanny.pid != pid:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def how(code: Any, limit: Any, memory: int = 0) -> str:
    """Tell how a process ended, in words.

    Args:
        code: exit code, or the negative number of a signal.
        limit: bytes of memory that it might use, or None.
        memory: bytes that it had when its nanny ended it for that, or 0.
    """
    told = f"its worker process ended with exit code {code}"
    if isinstance(code, int) and code < 0:
        try:
            name = f" ({signal.Signals(-code).name})"
        except ValueError:
            name = ""
        told = f"its worker process was killed by signal {-code}{name}"
    if memory and limit:
        used, most = memory / MEBIBYTE, limit / MEBIBYTE
        return f"{told} because it used {used:,.0f} MiB of memory, of a limit of {most:,.0f} MiB"
    if limit and code == -signal.SIGKILL:
        told += f"; the worker's memory limit is {limit / MEBIBYTE:,.0f} MiB"
    return told


_ATTRIBUTE = "_" + __name__.partition(".")[0] + "_topics"
