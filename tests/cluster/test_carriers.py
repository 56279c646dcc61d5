"""One behaviour suite over the two carriers of streams: direct, and relayed by the scheduler.

Each test of the first part runs over both; `carrier` is the fixture that makes handles use one. For
a row more, write a test that asks for it.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from distributed.comm.core import connect as connect_comm
from helpers.processes import wait_until

import nbmap
from nbmap.cluster import relay, stream
from nbmap.cluster.leases import DaskTransport


@pytest.fixture(params=["direct", "relay"])
def carrier(request, two_workers):
    """Run handles of this test on a plain two-worker cluster, by one of the carriers."""
    from distributed import Client

    with Client(two_workers, set_as_default=False) as client:
        client.wait_for_workers(2)
        transport = DaskTransport(client, stream=request.param)
        with nbmap.connect(transport):
            yield request.param
        for job in list(transport.jobs):
            job.cancel()
        transport.engine.wait_for(transport.quit)
        wait_until(lambda: not any(client.processing().values()))


def transport():
    """Return the transport that handles use now."""
    from nbmap.cluster import connect

    return connect.transport_for(None)


def test_the_stream_goes_by_its_carrier(carrier, two_workers):
    """Relayed streams go through the scheduler, direct ones do not."""
    run = nbmap.remote(time.sleep).map([1, 1])
    wait_until(lambda: run.counts["running"] == 2)
    plugins = two_workers.scheduler.plugins
    relays = [plugin for name, plugin in plugins.items() if name.endswith("_relay")]
    streams = sum(len(plugin._calls) for plugin in relays)
    assert streams == (2 if carrier == "relay" else 0)
    run.cancel()


def test_s2_outputs_come_in_the_order_of_the_inputs(carrier):
    """Of 10 000 inputs every output comes once and in order; in the order of completion too."""
    handle = nbmap.remote(lambda x: x * x)
    assert list(handle.map(range(10_000))) == [x * x for x in range(10_000)]
    run = handle.map(range(1000), order_outputs=False)
    assert sorted(run) == [x * x for x in range(1000)]


def test_exceptions_come_back_as_they_are(carrier):
    """An exception is raised at its place as its own type, or is a value if that was asked for."""

    @nbmap.remote
    def invert(x):
        return 1 / x

    outputs = iter(invert.map([2, 0, 4]))
    assert next(outputs) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(outputs)
    out = list(invert.map([2, 0, 4], return_exceptions=True))
    assert out[::2] == [0.5, 0.25]
    assert repr(out[1]) == "UserCodeException(ZeroDivisionError('division by zero'))"


def test_big_arrays_go_both_ways(carrier):
    """Twelve arrays of 8 MB come back changed; what functions get can be written to."""

    @nbmap.remote
    def negate(array):
        array[0] = 7
        return -array

    arrays = [np.full(1 << 20, x, dtype=float) for x in range(12)]
    for x, out in enumerate(negate.map(arrays)):
        assert out[0] == -7
        assert (out[1:] == -x).all()
    assert arrays[3][0] == 3  # the caller's own stay as they are


def test_s6_generators_stream(carrier, tmp_path):
    """An output is handed out while its generator waits for it to be."""

    @nbmap.remote
    def work(x):
        for i in range(4):
            yield x, i
            wait_until((tmp_path / f"{x}-{i}").exists)

    got = []
    for x, i in work.map([0, 1]):
        (tmp_path / f"{x}-{i}").touch()
        got.append((x, i))
    assert sorted(got) == [(x, i) for x in range(2) for i in range(4)]
    assert [i for x, i in got if x == 1] == [0, 1, 2, 3]


def test_f7_a_generator_whose_worker_is_killed_repeats_nothing(carrier, tmp_path):
    """Ten outputs, no gap, no repeat; the run tells where the second attempt took over."""

    @nbmap.remote
    def work(_):
        for i in range(10):
            yield i, os.getpid()
            if i == 2:
                wait_until((tmp_path / "killed").exists)

    run = work.map([0])
    outputs = iter(run)
    got = [next(outputs) for _ in range(3)]
    os.kill(got[0][1], signal.SIGKILL)
    (tmp_path / "killed").touch()
    got += outputs
    assert [i for i, _ in got] == list(range(10))
    assert len({pid for _, pid in got}) == 2
    assert run.takeovers == [(0, 2, 3)]


def test_f17_a_slow_consumer_pauses_generators(carrier, tmp_path):
    """Of 4 x 100 arrays of 2 MB only so many are made as may wait; all of them come."""

    @nbmap.remote
    def work(x):
        for i in range(100):
            (tmp_path / f"{x}-{i}").touch()
            yield np.full(1 << 18, i, dtype=float)

    outputs = iter(work.map(range(4), keep=False))
    next(outputs)
    made = -1
    while made != (made := len(list(tmp_path.iterdir()))):
        time.sleep(1)
    assert made < 100
    assert sum(1 for _ in outputs) == 399


def test_s7_s13_async_functions_and_twins(carrier):
    """Coroutines run there, and calls are awaited here."""

    @nbmap.remote
    async def double(x):
        await asyncio.sleep(0.001)
        return 2 * x

    @nbmap.remote
    async def count(n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def inputs():
        for x in range(5):
            yield x

    async def main():
        calls = await asyncio.gather(*(double.remote.aio(x) for x in range(10)))
        mapped = await double.map.aio(inputs())
        streamed = [i async for i in count.remote_gen.aio(4)]
        return calls, mapped, streamed

    expected = [2 * x for x in range(10)], [0, 2, 4, 6, 8], [0, 1, 2, 3]
    assert asyncio.run(main()) == expected


def test_s17_retries_and_timeouts(carrier):
    """An input is tried again, and a function that takes too long is stopped."""

    @nbmap.remote(retries=nbmap.Retries(2, initial_delay=0.01))
    def third_time(x):
        if nbmap.current_input().attempt < 3:
            raise LookupError(x)
        return x

    @nbmap.remote(timeout=0.3)
    def endless(_):
        while True:
            pass

    assert list(third_time.map(range(5))) == list(range(5))
    assert isinstance(endless.spawn(1).exception(), nbmap.InputTimeout)


def test_s20_s21_nested_runs_and_pipes(carrier):
    """A handle maps in remote code, three deep, and runs are inputs of others."""
    leaf = nbmap.remote(lambda x: x + 1)
    middle = nbmap.remote(lambda x: sum(leaf.map(range(x))))
    top = nbmap.remote(lambda x: list(middle.map(range(x))))
    assert list(top.map([3, 4])) == [[0, 1, 3], [0, 1, 3, 6]]
    assert list(leaf.map(leaf.map(range(20)))) == list(range(2, 22))


def test_s22_a_loader_loads_once_in_each_process(carrier, tmp_path):
    """Under inputs of two runs."""

    @nbmap.per_worker
    def model():
        with (tmp_path / "loads").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return [1]

    handle = nbmap.remote(lambda x: model()[0] + x)
    for _ in range(2):
        assert list(handle.map(range(50))) == list(range(1, 51))
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads)) <= 2


def test_s25_retry_runs_what_failed(carrier, tmp_path):
    """And takes over the rest."""

    @nbmap.remote
    def work(x):
        (tmp_path / f"{x}-{time.time_ns()}").touch()
        if x == 3 and not (tmp_path / "mended").exists():
            raise LookupError(x)
        return x

    run = work.map(range(6))
    assert run.wait(60)
    (tmp_path / "mended").touch()
    assert list(run.retry()) == list(range(6))
    assert len(list(tmp_path.glob("?-*"))) == 7


def test_prints_are_found_at_their_input(carrier):
    """What each of 50 inputs prints is found there, in its order."""

    @nbmap.remote
    def talk(x):
        print(f"{x} begins")
        print(f"{x} ends", file=sys.stderr)

    run = talk.map(range(50))
    assert run.wait(60)
    for x in range(50):
        assert run.stdout(x).split() == [str(x), "begins", str(x), "ends"]


def test_cancel_stops_the_function_itself(carrier, tmp_path):
    """A running Python loop stands still after cancel, and its slot serves the next map."""
    counter = tmp_path / "counter"

    @nbmap.remote
    def spin(_):
        n = 0
        while True:
            n += 1
            counter.write_text(str(n))

    run = spin.map([0])
    wait_until(counter.exists)
    run.cancel()
    assert run.wait(60)
    assert run.status == "cancelled"
    before = counter.read_text()
    assert nbmap.remote(abs)(-1) == 1
    assert counter.read_text() == before


def test_concurrency_holds(carrier, tmp_path):
    """Never do two inputs of a handle with concurrency=1 run at once, also of two maps."""
    lock = tmp_path / "lock"

    @nbmap.remote(concurrency=1)
    def alone(x):
        lock.touch(exist_ok=False)
        time.sleep(0.01)
        lock.unlink()
        return x

    runs = [alone.map(range(20)) for _ in range(2)]
    assert [list(run) for run in runs] == [list(range(20))] * 2


def test_an_input_that_kills_its_worker_is_lost_alone(carrier):
    """Of 21 inputs the one that kills its process is lost; 20 have outputs."""

    @nbmap.remote
    def work(x):
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    run = work.map(range(21), return_exceptions=True)
    out = list(run)
    assert out[:7] + out[8:] == [*range(7), *range(8, 21)]
    assert isinstance(out[7], nbmap.WorkerLost)
    assert [(f.index, f.kind) for f in run.failures] == [(7, "lost")]


def test_a_worker_killed_from_outside_costs_no_input(carrier, tmp_path):
    """SIGKILL of a random worker: every input has its output, some after a second attempt."""

    @nbmap.remote(worker_losses=20)
    def work(x):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.005)
        return x

    run = work.map(range(300))
    wait_until(lambda: run.counts["done"] > 20)
    os.kill(int(next(iter(tmp_path.iterdir())).name), signal.SIGKILL)
    assert list(run) == list(range(300))
    assert run.failures == []


def test_a_stream_that_is_cut_blames_nobody(carrier):
    """Every input has its output although all streams are cut, twice; no worker is to blame."""

    @nbmap.remote(worker_losses=1)
    def work(x):
        time.sleep(0.005)
        return x

    def cut():
        for held in list(transport().leases.values()):
            if held.link is not None:
                held.link.abort()

    run = work.map(range(300))
    for done in (20, 100):
        wait_until(lambda done=done: run.counts["done"] > done)
        transport().engine.wait_for(cut)
    assert list(run) == list(range(300))
    assert run.failures == []


def test_workers_are_free_at_once_when_the_notebook_is_gone(carrier, two_workers, tmp_path):
    """After SIGKILL of the process that maps, its loops end and the slots are there for others."""
    text = f"""
