"""Every error that nbmap raises of its own accord.

NbmapError
├── OptionError                  an option that is unknown, or whose value is wrong
├── ClusterError                 no cluster could be found, started or reached
│   ├── NoMatchingGPU            the cluster has no GPU of the kind asked for
│   ├── ClusterLost              the cluster went away during a run
│   └── VersionMismatch          Python or cloudpickle differ between here and a worker
├── InputFailed                  one input of a run has no output
│   ├── UserCodeException        your function raised
│   ├── WorkerLost               the worker died while it ran this input
│   ├── InputTimeout             it ran longer than timeout=
│   ├── InputCancelled           it was cancelled
│   └── Unpicklable              something could not be sent or returned
└── RunError                     a whole run ended early
    ├── TooManyFailures          more inputs failed than max_failures= allows
    └── RunCancelled             the run was cancelled
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

__all__ = [
    "ClusterError",
    "ClusterLost",
    "InputCancelled",
    "InputFailed",
    "InputTimeout",
    "NbmapError",
    "NoMatchingGPU",
    "OptionError",
    "RunCancelled",
    "RunError",
    "TooManyFailures",
    "Unpicklable",
    "UserCodeException",
    "VersionMismatch",
    "WorkerLost",
]


class NbmapError(Exception):
    """The base of all errors of nbmap."""


_FILE = globals().get("__file__", "")  # in remote code this may be in no file
_HOME = f"{Path(_FILE).parent}{os.sep}"


def _in_a_notebook(error: BaseException) -> list[str]:
    """Return the lines that IPython shows of an error that nbmap raised of its own accord.

    A traceback would show the inside of nbmap. Which statement is meant is clear from the text,
    unless it stands in a function of the user's.
    """
    lines = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_HOME)]
    if theirs and theirs[-1].name != "<module>":
        at = theirs[-1]
        lines.append(f"in {at.name}, line {at.lineno}: {at.line}")
    return lines


class _Misuse(TypeError):
    """A TypeError about a use of nbmap; says so itself, wherever its name is shown."""

    _render_traceback_ = _in_a_notebook  # a hook of IPython's

    def __reduce__(self) -> tuple[type[TypeError], tuple[object, ...]]:
        return TypeError, self.args


_Misuse.__name__ = _Misuse.__qualname__ = "TypeError"
_Misuse.__module__ = "builtins"


def misuse(message: str) -> TypeError:
    """Return a TypeError that a notebook shows as it shows an OptionError.

    Args:
        message: what was wrong, and what to write instead.
    """
    return _Misuse(message)


class _Interrupt(KeyboardInterrupt):
    """A KeyboardInterrupt that says what it has stopped, wherever in nbmap it came."""

    _render_traceback_ = _in_a_notebook

    def __reduce__(self) -> tuple[type[KeyboardInterrupt], tuple[object, ...]]:
        return KeyboardInterrupt, self.args


_Interrupt.__name__ = _Interrupt.__qualname__ = "KeyboardInterrupt"
_Interrupt.__module__ = "builtins"


def interrupt(message: str) -> KeyboardInterrupt:
    """Return what is raised in the place of an interrupt that came while nbmap was at work.

    Args:
        message: what was stopped, and what still runs.
    """
    return _Interrupt(message)


class OptionError(NbmapError, ValueError):
    """An option is unknown, or its value is wrong; raised before anything runs."""

    _render_traceback_ = _in_a_notebook


class ClusterError(NbmapError):
    """No cluster could be found, started or reached."""

    _render_traceback_ = _in_a_notebook


class NoMatchingGPU(ClusterError):
    """The cluster has no GPU of the kind asked for."""


class ClusterLost(ClusterError):
    """The cluster went away while a run was on it."""


class VersionMismatch(ClusterError):
    """Python's minor version or cloudpickle's major version differ between both sides."""


class InputFailed(NbmapError):
    """One input has no output; the subclasses say why."""


class UserCodeException(InputFailed):
    """The user's function raised; `exc` is what it raised.

    Its repr is the one that Modal's page "Scaling out" prints:

    >>> UserCodeException(Exception("ohno"))
    UserCodeException(Exception('ohno'))
    """

    def __init__(self, exc: BaseException) -> None:
        super().__init__(exc)
        self.exc = exc

    def __repr__(self) -> str:
        try:
            inner = repr(self.exc)
        except BaseException as error:
            inner = f"<{type(self.exc).__name__} whose repr raises {type(error).__name__}>"
        return f"UserCodeException({inner})"


class WorkerLost(InputFailed):
    """The worker process died while it ran this input, as often as `worker_losses` allows."""

    _render_traceback_ = _in_a_notebook


class InputTimeout(InputFailed):
    """The function ran longer than `timeout` allows."""

    _render_traceback_ = _in_a_notebook


class InputCancelled(InputFailed):
    """The input was cancelled before it had an outcome."""

    _render_traceback_ = _in_a_notebook


class Unpicklable(InputFailed):
    """A function, an input or an output could not be pickled, or not be unpickled."""

    _render_traceback_ = _in_a_notebook


class RunError(NbmapError):
    """A whole run ended early; what was done by then is on the run."""

    _render_traceback_ = _in_a_notebook


class TooManyFailures(RunError):
    """More inputs failed than `max_failures` allows."""


class RunCancelled(RunError):
    """The run was cancelled before all its inputs had an outcome."""
