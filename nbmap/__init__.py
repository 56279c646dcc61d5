"""nbmap: run a notebook function over many inputs on a Dask cluster.

>>> import nbmap
>>> @nbmap.remote
... def square(x):
...     return x * x
>>> list(square.map(range(3)))  # doctest: +SKIP
[0, 1, 4]
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import App as App
    from .app import Stub as Stub
    from .call import Call as Call
    from .call import gather as gather
    from .cluster.connect import connect as connect
    from .cluster.connect import start as start
    from .cluster.connect import status as status
    from .cluster.connect import stop as stop
    from .errors import ClusterError as ClusterError
    from .errors import ClusterLost as ClusterLost
    from .errors import InputCancelled as InputCancelled
    from .errors import InputFailed as InputFailed
    from .errors import InputTimeout as InputTimeout
    from .errors import NbmapError as NbmapError
    from .errors import NoMatchingGPU as NoMatchingGPU
    from .errors import OptionError as OptionError
    from .errors import RunCancelled as RunCancelled
    from .errors import RunError as RunError
    from .errors import TooManyFailures as TooManyFailures
    from .errors import Unpicklable as Unpicklable
    from .errors import UserCodeException as UserCodeException
    from .errors import VersionMismatch as VersionMismatch
    from .errors import WorkerLost as WorkerLost
    from .handle import RemoteFunction as RemoteFunction
    from .handle import remote as remote
    from .options import Retries as Retries
    from .run import Run as Run
    from .run import runs as runs
    from .worker.standin import current_input as current_input
    from .worker.standin import devices as devices
    from .worker.standin import per_worker as per_worker

# Where each public name lives: it is imported when it is first used, so that `import nbmap` costs
# next to nothing.
_HOMES = {
    "App": ".app",
    "Call": ".call",
    "ClusterError": ".errors",
    "ClusterLost": ".errors",
    "InputCancelled": ".errors",
    "InputFailed": ".errors",
    "InputTimeout": ".errors",
    "NbmapError": ".errors",
    "NoMatchingGPU": ".errors",
    "OptionError": ".errors",
    "RemoteFunction": ".handle",
    "Retries": ".options",
    "Run": ".run",
    "RunCancelled": ".errors",
    "RunError": ".errors",
    "Stub": ".app",
    "TooManyFailures": ".errors",
    "Unpicklable": ".errors",
    "UserCodeException": ".errors",
    "VersionMismatch": ".errors",
    "WorkerLost": ".errors",
    "connect": ".cluster.connect",
    "current_input": ".worker.standin",
    "devices": ".worker.standin",
    "gather": ".call",
    "per_worker": ".worker.standin",
    "remote": ".handle",
    "runs": ".run",
    "start": ".cluster.connect",
    "status": ".cluster.connect",
    "stop": ".cluster.connect",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def load_ipython_extension(ipython: Any) -> None:
    """Register `%%remote` and `%nbmap`; IPython calls this for `%load_ext nbmap`."""
    from .notebook.extension import load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Take `%%remote` and `%nbmap` away; runs and clusters go on."""
    from .notebook.extension import unload

    unload(ipython)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nbmap")
    if name not in _HOMES:
        msg = f"module 'nbmap' has no attribute {name!r}"
        raise AttributeError(msg)
    if "ipykernel" in sys.modules:  # maybe a notebook: runs are shown in its cells
        from .notebook import display

        display.install()
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
