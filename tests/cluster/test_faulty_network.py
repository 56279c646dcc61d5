"""Runs whose leases' streams are cut, held up, or lose the relay that they go through."""

import os
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
from distributed import Client
from helpers import faulty, history
from helpers.files import await_file, touch
from helpers.processes import wait_until

import nbmap
from nbmap.cluster import connect
from nbmap.cluster.leases import DaskTransport

pytestmark = pytest.mark.timeout(100)

OUTPUTS = 6  # of each generator


@pytest.fixture
def network():
    """Yield a network that hits 5 % of the frames of leases' streams."""
    with faulty.Faulty(faulty.new_seed()) as network:
        yield network


@contextmanager
def leases_of(cluster, stream):
    """Have leases of a cluster by one of the carriers while the block runs."""
    with Client(cluster, set_as_default=False) as client:
        transport = DaskTransport(client, stream=stream)
        yield transport
        transport.engine.wait_for(transport.quit)
        wait_until(lambda: not any(client.processing().values()))


def squares(transport, folder, seconds):
    """Return a handle of a function that writes down its attempts; its inputs take that long."""

    @nbmap.remote(cluster=transport, worker_losses=1)
    def square(x):
        history.starts(folder, x)
        time.sleep(seconds(x))
        history.ends(folder, x)
        return x * x

    return square


def counters(transport, folder, seconds):
    """Return a handle of a generator that does."""

    @nbmap.remote(cluster=transport, worker_losses=1)
    def count(x):
        history.starts(folder, x)
        for i in range(OUTPUTS):
            yield x, i
            time.sleep(seconds(x) / OUTPUTS)
        history.ends(folder, x)

    return count


def mixed(x):
    """Return how long an input takes: nine in ten are short, and travel several at once."""
    return 0.06 if x % 10 == 7 else 0.001 * (x % 5)


def the_square(x):
    return [x * x]


def the_outputs(x):
    return [(x, i) for i in range(OUTPUTS)]


def check(run, folder, network, *, n, value):
    accepted = history.Accepted(run)
    cuts = network.counts["cuts"]
    assert cuts > 0, network
    return history.check(
        run, folder, accepted, n=n, value=value, losses=cuts, killed=(), why=network
    )


@pytest.mark.parametrize("keep", [True, False])
def test_f11_streams_that_are_cut_and_held_up_cost_no_input(network, folder, keep):
    """Of 300 inputs each has its outcome once, attempts are counted, and nobody is blamed."""
    with faulty.cluster_behind(network) as cluster, leases_of(cluster, "direct") as transport:
        run = squares(transport, folder, mixed).map(range(300), keep=keep)
        check(run, folder, network, n=300, value=the_square)


@pytest.mark.parametrize("keep", [True, False])
def test_f11_generators_whose_streams_are_cut_and_held_up(network, folder, keep):
    """Of 150 generators all outputs come in their order, without a gap and without a repeat."""
    with faulty.cluster_behind(network) as cluster, leases_of(cluster, "direct") as transport:
        run = counters(transport, folder, mixed).map(range(150), keep=keep)
        check(run, folder, network, n=150, value=the_outputs)


@pytest.mark.parametrize("kind", ["functions", "generators"])
def test_f11_relayed_streams_that_are_cut_and_held_up(network, folder, two_workers, kind):
    """The same, where the streams go through the scheduler."""
    port = int(two_workers.scheduler_address.rpartition(":")[2])
    with leases_of(f"tcp://127.0.0.1:{network.proxy(port)}", "relay") as transport:
        if kind == "functions":
            run = squares(transport, folder, mixed).map(range(200))
            check(run, folder, network, n=200, value=the_square)
        else:
            run = counters(transport, folder, mixed).map(range(150))
            check(run, folder, network, n=150, value=the_outputs)


