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


def _in_a_notebook(error: BaseException) -> list[str]:
    """Return the lines that IPython shows of an error whose traceback would tell nothing.

    Where it was raised is inside of nbmap; what to do is in its text.
    """
    return [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]


class OptionError(NbmapError, ValueError):
    """An option is unknown, or its value is wrong; raised before anything runs."""

    _render_traceback_ = _in_a_notebook  # a hook of IPython's


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


class InputTimeout(InputFailed):
    """The function ran longer than `timeout` allows."""


class InputCancelled(InputFailed):
    """The input was cancelled before it had an outcome."""


class Unpicklable(InputFailed):
    """A function, an input or an output could not be pickled, or not be unpickled."""


class RunError(NbmapError):
    """A whole run ended early; what was done by then is on the run."""


class TooManyFailures(RunError):
    """More inputs failed than `max_failures` allows."""


class RunCancelled(RunError):
    """The run was cancelled before all its inputs had an outcome."""
