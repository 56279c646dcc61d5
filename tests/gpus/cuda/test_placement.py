"""Which GPU each input runs on, and what is said where there is none that fits."""

from itertools import combinations

import pytest
from helpers.gpus import A100, A100_40, T4

A10G = "NVIDIA A10G:23028"


def digits(text):
    return text.lower().removeprefix("gpu-").removeprefix("mig-").replace("-", "")


def names(results):
    return {result["name"] for result in results}


def overlap(results):
    """Return the pairs of results whose inputs ran at the same time."""
    return [
        (a, b)
        for a, b in combinations(results, 2)
        if a["began"] < b["ended"] and b["began"] < a["ended"]
    ]


def test_g1_g9_each_input_has_one_gpu_to_itself_and_sees_no_other(on):
    """Two GPUs are two processes, each with one; five at a time are two, and it is said why."""
    code = """
    def main():
        five = nbmap.remote(where, gpu="A100", concurrency=5).map(range(30)).results()
        one = nbmap.remote(where, gpu="A100", concurrency=1).map(range(4)).results()
        return five, one
    """
    out, one = on([A100, A100], code)
    assert [result["x"] for result in out] == list(range(30))
    assert len({result["pid"] for result in out}) == 2
    for result in out:
        assert "," not in result["visible"]
        assert digits(result["visible"]) == digits(result["uuid"])
    assert "2 of 5: the cluster has 2 places on these GPUs" in on.err
    assert all(a["uuid"] != b["uuid"] for a, b in overlap(out))
    assert overlap(out)
    assert overlap(one) == []


@pytest.mark.parametrize("order", ["", "1,0"])
def test_g2_g3_g4_g5_the_name_decides_and_not_the_number(on, order):
    """Whatever CUDA numbers the GPUs; none that fits is said at once, with those that are there."""
    code = """
    def main():
        none = refused(gpu="H100")
        there = nbmap.status().workers
        wishes = ["A100", "T4", True, ["H100", "T4"], "80GB", "40GB+"]
        found = [nbmap.remote(where, gpu=wish).map(range(6)).results() for wish in wishes]
        return none, there, [sorted({r["name"] for r in results}) for results in found]
    """
    none, there, found = on([T4, A100], code, FAKE_CUDA_ORDER=order)
    kind, text = none
    assert kind == "NoMatchingGPU"
    assert "1 x NVIDIA A100-SXM4-80GB, 1 x Tesla T4" in text
    assert there == 0
    a100, t4 = "NVIDIA A100-SXM4-80GB", "Tesla T4"
    assert found == [[a100], [t4], [a100, t4], [t4], [a100], [a100]]


def test_g6_the_size_decides_between_gpus_of_one_name(on):
    """By measured memory."""
    code = """
    def main():
        return [nbmap.remote(where, gpu=g).map(range(6)).results() for g in ("A100", "A100-80GB")]
    """
    both, large = on([A100_40, A100], code)
    assert names(both) == {"NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"}
    assert names(large) == {"NVIDIA A100-SXM4-80GB"}


def test_g7_an_input_gets_as_many_gpus_as_it_asks_for(on):
    """Pairs have no GPU in common; what is left over is not used; too many is an error."""
    code = """
    def main():
        by_two = nbmap.remote(where, gpu="A100:2").map(range(6)).results()
        by_three = nbmap.remote(where, gpu="A100:3").map(range(3)).results()
        return by_two, by_three, refused(gpu="A100:5")
    """
    by_two, by_three, (kind, text) = on([A100] * 4, code)
    pairs = {frozenset(result["visible"].split(",")) for result in by_two}
    assert sorted(map(len, pairs)) == [2, 2]
    assert len(frozenset.union(*pairs)) == 4
    assert len({result["pid"] for result in by_two}) == 2
    assert {len(result["visible"].split(",")) for result in by_three} == {3}
    assert len({result["pid"] for result in by_three}) == 1
    assert kind == "NoMatchingGPU"
    assert "has 4 of 5" in text


LIMIT = """
def limit(x):
    from distributed import get_worker

    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"], get_worker().data.device_buffer.n >> 30, os.getpid()
"""


