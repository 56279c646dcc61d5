"""Machines with GPUs of all kinds, for processes that a test starts."""

import subprocess
import sys

import pytest
from helpers import gpus


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """The folder of the two libraries that stand for a driver."""
    return gpus.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def state(tmp_path):
    """The folder of what happens to the GPUs of one machine."""
    folder = tmp_path / "gpus"
    folder.mkdir()
    return folder


@pytest.fixture
def on(libraries, state):
    """Yield a function that runs Python's arguments on a machine with GPUs, and returns the text."""

    def run(machine, *arguments, driver=True, status=0, **settings):
        env = gpus.machine(libraries if driver else None, state, *machine, **settings)
        ended = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert ended.returncode == status, ended.stderr
        return ended.stdout

    return run
