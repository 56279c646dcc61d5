"""Options: what is accepted, what is refused and how, and which saying wins."""

import copy
import math
import pickle
import subprocess
import sys
from datetime import timedelta
from fractions import Fraction

import dask.config
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.errors import OptionError
from nbmap.options import (
    MaxFailures,
    Options,
    Retries,
    check,
    check_max_failures,
    from_text,
    resolve,
    seconds,
    shown,
)

OWN = list(Options.__dataclass_fields__)
ALIASES = ["concurrency", "concurrency_limit", "max_containers"]


class BrokenRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.timedeltas(),
    st.text(),
    st.binary(),
    st.just(10**5000),
    st.just(-(10**400)),
    st.builds(object),
    st.builds(BrokenRepr),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    st.functions(),
)
time_like = st.from_regex(r"\A\s*([0-9.]{0,5}\s?(d|h|m|s|ms|min|µs)?){0,4}\s*\Z")


def message_of(call, *args):
    with pytest.raises(OptionError) as caught:
        call(*args)
    return str(caught.value)


# How an error shows a value


@given(anything)
def test_a_shown_value_is_one_short_line(value):
    """Whatever the value is, also one without a working repr, it is shown in 80 characters."""
    text = shown(value)
    assert 0 < len(text) <= 80
    assert len(text.splitlines()) == 1


def test_a_value_without_a_working_repr_is_shown_by_its_type():
    """The message about a value survives the value's own repr."""
    assert shown(BrokenRepr()) == "<BrokenRepr>"


# Times


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (90, 90),
        (1.5, 1.5),
        (Fraction(1, 2), 0.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 2 Hours ", 7200),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("90 seconds", 90),
        ("5min", 300),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_time_is_read_from_numbers_text_and_timedeltas(value, expected):
    """Each accepted form gives seconds, as a float."""
    result = seconds(value, "timeout")
    assert type(result) is float
    assert math.isclose(result, expected)


@pytest.mark.parametrize(
    "value",
    [
        True,
        None,
        -1,
        math.nan,
        math.inf,
        10**400,
        "",
        " ",
        "90",
        "s",
        "-5s",
        "30m1h",
        "1h1h",
        "5 parsecs",
        "1e3s",
        "٣s",
        timedelta(seconds=-1),
        timedelta.max,
        b"90s",
        [90],
    ],
)
def test_what_is_no_time_is_refused_with_the_accepted_forms(value):
    """The refusal names the option and the value, and shows what to write."""
    message = message_of(seconds, value, "grace")
    assert message.startswith(f"grace={shown(value)} ")
    assert '"1h30m"' in message


@given(st.one_of(anything, time_like))
def test_any_object_is_a_time_or_an_option_error(value):
    """Reading a time gives finite seconds or OptionError, never another exception."""
    try:
        found = seconds(value, "timeout")
    except OptionError:
        return
    assert 0 <= found < math.inf


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_and_seconds_add_up(hours, minutes, secs):
    """Units in one text are added."""
    text = f"{hours}h{minutes}m{secs}s"
    assert seconds(text, "timeout") == hours * 3600 + minutes * 60 + secs


def test_a_long_wrong_text_is_refused_quickly():
    """No text makes the parser's search explode."""
    for text in ["1" * 50_000, "1h" * 20_000, " " * 50_000 + "x", "1" + " " * 50_000 + "x"]:
        message_of(seconds, text, "timeout")


# Retries


def test_retries_take_times_in_every_form():
    """Delays are kept as seconds, however they were written."""
    retries = Retries(3, initial_delay="500ms", max_delay=timedelta(minutes=2))
    assert retries == Retries(3, 0.5, 2, 120)


def test_retries_have_the_documented_defaults():
    """One second at first, twice as long each time, a minute at most."""
    assert Retries(3) == Retries(3, 1, 2, 60)


@pytest.mark.parametrize("copied", [copy.copy, lambda r: pickle.loads(pickle.dumps(r))])
def test_retries_survive_copying_and_pickling(copied):
    """A policy may travel with its handle."""
    assert copied(Retries(3, 2, 3, 4)) == Retries(3, 2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_retries": -1}, "max_retries=-1"),
        ({"max_retries": True}, "max_retries=True"),
        ({"max_retries": 2.0}, "max_retries=2.0"),
        ({"max_retries": 1, "initial_delay": -1}, "initial_delay=-1"),
        ({"max_retries": 1, "max_delay": "soon"}, "max_delay='soon'"),
        ({"max_retries": 1, "backoff_coefficient": 0.5}, "backoff_coefficient=0.5"),
        ({"max_retries": 1, "backoff_coefficient": 11}, "backoff_coefficient=11"),
        ({"max_retries": 1, "backoff_coefficient": math.nan}, "backoff_coefficient=nan"),
        ({"max_retries": 1, "backoff_coefficient": "2"}, "backoff_coefficient='2'"),
    ],
)
def test_wrong_retries_are_refused_by_argument(arguments, named):
    """The refusal names the argument that is wrong, and its value."""
    assert named in message_of(lambda: Retries(**arguments))


