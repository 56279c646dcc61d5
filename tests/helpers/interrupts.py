"""Interrupting the main thread as Ctrl-C does, where it waits for nbmap and nowhere else."""

import os
import signal
import sys
import threading
from pathlib import Path

import nbmap

from .files import wait_until

NBMAP = os.fspath(Path(nbmap.__file__).parent)


def interrupt_when(ready):
    """Interrupt the main thread once `ready()` holds and it is inside nbmap; return the thread.

    Where it is is looked at, since an interrupt that comes before the test's `pytest.raises`, in
    `Thread.start` for example, would end all tests.
    """
    main = threading.main_thread()

    def inside():
        frame = sys._current_frames()[main.ident]
        while frame is not None and not frame.f_code.co_filename.startswith(NBMAP):
            frame = frame.f_back
        return frame is not None

    def watch():
        wait_until(ready, "to be ready")
        wait_until(inside, "the main thread to wait for nbmap")
        signal.pthread_kill(main.ident, signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
