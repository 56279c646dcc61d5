"""Which GPUs a process sees, and why none; on a driver of ours below the real pynvml."""

import json

import pytest
from helpers.gpus import A100, A100_40, T4

LOOK = "import json; from nbmap.worker import gpus; print(json.dumps(gpus.look()))"
USED = "import json, sys; from nbmap.worker import gpus; print(json.dumps(gpus.used(sys.argv[1:])))"
MIG = f"{A100_40}:mig=1g.5gb*2"


def uuid(index, kind="GPU", part=0, host="0000"):
    """Return the UUID that the driver gives."""
    return f"{kind}-fa4e0000-{host}-4000-8000-{part:06}{index:06}"


def test_each_gpu_has_its_name_and_its_memory(on):
    """In the order of NVML where nothing is said."""
    seen = json.loads(on([A100, T4], "-c", LOOK))
    assert seen["gpus"] == [
        [uuid(0), "NVIDIA A100-SXM4-80GB", 80 << 30, None],
        [uuid(1), "Tesla T4", 15 << 30, None],
    ]
    assert (seen["why"], seen["lost"]) == ("", 0)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("1", [1]), ("1,0", [1, 0]), (uuid(1), [1])],
)
def test_g17_what_the_user_has_hidden_is_not_seen(on, visible, expected):
    """CUDA_VISIBLE_DEVICES names by number and by UUID, and puts in order."""
    seen = json.loads(on([A100, A100], "-c", LOOK, CUDA_VISIBLE_DEVICES=visible))
    assert [gpu[0] for gpu in seen["gpus"]] == [uuid(index) for index in expected]


@pytest.mark.parametrize(
    ("order", "name"), [("FASTEST_FIRST", "NVIDIA A100"), ("PCI_BUS_ID", "T4")]
)
def test_g3_numbers_are_those_of_cuda(on, order, name):
    """Where GPUs differ it numbers them in another order than NVML, unless it is told not to."""
    settings = {"FAKE_CUDA_ORDER": "1,0", "CUDA_DEVICE_ORDER": order}
    seen = json.loads(on([T4, A100], "-c", LOOK, CUDA_VISIBLE_DEVICES="0", **settings))
    [gpu] = seen["gpus"]
    assert name in gpu[1]


def test_g15_slices_are_seen_in_the_place_of_their_gpu(on):
    """With their own memory, and that of the whole GPU."""
    seen = json.loads(on([MIG], "-c", LOOK))
    assert [gpu[0] for gpu in seen["gpus"]] == [uuid(0, "MIG", part) for part in (0, 1)]
    first = json.loads(on([MIG], "-c", LOOK, CUDA_VISIBLE_DEVICES="0"))
    assert first["gpus"] == seen["gpus"][:1]
    for _, name, memory, whole in seen["gpus"]:
        assert name == "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
        assert memory < 5 << 30
        assert whole == 40 << 30


def test_g16_a_gpu_that_shares_the_hosts_memory_tells_none(on):
    """As GB10 and Jetson do."""
    seen = json.loads(on(["NVIDIA GB10:1:nomem"], "-c", LOOK))
    assert seen["gpus"] == [[uuid(0), "NVIDIA GB10", None, None]]


NONE = {
    "no driver": ({"driver": False}, True, "libnvidia-ml.so.1 is not found"),
    "not loaded": ({"FAKE_GPU_DRIVER": "notloaded"}, False, "sudo modprobe nvidia"),
    "mismatch": ({"FAKE_GPU_DRIVER": "mismatch"}, False, "restart the machine"),
    "hidden": ({"CUDA_VISIBLE_DEVICES": ""}, True, "CUDA_VISIBLE_DEVICES is ''"),
    "hidden by -1": ({"CUDA_VISIBLE_DEVICES": "-1"}, True, "CUDA_VISIBLE_DEVICES is '-1'"),
    "hidden by Slurm": ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True, "Slurm job without --gres"),
    "wrong number": ({"CUDA_VISIBLE_DEVICES": "0,5"}, True, "there is no GPU 5 among 2"),
    "no GPU": ({}, True, "the NVIDIA driver finds no GPU"),
    "no slice": ({}, True, "none has a slice"),
}
WITHOUT = {"no GPU": [], "no slice": [f"{A100}:mig="]}  # the machine then


@pytest.mark.parametrize("case", NONE)
def test_g14_why_there_is_no_gpu_is_one_line(on, case):
    """Each reason another one, with what to do; and it is told apart from not being able to look."""
    settings, certain, why = NONE[case]
    seen = json.loads(on(WITHOUT.get(case, [A100, A100]), "-c", LOOK, **settings))
    assert seen["gpus"] == []
    assert why in seen["why"]
    assert "\n" not in seen["why"]
    assert seen["certain"] == certain


def test_g20_figures_are_those_of_this_moment(on, state):
    """Memory and load as somebody else's processes use it; a slice does not tell its load."""
    (state / "used.0").write_text(str(40 << 30))
    (state / "util.0").write_text("77")
    told = json.loads(on([A100, "NVIDIA GB10:1:nomem"], "-c", USED, uuid(0), uuid(1)))
    assert told == [
        {"index": 0, "used": 40 << 30, "total": 80 << 30, "busy": 77, "processes": 0},
        {"index": 1, "used": None, "total": None, "busy": 0, "processes": 0},
    ]
    [told] = json.loads(on([MIG], "-c", USED, uuid(0, "MIG")))
    assert (told["used"], told["busy"]) == (0, None)


def test_g13_a_gpu_that_fell_off_the_bus_is_said_to_be_lost(on, state):
    """The others are seen as before."""
    (state / "lost.0").touch()
    seen = json.loads(on([A100, T4], "-c", LOOK))
    assert [gpu[0] for gpu in seen["gpus"]] == [uuid(1)]
    assert seen["lost"] == 1
    assert json.loads(on([A100, T4], "-c", USED, uuid(0))) == [{"lost": True}]


def test_the_doctor_names_the_gpus(on, state):
    """With what is in use of each, and says which have ceased to answer."""
    (state / "used.0").write_text(str(40 << 30))
    (state / "util.0").write_text("77")
    (state / "lost.2").touch()
    text = on([A100, "NVIDIA GB10:1:nomem", T4], "-m", "nbmap", "doctor", status=1)
    assert "NVIDIA A100-SXM4-80GB, 40.0 of 80.0 GiB in use, 77 % busy (GPU-fa4e" in text
    assert "NVIDIA GB10, memory n/a, 0 % busy" in text
    assert "✗ GPUs that have ceased to answer: 1." in text


@pytest.mark.parametrize("case", ["no driver", "mismatch"])
def test_the_doctor_says_why_there_is_no_gpu(on, case):
    """A fact where there is none, a problem where a driver does not work."""
    settings, certain, why = NONE[case]
    text = on([A100], "-m", "nbmap", "doctor", status=0 if certain else 1, **settings)
    assert why in text
    assert ("GPUs can't be used here" in text) is not certain
