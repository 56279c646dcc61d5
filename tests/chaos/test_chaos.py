"""Runs that lose their workers all the time, and in the full form their streams too.

The small forms belong to `make test`, the full ones to `make chaos`, which writes what they met to
`tests/bench/chaos.json` where they are whole.
"""

import json
import os
import random
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import faulty, history
from helpers.processes import wait_until

import nbmap

FIGURES = Path(__file__).parents[1] / "bench" / "chaos.json"
WORKERS = 4
OUTPUTS = 5  # of each generator


@dataclass(frozen=True)
class Form:
    """How much of it.

    Args:
        inputs: of the run.
        seconds: that an input takes on average. With no worker ever away the run would last
            `inputs * seconds / WORKERS`, which has to be enough for the kills.
        kills: at least so many are asserted.
        every: seconds from one kill to the next.
        most: kills, after which there is peace.
        cut: share of the frames at which a stream is cut; 0 is nbmap's own cluster, without proxies.
        streams: share of the streams that are cut at least.
    """

    inputs: int
    seconds: float
    kills: int
    every: float = 2.0
    most: int = 1 << 30
    cut: float = 0.0
    streams: float = 0.0


# NBMAP_CHAOS makes the full forms shorter or longer: the minutes that they take, instead of 10.
PART = float(os.environ.get("NBMAP_CHAOS", "10")) / 10
SMALL = Form(2_000, 0.045, 10, most=10)
SMALL_GENERATORS = Form(300, 0.11, 4, most=4)
FULL = Form(int(100_000 * PART), 0.016, int(100 * PART), cut=0.005, streams=0.05)
FULL_GENERATORS = Form(int(20_000 * PART), 0.08, int(100 * PART), cut=0.005, streams=0.05)


@contextmanager
def workers_of(form, seed):
    """Yield what handles use, whose nannies to look for, and the network, for a form."""
    if form.cut:
        with (
            faulty.Faulty(seed, share=form.cut, most_holds=0) as network,
            faulty.cluster_behind(network, workers=WORKERS) as cluster,
            nbmap.connect(cluster),
        ):
            yield None, cluster, network
        return
    from nbmap.cluster import connect

    nbmap.stop()
    nbmap.start(workers=WORKERS)
    try:
        yield "local", connect._own._cluster, None
    finally:
        nbmap.stop()


def play(form, folder, name):
    """Play a form and check its history; return its figures."""
    seed, generators = faulty.new_seed(), name == "generators"
    why = f"NBMAP_SEED={seed}"
    print(why)
    mean = form.seconds

    def takes(x):  # most are short, and travel several at once
        return mean * (0.1 if random.Random(f"{seed}-{x}").random() < 0.7 else 3.1)

    def square(x):
        history.starts(folder, x)
        time.sleep(takes(x))
        history.ends(folder, x)
        return x * x

    def count(x):
        history.starts(folder, x)
        for i in range(OUTPUTS):
            yield x, i
            time.sleep(takes(x) / OUTPUTS)
        history.ends(folder, x)

    def value(x):
        return [(x, i) for i in range(OUTPUTS)] if generators else [x * x]

    began = time.monotonic()
    with workers_of(form, seed) as (target, cluster, network):
        handle = nbmap.remote(count if generators else square, cluster=target, worker_losses=20)
        run = handle.map(range(form.inputs))
        with faulty.Killer(cluster, seed, every=form.every, most=form.most) as killer:
            accepted = history.Accepted(run)
        seconds = time.monotonic() - began
        counts = network.counts if network else Counter()
        why = f"{why}, {len(killer.killed)} kills, {network}"
        assert len(killer.killed) >= form.kills, why
        assert counts["cuts of streams"] >= form.streams * counts["streams"], why
        beyond = history.check(
            run,
            folder,
            accepted,
            n=form.inputs,
            value=value,
            losses=len(killer.killed) + counts["cuts"],
            killed=set(killer.killed),
            why=why,
        )
    wait_until(lambda: not history.Log(folder).alive())
    return {
        "inputs": form.inputs,
        "kills": len(killer.killed),
        "streams": counts["streams"],
        "streams cut": counts["cuts of streams"],
        "questions cut": counts["cuts of questions"],
        "attempts beyond the first": beyond,
        "seconds": round(seconds, 1),
        "seed": seed,
    }


@pytest.mark.timeout(400)
def test_f6_random_workers_killed_every_two_seconds(folder):
    """Of 2 000 inputs each has its outcome once, and ten kills are seen in the attempts."""
    assert play(SMALL, folder, "functions")["attempts beyond the first"] > 0


@pytest.mark.timeout(400)
def test_f6_generators_whose_workers_are_killed(folder):
    """Every generator's outputs come in their order, without a gap and without a repeat."""
    assert play(SMALL_GENERATORS, folder, "generators")["attempts beyond the first"] > 0


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["functions", "generators"])
def test_f6_f11_workers_killed_and_streams_cut_for_ten_minutes(folder, name):
    """Of 100 000 inputs each has its outcome once and right, and every attempt is counted."""
    figures = play(FULL if name == "functions" else FULL_GENERATORS, folder, name)
    print(figures)
    if PART >= 1:
        told = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        FIGURES.write_text(json.dumps({**told, name: figures}, indent=1) + "\n")
