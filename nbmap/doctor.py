"""Looks at what is installed, reachable and wrong: `%nbmap doctor` and `nbmap doctor`."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from .cluster import connect
from .engine.memory import memory_limit
from .errors import NbmapError
from .worker import gpus

__all__ = ["Report", "examine"]

_NEEDED = (
    "nbmap",
    "dask",
    "distributed",
    "cloudpickle",
    "cryptography",
    "ipython",
    "anywidget",
    "ipywidgets",
)
# Needed in a notebook only; JupyterLab may well be in another environment than its kernels.
_OPTIONAL = ("ipykernel", "jupyterlab", "dask-cuda")
_LAST = 20  # lines of the log


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        facts: what there is, by name.
        problems: what is wrong, one line each, with what to do.
        log: the last lines that distributed logged about nbmap's own cluster.
    """

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        width = max(map(len, self.facts), default=0)
        lines = [f"{name:{width}}  {fact}" for name, fact in self.facts.items()]
        lines += ["", *(f"✗ {problem}" for problem in self.problems or ())]
        if not self.problems:
            lines.append("✓ nothing is wrong")
        if self.log:
            lines += ["", "the last lines that distributed logged on nbmap's own cluster:"]
            lines += [f"  {line}" for line in self.log]
        return "\n".join(lines)


def examine(*, magics: bool | None = None) -> Report:
    """Look at this process, its environment and the cluster; starts nothing.

    Args:
        magics: whether `%%remote` is registered in the notebook; None outside of one.

    Returns:
        What was found.

    Example:
        >>> print(examine())  # doctest: +SKIP
    """
    report = Report()
    _machine(report)
    _packages(report)
    _gpus(report)
    _startup_file(report, magics)
    _cluster(report)
    report.log.extend(connect.recent_log()[-_LAST:])
    return report


def _machine(report: Report) -> None:
    facts = report.facts
    facts["Python"] = f"{platform.python_version()} ({sys.executable})"
    facts["platform"] = platform.platform()
    facts["cores"] = str(connect.cores())
    limit = memory_limit()
    facts["memory"] = f"{limit / 2**30:.1f} GiB"
    if limit < 1 << 30:
        report.problems.append(
            f"this process may use {limit >> 20} MiB of memory, which is little for a cluster: "
            "give the notebook more, or connect to another cluster."
        )


def _packages(report: Report) -> None:
    for name in (*_NEEDED, *_OPTIONAL):
        found = _version(name)
        report.facts[name] = found or "not installed"
        if found is None and name in _NEEDED:
            report.problems.append(f"{name} is not installed: pip install {name}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus(report: Report) -> None:
    seen = gpus.look()
    if not seen["gpus"]:
        report.facts["GPUs"] = f"none: {seen['why']}" if seen["certain"] else "unknown"
        if not seen["certain"]:
            report.problems.append(f"GPUs can't be used here: {seen['why']}")
    figures = gpus.used([uuid for uuid, *_ in seen["gpus"]])
    for number, ((uuid, name, *_), told) in enumerate(zip(seen["gpus"], figures, strict=True)):
        memory = gpus.in_use(told) or "memory n/a"
        busy = "" if told.get("busy") is None else f", {told['busy']} % busy"
        report.facts[f"GPU {number}"] = f"{name}, {memory}{busy} ({uuid})"
    if seen["gpus"] and seen["lost"]:
        report.problems.append(
            f"GPUs that have ceased to answer: {seen['lost']}. Restart the machine to have them back."
        )


def _startup_file(report: Report, magics: bool | None) -> None:
    path = Path(sys.prefix) / "etc" / "ipython" / "startup" / "50-nbmap.py"
    installed, off = path.is_file(), os.environ.get("NBMAP_AUTOLOAD") == "0"
    told = str(path) if installed else f"not at {path}"
    report.facts["startup file"] = f"{told}, turned off by NBMAP_AUTOLOAD=0" if off else told
    if magics is not None:
        report.facts["%%remote"] = "registered" if magics else "not registered"
    if magics is False:
        report.problems.append("%%remote is not registered here: run %load_ext nbmap.")
    elif magics is None and not installed:
        report.problems.append(
            "notebooks of this environment don't have %%remote by themselves, as nbmap is not "
            "installed in it the usual way: run %load_ext nbmap in each, or pip install nbmap."
        )


def _cluster(report: Report) -> None:
    try:
        report.facts["cluster"] = repr(connect.status()).removeprefix("cluster: ")
        others = connect.versions()
    except (NbmapError, OSError, TimeoutError) as error:
        report.facts["cluster"] = "not reachable"
        report.problems.append(f"the cluster can't be reached: {error}")
        return
    report.problems.extend(_differences(others))


def _differences(others: dict[str, dict[str, str]]) -> list[str]:
    """Say which versions on a cluster differ from those here, and which of them matter."""
    here = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "cloudpickle": (_version("cloudpickle") or "").partition(".")[0],
        "distributed": _version("distributed") or "",
    }
    found = []
    for name, mine in here.items():
        places = [
            (place, theirs)
            for place, versions in others.items()
            if (theirs := versions.get(name))
            and theirs != mine
            and not theirs.startswith(f"{mine}.")
        ]
        if places:
            place, theirs = places[0]
            more = f" and {len(places) - 1} more places" if len(places) > 1 else ""
            found.append(
                f"{name} is {mine} here and {theirs} at {place}{more}: install the same on both."
            )
    return found
