"""Meeting, counting and stopping by files: what threads, processes and their tests agree with.

Functions under test use these too, on workers. Every wait has a guard; none asserts a time.
"""

import os
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

GUARD = 20.0
PAUSE = 0.002


def wait_until(condition, what="the condition"):
    """Poll until the condition holds; raise after the guard."""
    end = time.monotonic() + GUARD
    while not condition():
        if time.monotonic() > end:
            msg = f"waited {GUARD:.0f} s for {what}"
            raise TimeoutError(msg)
        time.sleep(PAUSE)


def touch(folder, name):
    """Create a file, for others to see."""
    (Path(folder) / str(name)).touch()


def there(folder, name):
    """Tell whether a file is there."""
    return (Path(folder) / str(name)).exists()


def await_file(folder, name):
    """Wait until somebody has created a file."""
    wait_until((Path(folder) / str(name)).exists, f"the file {name}")


def meet(folder, n=2):
    """Wait until `n` different threads, of whatever process, are here; return who this one is."""
    me = f"{os.getpid()}-{threading.get_ident()}"
    touch(folder, f"met-{me}")
    wait_until(lambda: len(list(Path(folder).glob("met-*"))) >= n, f"{n} to meet")
    return me


def record(folder, text):
    """Add one line to the log of calls, whole, from any process."""
    log = os.open(Path(folder) / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(log, f"{text}\n".encode())
    finally:
        os.close(log)


def recorded(folder):
    """Return the lines of the log of calls."""
    path = Path(folder) / "calls"
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def place(folder, n):
    """Hold one of `n` places while the body runs; raise if all are taken, which is one too many."""
    for at in range(n):
        path = Path(folder) / f"place-{at}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        break
    else:
        touch(folder, "too-many")
        msg = f"more than {n} at once"
        raise AssertionError(msg)
    try:
        yield at
    finally:
        path.unlink()


def fill(folder, n):
    """Hold one of `n` places until all of them were held at one moment, now or before."""
    with place(folder, n):
        wait_until(
            lambda: there(folder, "full") or len(list(Path(folder).glob("place-*"))) == n,
            f"{n} at once",
        )
        touch(folder, "full")


def count_for_ever(folder, name="counter"):
    """Count in a file until stopped from outside."""
    n, path = 0, Path(folder) / name
    while True:
        n += 1
        new = path.with_name(f"{name}-{uuid.uuid4().hex}")
        new.write_text(str(n))
        new.replace(path)
        time.sleep(0.001)


def stands_still(folder, name="counter"):
    """Wait until what counts in a file has stopped: several hundred steps' time without one."""
    path, before = Path(folder) / name, [""]

    def same():
        now = path.read_text()
        if now == before[0]:
            return True
        before[0] = now
        time.sleep(0.5)
        return False

    wait_until(same, "the counter to stand still")
    return True