@pytest.mark.parametrize("kind", ["functions", "generators"])
def test_f11_a_relay_whose_plugin_goes_again_and_again(folder, two_workers, kind):
    """Five times its plugin is taken from the scheduler, with its streams: nothing is lost."""
    n, value = (400, the_square) if kind == "functions" else (150, the_outputs)
    make = squares if kind == "functions" else counters
    gone = []

    def take_away(dask_scheduler):
        names = [name for name in dask_scheduler.plugins if name.endswith("_relay")]
        for name in names:
            for call in dask_scheduler.plugins[name]._calls.values():
                call.near.abort()
            dask_scheduler.remove_plugin(name)
            del dask_scheduler.handlers[name]
        return len(names)

    def again_and_again():
        for at in range(1, 6):
            wait_until(lambda at=at: run.done() or run.counts["done"] > at * n // 7, 60)
            gone.append(transport.client.run_on_scheduler(take_away))

    with leases_of(two_workers, "relay") as transport:
        run = make(transport, folder, mixed).map(range(n))
        thread = threading.Thread(target=again_and_again)
        thread.start()
        accepted = history.Accepted(run)
        thread.join()
        assert sum(gone) >= 3, gone
        history.check(run, folder, accepted, n=n, value=value, losses=len(gone), killed=())


@pytest.mark.parametrize("kind", ["functions", "generators"])
def test_f11_encrypted_streams_of_our_own_cluster_that_are_cut(folder, own, kind):
    """Ten times a connection of this process to a worker is cut: each input has its outcome once."""
    n, value = (400, the_square) if kind == "functions" else (150, the_outputs)
    make = squares if kind == "functions" else counters
    nbmap.remote(abs).map(range(4)).results()
    ports = {int(address.rpartition(":")[2]) for address in connect._own.workers()}
    rng, cuts = random.Random(11), []

    def cut():
        """Cut a connection; return whether it was one to a worker, and there until then."""
        there = psutil.Process().net_connections("tcp")
        descriptors = [c.fd for c in there if c.raddr and c.raddr.port in ports]
        with (
            suppress(OSError, IndexError),
            socket.socket(fileno=os.dup(rng.choice(descriptors))) as connection,
        ):
            if connection.getpeername()[1] in ports:  # its number may be another's by now
                connection.shutdown(socket.SHUT_RDWR)
                cuts.append(connection)
                return True
        return False

    def again_and_again():
        for at in range(1, 11):
            wait_until(lambda at=at: run.done() or run.counts["done"] > at * n // 12, 60)
            wait_until(cut)

    run = make("local", folder, mixed).map(range(n))
    thread = threading.Thread(target=again_and_again)
    thread.start()
    accepted = history.Accepted(run)
    thread.join()
    assert len(cuts) == 10
    assert history.check(run, folder, accepted, n=n, value=value, losses=len(cuts), killed=()), (
        "no stream was hit"
    )


def test_f11_a_network_that_is_gone_for_seconds_blames_nobody(network, folder):
    """Nor an input that runs each time, though nobody can be asked then whether its process lives."""
    network.share = 0.0

    def square(x):
        history.starts(folder, x)
        if x == 0:
            await_file(folder, "go")
        history.ends(folder, x)
        return x * x

    with faulty.cluster_behind(network) as cluster, leases_of(cluster, "direct") as transport:
        run = nbmap.remote(square, cluster=transport, worker_losses=1).map(range(20))
        for times in range(1, 4):
            wait_until(lambda times=times: len(history.Log(folder).starts[0]) == times)
            cuts = network.counts["cuts"]
            network.share, network.holds = 1.0, 0.0
            network.cut()
            wait_until(lambda cuts=cuts: network.counts["cuts"] > cuts + 20)
            network.share = 0.0
        wait_until(lambda: len(history.Log(folder).starts[0]) == 4)
        touch(folder, "go")
        check(run, folder, network, n=20, value=the_square)
        assert history.attempts_of(run)[0] == 4
