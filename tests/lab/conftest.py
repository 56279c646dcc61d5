"""One JupyterLab for all of these tests; a browser for each file; pages for each test."""

from __future__ import annotations

import os
import signal

import pytest
from helpers.lab.server import LabServer, require_kernels
from helpers.lab.session import Lab
from helpers.lab.tab import PICTURES, browser_path, plain
from playwright.sync_api import expect, sync_playwright

PATIENCE = 30_000  # ms; a guard for a busy machine
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    """A JupyterLab server, which ends with the session whatever happens."""
    require_kernels()
    server = LabServer(tmp_path_factory.mktemp("jupyterlab"), PICTURES / "server.log")

    def terminated(*_):
        """End what pytest would leave behind, without Playwright, which may no longer answer."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.stop()
        os._exit(143)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, before)


# Not for the whole session: as long as Playwright is there, it leaves its event loop marked as
# running in this thread, and tests of other folders would fail in asyncio.run.
@pytest.fixture(scope="module")
def browser_context(lab_server):
    """A browser as a new user has it, which reaches nothing but this machine."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(),
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            env=lab_server.env,
        )
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE)
        yield context
        browser.close()


@pytest.fixture
def lab(request, lab_server, browser_context):
    """JupyterLab, for one test."""
    mine = Lab(lab_server, browser_context, plain(request.node.name))
    try:
        yield mine
        if request.node.stash.get(FAILED, False):
            mine.take_pictures()
    finally:
        mine.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let the fixture know that its test has failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