def test_g8_inputs_that_ask_for_a_share_have_a_process_each_on_one_gpu(on):
    """Half a GPU is two at once, each with half of the memory before Dask spills; a whole one is one."""
    code = f"""
    {LIMIT.strip().replace(chr(10), chr(10) + "    ")}

    def main():
        halves = nbmap.remote(where, gpu=0.5).map(range(8)).results()
        limits = nbmap.remote(limit, gpu=0.5).map(range(4)).results()
        whole = nbmap.remote(where, gpu="A100").map(range(4)).results()
        return halves, limits, whole
    """
    halves, limits, whole = on([A100], code)
    assert len({result["pid"] for result in halves}) == 2
    assert len({result["uuid"] for result in halves}) == 1
    assert overlap(halves)
    assert {gigabytes for _, gigabytes, _ in limits} == {32}
    assert overlap(whole) == []
    assert len({result["pid"] for result in whole}) == 1


def test_g15_slices_are_used_only_where_they_are_asked_for(on):
    """Each by a process, with the limit of the slice; the whole GPU can't be had, and it says why."""
    code = f"""
    {LIMIT.strip().replace(chr(10), chr(10) + "    ")}

    def main():
        whole = refused(gpu="A100")
        parts = nbmap.remote(limit, gpu="1g.5gb").map(range(6)).results()
        return whole, parts
    """
    (kind, text), parts = on([f"{A100_40}:mig=1g.5gb*2"], code)
    assert kind == "NoMatchingGPU"
    assert "MIG slices" in text
    assert "gpu='1g.5gb'" in text
    assert len({visible for visible, _, _ in parts}) == 2
    assert all(visible.startswith("MIG-") for visible, _, _ in parts)
    assert {gigabytes for _, gigabytes, _ in parts} == {3}


def test_g16_a_gpu_without_memory_of_its_own_works(on):
    """It is not taken for one of some size."""
    code = """
    def main():
        return nbmap.remote(where, gpu="GB10").map(range(2)).results(), refused(gpu="80GB")
    """
    results, (kind, _) = on(["NVIDIA GB10:1:nomem"], code)
    assert names(results) == {"NVIDIA GB10"}
    assert kind == "NoMatchingGPU"


@pytest.mark.parametrize("visible", ["1", "GPU-fa4e0000-0000-4000-8000-000000000001"])
def test_g17_only_what_the_user_lets_be_seen_is_used(on, visible):
    """By number and by UUID."""
    code = """
    def main():
        return nbmap.remote(where, gpu=True).map(range(4)).results()
    """
    results = on([A100, A100], code, CUDA_VISIBLE_DEVICES=visible)
    assert {result["visible"] for result in results} == {"GPU-fa4e0000-0000-4000-8000-000000000001"}


def test_frameworks_take_the_memory_that_they_need_unless_the_user_has_said_otherwise(on):
    """By the variables that TensorFlow, PyTorch and, where a GPU is shared, JAX read."""
    code = """
    NAMES = [
        "TF_FORCE_GPU_ALLOW_GROWTH", "PYTORCH_CUDA_ALLOC_CONF", "XLA_PYTHON_CLIENT_PREALLOCATE"
    ]

    def polite(_):
        return [os.environ.get(name) for name in NAMES]

    def main():
        return [nbmap.remote(polite, gpu=wish).map([0])[0] for wish in ("A100", "A100:0.5")]
    """
    mine = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}
    whole, shared = on([A100], code, **mine)
    assert whole == ["true", "max_split_size_mb:128", None]
    assert shared == ["true", "max_split_size_mb:128", "false"]


def test_a_request_may_stand_in_the_configuration(on):
    """Where the handle names none; one that it names counts, also none."""
    code = """
    def visible(_):
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def main():
        handles = [nbmap.remote(visible), nbmap.remote(visible, gpu="A100")]
        handles.append(nbmap.remote(visible, gpu="cpu"))
        return [handle.map([0])[0] for handle in handles]
    """
    seen = on([A100, T4], code, DASK_NBMAP__GPU="T4")
    assert seen == [f"GPU-fa4e0000-0000-4000-8000-00000000000{n}" for n in (1, 0)] + [None]


