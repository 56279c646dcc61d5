"""A JupyterLab server of the tests' own: it neither sees nor changes what the user has."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil

from helpers import gpus
from helpers.processes import ROOT, wait_until

WHEEL = ROOT / ".venv-wheel"
GPU = ROOT / ".venv-gpu" / "bin" / "python"
OVERLAY = WHEEL / "ipykernel-7.3"
# Name -> its Python, and what is put in front of that Python's own packages.
KERNELS = {
    "newest": (sys.executable, None),
    "ipykernel-7.3": (sys.executable, OVERLAY),
    "ipykernel-6.31": (str(WHEEL / "bin" / "python"), None),
    "gpus": (str(GPU), None),  # on a machine with two
}
# What a developer's shell may say of these is not what a test is about.
FOREIGN = ("DASK_", "IPYTHON", "JPY_", "JUPYTER", "NBMAP_", "PYTHON", "XDG_")
GOES_BY_ITSELF = 600  # seconds without a browser after which an orphan of a killed pytest ends

# Popups that ask to read the news would lie over the notebook.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "checkForUpdates": False,
        "fetchNews": "false",
    },
}


class LabServer:
    """One `jupyter lab` on the loopback, with a folder for all that it and its kernels write."""

    def __init__(self, folder, log):
        self.folder = folder
        self.root = folder / "notebooks"
        self.token = secrets.token_hex(16)
        self.marker = f"NBMAP_TEST_SERVER={secrets.token_hex(8)}"
        self.env = self.environment()
        self.log = log
        self.url = ""
        self.process = None

    def environment(self):
        """Return the variables under which the server, its kernels and nbconvert run."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        name, _, value = self.marker.partition("=")
        places = {
            "HOME": "home",
            "IPYTHONDIR": "ipython",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
        }
        for folder in places.values():
            (self.folder / folder).mkdir(parents=True)
        return {
            **ours,
            **{variable: str(self.folder / folder) for variable, folder in places.items()},
            # Not on the command line, where other users of the machine could read it.
            "JUPYTER_TOKEN": self.token,
            name: value,
        }

    def start(self):
        """Start, and wait until it answers."""
        self.root.mkdir()
        self.write_kernelspecs()
        self.reset_settings()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = {
            "ServerApp.allow_root": True,
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": free_port(),  # if taken meanwhile, the server tries others
            "ServerApp.root_dir": self.root,
            "ServerApp.shutdown_no_activity_timeout": GOES_BY_ITSELF,
            "MappingKernelManager.default_kernel_name": "newest",
            "MappingKernelManager.cull_idle_timeout": GOES_BY_ITSELF,
            "KernelSpecManager.ensure_native_kernel": False,
            "KernelSpecManager.allowed_kernelspecs": set(KERNELS),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser"]
                + [f"--{name}={value}" for name, value in options.items()],
                env=self.env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self.answers, seconds=60)

    def answers(self):
        """Tell whether the server listens where its own note says."""
        assert self.process.poll() is None, f"JupyterLab ended: {self.log.read_text('utf-8')}"
        for note in (self.folder / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(OSError, ValueError):
                self.url = json.loads(note.read_text("utf-8"))["url"]
                self.ask("api/status")
                return True
        return False

    def ask(self, path, method="GET"):
        """Send one request to the server's REST interface; return its JSON."""
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")

    def write_kernelspecs(self):
        """Make our kernels known, and no others."""
        libraries, state = self.folder / "libraries", self.folder / "gpus"
        libraries.mkdir()
        state.mkdir()
        machine = gpus.machine(gpus.build(libraries), state, gpus.A100, gpus.T4)
        of_gpus = ("FAKE_GPUS", "FAKE_GPU_STATE", "LD_LIBRARY_PATH")
        for name, (python, overlay) in KERNELS.items():
            folder = self.folder / "data" / "kernels" / name
            folder.mkdir(parents=True)
            spec = {
                "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": name,
                "language": "python",
                "env": {
                    **({"PYTHONPATH": str(overlay)} if overlay else {}),
                    **({each: machine[each] for each in of_gpus} if name == "gpus" else {}),
                },
            }
            (folder / "kernel.json").write_text(json.dumps(spec), "utf-8")

    def reset_settings(self):
        """Give JupyterLab the settings of a new user, whatever a test has changed."""
        folder = self.folder / "config" / "lab" / "user-settings"
        shutil.rmtree(folder, ignore_errors=True)
        for name, values in SETTINGS.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), "utf-8")

    def shut_down_kernels(self):
        """End all kernels, and with them what they were running."""
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")
        for kernel in self.ask("api/kernels"):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")

    def processes(self):
        """Return all processes that descend from this server, also those that left its group."""
        name, _, value = self.marker.partition("=")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(name) == value:
                    found.append(process)
        return found

    def stop(self):
        """End the server and everything that it ever started."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, 10)
        if self.process is not None:
            self.process.wait(10)


def free_port():
    """Return a port of the loopback that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def require_kernels():
    """Fail with what to do about it where an environment of a kernel is missing."""
    needed = (WHEEL / "bin" / "python", OVERLAY, GPU)
    missing = [path for path in needed if not Path(path).exists()]
    assert not missing, f"make test makes {', '.join(str(path) for path in missing)}"
