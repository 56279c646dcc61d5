"""What is private in distributed and used all the same: these fail loudly when it changes."""

import os
import signal

from distributed import Client, Nanny, get_worker
from helpers.processes import wait_until

from nbmap.cluster.far import LEASE_KEY
from nbmap.cluster.local import WatchedNanny


def test_workers_tell_which_tasks_wait_for_a_thread(existing):
    """Worker.state.ready holds tasks with a key while they wait for a thread."""
    with Client(existing(workers=1), set_as_default=False) as client:

        def peek():
            import time

            state = get_worker().state
            while not list(state.ready):
                time.sleep(0.01)
            return [str(task.key) for task in list(state.ready)]

        looking = client.submit(peek, key=f"{LEASE_KEY}-peek")
        other = client.submit(abs, -1, key="somebody-elses")
        assert looking.result() == ["somebody-elses"]
        assert other.result() == 1


def test_workers_take_operations_that_are_added(existing):
    """Worker.handlers is the dict of a worker's operations; a handler may keep its comm."""
    with Client(existing(workers=1), set_as_default=False) as client:

        def add():
            async def answer(comm):
                await comm.write({"nbmap": 1})
                from distributed.core import Status

                return Status.dont_reply

            get_worker().handlers["nbmap_contract"] = answer
            return get_worker().address

        address = client.submit(add).result()

        async def ask():
            from distributed.comm.core import connect

            comm = await connect(address)
            await comm.write({"op": "nbmap_contract", "reply": False})
            answer = await comm.read()
            await comm.close()
            return answer

        assert client.sync(ask) == {"nbmap": 1}


def test_nannies_learn_how_their_worker_ended(existing):
    """Nanny._on_worker_exit_sync gets the exit code while worker_address is still known."""
    assert hasattr(Nanny, "_on_worker_exit_sync")
    cluster = existing(workers=1, worker_class=WatchedNanny)
    with Client(cluster, set_as_default=False) as client:
        address = next(iter(client.scheduler_info()["workers"]))
        pid = client.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: address in WatchedNanny.exits)
    assert "signal 9 (SIGKILL)" in WatchedNanny.exits[address]