import time, nbmap
from distributed import Client
from nbmap.cluster.leases import DaskTransport

def spin(x):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass

if __name__ == "__main__":
    client = Client({two_workers.scheduler_address!r}, set_as_default=False)
    with nbmap.connect(DaskTransport(client, stream={carrier!r})):
        run = nbmap.remote(spin).map(range(2))
        while run.counts["running"] < 2:
            time.sleep(0.01)
        print("running", flush=True)
        time.sleep(60)
"""
    script = tmp_path / "script.py"
    script.write_text(text)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "running\n"
        finally:
            process.kill()
    gone = time.monotonic()
    assert list(nbmap.remote(abs).map([-1, -2])) == [1, 2]
    assert time.monotonic() - gone < 10


def test_a_slow_reader_holds_up_the_workers(carrier):
    """An endless map whose outputs nobody takes stands still, and goes on when they are taken."""
    big = nbmap.remote(lambda _: bytes(1 << 20))
    inputs = threading.Event()

    def endless():
        while not inputs.is_set():
            yield 0

    run = big.map(endless())
    outputs = iter(run)
    assert sum(len(next(outputs)) for _ in range(5)) == 5 << 20
    time.sleep(0.5)
    done = run.counts["done"]
    assert sum(len(next(outputs)) for _ in range(100)) == 100 << 20
    assert done < 1000
    inputs.set()
    run.cancel()


# --- which carrier, and what ends it --------------------------------------------------------------


def test_relayed_streams_speak_tls(existing):
    """Where the cluster has certificates, both connections to the scheduler use them."""
    from distributed import Client, Security

    cluster = existing(workers=1, security=Security.temporary())
    with Client(cluster, set_as_default=False) as client:
        handle = nbmap.remote(lambda x: -x, cluster=DaskTransport(client, stream="relay"))
        assert list(handle.map(range(100))) == [-x for x in range(100)]
        big = np.ones(1 << 20)
        assert (handle(big) == -1).all()


def test_a_cluster_in_threads_can_be_relayed(existing):
    """Workers and scheduler in this process, without any socket."""
    from distributed import Client

    cluster = existing(workers=1, threads=2, processes=False)
    with Client(cluster, set_as_default=False) as client:
        handle = nbmap.remote(lambda x: -x, cluster=DaskTransport(client, stream="relay"))
        assert list(handle.map(range(100))) == [-x for x in range(100)]
        assert (handle(np.ones(1 << 20)) == -1).all()


@pytest.fixture
def out_of_reach():
    """Make a cluster whose workers nobody can connect to: they say that they are elsewhere."""
    from distributed import Nanny, Scheduler, SpecCluster

    def worker(port):
        return {"cls": Nanny, "options": {"contact_address": f"tcp://127.0.0.1:{port}"}}

    with SpecCluster(
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "port": 0}},
        workers={port: worker(port) for port in (1, 2)},
        silence_logs=50,
    ) as cluster:
        yield cluster


def test_workers_that_cannot_be_reached_are_relayed(out_of_reach, caplog):
    """By itself nbmap goes through the scheduler, says so once, and loses nothing in deaths.

    A worker that was killed comes back at the same address, so that only its id is another one.
    """
    caplog.set_level(logging.INFO, "nbmap")
    handle = nbmap.remote(lambda x: x + 1, cluster=out_of_reach, worker_losses=20)
    assert list(handle.map(range(1000))) == list(range(1, 1001))
    assert list(handle.map(range(1000))) == list(range(1, 1001))
    told = [r for r in caplog.records if "goes through the scheduler" in r.getMessage()]
    assert len(told) == 1

    @nbmap.remote(cluster=out_of_reach)
    def kill(x):
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    out = list(kill.map(range(21), return_exceptions=True))
    assert out[:7] + out[8:] == [*range(7), *range(8, 21)]
    assert isinstance(out[7], nbmap.WorkerLost)


def test_direct_streams_alone_may_be_asked_for(out_of_reach):
    """With "direct" nothing is relayed: the run waits, and what keeps it is said."""
    from distributed import Client

    with Client(out_of_reach, set_as_default=False) as client:
        direct = DaskTransport(client, stream="direct")
        run = nbmap.remote(abs, cluster=direct).map([-1])
        wait_until(lambda: direct.trouble)
        assert "can't be reached from here" in direct.trouble
        assert not any(name.endswith("_relay") for name in out_of_reach.scheduler.plugins)
        run.cancel()


def test_a_scheduler_that_takes_no_plugin_says_what_to_do(existing):
    """The run ends with a ClusterError that names the setting."""
    from distributed import Client

    options = {"blocked_handlers": ["register_scheduler_plugin"]}
    cluster = existing(workers=1, scheduler_options=options)
    with Client(cluster, set_as_default=False) as client:
        relayed = DaskTransport(client, stream="relay")
        run = nbmap.remote(abs, cluster=relayed).map([-1])
        with pytest.raises(nbmap.ClusterError, match=re.escape("scheduler.blocked-handlers")):
            list(run)


def test_the_relay_knows_its_workers_and_its_calls(existing):
    """It calls no other process at a worker's address, and joins nobody without a call's token.

    A worker that got a message that it does not know would close.
    """
    from distributed import Client

    cluster = existing(workers=1)
    with Client(cluster, set_as_default=False) as client:
        relayed = DaskTransport(client, stream="relay")
        handle = nbmap.remote(abs, cluster=relayed)
        assert handle(-1) == 1
        (worker,) = client.nthreads()
        operation = stream._relay_operation()

        async def ask(server, lease=""):
            answer, comm = await relay.call(
                client.scheduler.address,
                {},
                operation,
                worker=worker,
                server=server,
                lease=lease,
                patience=3.0,
            )
            said = await comm.read() if answer == relay.OPEN else None
            comm.abort()
            return answer, said

        async def intrude(token):
            comm = await connect_comm(client.scheduler.address)
            await comm.write({"op": operation, "token": token, "reply": False})
            await comm.read()

        assert client.sync(ask, "another") == (relay.GONE, None)
        for token in ("none", *cluster.scheduler.plugins[operation]._calls):
            with pytest.raises(OSError, match="closed"):
                client.sync(intrude, token)
        (place,) = relayed._at.values()
        answer, said = client.sync(ask, place.server, "no lease")
        assert answer == relay.OPEN
        assert set(said) == {"boot"}
        assert handle(-2) == 2
        assert list(client.nthreads()) == [worker]


def test_leases_end_when_a_client_closes_under_a_run(existing):
    """The run ends with ClusterLost, and nothing of ours is left on the workers."""
    from distributed import Client

    def kept():
        return [thread.name for thread in threading.enumerate() if "keeper" in thread.name]

    cluster = existing(workers=1)
    for name in ("direct", "relay"):
        with Client(cluster, set_as_default=False) as client:
            lasting = DaskTransport(client, stream=name)
            run = nbmap.remote(time.sleep, cluster=lasting).map([0.01] * 10_000)
            assert run[0] is None
        with pytest.raises(nbmap.ClusterLost):
            list(run)
        with Client(cluster, set_as_default=False) as client:
            wait_until(lambda client=client: list(client.run(kept).values()) == [[]])


@pytest.mark.parametrize("name", ["direct", "relay"])
def test_a_lease_that_runs_elsewhere_before_its_loss_is_known(existing, name, monkeypatch):
    """Dask runs a lease's task again while nbmap still asks whether its worker lives."""
    from distributed import Client

    asked = stream.Streams.process_alive

    async def slowly(self, place, boot):
        await asyncio.sleep(2)
        return await asked(self, place, boot)

    monkeypatch.setattr(stream.Streams, "process_alive", slowly)
    with Client(existing(workers=2), set_as_default=False) as client:

        @nbmap.remote(cluster=DaskTransport(client, stream=name), worker_losses=20)
        def work(x):
            time.sleep(0.01)
            return x, os.getpid()

        run = work.map(range(300))
        os.kill(run[0][1], signal.SIGKILL)
        assert run.wait(60)
        assert [x for x, _ in run] == list(range(300))


