"""Where no browser shows the widget, the HTML of the cell goes on by itself."""

from __future__ import annotations

import os
from queue import Empty

import pytest
from helpers.kernels import OwnKernel

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


def executed(code, tmp_path, *more, **variables):
    """Run cells in a kernel that nobody watches; return all that it published."""
    manager = OwnKernel(transport="ipc", ip=str(tmp_path / "k"))
    manager.start_kernel(env={**os.environ, **variables})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        messages = []
        for source in (code, *more):
            request = client.execute(source)
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
    assert of(messages, "comm_open") == []  # a program would store it, with its code
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


def test_updates_name_the_cell_that_made_the_run(tmp_path):
    """Also right after another run: nbclient drops what comes in the name of another cell."""
    code = CODE.format(n=1, seconds=2.6)
    messages = executed(code, tmp_path, "work(1)", "list(work.map([0, 1]))")
    cells = {}
    for message in messages:
        if message["msg_type"] in {"display_data", "update_display_data"}:
            shown = message["content"]["transient"]["display_id"]
            cells.setdefault(shown, set()).add(message["parent_header"]["msg_id"])
    assert [len(names) for names in cells.values()] == [1, 1, 1]
    assert len(set.union(*cells.values())) == 3


def test_a_cell_that_captures_its_output_leaves_that_of_others_alone(tmp_path):
    """A run of another cell ends there as ever; one of a captured cell is captured with its end."""
    code = CODE.format(n=2, seconds=1).replace(
        "run.wait()",
        """
from IPython.utils.capture import capture_output
with capture_output() as captured:
    run.wait()
assert captured.outputs == []
with capture_output() as captured:
    inside = work.map(range(2))
    inside.wait()
shown = [out.data["text/plain"] for out in captured.outputs]
assert "finished in" in shown[-1], shown
""",
    )
    messages = executed(code, tmp_path)
    assert of(messages, "error") == []
    [_] = of(messages, "display_data")
    last = of(messages, "update_display_data")[-1]
    assert "2 of 2 done, finished in" in last["data"]["text/plain"]


def test_what_nobody_holds_is_not_held_by_its_view(tmp_path):
    """A run and a call go with their outputs when the last name of them goes."""
    code = (
        CODE.format(n=2, seconds=0.6)
        + """
import gc, weakref
gc.collect()
gc.disable()
driver = weakref.ref(run._driver)
del run
assert driver() is None
drivers = []
init = nbmap.run.Run.__init__
def noting(self, driver, **options):
    drivers.append(weakref.ref(driver))
    init(self, driver, **options)
nbmap.run.Run.__init__ = noting
work(1)
work.map(range(2)).wait()
assert [ref() for ref in drivers] == [None, None]
"""
    )
    assert of(executed(code, tmp_path), "error") == []


def test_a_run_that_cannot_be_shown_runs(tmp_path):
    """What goes wrong in a view costs neither the run nor the views of others."""
    code = (
        CODE.format(n=2, seconds=0.6)
        + """
from nbmap.notebook import display
show, display.Cells.show = display.Cells.show, None
assert work.map(range(2)).results() == [0, 1]
display.Cells.show = show
from nbmap.view import widget
tell, widget.View.close = widget.View.close, None
work.map(range(2)).wait()
widget.View.close = tell
work.map(range(2)).wait()
"""
    )
    messages = executed(code, tmp_path)
    assert of(messages, "error") == []
    assert len(of(messages, "display_data")) == 3
    last = of(messages, "update_display_data")[-1]
    assert "2 of 2 done, finished in" in last["data"]["text/plain"]
