"""The grammar of `gpu=`: what each text asks for, and how wrong ones are refused."""

import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbmap.cluster.gpu import GPUKind, GPURequest, parse
from nbmap.errors import OptionError


def request(*kinds, **more):
    return GPURequest(kinds or (GPUKind(),), **more)


A100 = GPUKind(("A100",))
H100 = GPUKind(("H100",))


@pytest.mark.parametrize(
    "value", [None, False, 0, 0.0, "none", "None", "cpu", "CPU", " 0 ", "false", ["cpu"]]
)
def test_no_gpu_has_several_spellings(value):
    """None, False, zero and "cpu" ask for no GPU."""
    assert parse(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, request()),
        ("any", request()),
        ("Any", request()),
        ("true", request()),
        (1, request()),
        (1.0, request()),
        (2, request(count=2)),
        ("2", request(count=2)),
        ("any:4", request(count=4)),
        (64, request(count=64)),
        (0.5, request(share=0.5)),
        ("0.5", request(share=0.5)),
        ("A100:0.5", request(A100, share=0.5)),
        ("A100", request(A100)),
        (" a100 ", request(A100)),
        ("NVIDIA A100", request(A100)),
        ("A100:2", request(A100, count=2)),
        ("A100 : 2", request(A100, count=2)),
        ("80GB", request(GPUKind(memory=80))),
        ("80 gb", request(GPUKind(memory=80))),
        ("80GiB", request(GPUKind(memory=80))),
        ("any-80GB", request(GPUKind(memory=80))),
        ("40GB+", request(GPUKind(memory=40, at_least=True))),
        ("40GB+:2", request(GPUKind(memory=40, at_least=True), count=2)),
        ("A100-80GB:8", request(GPUKind(("A100",), memory=80), count=8)),
        ("A100-40GB+", request(GPUKind(("A100",), memory=40, at_least=True))),
        ("1g.5gb", request(GPUKind(mig="1g.5gb"))),
        ("A100-MIG-1g.5gb", request(GPUKind(("A100",), mig="1g.5gb"))),
        ("A100 MIG 3g.20gb:0.5", request(GPUKind(("A100",), mig="3g.20gb"), share=0.5)),
        ("H100 1g.10gb+me", request(GPUKind(("H100",), mig="1g.10gb+me"))),
    ],
)
def test_a_request_is_read(value, expected):
    """Each form of the grammar gives the kind and the amount that it says."""
    assert parse(value) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", GPUKind(("A100", "SXM4"), memory=80)),
        ("NVIDIA A100 80GB PCIe", GPUKind(("A100", "80GB", "PCIE"))),
        ("NVIDIA H100 80GB HBM3", GPUKind(("H100", "80GB", "HBM3"))),
        ("Tesla V100-SXM2-32GB", GPUKind(("V100", "SXM2"), memory=32)),
        ("Tesla T4", GPUKind(("T4",))),
        ("NVIDIA GeForce RTX 4090", GPUKind(("RTX", "4090"))),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", GPUKind(("RTX", "4090", "LAPTOP"))),
        ("NVIDIA RTX 6000 Ada Generation", GPUKind(("RTX", "6000", "ADA"))),
        ("NVIDIA TITAN V", GPUKind(("TITAN", "V"))),
        ("NVIDIA TITAN X (Pascal)", GPUKind(("TITAN", "X", "PASCAL"))),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", GPUKind(("A100", "SXM4"), memory=40, mig="1g.5gb")),
    ],
)
def test_a_name_as_the_driver_reports_it_is_a_request(name, kind):
    """Full NVML names are read word by word; only a size at the end is a wish for memory."""
    assert parse(name) == request(kind)


@pytest.mark.parametrize(
    "value", [["A100", "H100"], ("A100", "H100"), "A100|H100", "A100, H100", ["A100|H100"]]
)
def test_choices_keep_their_order(value):
    """Lists, tuples and both separators say the same: the first is preferred."""
    assert parse(value) == request(A100, H100)


@pytest.mark.parametrize("value", [["A100:2", "H100:2", "cpu"], "A100:2|H100:2|cpu"])
def test_no_gpu_may_be_the_last_choice(value):
    """The count holds for the GPUs, and "cpu" needs none."""
    assert parse(value) == request(A100, H100, count=2, or_cpu=True)


