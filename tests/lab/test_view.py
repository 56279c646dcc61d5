"""A run in JupyterLab: what is under the cell while it goes on, after it, and when it is saved."""

from __future__ import annotations

import re

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.lab.traffic import per_second
from helpers.processes import wait_until
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KERNELS = ["ipykernel-6.31", "ipykernel-7.3", "newest"]
SETUP = """
import time, nbmap
nbmap.start()

@nbmap.remote
def work(x):
    time.sleep(1)
    return x
"""
ATTACK = "<script>window.__xss=1</script><img src=x onerror='window.__xss=1'>"
COUNTS = ("waiting", "running", "done", "failed", "cancelled")


class Live:
    """The live view under a cell."""

    def __init__(self, notebook, cell):
        self.root = notebook.output(cell).locator(".nbmap")
        self.line = self.root.locator(".nbmap-line")
        self.cancel = self.root.get_by_role("button", name="Cancel", exact=True)
        self.grid = self.root.locator("canvas.nbmap-grid")
        self.failures = self.root.locator(".nbmap-failures tbody details")

    def count(self, status):
        return self.root.locator(f".nbmap-legend b[data-status={status}]")

    def counts(self):
        """Return the numbers of the legend by status."""
        return {s: int(self.count(s).inner_text().replace(",", "")) for s in COUNTS}


def opened(lab, *cells, kernel="newest"):
    """Open a notebook whose first cell, which makes the cluster and a handle, has run."""
    notebook = lab.open([SETUP, *cells], kernel=kernel)
    notebook.run(0)
    notebook.wait_idle(0)
    return notebook


def comm_type(message):
    """Return what kind of the view's messages this is, if it is one."""
    return message.content.get("data", {}).get("content", {}).get("type")


def xss(tab):
    return tab.page.evaluate("window.__xss")


def test_v1_five_inputs_are_five_cells_and_all_get_done(lab):
    """Each input has a cell with a glyph, the line ends at 5/5 (100%), and the console is silent."""
    notebook = opened(lab, "list(work.map(range(5)))")
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    assert live.grid.get_attribute("aria-label").startswith("5 inputs")
    notebook.screenshot("running-light")
    notebook.wait_idle(1)
    expect(live.line).to_contain_text("5/5 (100%)")
    assert live.counts() == dict.fromkeys(COUNTS, 0) | {"done": 5}
    assert "[0, 1, 2, 3, 4]" in notebook.text(1)
    notebook.screenshot("done-light")
    notebook.theme("dark")
    notebook.screenshot("done-dark")
    assert notebook.console_errors == []
    assert notebook.requests == []