# The options of a handle


def test_every_option_is_brought_to_its_final_form():
    """Times become seconds, retries a policy, names lose their margins."""
    gpu, cluster = object(), object()
    assert check(
        {
            "gpu": gpu,
            "concurrency": 5,
            "retries": 2,
            "timeout": "10m",
            "worker_losses": 1,
            "grace": 0,
            "wait_for_gpu": "1m",
            "name": " train ",
            "cluster": cluster,
        }
    ) == {
        "gpu": gpu,
        "concurrency": 5,
        "retries": Retries(2, 1, 1, 60),
        "timeout": 600.0,
        "worker_losses": 1,
        "grace": 0.0,
        "wait_for_gpu": 60.0,
        "name": "train",
        "cluster": cluster,
    }


@pytest.mark.parametrize("name", ALIASES)
def test_concurrency_has_three_names(name):
    """Both of Modal's names mean nbmap's."""
    assert check({name: 5}) == {"concurrency": 5}


def test_two_names_of_one_option_at_once_are_refused():
    """Nobody has to guess which of two limits holds."""
    message = message_of(check, {"max_containers": 5, "concurrency": 3})
    assert "max_containers=5 and concurrency=3" in message


@pytest.mark.parametrize("name", ["gpu", "concurrency", "retries", "timeout", "name", "cluster"])
def test_none_stands_for_the_default(name):
    """Where a default means "none", None says so."""
    assert resolve({name: None}) == Options()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", "five"),
        ("concurrency", "5"),
        ("concurrency", 0),
        ("concurrency", True),
        ("concurrency", 5.0),
        ("max_containers", -1),
        ("retries", -1),
        ("retries", True),
        ("retries", "2"),
        ("timeout", 0),
        ("timeout", "0s"),
        ("timeout", False),
        ("worker_losses", 0),
        ("worker_losses", None),
        ("grace", None),
        ("grace", -1),
        ("wait_for_gpu", "long"),
        ("name", ""),
        ("name", "  "),
        ("name", 5),
    ],
)
def test_a_wrong_value_is_refused_with_its_option(name, value):
    """The refusal shows the option as it was written, the value, and what to write instead."""
    message = message_of(check, {name: value})
    assert message.startswith(f"{name}={value!r} ")
    assert ": give " in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("concurency", "concurrency"),
        ("max_container", "max_containers"),
        ("GPU", "gpu"),
        ("time_out", "timeout"),
        ("retry", "retries"),
    ],
)
def test_a_mistyped_option_is_answered_with_the_nearest(name, meant):
    """The refusal asks whether the nearest name was meant."""
    message = message_of(check, {name: 1})
    assert f"no option {name!r}; did you mean {meant!r}?" in message


def test_an_option_unlike_any_other_is_answered_with_the_list():
    """Where nothing is near, the refusal lists what there is."""
    message = message_of(check, {"xyzzy": 1})
    assert all(option in message for option in OWN)


@pytest.mark.parametrize("name", ["image", "secrets", "volumes", "cpu", "memory", "keep_warm"])
def test_options_of_modals_cloud_are_refused_with_the_reason(name):
    """Who brings a script from Modal learns why the option is not there."""
    message = message_of(check, {name: 1})
    assert name in message
    assert "your own cluster" in message


@pytest.mark.parametrize("name", ["order_outputs", "return_exceptions", "max_failures", "kwargs"])
def test_options_of_a_call_are_refused_with_their_place(name):
    """Who gives a call's option to the handle learns where it belongs."""
    assert f"f.map(inputs, {name}=...)" in message_of(check, {name: 1})


@given(
    st.dictionaries(st.one_of(st.sampled_from([*OWN, *ALIASES]), st.text()), anything, max_size=4)
)
def test_any_options_are_checked_or_refused(options):
    """Checking gives options of known names or OptionError, and checking twice changes nothing."""
    try:
        checked = check(options)
    except OptionError:
        return
    assert set(checked) <= set(OWN)
    assert check(checked) == checked


# Text of a magic's line


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("concurrency", "5", 5),
        ("max_containers", " 5 ", 5),
        ("retries", "0", 0),
        ("worker_losses", "-1", -1),
        ("concurrency", "five", "five"),
        ("concurrency", "1_0", "1_0"),
        ("concurrency", "None", None),
        ("gpu", "none", None),
        ("gpu", "A100:2", "A100:2"),
        ("gpu", "2", "2"),
        ("timeout", "10m", "10m"),
        ("timeout", "90", 90.0),
        ("grace", "0.5", 0.5),
        ("name", "7", "7"),
    ],
)
def test_a_lines_text_becomes_what_python_code_would_say(name, text, value):
    """Counts and plain times become numbers, "none" None, and the rest stays text."""
    result = from_text(name, text)
    assert result == value
    assert type(result) is type(value)


@given(st.one_of(st.sampled_from([*OWN, *ALIASES]), st.text()), st.text())
def test_any_text_of_a_line_is_converted_or_left(name, text):
    """Converting never fails: refusing is left to the check."""
    result = from_text(name, text)
    assert result is None or isinstance(result, int | float | str)


