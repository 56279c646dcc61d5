"""Where no browser shows the widget, the HTML of the cell goes on by itself."""

from __future__ import annotations

import os
import sys
from queue import Empty

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CODE = """
import time, nbmap
nbmap.start()

@nbmap.remote
def work(x):
    time.sleep({seconds})
    if x == 3:
        raise ValueError("three")
    return x

run = work.map(range({n}), return_exceptions=True)
run.wait()
"""
WIDGET = "application/vnd.jupyter.widget-view+json"


class Kernel(KernelManager):
    """A kernel of this environment, whatever others the user has installed."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="", language="python")


def executed(code, tmp_path, **variables):
    """Run a cell in a kernel that nobody watches; return all that it published."""
    manager = Kernel(transport="ipc", ip=str(tmp_path / "k"))
    manager.start_kernel(env={**os.environ, **variables})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        request = client.execute(code)
        messages = []
        while True:
            messages.append(message := client.get_iopub_msg(timeout=60))
            if (
                message["content"].get("execution_state") == "idle"
                and message["parent_header"].get("msg_id") == request
            ):
                break
        while True:  # what threads have sent last
            try:
                messages.append(client.get_iopub_msg(timeout=1))
            except Empty:
                return messages
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def of(messages, kind):
    return [message["content"] for message in messages if message["msg_type"] == kind]


def test_the_html_goes_on_about_once_a_second_and_ends_with_the_truth(tmp_path):
    """A run of five seconds that no browser watches updates its HTML, and leaves no widget."""
    messages = executed(CODE.format(n=10, seconds=1), tmp_path)
    [first] = of(messages, "display_data")
    updates = of(messages, "update_display_data")
    assert {update["transient"]["display_id"] for update in updates} == {
        first["transient"]["display_id"]
    }
    between = [update for update in updates if "as of" in update["data"]["text/html"]]
    assert 2 <= len(between) <= 8
    assert "9 of 10 done, 1 failed, finished in" in updates[-1]["data"]["text/plain"]
    assert "three" in updates[-1]["data"]["text/html"]
    assert not any(WIDGET in update["data"] for update in updates)
    opened = {comm["comm_id"] for comm in of(messages, "comm_open")}
    assert opened == {comm["comm_id"] for comm in of(messages, "comm_close")}
    assert of(messages, "comm_msg") == []
    assert of(messages, "stream") == []


def test_where_outputs_are_isolated_the_widget_is_displayed_while_the_run_goes_on(tmp_path):
    """In VS Code the cell has the widget itself, and the HTML alone at the end."""
    messages = executed(CODE.format(n=4, seconds=0.6), tmp_path, VSCODE_PID="1")
    updates = of(messages, "update_display_data")
    assert WIDGET in updates[0]["data"]
    assert "text/html" in updates[0]["data"]
    assert WIDGET not in updates[-1]["data"]
    assert "3 of 4 done, 1 failed, finished in" in updates[-1]["data"]["text/plain"]
