"""A network between a run and the workers that really cuts its leases' streams, or holds them up.

A `Faulty` is TCP proxies on loopback, on a thread of their own. They read the frames that Dask's
comms are made of, so that a fault has a place: a frame is passed on up to a random byte of it, then
both connections are closed, or nothing moves for a while. Only nbmap's own connections are hit, both
ways: the streams of leases, and the questions whether a process lives. What Dask says to its workers
passes untouched, since what becomes of that is Dask's.

All chance comes from a seed, which is printed, so that pytest shows it with a failure; the threads
and processes that meet the faults keep time of their own, so a seed makes a failure likely again and
not certain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter

# What connections say that they are for, in msgpack: nbmap's, and what it asks a worker that may be
# dead. Other messages may hold the same words.
STREAM = re.compile(rb"\xa2op.{1,2}nbmap_far_", re.DOTALL)
QUESTION = re.compile(rb"\xa2op.identity", re.DOTALL)
PIECE = 64 << 10


def new_seed():
    """Return a seed: NBMAP_SEED from the environment, or another one each time."""
    return int(os.environ.get("NBMAP_SEED") or time.time_ns() % 1_000_000)


class Faulty:
    """Proxies that hit some of the frames of nbmap's connections.

    Args:
        seed: where all chance comes from.
        share: of the frames that are hit.
        holds: share of the faults that hold a stream up; the others cut it.
        seconds: for which a stream is held up.
        most_holds: after which there are only cuts.
    """

    def __init__(self, seed, *, share=0.05, holds=0.1, seconds=5.0, most_holds=3):
        self.seed = seed
        self.share, self.holds, self.seconds, self.most_holds = share, holds, seconds, most_holds
        self.on = True
        self.counts = Counter()
        self._servers = []
        self._open = set()  # the writers of connections that may be hit
        self._tasks = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty", daemon=True)
        self._thread.start()
        print(f"faulty network: NBMAP_SEED={seed}")

    def __repr__(self):
        told = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        return f"<faulty network, NBMAP_SEED={self.seed}: {told}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self):
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def proxy(self, port, hit=(STREAM,)):
        """Return the port of a new proxy for another port of this machine.

        Args:
            port: the other one.
            hit: what connections are for that are hit.
        """
        return asyncio.run_coroutine_threadsafe(self._proxy(port, hit), self._loop).result(30)

    async def _proxy(self, port, hit):
        async def accept(reader, writer):
            task = asyncio.current_task()
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # A task that ends as cancelled would be logged as an error by asyncio's streams.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._serve(reader, writer, port, hit)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 20)
        self._servers.append(server)
        return server.sockets[0].getsockname()[1]

    def cut(self):
        """Cut all connections that may be hit, wherever they are."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self):
        self.counts["cuts"] += len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader, writer, port, hit):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # nobody is there, and whoever asks has to find that out
            writer.transport.abort()
            return
        self.counts["connections"] += 1
        number = self.counts["connections"]
        ours = []  # what the connection is for, where that may be hit

        def sort(message):
            if any(what.search(message) for what in hit):
                ours.append("streams" if STREAM.search(message) else "questions")
                self._open.update((writer, far_writer))
                self.counts[ours[0]] += 1

        ways = [
            asyncio.ensure_future(
                self._pass(
                    *(a, b, random.Random(f"{self.seed}-{number}-{way}"), ours),
                    sort if way == "out" else None,
                )
            )
            for way, a, b in (("out", reader, far_writer), ("back", far_reader, writer))
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._open.difference_update((writer, far_writer))
            told = await asyncio.gather(*ways, return_exceptions=True)
            harsh = next((t for t in told if isinstance(t, bool)), False)
            for end in (writer, far_writer):
                if harsh:  # a reset instead of an orderly end
                    linger = struct.pack("ii", 1, 0)
                    sock = end.get_extra_info("socket")
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    end.transport.abort()
                else:
                    end.close()

    async def _pass(self, source, sink, rng, ours, sort):
        """Pass frames on; return whether a cut is to be harsh, or None where a side has ended.

        After its handshake a connection says what it is for.
        """
        number = 0
        while True:
            try:
                head = await source.readexactly(16)
                (n,) = struct.unpack_from("Q", head, 8)
                head += await source.readexactly(8 * n)
                left = sum(struct.unpack_from(f"{n}Q", head, 16))
                number += 1
                if sort is not None and number == 2:
                    head += await source.readexactly(left)
                    left = 0
                    sort(head)
                fault, at = self._fault(rng, len(head) + left) if ours else ("", 0)
                passed = 0
                piece = head
                while True:
                    if fault and passed <= at < passed + len(piece):
                        self.counts[fault] += 1
                        self.counts[f"{fault} of {ours[0]}"] += 1
                        sink.write(piece[: at - passed])
                        await sink.drain()
                        if fault == "cuts":
                            return rng.random() < 0.5
                        await asyncio.sleep(self.seconds)
                        piece, passed = piece[at - passed :], at
                        fault = ""
                    sink.write(piece)
                    passed += len(piece)
                    await sink.drain()
                    if not left:
                        break
                    piece = await source.read(min(left, PIECE))
                    if not piece:
                        return None
                    left -= len(piece)
            except (OSError, asyncio.IncompleteReadError):
                return None

    def _fault(self, rng, nbytes):
        """Choose what happens to a frame, and at which of its bytes."""
        self.counts["frames"] += 1
        hit, hold, at = rng.random() < self.share, rng.random() < self.holds, rng.randrange(nbytes)
        if not hit or not self.on:
            return "", 0
        if hold:
            if self.counts["holds"] >= self.most_holds:
                return "", 0
            return "holds", at
        return "cuts", at


def free_port():
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def hangs_up(port):
    """Close all connections to a port, from when it is free; yield what tells whether it is ours."""
    over, ours = threading.Event(), threading.Event()

    def listen():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            while not over.is_set() and not ours.is_set():
                try:
                    listener.bind(("127.0.0.1", port))
                    listener.listen()
                except OSError:
                    continue
                listener.settimeout(0.05)
                ours.set()
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()

    thread = threading.Thread(target=listen, name="hangs-up")
    thread.start()
    try:
        yield ours.is_set
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def cluster_behind(faulty, *, workers=2, threads=1):
    """Run a Dask cluster whose workers can only be reached through proxies.

    A worker that dies comes back at the same address.
    """
    import dask.config
    from distributed import Nanny, Scheduler, SpecCluster

    def worker():
        port = free_port()
        return {
            "cls": Nanny,
            "options": {
                "worker_port": port,
                "contact_address": f"tcp://127.0.0.1:{faulty.proxy(port, (STREAM, QUESTION))}",
                "nthreads": threads,
                "host": "127.0.0.1",
            },
        }

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {
                    "dashboard": False,
                    "dashboard_address": "127.0.0.1:0",
                    "host": "127.0.0.1",
                    "port": 0,
                },
            },
            workers={number: worker() for number in range(workers)},
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


class Killer:
    """Kills a random worker process of a cluster every now and then, while the block runs.

    Args:
        cluster: whose nannies are in this process; each starts its worker again.
        seed: of who is next.
        every: seconds.
        most: after so many it stops.
    """

    def __init__(self, cluster, seed, *, every=2.0, most=1 << 30):
        self.cluster = cluster
        self.every, self.most = every, most
        self.killed = []  # pids
        self._rng = random.Random(f"killer-{seed}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill, name="killer")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _kill(self):
        while len(self.killed) < self.most and not self._over.wait(self.every):
            pid = self._one()
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)

    def _one(self):
        """Choose a process that works: one that dies while it starts makes its nanny give up."""
        from distributed.core import Status

        there = []
        for nanny in list(self.cluster.workers.values()):
            process = nanny.process
            if nanny.status == Status.running and process and process.status == Status.running:
                there.append(nanny.pid)
        there = [pid for pid in there if pid and pid not in self.killed]
        return self._rng.choice(there) if there else 0
