"""A kernel of the environment that runs this, whatever others the user has installed."""

from __future__ import annotations

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager, KernelManager


class OwnKernel(KernelManager):
    """Starts this interpreter's kernel."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="", language="python")


class OwnAsyncKernel(OwnKernel, AsyncKernelManager):
    """The same for nbclient, which leaves the sockets of the other one open."""