def test_v3_an_empty_map_is_one_line(lab):
    """Mapping over nothing says so at once, and there is no number that is none."""
    notebook = opened(lab, "list(work.map([]))")
    notebook.run(1)
    notebook.wait_idle(1)
    text = notebook.text(1)
    assert text.splitlines()[0] == "work: 0 of 0, finished"
    assert not re.search(r"NaN|Infinity|None|undefined", text)
    assert notebook.output(1).locator(".nbmap, table").count() == 0
    assert notebook.console_errors == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_v4_v5_cancel_ends_a_cell_that_blocks_the_kernel(lab, kernel):
    """A click on Cancel reaches a kernel that waits in a loop; what was done stays."""
    notebook = opened(
        lab,
        "got = []\nrun = work.map(range(200))\nfor x in run:\n    got.append(x)",
        "print(run.status, len(got) >= 2, run.counts['done'] >= len(got), run[0])",
        kernel=kernel,
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("done")).not_to_have_text("0")
    live.cancel.click()
    notebook.wait_idle(1)  # 200 s of work: it would not end by itself
    assert "RunCancelled" in notebook.text(1)
    expect(live.line).to_contain_text("cancelled after")
    expect(live.cancel).to_be_hidden()
    live.grid.press("End")
    expect(live.root.locator("[role=option]")).to_have_text("input 199: cancelled")
    notebook.run(2)
    notebook.wait_idle(2)
    assert notebook.text(2) == "cancelled True True 0"
    assert notebook.console_errors == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_v7_interrupt_cancels_the_run_and_leaves_nothing_running(lab, kernel, tmp_path):
    """Kernel > Interrupt ends the cell with KeyboardInterrupt, and every function with it."""
    notebook = opened(
        lab,
        f"""
import pathlib
folder = pathlib.Path({str(tmp_path)!r})

@nbmap.remote(grace=1)
def write(x):
    for step in range(1000):
        time.sleep(0.01)
        (folder / f"{{x}}").write_text(str(step))

run = write.map(range(50))
run.wait()
""",
        """
time.sleep(3)
before = {path.name: path.read_text() for path in folder.iterdir()}
time.sleep(1)
print(len(before) > 0, before == {path.name: path.read_text() for path in folder.iterdir()})
print(run.status)
""",
        kernel=kernel,
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    notebook.interrupt()
    notebook.wait_idle(1)
    assert "KeyboardInterrupt" in notebook.text(1)
    expect(live.line).to_contain_text("cancelled after")
    notebook.run(2)
    notebook.wait_idle(2)
    assert notebook.text(2) == "True True\ncancelled"
    assert notebook.console_errors == []


def test_v9_f19_text_of_user_code_is_text(lab):
    """Scripts, images, escapes and bidi marks in inputs, errors and prints are shown, not obeyed."""
    notebook = opened(
        lab,
        f"""
ATTACK = {ATTACK!r} + "\\x1b[31mred \\x1b]8;;http://evil\\x07link\\u202etxt"

@nbmap.remote(name={ATTACK!r})
def attack(text):
    print(text)
    time.sleep(1)
    raise ValueError(text)

run = attack.map([ATTACK] * 2, return_exceptions=True)
run.wait()
""",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    live = Live(notebook, 1)
    expect(live.failures).to_have_count(2)
    live.failures.locator("summary").first.click()
    live.grid.click(position={"x": 5, "y": 5})
    expect(live.root.locator(".nbmap-printed")).to_contain_text("<script>")
    notebook.screenshot("attack")
    assert xss(notebook) is None
    shown = live.root.inner_text()
    assert "<script>window.__xss=1</script>" in shown
    assert "\\x1b[31m" in shown
    assert not any(c in shown for c in "\x1b\x07\u202e")
    assert live.root.locator("script, img").count() == 0

    notebook.save()
    notebook.shutdown_kernel()
    notebook.close()
    again = lab.show(notebook.path)
    expect(again.output(1).locator("table").last).to_contain_text("<script>window.__xss=1</script>")
    assert xss(again) is None
    ours = "img[src^='data:image/svg+xml;base64,']"  # the map of the inputs
    assert again.output(1).locator("script, img").count() == again.output(1).locator(ours).count()

    exported = lab.open_html(lab.to_html(notebook.path))
    expect(exported.page.locator(".nbmap-mount")).to_contain_text("<script>window.__xss=1</script>")
    assert xss(exported) is None
    assert again.requests == []
    assert not [
        url for url in exported.requests if not re.search("require|mathjax", url, re.IGNORECASE)
    ]


def test_v13_a_reopened_notebook_has_counts_and_errors(lab):
    """With a new kernel the saved table is there, and no widget is missed."""
    notebook = opened(
        lab,
        """
@nbmap.remote
def fail_at_two(x):
    time.sleep(0.4)
    if x == 2:
        raise KeyError("two is missing")
    return x

run = fail_at_two.map(range(6), return_exceptions=True)
run.wait()
""",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    expect(Live(notebook, 1).line).to_contain_text("6/6 (100%)")
    notebook.screenshot("failing-light")
    notebook.save()
    notebook.shutdown_kernel()
    notebook.close()

    again = lab.show(notebook.path)
    saved = again.output(1)
    expect(saved).to_contain_text("5 of 6 done, 1 failed, finished in")
    expect(saved.locator("table").last).to_contain_text("two is missing")
    saved.locator("table").last.locator("summary").click()
    traceback = saved.locator("pre", has_text="fail_at_two")
    expect(traceback).to_be_visible()
    expect(traceback).to_have_css("text-align", re.compile("left$"))
    again.screenshot("reopened-light")
    assert again.page.get_by_text("Error displaying widget").count() == 0
    again.theme("dark")
    again.screenshot("reopened-dark")
    assert again.console_errors == []

    stored = nbformat.read(notebook.path, as_version=4)
    assert "widgets" not in stored.metadata
    kinds = [set(out.data) for out in stored.cells[1].outputs if "data" in out]
    assert kinds[0] == {"text/html", "text/plain"}


def test_the_kernel_sends_at_most_ten_messages_a_second(lab):
    """Whatever goes on in however many runs, the browser gets few messages."""
    notebook = opened(
        lab,
        """
@nbmap.remote
def short(x):
    time.sleep(0.002)
    return x

runs = [short.map(range(1500)) for _ in range(3)]
for run in runs:
    run.wait()
""",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    expect(Live(notebook, 1).line.last).to_contain_text("1,500/1,500 (100%)")
    told = [
        message
        for message in notebook.messages
        if not message.sent and comm_type(message) in {"key", "delta"}
    ]
    assert len(told) > 5
    assert per_second(told) <= 11


def test_v2_a_million_inputs_are_few_and_small_messages(lab):
    """Ten thousand inputs end a second, and the browser gets what it can draw."""
    notebook = opened(
        lab,
        """
class Paced:
    def __len__(self):
        return 1_000_000

    def __iter__(self):
        began = time.monotonic()
        for at in range(len(self)):
            if at % 100 == 0:
                time.sleep(max(0.0, began + at / 10_000 - time.monotonic()))
            yield at

run = nbmap.remote(abs).map(Paced())
""",
        "run.cancel()",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.grid).to_have_attribute("aria-label", re.compile("^1,000,000 inputs"))
    expect(live.count("done")).to_have_text(re.compile(r"^[6-9]\d,\d{3}$"))
    notebook.screenshot("million")
    notebook.run(2)
    expect(live.line).to_contain_text("cancelled after")
    told = [m for m in notebook.messages if not m.sent and comm_type(m) in {"key", "delta"}]
    assert len(told) > 20
    assert per_second(told) <= 11
    assert sum(m.size for m in told) / (told[-1].at - told[0].at) <= 150 << 10
    assert notebook.console_errors == []


def test_out_of_sight_a_view_costs_nothing(lab):
    """The kernel sends nothing to a collapsed output; opened, it shows how far the run is by then."""
    notebook = opened(lab, "run = work.map(range(100))")
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    notebook.menu("View", "Collapse Selected Outputs")

    def said(kind):
        return [m for m in notebook.messages if comm_type(m) == kind]

    wait_until(lambda: said("rest"))
    notebook.page.wait_for_timeout(1000)  # what was on its way
    told = len(said("delta"))
    notebook.page.wait_for_timeout(2500)
    assert len(said("delta")) == told
    notebook.menu("View", "Expand Selected Outputs")
    expect(live.count("done")).to_have_text(re.compile("^([89]|[1-9][0-9])$"))
    live.cancel.click()
    expect(live.line).to_contain_text("cancelled after")
    assert notebook.console_errors == []


def test_a_short_run_is_one_line(lab):
    """A run of less than half a second leaves a line of text and no widget."""
    notebook = opened(
        lab, "list(nbmap.remote(abs).map([-1, -2]))", "list(nbmap.remote(abs).map([-1]))"
    )
    for cell in (1, 2):
        notebook.run(cell)
        notebook.wait_idle(cell)
    assert re.match(r"abs: 1 of 1 done, finished in .*\n+\[1\]$", notebook.text(2))
    assert notebook.output(2).locator(".nbmap").count() == 0


def test_a_run_shows_itself_once_in_its_cell_and_again_where_it_is_named(lab):
    """As the last expression of its own cell a run adds nothing; in another cell it is shown too."""
    notebook = opened(lab, "run = work.map(range(4))\nrun", "run", "run.wait()")
    for cell in (1, 2):
        notebook.run(cell)
        notebook.wait_idle(cell)
    expect(notebook.output(1).locator(".nbmap")).to_have_count(1)
    expect(notebook.output(2).locator(".nbmap")).to_have_count(1)
    notebook.run(3)
    notebook.wait_idle(3)
    for cell in (1, 2):
        expect(Live(notebook, cell).line).to_contain_text("4/4 (100%)")
    assert notebook.text(3) == "True"
    assert notebook.console_errors == []


def test_a_background_run_prints_into_no_other_cell(lab):
    """What runs on from cell 1 while other cells run leaves nothing of itself in them."""
    notebook = opened(
        lab,
        "@nbmap.remote\ndef chat(x):\n    print('chat', x)\n    time.sleep(0.5)\n\nrun = chat.map(range(12))",
        "time.sleep(2)\nprint('mine')",
        "run.wait()",
    )
    for cell in (1, 2, 3):
        notebook.run(cell)
        notebook.wait_idle(cell)
    expect(Live(notebook, 1).line).to_contain_text("12/12 (100%)")
    assert notebook.text(2) == "mine"
    assert notebook.text(3) == "True"


def test_a_reloaded_page_has_the_live_view_again(lab):
    """The kernel tells a page that is loaded again all that it knows, also of a run that ended."""
    notebook = opened(lab, "run = work.map(range(4))\nrun.wait()")
    notebook.run(1)
    notebook.wait_idle(1)
    notebook.save()
    notebook.reload()
    live = Live(notebook, 1)
    expect(live.line).to_contain_text("4/4 (100%)")
    assert live.counts()["done"] == 4
    assert notebook.console_errors == []


def test_a_view_keeps_what_the_reader_does_in_it(lab):
    """An open traceback stays open, focus stays, and no key reaches JupyterLab's command mode."""
    notebook = opened(
        lab,
        """
@nbmap.remote
def fail_first(x):
    time.sleep(0.3)
    if x < 2:
        raise ValueError(x)

run = fail_first.map(range(12), return_exceptions=True)
run.wait()
""",
        "run = work.map(range(200))\nrun.wait()",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    live.failures.locator("summary").first.click()
    live.failures.locator("summary").first.press("b")  # in command mode: a new cell below
    for key in ("b", "End", "Home", "ArrowRight", "f", "Enter"):
        live.grid.press(key)
    notebook.wait_idle(1)
    expect(live.line).to_contain_text("12/12 (100%)")
    expect(live.failures.first).to_have_attribute("open", "")
    expect(live.grid).to_be_focused()
    expect(live.root.locator("[role=option]")).to_have_text("input 0: failed")
    expect(live.root.locator(".nbmap-detail pre").last).to_contain_text("ValueError: 0")
    expect(notebook.page.locator(".jp-Notebook .jp-Cell")).to_have_count(3)
    notebook.run(2)
    live = Live(notebook, 2)
    expect(live.count("running")).to_have_text("2")
    live.cancel.press("Enter")
    notebook.wait_idle(2)
    expect(live.line).to_contain_text("cancelled after")
    expect(live.grid).to_be_focused()
    assert notebook.console_errors == []


def test_when_the_kernel_is_restarted_a_view_gives_way_to_what_was_known(lab):
    """Nothing goes on as if it were running; the saved HTML says when it was true."""
    notebook = opened(lab, "run = work.map(range(100))")
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    notebook.restart()
    expect(live.root).to_have_count(0)
    assert re.search(r"\d running, \d+ waiting · as of \d", notebook.text(1))
    assert notebook.console_errors == []


def test_of_many_ended_runs_the_newest_are_live(lab):
    """The oldest views give way to their HTML, and a reload brings back those that are live."""
    notebook = opened(
        lab,
        "from nbmap.view import widget\nwidget.KEPT = 2\n"
        "for _ in range(4):\n    work.map(range(1)).wait()",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    outputs = notebook.output(1).locator(".nbmap-mount")
    expect(outputs).to_have_count(4)
    expect(notebook.output(1).locator(".nbmap")).to_have_count(2)
    expect(outputs.first.locator("table")).to_be_visible()
    notebook.save()
    notebook.reload()
    expect(notebook.output(1).locator(".nbmap")).to_have_count(2)
    assert notebook.console_errors == []


def test_many_runs_of_a_cell_fold_into_one_list(lab):
    """A line each, and the newest in full; the first few have outputs of their own."""
    notebook = opened(
        lab,
        "for n in range(9):\n    run = work.map([n])\n    run.wait()\nrun",
        "for n in range(300):\n    list(nbmap.remote(abs).map([n]))",
    )
    for cell in (1, 2):
        notebook.run(cell)
        notebook.wait_idle(cell)
        expect(notebook.output(cell).locator(".jp-OutputArea-child")).to_have_count(4)
        expect(notebook.output(cell).locator(".nbmap-mount")).to_have_count(7)
    expect(notebook.output(1).locator("li", has_text="1 of 1 done")).to_have_count(2)
    expect(Live(notebook, 1).line.last).to_contain_text("1/1 (100%)")
    notebook.screenshot("many-runs")
    assert "293 earlier runs of this cell" in notebook.text(2)
    told = [m for m in notebook.messages if m.type == "update_display_data"]
    assert per_second(told) <= 25  # four outputs
    notebook.save()
    stored = nbformat.read(notebook.path, as_version=4)
    assert len(stored.cells[2].outputs) == 4
    listed = stored.cells[2].outputs[3].data
    assert len(listed["text/plain"].splitlines()) == 104
    assert "193 more before these: nbmap.runs()" in listed["text/html"]
    assert notebook.console_errors == []


def test_a_long_call_is_shown_and_can_be_cancelled(lab):
    """A single call that takes seconds gets a view; a short one gets none."""
    notebook = opened(lab, "work(3)", "@nbmap.remote\ndef long(x):\n    time.sleep(100)\n\nlong(1)")
    notebook.run(1)
    notebook.wait_idle(1)
    assert notebook.text(1) == "3"
    notebook.run(2)
    live = Live(notebook, 2)
    expect(live.count("running")).to_have_text("1")
    live.cancel.click()
    notebook.wait_idle(2)
    assert "Cancelled" in notebook.text(2)


def test_v10_retry_runs_below_what_has_failed(lab):
    """A new view under the old one takes over what is done; the old button is gone then."""
    notebook = opened(
        lab,
        "import os, pathlib\n"
        "there = pathlib.Path('mended').absolute()\n"
        "calls = pathlib.Path('calls').absolute()\n"
        "@nbmap.remote\n"
        "def fragile(x):\n"
        "    with calls.open('a') as file:\n"
        "        file.write(f'{x} ')\n"
        "    time.sleep(0.5)\n"
        "    if x % 4 == 1 and not there.exists():\n"
        "        raise ValueError(f'no {x}')\n"
        "    return x\n"
        "run = fragile.map(range(12), return_exceptions=True)\n"
        "outputs = list(run)",
        "there.touch()",
        "print(sorted(map(int, calls.read_text().split())), run.retried.results())",
    )
    notebook.run(1)
    views = notebook.output(1).locator(".nbmap")
    old = Live(notebook, 1)
    first = views.first
    expect(first.locator(".nbmap-line")).to_contain_text("12/12")
    retry = first.get_by_role("button", name="Retry")
    failure = first.locator(".nbmap-failures tbody details").first
    failure.locator("summary").click()
    about = first.locator(".nbmap-about").first
    expect(about).to_contain_text("failed · attempt 1 · tls://")
    expect(about.locator("code")).to_have_text("run.replay(1)")
    expect(about.get_by_role("button", name="Copy traceback")).to_be_visible()
    notebook.screenshot("failed-with-retry")
    notebook.run(2)
    notebook.wait_idle(2)
    retry.click()
    expect(views).to_have_count(2)
    expect(views.nth(1).locator(".nbmap-line")).to_contain_text("12/12 (100%)")
    expect(views.nth(1).locator(".nbmap-legend b[data-status=done]")).to_have_text("12")
    expect(retry).to_be_hidden()
    expect(views.nth(1).get_by_role("button", name="Retry")).to_be_hidden()
    expect(old.root.first.locator(".nbmap-legend b[data-status=failed]")).to_have_text("3")
    notebook.screenshot("retried")
    notebook.run(3)
    again = [*range(12), 1, 5, 9]
    expect(notebook.output(3)).to_contain_text(f"{sorted(again)} {[*range(12)]}")


def test_v10_one_input_is_cancelled_from_its_details(lab):
    """The others go on; what was cancelled can be run again."""
    notebook = opened(
        lab,
        "import pathlib\n"
        "go = pathlib.Path('go').absolute()\n"
        "@nbmap.remote\n"
        "def wait(x):\n"
        "    while not go.exists():\n"
        "        time.sleep(0.01)\n"
        "    return x\n"
        "run = wait.map(range(4), return_exceptions=True)",
        "go.touch()\nrun.wait()\nprint(run.counts)",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    live.grid.focus()
    live.grid.press("Home")
    live.grid.press("Enter")
    button = live.root.get_by_role("button", name="Cancel this input")
    button.click()
    expect(live.count("cancelled")).to_have_text("1")
    expect(button).to_be_hidden()
    notebook.run(2)
    expect(notebook.output(2)).to_contain_text("'done': 3, 'failed': 0, 'cancelled': 1")
    expect(live.root.get_by_role("button", name="Retry")).to_be_visible()


def test_v11_outputs_of_generators_appear_while_they_run(lab):
    """The newest 200 are kept; who has scrolled up is left there; the saved page has the last."""
    notebook = opened(
        lab,
        "import pathlib\n"
        "go = pathlib.Path('stream').absolute()\n"
        "@nbmap.remote\n"
        "def train(lr):\n"
        "    for epoch in range(30):\n"
        "        time.sleep(0.02)\n"
        "        yield {'epoch': epoch, 'loss': lr / (epoch + 1), 'note': '<b>&'}\n"
        "    while not go.exists():\n"
        "        time.sleep(0.01)\n"
        "    for n in range(400):\n"
        "        time.sleep(0.005)\n"
        "        yield n\n"
        "run = train.map([0.5, 0.25])",
        "go.touch()\nrun.wait()",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    lines = live.root.locator(".nbmap-lines > li")
    expect(lines).to_have_count(60)
    expect(lines.last).to_contain_text("{'epoch': 29, 'loss': 0.0")
    expect(lines.last).to_contain_text("'note': '<b>&'}")
    expect(live.count("running")).to_have_text("2")
    notebook.screenshot("streaming")
    pane = live.root.locator(".nbmap-lines")

    def top():
        return pane.evaluate("e => [e.scrollTop, e.scrollHeight - e.clientHeight - e.scrollTop]")

    assert top()[1] < 4  # it follows
    pane.evaluate("e => { e.scrollTop = 10 }")
    notebook.run(2)
    expect(live.line).to_contain_text("2/2 (100%)")
    expect(lines).to_have_count(200)
    assert top()[1] > 100
    assert notebook.console_errors == []
    notebook.save()
    saved = lab.to_html(notebook.path)
    page = lab.open_html(saved).page
    kept = page.locator("details", has_text="newest outputs").locator("pre")
    expect(kept).to_contain_text(re.compile(r"[01]: 39\d"))  # fast ones are not all looked at


def test_v11_what_functions_return_is_there_on_a_click(lab):
    """The pane is closed at first."""
    notebook = opened(lab, "run = work.map(range(4))")
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.line).to_contain_text("4/4 (100%)")
    lines = live.root.locator(".nbmap-lines > li")
    expect(lines).to_have_count(0)
    live.root.get_by_text("newest outputs").click()
    expect(lines).to_have_text([f"{x} {x}" for x in range(4)])


def test_numbers_that_generators_yield_are_curves(lab):
    """One for each input, with the key to choose, a logarithm, and the input under the pointer."""
    notebook = opened(
        lab,
        "import math, pathlib\n"
        "go = pathlib.Path('curves').absolute()\n"
        "@nbmap.remote(concurrency=5)\n"
        "def train(lr):\n"
        "    for epoch in range(60):\n"
        "        time.sleep(0.02)\n"
        "        loss = math.exp(-lr * epoch) + 0.02 * math.sin(epoch)\n"
        "        yield {'epoch': epoch, 'loss': loss, 'accuracy': 1 - loss / 2}\n"
        "    while not go.exists():\n"
        "        time.sleep(0.01)\n"
        "run = train.map([0.01, 0.02, 0.05, 0.1, 0.2])",
        "go.touch()\nrun.wait()",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.root.locator(".nbmap-lines")).to_contain_text("59")
    plot = live.root.locator(".nbmap-plot")
    curves = plot.locator("canvas")
    label = re.compile(r"loss of 5 inputs, output by output, from -0\.01998 to 1\.007$")
    expect(curves).to_have_attribute("aria-label", label)
    expect(plot.locator("option")).to_have_text(["epoch", "loss", "accuracy"])
    notebook.screenshot("curves")
    box = curves.bounding_box()
    tip = plot.locator(".nbmap-note").last
    curves.hover(position={"x": 64 + (box["width"] - 72) * 0.5, "y": 60})
    expect(tip).to_have_text(re.compile(r"input 0: loss 0\.\d+ at output \d+"))
    notebook.screenshot("curves-hover")
    plot.get_by_label("log").check()
    expect(curves).to_have_attribute("aria-label", re.compile(r"from [0-9.e-]+ to 1\.007$"))
    plot.get_by_label("number that is shown").select_option("accuracy")
    expect(curves).to_have_attribute("aria-label", re.compile("accuracy of 5 inputs"))
    notebook.theme("dark")
    notebook.screenshot("curves-dark")
    notebook.run(2)
    expect(live.line).to_contain_text("5/5 (100%)")
    assert notebook.console_errors == []
    notebook.save()
    page = lab.open_html(lab.to_html(notebook.path)).page
    picture = page.get_by_role("img", name="loss of 5 inputs, output by output")
    expect(picture).to_be_visible()
    assert picture.evaluate("e => e.naturalWidth") == 640


def test_numbers_that_functions_return_are_dots(lab):
    """Behind a click, one for each input, named under the pointer; the saved page has them."""
    notebook = opened(
        lab,
        "@nbmap.remote\n"
        "def score(x):\n"
        "    time.sleep(0.3)\n"
        "    return {'score': x * x, 'name': 'a'}\n"
        "run = score.map(range(9))\nrun.wait()",
    )
    notebook.run(1)
    notebook.wait_idle(1)
    live = Live(notebook, 1)
    plot = live.root.locator(".nbmap-plot")
    dots = plot.locator("canvas")
    expect(dots).to_be_hidden()
    plot.locator("summary").click()
    expect(dots).to_have_attribute("aria-label", "score, input by input, from 0 to 64")
    box = dots.bounding_box()
    dots.hover(position={"x": box["width"] - 9, "y": 9})
    expect(plot.locator(".nbmap-note").last).to_have_text("input 8: score 64")
    notebook.screenshot("dots")
    assert notebook.console_errors == []
    notebook.save()
    page = lab.open_html(lab.to_html(notebook.path)).page
    page.locator("summary", has_text="numbers").click()
    expect(page.get_by_role("img", name="score, by input")).to_be_visible()


BLOCKING = """
import pathlib
go = pathlib.Path('go-on').absolute()

@nbmap.remote
def chat(x):
    print('chat', x)
    if x == 0:
        raise ValueError('no zero')
    while not go.exists():
        time.sleep(0.01)
    return x

run = chat.map(range(20), return_exceptions=True)
run.wait()
"""


@pytest.mark.parametrize("kernel", ["ipykernel-6.31", "newest"])
def test_v12_what_an_input_has_printed_while_the_run_blocks_the_kernel(lab, kernel):
    """By a click on its square, and by Enter on it."""
    notebook = opened(lab, BLOCKING, kernel=kernel)
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    printed = live.root.locator(".nbmap-printed")
    live.grid.click(position={"x": 8, "y": 8})
    expect(printed).to_have_text("chat 0\n")
    live.grid.press("ArrowRight")
    live.grid.press("Enter")
    expect(printed).to_have_text("chat 1\n")
    assert notebook.prompt(1) == "[*]:"
    live.cancel.click()
    notebook.wait_idle(1)


@pytest.mark.parametrize("kernel", ["ipykernel-6.31", "newest"])
def test_v6_cancel_without_subshells(lab, kernel):
    """Where comm messages wait for the end of the cell, the click goes the other way."""
    folder = lab.server.folder / "config/lab/user-settings/@jupyterlab/apputils-extension"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "kernels-settings.jupyterlab-settings"
    settings.write_text('{"commsOverSubshells": "disabled"}', "utf-8")
    notebook = opened(lab, BLOCKING, "print(run.status)", kernel=kernel)
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    live.cancel.click()
    notebook.wait_idle(1)
    notebook.run(2)
    notebook.wait_idle(2)
    assert notebook.text(2) == "cancelled"


@pytest.mark.parametrize("kernel", ["ipykernel-6.31", "newest"])
def test_v8_a_late_click_hits_no_other_run(lab, kernel):
    """What was sent for one run and comes when another one goes on does nothing to that."""
    notebook = opened(
        lab,
        BLOCKING,
        "other = work.map(range(4))\nother.wait()\nprint(other.counts)",
        kernel=kernel,
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("running")).to_have_text("2")
    live.cancel.click()
    notebook.run(2)
    notebook.wait_idle(2)
    expect(live.line).to_contain_text("cancelled after")
    expect(notebook.output(2)).to_contain_text("'done': 4, 'failed': 0, 'cancelled': 0")


CONTRAST = """
() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((n) => {
      const c = Number(n) / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const root = document.querySelector(".nbmap");
  const ground = light(getComputedStyle(root).backgroundColor);
  const names = [".nbmap-name", ".nbmap-line", ".nbmap-legend li", ".nbmap-note", "td"];
  const nodes = names.map((name) => root.querySelector(name)).filter((node) => node !== null);
  const glyphs = [...root.querySelectorAll(".nbmap-swatch:not(.nbmap-waiting)")].map((e) => getComputedStyle(e));
  return [
    ...nodes.map((node) => ratio(light(getComputedStyle(node).color), ground)),
    ...glyphs.map((style) => ratio(light(style.color), light(style.backgroundColor))),
  ];
}
"""
PIXEL = "e => [...e.getContext('2d').getImageData(3, 3, 1, 1).data]"


def test_v16_another_theme_in_the_middle_of_a_run(lab):
    """Text and glyphs are legible in each, and the grid has its colours without a reload."""
    notebook = opened(lab, BLOCKING.replace("run.wait()", ""), "go.touch()")
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("failed")).to_have_text("1")
    expect(live.count("running")).to_have_text("2")
    before = live.grid.evaluate(PIXEL)
    for theme in ("dark", "high contrast", "light"):
        notebook.theme(theme)
        expect(live.root).to_be_visible()
        notebook.screenshot(f"theme-{theme}")
        ratios = notebook.page.evaluate(CONTRAST)
        assert len(ratios) >= 8
        assert min(ratios) >= 4.5, (theme, ratios)
        after = live.grid.evaluate(PIXEL)
        assert (after == before) == (theme == "light"), (theme, before, after)
    notebook.run(2)
    expect(live.line).to_contain_text("20/20")


def test_what_the_system_asks_for_is_done(lab):
    """Nothing moves where less motion is wanted, and with forced colours bars have borders."""
    notebook = opened(lab, "run = work.map(range(6))\nrun.wait()")
    notebook.page.emulate_media(reduced_motion="reduce", forced_colors="active")
    notebook.run(1)
    live = Live(notebook, 1)
    part = live.root.locator(".nbmap-bar i").first
    expect(part).to_have_css("transition-duration", "0s")
    expect(part).to_have_css("border-top-style", "solid")
    notebook.wait_idle(1)
    notebook.screenshot("forced-colours")


def test_v17_the_view_has_no_serious_fault_for_assistive_technology(lab):
    """By axe-core, while it runs and at its end, with failures, curves and outputs."""
    notebook = opened(
        lab,
        "import pathlib\n"
        "go = pathlib.Path('go-on').absolute()\n"
        "@nbmap.remote\n"
        "def train(x):\n"
        "    for n in range(20):\n"
        "        time.sleep(0.02)\n"
        "        yield {'n': n, 'loss': 1 / (n + x)}\n"
        "    while x and not go.exists():\n"
        "        time.sleep(0.01)\n"
        "run = train.map([0, 1, 2], return_exceptions=True)",
        "go.touch()\nrun.wait()",
    )
    notebook.run(1)
    live = Live(notebook, 1)
    expect(live.count("failed")).to_have_text("1")
    expect(live.root.locator(".nbmap-plot")).to_be_visible()
    assert faults(notebook) == []
    live.failures.locator("summary").first.click()
    notebook.run(2)
    expect(live.line).to_contain_text("3/3 (100%)")
    expect(live.root.get_by_role("button", name="Retry")).to_be_visible()
    assert faults(notebook) == []


def faults(notebook):
    """Return what axe-core finds serious in the view."""
    found = Axe().run(notebook.page, context=".nbmap").response["violations"]
    return [
        (fault["id"], [node["html"][:200] for node in fault["nodes"]])
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]
