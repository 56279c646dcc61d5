"""JupyterLab itself does what the other tests of this folder take for granted."""

from __future__ import annotations

import nbformat
import pytest
from helpers.files import wait_until
from helpers.lab.server import KERNELS
from helpers.lab.traffic import per_second
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

each_kernel = pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "gpus"])

VERSION = "import ipykernel; print(ipykernel.__version__)"
HTML = "from IPython.display import HTML; HTML('<b class=mine>bold</b>')"
SLIDER = "import ipywidgets; ipywidgets.IntSlider(value=7)"
SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"
TICKS = """
import time
from comm import create_comm
comm = create_comm(target_name="nobody.listens")
for n in range(20):
    comm.send({"n": n}, buffers=[b"12345"])
    time.sleep(0.05)
"""


@each_kernel
def test_a_cell_shows_what_it_does(lab, kernel):
    """Each kernel runs its version of ipykernel, and shows text, HTML and a widget, with no error."""
    notebook = lab.open([VERSION, HTML, SLIDER], kernel=kernel)
    notebook.run_all()
    notebook.wait_idle(2)
    version = notebook.text(0)
    if kernel == "newest":
        assert tuple(map(int, version.split(".")[:2])) >= (7, 4)
    else:
        assert version.startswith(kernel.removeprefix("ipykernel-") + ".")
    expect(notebook.output(1).locator("b.mine")).to_have_text("bold")
    expect(notebook.output(2).get_by_role("slider")).to_be_visible()
    assert notebook.text(2) == "7"
    assert [notebook.prompt(i) for i in range(3)] == ["[1]:", "[2]:", "[3]:"]
    assert (notebook.console_errors, notebook.requests) == ([], [])


@each_kernel
def test_interrupt_ends_a_cell(lab, kernel):
    """The Kernel menu interrupts a cell, which ends with KeyboardInterrupt."""
    notebook = lab.open([SLEEP, "print('after')"], kernel=kernel)
    notebook.run(0)
    expect(notebook.output(0)).to_contain_text("asleep")
    assert notebook.prompt(0) == "[*]:"
    notebook.interrupt()
    notebook.wait_idle(0)
    assert "KeyboardInterrupt" in notebook.text(0)
    notebook.run(1)
    notebook.wait_idle(1)
    assert notebook.text(1) == "after"


def test_a_page_is_reloaded_while_a_cell_runs(lab):
    """A reloaded page finds its kernel again, also while a cell keeps it busy."""
    notebook = lab.open(["kept = 1", SLEEP, "print(kept)"])
    notebook.run(0)
    notebook.wait_idle(0)
    notebook.run(1)
    expect(notebook.output(1)).to_contain_text("asleep")
    notebook.reload()
    notebook.interrupt()
    notebook.run(2)
    notebook.wait_idle(2)
    assert notebook.text(2) == "1"


def test_a_restart_forgets(lab):
    """After a restart of the kernel, counting starts again and names are gone."""
    notebook = lab.open(["kept = 1", "print('kept' in globals())"])
    notebook.run_all()
    notebook.wait_idle(1)
    assert notebook.text(1) == "True"
    notebook.restart()
    notebook.run(1)
    notebook.wait_idle(1)
    assert (notebook.prompt(1), notebook.text(1)) == ("[1]:", "False")


def test_outputs_outlive_their_kernel(lab):
    """A saved notebook shows its outputs when it is opened again, and in what nbconvert exports."""
    notebook = lab.open(["print('to be kept')", HTML])
    notebook.run_all()
    notebook.wait_idle(1)
    notebook.save()
    cells = nbformat.read(notebook.path, as_version=4).cells
    assert cells[0].outputs[0].text == "to be kept\n"

    notebook.shutdown_kernel()
    assert lab.server.ask("api/kernels") == []
    notebook.close()
    again = lab.open_file(notebook.path)
    assert again.text(0) == "to be kept"
    expect(again.output(1).locator("b.mine")).to_have_text("bold")

    exported = lab.open_html(lab.to_html(notebook.path))
    expect(exported.page.locator("b.mine")).to_have_text("bold")
    for tab in (again, exported):
        assert (tab.console_errors, tab.requests) == ([], [])


def test_the_theme_changes_live(lab):
    """The page is dark when the dark theme is on, and bright again afterwards."""
    notebook = lab.open(["1"])
    background = "getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')"
    bright = notebook.page.evaluate(background)
    notebook.theme("dark")
    wait_until(lambda: notebook.page.evaluate(background) != bright)
    notebook.theme("light")
    wait_until(lambda: notebook.page.evaluate(background) == bright)


def test_names_are_completed(lab):
    """Tab offers what the kernel knows, and nothing where it knows nothing."""
    notebook = lab.open(["1"])
    assert {"%%time", "%%timeit"} <= set(notebook.complete(0, "%%tim"))
    assert notebook.complete(0, "nobody_knows_this") == []


def test_messages_are_counted_on_the_browsers_clock(lab):
    """All messages of a comm are seen, with their buffers, and not more of them than were sent."""
    notebook = lab.open([TICKS])
    notebook.run(0)
    notebook.wait_idle(0)
    ticks = [m for m in notebook.messages if m.type == "comm_msg" and not m.sent]
    ticks = [m for m in ticks if "n" in m.content["data"]]
    assert [m.content["data"]["n"] for m in ticks] == list(range(20))
    assert {(m.channel, m.buffers) for m in ticks} == {("iopub", (5,))}
    assert 0 < per_second(ticks) < 25  # a busy machine makes it less, never more than 20


def test_what_goes_wrong_in_a_page_is_written_down(lab):
    """Errors of scripts, failed loads and requests to elsewhere are seen, and reach nothing."""
    notebook = lab.open(["1"])
    notebook.page.evaluate(
        """() => {
            console.error("said so");
            setTimeout(() => { throw new Error("thrown"); });
            return fetch("https://example.org/x").catch(() => null);
        }"""
    )
    wait_until(lambda: len(notebook.console_errors) == 3)
    assert notebook.requests == ["https://example.org/x"]
    for text in ("said so", "thrown", "ERR_NAME_NOT_RESOLVED"):
        assert any(text in error for error in notebook.console_errors)


def test_pictures_are_kept(lab):
    """A screenshot is stored where people look for it."""
    path = lab.open(["1"]).screenshot("harness: a plain notebook")
    assert path.name == "harness-a-plain-notebook.png"
    assert path.read_bytes().startswith(b"\x89PNG")