@pytest.mark.parametrize("name", ["direct", "relay"])
def test_a_cluster_that_goes_away_ends_the_run(existing, name):
    """Closing the cluster under a run raises ClusterLost; finished outputs stay readable."""
    from distributed import Client

    cluster = existing(workers=1)
    client = Client(cluster, set_as_default=False)
    handle = nbmap.remote(time.sleep, cluster=DaskTransport(client, stream=name))
    run = handle.map([0.05] * 1000)
    assert run[0] is None
    cluster.close()
    with pytest.raises(nbmap.ClusterLost):
        list(run)
    assert run[0] is None
    assert not run.failures


def test_a_relay_that_is_taken_away_is_sent_again(existing):
    """Without its plugin and operation a scheduler gets them again; the run loses nothing."""
    from distributed import Client

    cluster = existing(workers=1)
    with Client(cluster, set_as_default=False) as client:
        relayed = DaskTransport(client, stream="relay")

        @nbmap.remote(cluster=relayed, worker_losses=1)
        def work(x):
            time.sleep(0.01)
            return x

        run = work.map(range(200))
        wait_until(lambda: run.counts["done"] > 5)

        def take_away(dask_scheduler):
            for name in [n for n in dask_scheduler.plugins if n.endswith("_relay")]:
                for call in dask_scheduler.plugins[name]._calls.values():
                    call.near.abort()
                dask_scheduler.remove_plugin(name)
                del dask_scheduler.handlers[name]

        client.run_on_scheduler(take_away)
        assert list(run) == list(range(200))
    assert run.failures == []
