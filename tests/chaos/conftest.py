"""What chaos needs."""

import os

import pytest


@pytest.fixture
def folder(tmp_path):
    """A folder that functions and tests meet in, as text."""
    return os.fspath(tmp_path)
