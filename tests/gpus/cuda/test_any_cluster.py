"""GPUs of a cluster that nbmap did not start, from a process that sees none itself."""

import os
import signal
import time
from contextlib import ExitStack

import pytest
from helpers import dasks, gpus
from helpers.gpus import A100, T4
from helpers.processes import run_script, wait_until

import nbmap
from nbmap.cluster import gpu_leases


@pytest.fixture
def hosts(libraries, tmp_path):
    """Yield a scheduler file, and a function that starts `dask cuda worker` on a host with GPUs."""
    with ExitStack() as stack:
        _, path = stack.enter_context(dasks.scheduler(tmp_path))

        def add(host, *machine):
            state = tmp_path / host
            state.mkdir()
            env = gpus.machine(libraries, state, *machine, FAKE_GPU_HOST=host)
            command = ("cuda", "worker", "--host", "127.0.0.1", "--no-dashboard")
            command += ("--scheduler-file", path)
            stack.enter_context(dasks.dask(*command, env=env))

        stack.enter_context(dasks.worker(path))  # without a GPU
        yield path, add


def where(x):
    """Return the input, the first device of the process, and the process."""
    time.sleep(0.1)
    return x, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("FAKE_GPU_HOST"), os.getpid()


where.__module__ = "__main__"  # so that it travels by value


def test_g18_only_workers_with_such_gpus_are_used_and_others_may_join_and_die(hosts, tmp_path):
    """Of three kinds of workers; none that fits is said at once, with what is there."""
    path, add = hosts
    cluster = os.fspath(path)
    add("aaaa", A100, A100)
    dasks.wait_for_workers(path, 3)
    with pytest.raises(nbmap.NoMatchingGPU, match="the cluster has 2 x NVIDIA A100-SXM4-80GB"):
        nbmap.remote(where, gpu="T4", cluster=cluster).map([1])
    out = nbmap.remote(where, gpu="A100", cluster=cluster).map(range(8)).results()
    assert [x for x, *_ in out] == list(range(8))
    assert {host for _, _, host, _ in out} == {"aaaa"}
    assert len({pid for *_, pid in out}) == 2
    by_two = nbmap.remote(where, gpu="A100:2", cluster=cluster).map(range(4)).results()
    assert len({pid for *_, pid in by_two}) == 1

    folder = tmp_path / "seen"
    folder.mkdir()

    def until_the_t4_has_come(x):
        host, pid = os.environ["FAKE_GPU_HOST"], os.getpid()
        (folder / f"{host} {pid}").touch()
        while not list(folder.glob("bbbb *")):
            time.sleep(0.05)
        time.sleep(0.05)
        return x, host

    run = nbmap.remote(until_the_t4_has_come, gpu=True, cluster=cluster).map(range(40))
    wait_until(lambda: len(list(folder.iterdir())) == 2)
    add("bbbb", T4)
    wait_until(lambda: list(folder.glob("bbbb *")))
    victim = int(next(folder.glob("aaaa *")).name.split()[1])
    os.kill(victim, signal.SIGKILL)
    out = run.results()
    assert [x for x, _ in out] == list(range(40))
    assert {host for _, host in out} == {"aaaa", "bbbb"}


def test_g18_the_notebook_needs_no_package_for_gpus(hosts, tmp_path):
    """Only the workers have what asks a driver; their GPUs are known, seen and used."""
    path, add = hosts
    add("aaaa", A100)
    dasks.wait_for_workers(path, 2)
    script = f"""
import sys
for name in ("dask_cuda", "pynvml", "cuda"):
    sys.modules[name] = None  # importing it fails
import nbmap

def where(x):
    import os
    return os.environ["FAKE_GPU_HOST"]

if __name__ == "__main__":
    print(nbmap.remote(where, gpu="A100", cluster={os.fspath(path)!r}).map([1])[0])
"""
    done = run_script(tmp_path / "script.py", script)
    assert done.stdout.split() == ["aaaa"], done.stderr


def test_g18_runs_that_want_the_same_gpus_or_their_workers_take_turns(hosts):
    """One on all workers, one on each GPU, and one on pairs of them; none waits for others' ends."""
    path, add = hosts
    cluster = os.fspath(path)
    add("aaaa", A100, A100)
    dasks.wait_for_workers(path, 3)
    on_all = nbmap.remote(where, cluster=cluster).map(range(5000))
    wait_until(lambda: on_all.counts["running"] == 3)
    on_each = nbmap.remote(where, gpu="A100", cluster=cluster).map(range(5000))
    wait_until(lambda: on_each.counts["done"] > 4)
    on_two = nbmap.remote(where, gpu="A100:2", cluster=cluster).map(range(12))
    assert [x for x, *_ in on_two] == list(range(12))
    for run in (on_all, on_each):
        done = run.counts["done"]
        wait_until(lambda run=run, done=done: run.counts["done"] > done + 4)
        run.cancel()