# Precedence


def test_without_a_word_the_defaults_hold():
    """A bare handle has the documented defaults."""
    assert resolve({}) == Options(
        gpu=None,
        concurrency=None,
        retries=Retries(0, 1, 1, 60),
        timeout=None,
        worker_losses=2,
        grace=5.0,
        wait_for_gpu=0.0,
        name=None,
        cluster=None,
    )


def test_the_handle_wins_over_the_configuration_and_that_over_the_default():
    """Handle > Dask's configuration > default, option by option."""
    with dask.config.set({"nbmap.concurrency": 3, "nbmap.timeout": "10m"}):
        options = resolve({"max_containers": 7})
    assert (options.concurrency, options.timeout, options.grace) == (7, 600.0, 5.0)


def test_none_on_the_handle_undoes_the_configuration():
    """An explicit None means the default, whatever the configuration says."""
    with dask.config.set({"nbmap.concurrency": 3}):
        assert resolve({"concurrency": None}).concurrency is None


def test_dashes_in_the_configuration_are_underscores():
    """YAML in Dask's own spelling is found."""
    with dask.config.set({"nbmap": {"worker-losses": 4}}):
        assert resolve({}).worker_losses == 4


def test_the_environment_reaches_the_options():
    """DASK_NBMAP__... is read as Dask reads it."""
    found = dask.config.collect_env(
        {"DASK_NBMAP__CONCURRENCY": "3", "DASK_NBMAP__TIMEOUT": "10m", "DASK_NBMAP__GPU": "None"}
    )
    with dask.config.set(found):
        options = resolve({})
    assert (options.concurrency, options.timeout, options.gpu) == (3, 600.0, None)


def test_a_wrong_value_in_the_configuration_is_refused_with_its_place():
    """The refusal says that the value stands in Dask's configuration, and under which key."""
    with dask.config.set({"nbmap.concurrency": "five"}):
        message = message_of(resolve, {})
    assert "concurrency='five'" in message
    assert "nbmap.concurrency in Dask's configuration" in message


def test_the_handle_hides_a_wrong_value_in_the_configuration():
    """What does not hold is not read."""
    with dask.config.set({"nbmap.concurrency": "five"}):
        assert resolve({"concurrency": 2}).concurrency == 2


def test_the_cluster_is_not_read_from_the_configuration():
    """Where else a cluster is named is asked elsewhere."""
    with dask.config.set({"nbmap.cluster": "tcp://nowhere:1"}):
        assert resolve({}).cluster is None


def test_importing_and_checking_leave_dask_alone():
    """Only resolving imports Dask."""
    code = (
        "import sys, nbmap.options as o; o.check({'concurrency': 5}); print('dask' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# max_failures


def test_a_count_of_failures_is_exceeded_by_one_more():
    """max_failures=10 puts up with ten."""
    limit = check_max_failures(10)
    assert not limit.exceeded(failed=10, finished=10)
    assert limit.exceeded(failed=11, finished=1000)


def test_no_failures_allowed_means_the_first_is_too_many():
    """max_failures=0 stops at the first failure."""
    assert check_max_failures(0).exceeded(failed=1, finished=1)
    assert not check_max_failures(0).exceeded(failed=0, finished=1)


def test_a_percentage_counts_from_twenty_finished_inputs_on():
    """Early failures don't stop a run that is limited in percent."""
    limit = check_max_failures("5%")
    assert not limit.exceeded(failed=19, finished=19)
    assert not limit.exceeded(failed=1, finished=20)
    assert limit.exceeded(failed=2, finished=20)


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (None, None),
        (3, MaxFailures(count=3)),
        ("100%", MaxFailures(percent=100.0)),
        (" 2.5 % ", MaxFailures(percent=2.5)),
    ],
)
def test_limits_of_failures_are_read(value, limit):
    """None, counts and percentages are limits."""
    assert check_max_failures(value) == limit


@pytest.mark.parametrize("value", [-1, True, 0.05, "5", "0%", "101%", "%", "-1%", "", "٣%"])
def test_what_is_no_limit_of_failures_is_refused(value):
    """The refusal shows the value and an example."""
    message = message_of(check_max_failures, value)
    assert message.startswith(f"max_failures={value!r} ")
    assert '"5%"' in message


@given(st.one_of(anything, st.from_regex(r"\A[0-9.]{0,4}\s?%?\Z")))
def test_any_object_is_a_limit_of_failures_or_an_option_error(value):
    """Reading max_failures gives OptionError or a limit that a run without failures keeps."""
    try:
        limit = check_max_failures(value)
    except OptionError:
        return
    assert limit is None or not limit.exceeded(failed=0, finished=1_000_000)


def test_a_message_shows_no_control_character_of_a_repr():
    """A class may have any text as its repr; a message shows its escapes."""

    class Hostile:
        def __repr__(self):
            return "\x1b]8;;http://evil\x07\u202etxt"

    assert shown(Hostile()) == "\\x1b]8;;http://evil\\x07\\u202etxt"
