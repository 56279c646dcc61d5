"""Measure the live view in a real browser: a million inputs, of which ten thousand end a second.

JupyterLab in Chromium shows a run whose inputs come at that pace. Told are the time until the view
is there, what the kernel sends, the CPU time of the thread that sends it, and the times between the
browser's frames, with the view in sight, with its cell collapsed, and without a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.lab.server import LabServer
from helpers.lab.session import Lab
from helpers.lab.tab import browser_path
from playwright.sync_api import sync_playwright

PACE = 10_000  # inputs a second
SETUP = """
import json, threading, time, nbmap

class Paced:
    def __init__(self, n, pace):
        self.n, self.pace = n, pace
    def __len__(self):
        return self.n
    def __iter__(self):
        began = time.monotonic()
        for at in range(self.n):
            if at % 100 == 0:
                time.sleep(max(0.0, began + at / self.pace - time.monotonic()))
            yield at

def same(x):
    return x

def cpu(name):
    import os
    [thread] = [t for t in threading.enumerate() if t.name == name]
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

nbmap.start()
handle = nbmap.remote(same)
list(handle.map(range(100)))
"""
FRAMES = """seconds => new Promise(resolve => {
    const times = [];
    let last = performance.now();
    const until = last + 1000 * seconds;
    function frame(now) {
        times.push(now - last);
        last = now;
        if (now < until) requestAnimationFrame(frame); else resolve(times.slice(1));
    }
    requestAnimationFrame(frame);
})"""


def frames(notebook, seconds: float) -> dict[str, float]:
    """Return how long the browser's frames are, in milliseconds."""
    times = notebook.page.evaluate(FRAMES, seconds)
    cut = statistics.quantiles(times, n=100)
    return {"median": statistics.median(times), "p99": cut[98], "longest": max(times)}


def measure(lab: Lab, n: int, seconds: float) -> dict[str, object]:
    """Run one row."""
    cells = [
        SETUP,
        f"run = handle.map(Paced({n}, {PACE}))",
        "print(json.dumps([time.monotonic(), cpu('nbmap-view'), time.process_time()]))",
        "print(json.dumps([time.monotonic(), cpu('nbmap-view'), time.process_time()]))\nrun.cancel()",
    ]
    notebook = lab.open(cells)
    notebook.run(0)
    notebook.wait_idle(0)
    still = frames(notebook, 2)
    began = time.perf_counter()
    notebook.run(1)
    view = notebook.output(1).locator(".nbmap")
    view.wait_for()
    appeared = time.perf_counter() - began
    time.sleep(2)
    notebook.run(2)
    notebook.wait_idle(2)
    before = len(notebook.messages)
    shown = frames(notebook, seconds)
    told = [m for m in notebook.messages[before:] if not m.sent and m.type == "comm_msg"]
    notebook.run(3)
    notebook.wait_idle(3)
    (t0, view0, all0), (t1, view1, all1) = (json.loads(notebook.text(at)) for at in (2, 3))
    figures = {
        "seconds until the view is there": appeared,
        "messages per second": len(told) / seconds,
        "KiB per second": sum(m.size for m in told) / 1024 / seconds,
        "CPU of the view's thread": (view1 - view0) / (t1 - t0),
        "CPU of the kernel": (all1 - all0) / (t1 - t0),
        "frames in ms": shown,
        "frames without a run in ms": still,
    }
    lab.end()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    figures = {}
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = LabServer(Path(folder) / "lab", Path(folder) / "log")
        try:
            server.start()
            browser = playwright.chromium.launch(executable_path=browser_path(), env=server.env)
            for n in (50_000, 1_000_000):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                lab = Lab(server, context, f"frames-{n}")
                figures[f"{n}_inputs"] = measure(lab, n, min(options.seconds, n / PACE - 3.5))
                context.close()
            browser.close()
        finally:
            server.stop()
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