def test_g5_a_name_that_is_nearly_right_gets_a_hint(on):
    """A10 and A10G are two models."""
    code = """
    def main():
        return refused(gpu="A10"), nbmap.remote(abs, gpu="A10|cpu").map([-1]).results()
    """
    (_, text), on_cpu = on([A10G], code)
    assert 'Did you mean "A10G"?' in text
    assert on_cpu == [1]


NONE = {
    "no driver": ({"driver": False}, "no NVIDIA driver"),
    "not loaded": ({"FAKE_GPU_DRIVER": "notloaded"}, "installed and not loaded"),
    "mismatch": ({"FAKE_GPU_DRIVER": "mismatch"}, "restart the machine"),
    "hidden": ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''"),
    "hidden by -1": ({"CUDA_VISIBLE_DEVICES": "-1"}, "which hides all GPUs"),
    "hidden by Slurm": ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "a Slurm job without --gres"),
    "wrong number": ({"CUDA_VISIBLE_DEVICES": "0,5"}, "no GPU 5 among 2"),
}


@pytest.mark.parametrize("case", NONE)
def test_g14_what_keeps_gpus_from_being_used_is_said_in_one_line(on, case):
    """Before anything is started."""
    settings, why = NONE[case]
    code = """
    def main():
        return refused(gpu="A100"), nbmap.status().workers
    """
    (_, text), workers = on([A100, A100], code, **settings)
    assert why in text
    assert "\\n" not in text
    assert workers == 0


def test_g10_a_worker_that_dies_comes_back_on_its_gpu(on, tmp_path):
    """An input that kills its process once is tried again there; always, and it alone is lost."""
    code = f"""
    def once(x):
        import signal

        died = {str(tmp_path)!r} + "/died"
        if x == 3 and not os.path.exists(died):
            open(died, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return where(x)

    def always(x):
        import signal

        if x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def main():
        first = nbmap.remote(once, gpu="A100").map(range(10)).results()
        second = list(nbmap.remote(always, gpu="A100").map(range(10), return_exceptions=True))
        return first, [x if isinstance(x, int) else [type(x).__name__, str(x)] for x in second]
    """
    first, second = on([A100], code)
    assert [result["x"] for result in first] == list(range(10))
    assert len({result["pid"] for result in first}) == 2
    assert len({result["uuid"] for result in first}) == 1
    assert second[:3] + second[4:] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert second[3][0] == "WorkerLost"


def test_g20_the_status_counts_the_processes_on_gpus_and_stop_ends_them(on):
    """Also where a handle without a GPU has a cluster of its own beside them."""
    code = """
    def main():
        nbmap.remote(where, gpu="A100").map(range(2)).results()
        first = repr(nbmap.status())
        nbmap.start(workers=1)
        both = repr(nbmap.status())
        pids = {r["pid"] for r in nbmap.remote(where, gpu="A100").map(range(4)).results()}
        nbmap.stop()
        until = time.time() + 10
        while time.time() < until and any(os.path.exists(f"/proc/{pid}") for pid in pids):
            time.sleep(0.05)
        left = sum(os.path.exists(f"/proc/{pid}") for pid in pids)
        again = len(nbmap.remote(where, gpu="A100").map(range(2)).results())
        return first, both, left, again
    """
    first, both, left, again = on([A100, A100], code)
    assert "with 2 processes on its GPUs" in first
    assert "2 workers" in first
    assert "3 workers" in both
    assert (left, again) == (0, 2)


def test_g1_a_cell_of_functions_runs_on_gpus(on):
    """By the line that nbmap is known by, in a real IPython."""
    code = """
    CELL = '''%%remote gpu=A100 concurrency=5
    def train(lr):
        import os, time
        for epoch in range(3):
            time.sleep(0.1)
            yield lr, epoch, os.environ["CUDA_VISIBLE_DEVICES"]
    '''

    def main():
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        shell.extension_manager.load_extension("nbmap")
        shell.run_cell(CELL).raise_error()
        return shell.run_cell("list(train.map([1, 2, 3, 4]))").result
    """
    out = on([A100, A100], code)
    assert sorted((lr, epoch) for lr, epoch, _ in out) == [
        (lr, e) for lr in (1, 2, 3, 4) for e in range(3)
    ]
    assert len({visible for *_, visible in out}) == 2
