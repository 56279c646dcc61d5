"""What is private in distributed and used all the same: these fail loudly when it changes."""

import asyncio
import os
import signal

import pytest
from distributed import Client, get_worker
from distributed.comm.core import connect, listen
from helpers.processes import wait_until

from nbmap.cluster import relay
from nbmap.cluster.far import LEASE_KEY
from nbmap.cluster.nannies import watch


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


def test_schedulers_take_operations_that_are_added(existing):
    """Scheduler.handlers is the dict of its operations; one that is unknown is answered by None.

    What the scheduler passes on it does not unpickle.
    """
    with Client(existing(workers=1), set_as_default=False) as client:

        def add(dask_scheduler):
            async def answer(comm, what=""):
                await comm.write({"nbmap": what})
                from distributed.core import Status

                return Status.dont_reply

            dask_scheduler.handlers["nbmap_contract"] = answer
            return dask_scheduler.deserialize

        assert client.run_on_scheduler(add) is False

        async def ask(**message):
            comm = await connect(client.scheduler.address)
            await comm.write(message)
            answer = await comm.read()
            await comm.close()
            return answer

        assert client.sync(ask, op="nbmap_contract", what="this") == {"nbmap": "this"}
        assert client.sync(ask, op="nbmap_contract_of_another") is None


def test_schedulers_reach_the_streams_of_their_workers(existing):
    """Scheduler.worker_send calls Worker.stream_handlers; WorkerState.server_id is Worker.id.

    A worker knows with what arguments it connects to its scheduler, and at which address others
    know it.
    """
    with Client(existing(workers=1), set_as_default=False) as client:

        def listen(dask_worker):
            def heard(what="", **_):
                dask_worker.nbmap_contract = what

            dask_worker.stream_handlers["nbmap_contract"] = heard
            assert isinstance(dask_worker.connection_args, dict)
            return dask_worker.id, dask_worker.contact_address, dask_worker.scheduler.address

        ((address, told),) = client.run(listen).items()

        def send(dask_scheduler):
            dask_scheduler.worker_send(address, {"op": "nbmap_contract", "what": "this"})
            return dask_scheduler.workers[address].server_id

        assert told == (client.run_on_scheduler(send), address, client.scheduler.address)

        def heard(dask_worker):
            return getattr(dask_worker, "nbmap_contract", "")

        wait_until(lambda: client.run(heard) == {address: "this"})


def test_schedulers_can_be_told_to_take_no_plugins(existing):
    """A blocked operation is refused with a ValueError that is raised here."""
    cluster = existing(
        workers=0, scheduler_options={"blocked_handlers": ["register_scheduler_plugin"]}
    )
    with (
        Client(cluster, set_as_default=False) as client,
        pytest.raises(ValueError, match="explicitly disallowed"),
    ):
        client.register_plugin(relay.Relay("nbmap_contract", dict))


class Endless:
    """A comm with endless messages of 1 MB."""

    def __init__(self):
        self.read_so_far = 0

    async def read(self):
        await asyncio.sleep(0)
        self.read_so_far += 1
        return bytes(1 << 20)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tls://127.0.0.1"])
def test_messages_for_a_side_that_does_not_read_do_not_pile_up(address):
    """comm.stream tells what Dask's write does not wait for: what is not on its way yet."""
    options = [{}, {}]
    if address.startswith("tls"):
        from distributed import Security

        security = Security.temporary()
        options = [security.get_listen_args("worker"), security.get_connection_args("worker")]

    async def run():
        accepted = asyncio.get_running_loop().create_future()
        async with listen(address, accepted.set_result, **options[0]) as listener:
            sink = await connect(listener.contact_address, **options[1])
            reader = await accepted
            source = Endless()
            passing = asyncio.ensure_future(relay._pass(source, sink))
            before = -1
            while source.read_so_far != before:  # until it stands still
                before = source.read_so_far
                await asyncio.sleep(0.2)
            for _ in range(before + 20):
                assert len(await reader.read()) == 1 << 20
            passing.cancel()
            reader.abort()
            sink.abort()
            return before

    # The sockets' own buffers take some.
    assert asyncio.run(asyncio.wait_for(run(), 60)) < 40


def test_nannies_learn_how_their_worker_ended(existing):
    """Nanny.process.on_exit is called with the exit code, while worker_address is still known."""
    cluster = existing(workers=1)
    ends = []
    with Client(cluster, set_as_default=False) as client:
        [nanny] = cluster.workers.values()
        assert callable(nanny.process.on_exit)
        assert watch(nanny, "nbmap-contract")
        client.subscribe_topic("nbmap-contract", lambda event: ends.append(event[1]))
        for _ in range(2):  # its successor is watched, too
            before = len(ends)
            pid = client.submit(os.getpid, pure=False).result()
            address = nanny.worker_address
            assert nanny.pid == pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda n=before: len(ends) > n)
            assert (ends[-1]["ended"], ends[-1]["code"]) == (address, -signal.SIGKILL)
            assert ends[-1]["limit"] == nanny.memory_manager.memory_limit
            client.wait_for_workers(1)


def test_nannies_tell_of_workers_that_they_end_for_their_memory(existing):
    """The topic worker-restart-memory has the worker's address and the memory that it had."""
    told = []
    cluster = existing(workers=1, memory_limit="250MiB")
    with Client(cluster, set_as_default=False) as client:
        client.subscribe_topic("worker-restart-memory", lambda event: told.append(event[1]))
        address = next(iter(client.scheduler_info()["workers"]))
        client.submit(lambda: b"x" * (400 << 20))
        wait_until(lambda: told)
    assert told[0]["worker"] == address
    assert told[0]["rss"] > 200 << 20