def test_g18_a_run_may_wait_for_a_gpu_to_join(hosts):
    """As long as it was told to; then it says what was there."""
    path, add = hosts
    cluster = os.fspath(path)
    dasks.wait_for_workers(path, 1)
    run = nbmap.remote(where, gpu="T4", cluster=cluster, wait_for_gpu=1).map([1])
    with pytest.raises(nbmap.NoMatchingGPU, match="the cluster has no GPU"):
        list(run)
    run = nbmap.remote(where, gpu="T4", cluster=cluster, wait_for_gpu=60).map([1, 2])
    add("bbbb", T4)
    assert [x for x, *_ in run] == [1, 2]
    on_cpu = nbmap.remote(abs, gpu=["H100", "cpu"], cluster=cluster).map([-1, -2])
    assert list(on_cpu) == [1, 2]


def test_a_worker_whose_gpus_cannot_be_looked_at_is_not_one_without(libraries, tmp_path):
    """The error says so, and why."""
    with dasks.scheduler(tmp_path) as (_, path):
        env = gpus.machine(libraries, tmp_path, A100, FAKE_GPU_DRIVER="notloaded")
        with dasks.worker(path, env=env):
            dasks.wait_for_workers(path, 1)
            handle = nbmap.remote(abs, gpu="A100", cluster=os.fspath(path))
            with pytest.raises(nbmap.NoMatchingGPU, match=r"can't be looked at, tcp.*modprobe"):
                handle.map([1])


def test_g10_a_worker_that_dies_at_once_and_is_the_only_one_is_waited_for(hosts, tmp_path):
    """The run does not take its short absence for a cluster without such a GPU."""
    path, add = hosts
    add("bbbb", T4)
    dasks.wait_for_workers(path, 2)
    died = tmp_path / "died"

    def work(x):
        if x == 0 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    run = nbmap.remote(work, gpu="T4", cluster=os.fspath(path)).map(range(10))
    assert run.results() == [*range(10)]
    assert run.records()[0]["attempts"] == 2


def test_g13_a_run_on_any_cluster_ends_when_all_its_gpus_are_left_alone(hosts):
    """It says which and why, and so does the next one."""
    path, add = hosts
    add("bbbb", T4)
    add("cccc", A100)
    dasks.wait_for_workers(path, 3)

    def work(x):
        import ctypes

        from cuda.core import Device

        Device().set_current()
        ctypes.CDLL("libcuda.so.1").fake_cuda_trap()
        raise RuntimeError(x)

    handle = nbmap.remote(work, gpu="T4", cluster=os.fspath(path))
    run = handle.map(range(20), return_exceptions=True)
    why = r"Tesla T4 \(GPU-.*\): CUDA has died on it in 3 processes one after the other"
    with pytest.raises(nbmap.ClusterError, match=why):
        list(run)
    assert run.counts["failed"] == 3
    with pytest.raises(nbmap.NoMatchingGPU, match=f"1 x NVIDIA A100.*{why}"):
        handle.map([1])
    either = nbmap.remote(where, gpu="T4|A100", cluster=os.fspath(path)).map([1, 2])
    assert {host for _, _, host, _ in either} == {"cccc"}


def test_a_worker_that_stands_holds_up_no_other(hosts, monkeypatch):
    """It is said to be one whose GPUs can't be looked at; the others are used."""
    monkeypatch.setattr(gpu_leases, "LOOK", 2.0)
    path, add = hosts
    add("bbbb", T4)
    dasks.wait_for_workers(path, 2)
    with dasks.worker(path, "--no-nanny") as standing:
        dasks.wait_for_workers(path, 3)
        os.killpg(standing.pid, signal.SIGSTOP)
        try:
            cluster = os.fspath(path)
            assert [x for x, *_ in nbmap.remote(where, gpu="T4", cluster=cluster).map([1, 2])] == [
                1,
                2,
            ]
            with pytest.raises(nbmap.NoMatchingGPU, match="it has not answered in 2 s"):
                nbmap.remote(where, gpu=["H100", "cpu"], cluster=cluster).map([1])
        finally:
            os.killpg(standing.pid, signal.SIGCONT)
