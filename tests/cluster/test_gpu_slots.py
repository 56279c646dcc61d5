"""Which workers' GPUs make the slots of a request: pure, for clusters of all shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.cluster.gpu import GPU, parse
from nbmap.cluster.slots import groups_for, slots_for, what_is_wrong

A100, T4 = "NVIDIA A100-SXM4-80GB", "Tesla T4"
MEMORY = {A100: 80 << 30, T4: 15 << 30}


def machine(*names, host=0):
    return [GPU(f"GPU-{host}-{i}", name, MEMORY[name]) for i, name in enumerate(names)]


def as_dask_cuda(gpus, host=0):
    """Return what the workers of `dask cuda worker` see: all GPUs, each its own first."""
    return {f"tcp://host-{host}:{9000 - i}": [*gpus[i:], *gpus[:i]] for i in range(len(gpus))}


@given(st.lists(st.integers(1, 8), min_size=1, max_size=3), st.integers(1, 8))
def test_g7_groups_of_rotated_workers_have_no_gpu_in_common(sizes, count):
    """As many as fit into each host, whatever order the addresses have."""
    workers = {}
    for host, size in enumerate(sizes):
        workers |= as_dask_cuda(machine(*[A100] * size, host=host), host)
    slots = slots_for(parse(f"A100:{count}"), workers, None)
    assert len(slots) == sum(size // count for size in sizes)
    used = [uuid for slot in slots for uuid in slot.gpus]
    assert len(used) == len(set(used)) == len(slots) * count
    for slot in slots:
        assert list(slot.gpus) == [gpu.uuid for gpu in workers[slot.worker][:count]]


@given(st.lists(st.sampled_from([A100, T4]), max_size=8), st.integers(1, 4))
def test_g7_a_machine_is_divided_into_groups_of_one_kind(names, count):
    """None is used twice, and no more is left over than is too little."""
    gpus = machine(*names)
    groups = groups_for(parse(f"A100:{count}"), gpus)
    assert len(groups) == names.count(A100) // count
    used = [gpu for group in groups for gpu in group.gpus]
    assert all(gpu.name == A100 for gpu in used)
    assert len({gpu.uuid for gpu in used}) == len(used) == len(groups) * count
    assert len({group.name for group in groups}) == len(groups)


@given(st.sampled_from([0.5, 0.34, 0.25, 0.1, 0.9]))
def test_g8_shares_are_as_many_as_fit_into_one_gpu(share):
    """A part of one that no other has room beside is one."""
    groups = groups_for(parse(share), machine(T4, T4))
    assert len(groups) == 2 * int(1 / share)
    assert len({group.name for group in groups}) == len(groups)
    assert all(len(group.gpus) == 1 for group in groups)


def test_g5_the_first_kind_that_there_is_counts():
    """Also where a later one has more."""
    workers = as_dask_cuda(machine(T4, T4, A100))
    for wish, name in (("H100|A100|T4", A100), ("T4|A100", T4)):
        slots = slots_for(parse(wish), workers, None)
        names = {workers[slot.worker][0].name for slot in slots}
        assert names == {name}


@pytest.mark.parametrize(
    ("wish", "gpus", "told"),
    [
        ("H100", [], "the cluster has no GPU"),
        ("H100", machine(T4, T4), "the cluster has 2 x Tesla T4"),
        ("T4:3", machine(T4, T4), "the cluster has 2 of 3: 2 x Tesla T4"),
        ("A100:3", machine(A100, A100, A100), "3 x NVIDIA A100-SXM4-80GB, and no worker sees 3"),
        (
            "RTX-4090",
            [GPU("GPU-0", "NVIDIA GeForce RTX 4090 Laptop GPU", 16 << 30)],
            'Did you mean "RTX4090 LAPTOP"?',
        ),
        (
            "any:2",
            [GPU(f"MIG-{n}", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 << 30) for n in range(2)],
            "the cluster has 2 x NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        ),
        ("A10", [GPU("GPU-0", "NVIDIA A10G", 24 << 30)], 'Did you mean "A10G"?'),
        ("A100-40GB", machine(A100), 'Without a size it does: "A100"'),
        (
            "A100",
            [GPU("MIG-0", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 << 30, 40 << 30)],
            "divided into MIG slices; ask for one: gpu='1g.5gb'",
        ),
    ],
)
def test_g4_what_is_there_is_said_where_nothing_fits(wish, gpus, told):
    """With a hint at what was meant, where there is one."""
    text = what_is_wrong(parse(wish), gpus, "the cluster")
    assert text.startswith(f"gpu='{wish}' matches nothing: the cluster has")
    assert told in text
