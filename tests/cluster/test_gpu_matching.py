"""Which GPUs a request means: the names that NVML reports, with the memory that it measures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.cluster.gpu import GPU, parse

MIB = 2**20

# As NVML tells: the name, MiB, and of a MIG slice the MiB of its GPU.
REPORTED = [
    ("NVIDIA A100-SXM4-80GB", 81920),
    ("NVIDIA A100-SXM4-40GB", 40960),
    ("NVIDIA A100-PCIE-40GB", 40960),
    ("NVIDIA A100 80GB PCIe", 81920),
    ("A100-SXM4-40GB", 40536),
    ("NVIDIA A100-SXM-64GB", 65536),
    ("NVIDIA A10", 23028),
    ("NVIDIA A10G", 23028),
    ("NVIDIA A16", 15356),
    ("NVIDIA A2", 15356),
    ("NVIDIA A30", 24576),
    ("NVIDIA A40", 46068),
    ("NVIDIA A800-SXM4-80GB", 81920),
    ("NVIDIA H100 80GB HBM3", 81559),
    ("NVIDIA H100 PCIe", 81559),
    ("NVIDIA H100 NVL", 95830),
    ("NVIDIA H200", 143771),
    ("NVIDIA GH200 480GB", 97871),
    ("NVIDIA H20", 97871),
    ("NVIDIA H800", 81559),
    ("NVIDIA B200", 183359),
    ("NVIDIA GB200", 189471),
    ("NVIDIA GB10", None),
    ("Tesla T4", 15360),
    ("NVIDIA T4G", 15360),
    ("NVIDIA T400", 2048),
    ("Tesla V100-SXM2-16GB", 16384),
    ("Tesla V100-SXM2-32GB", 32768),
    ("Tesla P100-PCIE-16GB", 16384),
    ("Tesla P4", 7680),
    ("Tesla K80", 11441),
    ("NVIDIA L4", 23034),
    ("NVIDIA L40", 46068),
    ("NVIDIA L40S", 46068),
    ("NVIDIA GeForce RTX 4090", 24564),
    ("NVIDIA GeForce RTX 4090 D", 24564),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376),
    ("NVIDIA GeForce RTX 3090", 24576),
    ("NVIDIA GeForce RTX 3090 Ti", 24564),
    ("NVIDIA GeForce GTX 1080 Ti", 11264),
    ("NVIDIA GeForce RTX 2080 Super with Max-Q Design", 8192),
    ("NVIDIA GeForce RTX 5090", 32607),
    ("NVIDIA RTX A6000", 49140),
    ("NVIDIA RTX 6000 Ada Generation", 49140),
    ("Quadro RTX 6000", 24576),
    ("NVIDIA RTX 4000 SFF Ada Generation", 20475),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887),
    ("NVIDIA TITAN V", 12288),
    ("NVIDIA TITAN RTX", 24576),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, 40960),
    ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20096, 40960),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9856, 81559),
]


def reported(name, memory=None, whole=None):
    return GPU(f"GPU-{name}", name, memory and memory * MIB, whole and whole * MIB)


GPUS = {gpu.name: gpu for gpu in (reported(*line) for line in REPORTED)}
SLICES = {name for name in GPUS if "MIG" in name}
A100S = {name for name in GPUS if "A100" in name} - SLICES
A100S_OF_80GB = {"NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"}
A100S_OF_40GB = {"NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-SXM4-40GB"}
RTX_4090 = {"NVIDIA GeForce RTX 4090"}
BLACKWELL = {name for name in GPUS if "Blackwell" in name}
OF_80GB = {
    *A100S_OF_80GB,
    "NVIDIA A800-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 PCIe",
    "NVIDIA H800",
}


def meant(request):
    """Return the names of the GPUs that a request of one kind means."""
    [kind] = parse(request).kinds
    return {name for name, gpu in GPUS.items() if kind.matches(gpu)}


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        ("A100", A100S),
        ("a100", A100S),
        ("NVIDIA A100", A100S),
        ("A100-80GB", A100S_OF_80GB),
        ("a100-80gb", A100S_OF_80GB),
        ("A100 80 GiB", A100S_OF_80GB),
        ("A100-40GB", A100S_OF_40GB),
        ("A100-64GB", {"NVIDIA A100-SXM-64GB"}),
        ("A100-60GB+", A100S_OF_80GB | {"NVIDIA A100-SXM-64GB"}),
        ("A100-SXM4", A100S_OF_40GB - {"NVIDIA A100-PCIE-40GB"} | {"NVIDIA A100-SXM4-80GB"}),
        ("A100-SXM4-80GB", {"NVIDIA A100-SXM4-80GB"}),
        ("A10", {"NVIDIA A10"}),
        ("A10G", {"NVIDIA A10G"}),
        ("H100", {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"}),
        ("H100-80GB", {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"}),
        ("H100-94GB", {"NVIDIA H100 NVL"}),
        ("H200", {"NVIDIA H200"}),
        ("H200-141GB", {"NVIDIA H200"}),
        ("GH200", {"NVIDIA GH200 480GB"}),
        ("GH200-96GB", {"NVIDIA GH200 480GB"}),
        ("H20", {"NVIDIA H20"}),
        ("H800", {"NVIDIA H800"}),
        ("B200", {"NVIDIA B200"}),
        ("GB200", {"NVIDIA GB200"}),
        ("GB10", {"NVIDIA GB10"}),
        ("T4", {"Tesla T4"}),
        ("Tesla T4", {"Tesla T4"}),
        ("T4-16GB", {"Tesla T4"}),
        ("T4G", {"NVIDIA T4G"}),
        ("V100", {"Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"}),
        ("V100-32GB", {"Tesla V100-SXM2-32GB"}),
        ("P4", {"Tesla P4"}),
        ("K80", {"Tesla K80"}),
        ("L4", {"NVIDIA L4"}),
        ("L40", {"NVIDIA L40"}),
        ("L40S", {"NVIDIA L40S"}),
        ("RTX 4090", RTX_4090),
        ("RTX4090", RTX_4090),
        ("rtx-4090", RTX_4090),
        ("GeForce RTX 4090", RTX_4090),
        ("RTX 4090 D", {"NVIDIA GeForce RTX 4090 D"}),
        ("RTX 4090 Laptop", {"NVIDIA GeForce RTX 4090 Laptop GPU"}),
        ("RTX 3090", {"NVIDIA GeForce RTX 3090"}),
        ("RTX 3090 Ti", {"NVIDIA GeForce RTX 3090 Ti"}),
        ("GTX 1080 Ti", {"NVIDIA GeForce GTX 1080 Ti"}),
        ("GTX 1080", set()),
        ("RTX 2080 Super", set()),
        ("RTX 4000", set()),
        ("A1", set()),
        ("RTX A6000", {"NVIDIA RTX A6000"}),
        ("A6000", {"NVIDIA RTX A6000"}),
        ("RTX 6000", {"Quadro RTX 6000"}),
        ("RTX 6000 Ada", {"NVIDIA RTX 6000 Ada Generation"}),
        ("RTX-PRO-6000", BLACKWELL),
        ("TITAN V", {"NVIDIA TITAN V"}),
        ("80GB", OF_80GB),
        ("40GB+", {name for name, gpu in GPUS.items() if (gpu.memory or 0) > 39 << 30}),
        ("20GB", {"NVIDIA RTX 4000 SFF Ada Generation"}),
        ("1g.5gb", {"NVIDIA A100-SXM4-40GB MIG 1g.5gb"}),
        ("MIG 1g.5gb", {"NVIDIA A100-SXM4-40GB MIG 1g.5gb"}),
        ("A100-MIG-1g.5gb", {"NVIDIA A100-SXM4-40GB MIG 1g.5gb"}),
        ("A100-40GB-MIG-1g.5gb", {"NVIDIA A100-SXM4-40GB MIG 1g.5gb"}),
        ("A100-80GB-MIG-1g.5gb", set()),
        ("A100 MIG 3g.20gb", {"NVIDIA A100-SXM4-40GB MIG 3g.20gb"}),
        ("H100-MIG-1g.10gb", {"NVIDIA H100 80GB HBM3 MIG 1g.10gb"}),
        ("H100-MIG-1g.5gb", set()),
        ("any", set(GPUS)),
        (True, set(GPUS)),
        (2, set(GPUS)),
        (0.5, set(GPUS)),
    ],
)
def test_a_request_means_the_gpus_of_that_name_and_memory(request_, names):
    """Whole words of a name, and measured memory, decide; slices only where they are asked for."""
    assert meant(request_) == names


@pytest.mark.parametrize("name", [name for name in GPUS if "MIG" not in name])
def test_the_whole_name_that_the_driver_reports_means_that_gpu(name):
    """What a person copies from nvidia-smi finds that GPU."""
    assert name in meant(name)


def test_a_gpu_that_shares_its_hosts_memory_has_no_size():
    """Where the driver tells no memory, no size matches, and the name does."""
    assert meant("GB10") == {"NVIDIA GB10"}
    assert meant("GB10-1GB+") == set()


names = st.sampled_from([name for name in GPUS if "MIG" not in name])


@given(names, st.sampled_from("-_ /"), st.booleans())
def test_case_and_what_is_between_words_do_not_matter(name, between, lower):
    """Text such as "rtx-4090" means what "RTX 4090" does."""
    words = GPUS[name].words
    text = between.join(words)
    assert name in meant(text.lower() if lower else text)


@given(names, st.integers(1, 3))
def test_a_word_cut_short_never_means_the_whole_word(name, cut):
    """A10 is not A100, and H20 not H200."""
    model = GPUS[name].words[0]
    assert name not in meant(model[: max(1, len(model) - cut)])
