"""The options of a handle and of a call: what may be said, and which of several sayings wins.

    decorator or %%remote line ── check ──┐
    Dask's configuration nbmap.<option> ──┼── resolve ── Options
    default ──────────────────────────────┘

A handle is checked when it is made, so that a typing error is shown under the line that holds it.
Dask's configuration is read when a handle is first used, so that it may be changed until then.
`gpu` and `cluster` are carried unread: the GPU grammar and the search for a cluster have modules
of their own.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from datetime import timedelta
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

__all__ = [
    "NAMES",
    "Duration",
    "MaxFailures",
    "Options",
    "Retries",
    "check",
    "check_max_failures",
    "from_text",
    "number_in",
    "resolve",
    "seconds",
    "shown",
]

Duration: TypeAlias = float | str | timedelta
"""A length of time as users write it; `seconds` reads it."""

_SHOWN = 80
_LONGEST = 1e9  # 31 years; the clocks of threads overflow at some ten times that
_FEWEST_FOR_PERCENT = 20  # below that, one failure of five would already be "20%"

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
# Largest unit first and each at most once, so that "1h30m" is read and "30m1h" is not. Whitespace
# is only allowed behind something that must be there: no text makes the search slow.
_TIME = re.compile(
    rf"(?:({_NUMBER})\s*(?:d|days?)\s*)?"
    rf"(?:({_NUMBER})\s*(?:h|hr|hrs|hours?)\s*)?"
    rf"(?:({_NUMBER})\s*(?:m|min|mins|minutes?)\s*)?"
    rf"(?:({_NUMBER})\s*(?:s|sec|secs|seconds?)\s*)?"
    rf"(?:({_NUMBER})\s*(?:ms|milliseconds?)\s*)?",
    re.ASCII | re.IGNORECASE,
)
_UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_PERCENT = re.compile(rf"({_NUMBER})\s*%", re.ASCII)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)

# Control characters, lone surrogates, and what turns the direction of text around: names are shown in
# terminals and logs.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_ALIASES = {"concurrency_limit": "concurrency", "max_containers": "concurrency"}
_COUNTS = {"concurrency", "retries", "worker_losses", *_ALIASES}
_TIMES = {"timeout", "grace", "wait_for_gpu"}
_CALL = {
    "kwargs",
    "keep",
    "max_failures",
    "order_outputs",
    "return_exceptions",
    "wrap_returned_exceptions",
}
_OF_MODALS_CLOUD = {
    "allow_concurrent_inputs",
    "allow_cross_region_volumes",
    "block_network",
    "buffer_containers",
    "checkpointing_enabled",
    "cloud",
    "container_idle_timeout",
    "cpu",
    "enable_memory_snapshot",
    "ephemeral_disk",
    "experimental_options",
    "i6pn",
    "image",
    "include_source",
    "interactive",
    "keep_warm",
    "max_inputs",
    "memory",
    "min_containers",
    "mount",
    "mounts",
    "network_file_systems",
    "nonpreemptible",
    "proxy",
    "region",
    "restrict_modal_access",
    "scaledown_window",
    "schedule",
    "secret",
    "secrets",
    "serialized",
    "shared_volumes",
    "single_use_containers",
    "startup_timeout",
    "volumes",
}


def shown(value: object) -> str:
    """How an error message shows a value: its repr on one line, at most 80 characters long.

    Args:
        value: anything, also something whose repr fails.

    >>> shown("five")
    "'five'"
    """
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except Exception:  # a broken repr must not hide the message that quotes it
        text = f"<{type(value).__name__}>"
    # What a class of the user's returns as its repr may hold anything.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: 2 * _SHOWN])
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def number_in(value: object) -> float | None:
    """Take a number as float, NumPy's too; a bool is no number.

    Args:
        value: anything.

    Returns:
        None for what is no number; inf for an integer that no float can hold.

    >>> number_in(2), number_in(True), number_in("2")
    (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _integer_in(value: object) -> int | None:
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def seconds(value: object, option: str) -> float:
    """Read a length of time.

    Args:
        value: seconds as a number, text with units ("90s", "10m", "1h30m", "500ms"), or a
            timedelta; from 0 to a thousand million seconds.
        option: the name that an error message gives to the value.

    Returns:
        Seconds.

    Raises:
        OptionError: the value is none of these.

    >>> seconds("1h30m", "timeout")
    5400.0
    """
    if isinstance(value, timedelta):
        number: float | None = value.total_seconds()
    elif isinstance(value, str):
        number = _time_in(value)
    else:
        number = number_in(value)
    if number is not None and 0 <= number <= _LONGEST:  # false for nan too
        return number
    raise OptionError(
        f"{option}={shown(value)} is not a length of time: give seconds as a number, "
        f'text such as "90s", "10m", "1h30m" or "500ms", or a timedelta.'
    )


def _time_in(text: str) -> float | None:
    found = _TIME.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        return None
    parts = zip(found.groups(default="0"), _UNITS, strict=True)
    return sum(float(number) * unit for number, unit in parts)


def _whole(value: object, option: str, least: int) -> int:
    number = _integer_in(value)
    if number is not None and number >= least:
        return number
    raise OptionError(
        f"{option}={shown(value)} is not a count: give a whole number that is at least {least}, "
        f"such as {option}=5."
    )


@dataclass(frozen=True, slots=True, init=False)
class Retries:
    """How often, and how long after a failure, an input is tried again.

    The first retry waits `initial_delay`, each further one `backoff_coefficient` times as long as
    the one before it, and none longer than `max_delay`.

    Args:
        max_retries: int of at least 0; the attempts after the first.
        initial_delay: seconds, or text such as "500ms".
        backoff_coefficient: number from 1 (always the same delay) to 10.
        max_delay: seconds, or text such as "2m".

    Raises:
        OptionError: an argument is not as said above.

    >>> Retries(3, initial_delay="500ms")
    Retries(max_retries=3, initial_delay=0.5, backoff_coefficient=2.0, max_delay=60.0)
    """

    max_retries: int
    initial_delay: float
    backoff_coefficient: float
    max_delay: float

    # Written out: the arguments are more than what the fields hold.
    def __init__(
        self,
        max_retries: int,
        initial_delay: Duration = 1,
        backoff_coefficient: float = 2,
        max_delay: Duration = 60,
    ) -> None:
        growth = number_in(backoff_coefficient)
        if growth is None or not 1 <= growth <= 10:
            raise OptionError(
                f"backoff_coefficient={shown(backoff_coefficient)} is not a growth of delays: "
                "give a number from 1 to 10, such as backoff_coefficient=2."
            )
        put = object.__setattr__
        put(self, "max_retries", _whole(max_retries, "max_retries", 0))
        put(self, "initial_delay", seconds(initial_delay, "initial_delay"))
        put(self, "backoff_coefficient", growth)
        put(self, "max_delay", seconds(max_delay, "max_delay"))

    def delay(self, number: int) -> float:
        """Return the seconds that a retry waits; the first has the number 1.

        >>> [Retries(5, max_delay=5).delay(n) for n in (1, 2, 3, 4)]
        [1.0, 2.0, 4.0, 5.0]
        """
        growth = self.backoff_coefficient ** min(number - 1, 64)
        return min(self.max_delay, self.initial_delay * growth)


_NO_RETRIES = Retries(0, 1, 1, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What holds for one handle; made by `resolve`, which checks it.

    Args:
        gpu: what was asked for, not parsed yet; None for no GPU.
        concurrency: the most inputs that run at once; None for as many as there are slots.
        retries: for failures of the user's code and for timeouts.
        timeout: seconds that one attempt may take; None for no limit.
        worker_losses: how many workers an input may take with it before it is lost.
        grace: seconds that a stopped function gets before its process is ended.
        wait_for_gpu: seconds to wait for a matching GPU to join.
        name: text for views and logs; None for the function's.
        cluster: where the handle runs; None for the one that is found.

    >>> Options(concurrency=5).grace
    5.0
    """

    gpu: object = None
    concurrency: int | None = None
    retries: Retries = _NO_RETRIES
    timeout: float | None = None
    worker_losses: int = 2
    grace: float = 5.0
    wait_for_gpu: float = 0.0
    name: str | None = None
    cluster: object | None = None


_OPTIONS = tuple(field.name for field in fields(Options))
NAMES = (*_OPTIONS, *_ALIASES)  # under which an option of a handle may be given


def _concurrency(value: object, option: str) -> int | None:
    return None if value is None else _whole(value, option, 1)


def _retries(value: object, option: str) -> Retries:
    if isinstance(value, Retries):
        return value
    if value is None:
        return _NO_RETRIES
    number = _integer_in(value)
    if number is not None and number >= 0:
        return Retries(number, 1, 1, 60)
    raise OptionError(
        f"{option}={shown(value)} does not say how often to try again: give a whole number that "
        "is at least 0, or nbmap.Retries(3, initial_delay=1)."
    )


def _timeout(value: object, option: str) -> float | None:
    if value is None:
        return None
    limit = seconds(value, option)
    if limit == 0:
        raise OptionError(
            f"{option}={shown(value)} leaves the function no time: give more than 0 seconds, "
            f"or {option}=None for no limit."
        )
    return limit


def _name(value: object, option: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip() and not _OBEYED.search(value):
        return value.strip()
    raise OptionError(
        f"{option}={shown(value)} is not a name: give text on one line without control characters, "
        f'such as {option}="train".'
    )


def _as_it_is(value: object, _option: str) -> object:
    return value


_CHECKS: dict[str, Callable[[object, str], object]] = {
    "gpu": _as_it_is,
    "concurrency": _concurrency,
    "retries": _retries,
    "timeout": _timeout,
    "worker_losses": lambda value, option: _whole(value, option, 1),
    "grace": seconds,
    "wait_for_gpu": seconds,
    "name": _name,
    "cluster": _as_it_is,
}


def check(given: Mapping[str, object], *, known: Iterable[str] = _OPTIONS) -> dict[str, object]:
    """Check the options given for one handle, and bring them to the form that `Options` holds.

    Args:
        given: options by name, `concurrency` also as `concurrency_limit` or `max_containers`.
            None stands for the default of gpu, concurrency, retries, timeout, name and cluster,
            also where Dask's configuration says something else.
        known: the names that are told where one is unknown.

    Returns:
        The same options under their own names: times in seconds, retries as `Retries`.

    Raises:
        OptionError: an option is unknown, given twice, or has a wrong value.

    >>> check({"max_containers": 5, "timeout": "10m"})
    {'concurrency': 5, 'timeout': 600.0}
    """
    checked: dict[str, object] = {}
    said_as: dict[str, str] = {}
    for name, value in given.items():
        option = _ALIASES.get(name, name)
        if option not in _CHECKS:
            raise OptionError(_why_unknown(name, known))
        if option in said_as:
            raise OptionError(
                f"{said_as[option]}={shown(given[said_as[option]])} and {name}={shown(value)} "
                f"are two names of one option: keep {option}."
            )
        said_as[option] = name
        checked[option] = _CHECKS[option](value, name)
    return checked


def _why_unknown(name: str, known: Iterable[str]) -> str:
    if name in _OF_MODALS_CLOUD:
        return (
            f"There is no option {name!r}: it is about Modal's cloud, and nbmap runs on your own "
            "cluster; leave it out."
        )
    if name in _CALL:
        return (
            f"{name!r} is not an option of a handle: give it to the call, "
            f"as in f.map(inputs, {name}=...)."
        )
    near = difflib.get_close_matches(name[:_SHOWN].lower(), NAMES, n=1)
    if near:
        return f"There is no option {shown(name)}; did you mean {near[0]!r}?"
    return f"There is no option {shown(name)}; the options are {', '.join(known)}."


def from_text(name: str, text: str) -> object:
    """Turn an option's text on a magic's line into what Python code would have said.

    Nothing is refused here: what can't be turned stays text, for `check` to refuse.

    Args:
        name: the option's name as it was written.
        text: its value, without quotes.

    Returns:
        None for "none", an int for counts, a number for times without a unit, else the text.

    >>> from_text("concurrency", "5"), from_text("timeout", "90"), from_text("gpu", "A100:2")
    (5, 90.0, 'A100:2')
    """
    text = text.strip()
    if text.lower() == "none":
        return None
    if name in _COUNTS and _WHOLE.fullmatch(text):
        return int(text)
    if name in _TIMES and re.fullmatch(rf"-?{_NUMBER}", text, re.ASCII):
        return float(text)
    return text


def resolve(given: Mapping[str, object]) -> Options:
    """Decide what holds for a handle: its own options, else Dask's configuration, else defaults.

    Args:
        given: the options of the handle or of the magic's line, as `check` takes or returns them.

    Returns:
        All options. `cluster` is the handle's only: where else a cluster is named is asked when
        one is looked for.

    Raises:
        OptionError: a wrong value, also one in Dask's configuration, which the message then names.

    >>> resolve({"concurrency": 5}).concurrency
    5
    """
    own = check(given)
    chosen = {**_configured(but=own), **own}
    return Options(**cast("dict[str, Any]", chosen))


def _configured(but: Container[str]) -> dict[str, object]:
    """Read what Dask's configuration says of all options but those in `but`."""
    # Here and not above: importing Dask takes longer than all of nbmap may.
    import dask.config

    found: dict[str, object] = {}
    for option in _OPTIONS:
        if option == "cluster" or option in but:
            continue
        value = dask.config.get(f"nbmap.{option}", default=None)
        if value is None:
            continue
        try:
            found |= check({option: value})
        except OptionError as error:
            where = f"It comes from nbmap.{option} in Dask's configuration."
            raise OptionError(f"{error} {where}") from None
    return found


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many failures stop a run: a count, or a share of the finished inputs.

    Args:
        count: the most failures that are put up with, or None.
        percent: the same in percent of the finished inputs, or None.

    >>> MaxFailures(count=10).exceeded(failed=11, finished=500)
    True
    """

    count: int | None = None
    percent: float | None = None

    def exceeded(self, failed: int, finished: int) -> bool:
        """Whether this many failures among the finished inputs are too many.

        Args:
            failed: how many inputs have failed.
            finished: how many have ended, the failed ones among them; a percentage counts from
                20 on.
        """
        if self.count is not None and failed > self.count:
            return True
        if self.percent is None or finished < _FEWEST_FOR_PERCENT:
            return False
        return failed * 100 > self.percent * finished


def check_max_failures(value: object) -> MaxFailures | None:
    """Read the call option `max_failures`.

    Args:
        value: None for no limit, an int of at least 0, or text such as "5%" (above 0, at most
            100).

    Raises:
        OptionError: the value is none of these.

    >>> check_max_failures("5%")
    MaxFailures(count=None, percent=5.0)
    """
    if value is None:
        return None
    number = _integer_in(value)
    if number is not None and number >= 0:
        return MaxFailures(count=number)
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value.strip())
        if found and 0 < (percent := float(found[1])) <= 100:
            return MaxFailures(percent=percent)
    raise OptionError(
        f"max_failures={shown(value)} is no limit: give a whole number that is at least 0, or a "
        'share of the finished inputs such as "5%".'
    )