def test_a_choice_that_is_named_twice_counts_once():
    """Repeating a kind adds nothing."""
    assert parse("A100|a100|cpu") == request(A100, or_cpu=True)


def test_a_request_can_not_be_changed():
    """Requests are values: they can be keys, and nobody changes them under way."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("A100").count = 2
    assert len({parse("A100"), parse("a100")}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "any"),
        (2, "any:2"),
        (0.25, "any:0.25"),
        ("nvidia geforce rtx 4090:2", "RTX-4090:2"),
        ("a100 80gib", "A100-80GB"),
        ("40gb+", "40GB+"),
        ("A100-mig-1G.5GB", "A100-MIG-1g.5gb"),
        ("1G.5GB", "1g.5gb"),
        (["a100:0.5", "h100:0.5", "cpu"], "A100:0.5|H100:0.5|cpu"),
    ],
)
def test_a_request_has_one_canonical_text(value, text):
    """However it was written, a request prints in one way, without spaces for a magic's line."""
    assert str(parse(value)) == text


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("", "names no model"),
        ("  ", "names no model"),
        ("--", "names no model"),
        ("NVIDIA", '"any"'),
        ("gpu", '"any"'),
        ("A100:", "'' behind"),
        ("A100:x", "'x' behind"),
        ("A100:2:2", "'2:2' behind"),
        ("A100:0", "from 1 to 64"),
        ("A100:-1", "from 1 to 64"),
        ("A100:1.5", "from 1 to 64"),
        ("A100:0.001", "share"),
        (":2", "names no model"),
        ("2:2", "begins with its letters"),
        ("3090 Ti", "begins with its letters"),
        ("4090", '"RTX 4090"'),
        (4090, '"RTX 4090"'),
        (65, "from 1 to 64"),
        (-1, "from 1 to 64"),
        (1.5, "from 1 to 64"),
        (math.nan, "from 1 to 64"),
        (math.inf, "from 1 to 64"),
        (10**400, "from 1 to 64"),
        ("H100!", "'H100!'"),
        ("B200+", "'B200+'"),
        ("[A100]", "'[A100]'"),
        ("A100-MIG", "profile"),
        ("1g.5gb:2", "one MIG slice"),
        ("A100 MIG 1x", "profile"),
        ("A100 cpu", '"A100|cpu"'),
        ("cpu:2", "stands alone"),
        ("ß100", "characters"),
        ("A100||H100", "names no model"),
        ("A100|", "names no model"),
        ([], "None for no GPU"),
        (["A100:2", "H100"], "same count"),
        (["cpu", "A100"], "last choice"),
        (["A100", None, "H100"], "last choice"),
        ([["A100"]], "list"),
        ({"A100": 1}, "dict"),
        ({"A100"}, "set"),
        (b"A100", "bytes"),
        (object(), "object"),
    ],
)
def test_a_wrong_request_is_refused_with_a_hint(value, hint):
    """The refusal shows the value, says what is wrong with it, and what to write."""
    with pytest.raises(OptionError) as caught:
        parse(value)
    message = str(caught.value)
    assert message.startswith("gpu=")
    assert hint in message
    assert len(message) < 300


words = "A100 rtx 4090 80GB 40gb+ 1g.5gb MIG any cpu none GPU true 0 2 64 0.5 1."
pieces = st.sampled_from([*words.split(), "8 GB", *" -_:|,.+/()"])
gpu_like = st.lists(pieces, max_size=9).map("".join)
numbers = st.one_of(st.integers(), st.floats(), st.floats(0, 1), st.integers(0, 70))
plain = st.one_of(st.none(), st.booleans(), numbers, st.text(), gpu_like)


@given(st.one_of(plain, st.lists(plain, max_size=4), st.binary(), st.decimals(), st.builds(object)))
@example("A100 (80GB)")
@example("A100 80GB 40GB")
@example("40GB 1g.5gb")
def test_any_object_is_a_request_or_an_option_error(value):
    """Parsing gives no GPU, OptionError, or a request whose text means the same request."""
    try:
        found = parse(value)
    except OptionError:
        return
    assert found is None or parse(str(found)) == found
