"""The live view where it is not one view in one JupyterLab that has all it needs."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest
from helpers.lab.notebook import NOTEBOOK_7
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WORK = """
import pathlib, time, nbmap
nbmap.start()
go = pathlib.Path('elsewhere').absolute()
go.unlink(missing_ok=True)

@nbmap.remote
def work(x):
    time.sleep(0.4)
    if x == 2:
        raise KeyError("two is missing")
    return x

@nbmap.remote
def wait(x):
    while not go.exists():
        time.sleep(0.05)
    return x
"""


def view_in(place):
    """Locate the live view in a part of a page."""
    return place.locator(".nbmap")


def line_of(view):
    """Locate the text at its head."""
    return view.locator(".nbmap-line")


def opened(lab, *cells, **where):
    """Open a notebook whose first cell has run."""
    notebook = lab.open([WORK, *cells], **where)
    notebook.run(0)
    notebook.wait_idle(0)
    return notebook


def test_v20_notebook_7_has_the_same_view(lab):
    """Live, with Cancel, and what is saved is the same HTML."""
    notebook = opened(
        lab,
        "run = work.map(range(5), return_exceptions=True)\nrun.wait()",
        "for x in wait.map(range(50)):\n    pass",
        app=NOTEBOOK_7,
    )
    notebook.run(1)
    notebook.wait_idle(1)
    view = view_in(notebook.output(1))
    expect(line_of(view)).to_contain_text("5/5 (100%)")
    expect(view.locator("canvas.nbmap-grid")).to_have_attribute(
        "aria-label", re.compile("5 inputs")
    )
    notebook.run(2)
    blocked = view_in(notebook.output(2))
    expect(blocked.locator(".nbmap-legend b[data-status=running]")).to_have_text("2")
    notebook.screenshot("notebook-7")
    blocked.get_by_role("button", name="Cancel", exact=True).click()
    notebook.wait_idle(2)
    assert "RunCancelled" in notebook.text(2)
    notebook.save()
    assert notebook.console_errors == []
    notebook.close()
    lab.server.shut_down_kernels()
    again = lab.show(notebook.path, NOTEBOOK_7)
    saved = again.output(1)
    expect(saved).to_contain_text("4 of 5 done, 1 failed, finished in")
    expect(saved.locator("table").last).to_contain_text("two is missing")
    assert again.page.get_by_text("Error displaying widget").count() == 0


@contextmanager
def without_anywidget(server):
    """Switch the extension off that shows the widget, as `jupyter labextension disable` does."""
    path = server.folder / "config" / "labconfig" / "page_config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"disabledExtensions": {"anywidget": True}}))
    try:
        yield
    finally:
        path.unlink()


def test_v20_without_anywidget_in_the_server_the_html_moves(lab):
    """It is brought up to date while the run goes on, and tells the end."""
    with without_anywidget(lab.server):
        notebook = opened(lab, "run = wait.map(range(4))\nrun.wait()", "go.touch()")
        notebook.run(1)
        shown = notebook.output(1)
        states = set()
        for _ in range(2):
            expect(shown).to_contain_text("as of")
            states.add(notebook.text(1))
            expect(shown).not_to_contain_text(re.search(r"as of [\d:]+", notebook.text(1))[0])
        assert len(states) == 2
        assert view_in(notebook.page).count() == 0
        (lab.server.root / "elsewhere").touch()
        notebook.wait_idle(1)
        expect(shown).to_contain_text("4 of 4 done, finished in")
        assert "Traceback" not in notebook.text(1)
        assert "Error" not in notebook.text(1)


def test_v20_two_views_of_one_output_are_both_live(lab):
    """JupyterLab's own second view of an output."""
    notebook = opened(lab, "run = wait.map(range(4))", "go.touch()\nrun.wait()")
    notebook.run(1)
    notebook.wait_idle(1)
    expect(line_of(view_in(notebook.output(1)))).to_contain_text("0/4 (0%)")
    notebook.output(1).locator(".nbmap-line").click(button="right")
    notebook.page.locator(".lm-Menu-itemLabel", has_text="Create New View for Cell Output").click()
    lines = line_of(view_in(notebook.page))
    expect(lines).to_have_count(2)
    for at in (0, 1):
        expect(lines.nth(at)).to_contain_text("0/4 (0%)")
    notebook.screenshot("two-views")
    (lab.server.root / "elsewhere").touch()
    for at in (0, 1):
        expect(lines.nth(at)).to_contain_text("4/4 (100%)")
    assert notebook.console_errors == []


@pytest.mark.parametrize("kernel", ["ipykernel-6.31", "newest"])
def test_v14_a_page_that_is_reloaded_while_the_cell_blocks_is_live_again(lab, kernel):
    """When the cell has ended at the latest; before, there is what was saved."""
    notebook = opened(lab, "run = wait.map(range(4))\nrun.wait()", kernel=kernel)
    notebook.run(1)
    expect(line_of(view_in(notebook.output(1)))).to_contain_text("0/4 (0%)")
    notebook.save()
    notebook.reload()
    expect(notebook.output(1)).to_contain_text("wait")
    (lab.server.root / "elsewhere").touch()
    expect(line_of(view_in(notebook.output(1)))).to_contain_text("4/4 (100%)")
    assert notebook.console_errors == []


def test_v14_a_reloaded_page_may_retry(lab):
    """What was not done, shown below as before the reload."""
    notebook = opened(
        lab,
        """
@nbmap.remote
def again(x):
    time.sleep(1)
    if not go.exists():
        raise KeyError(x)
    return x

run = again.map(range(4), return_exceptions=True)
run.wait()
go.touch()
""",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    notebook.save()
    notebook.reload()
    view = view_in(notebook.output(1))
    view.get_by_role("button", name="Retry", exact=True).click()
    expect(view).to_have_count(2)
    expect(line_of(view).last).to_contain_text("4/4 (100%)")
    expect(view.first.locator(".nbmap-remark").first).to_contain_text("run again below: 4/4 (100%)")
    assert notebook.console_errors == []


def test_v18_nothing_is_asked_of_the_network(lab):
    """By a view with everything in it: failures, curves, outputs, prints, a saved page."""
    notebook = opened(
        lab,
        """
@nbmap.remote
def stream(x):
    for step in range(40):
        print(step)
        time.sleep(0.02)
        yield {"step": step, "loss": x / (step + 1)}
    if x == 3:
        raise ValueError("https://example.org/<img src='https://example.org/x.png'>")

run = stream.map(range(5), return_exceptions=True)
run.wait()
""",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    view = view_in(notebook.output(1))
    expect(view.locator(".nbmap-plot canvas")).to_be_visible()
    view.locator(".nbmap-failures summary").last.click()
    view.locator("canvas.nbmap-grid").click(position={"x": 5, "y": 5})
    expect(view.locator(".nbmap-printed")).to_contain_text("39")
    notebook.theme("dark")
    notebook.save()
    notebook.reload()
    expect(line_of(view_in(notebook.output(1)))).to_contain_text("5/5 (100%)")
    assert notebook.requests == []
    assert notebook.console_errors == []
