"""Measure what the live view of a notebook costs: the same rows with it and without, in turns.

A kernel runs the rows. This process is its page: it greets each widget, so that the kernel sends
all that a browser gets, and counts the messages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.kernels import OwnKernel

HERE = Path(__file__).resolve().parent
ROWS = {"trivial_100k": 100_000, "trivial_1m": 1_000_000, "sleep_10ms": 800, "sleep_1ms": 4000}

# Runs in the kernel. A view is there or not; what else a run does is the same.
SETUP = f"""
import json, sys, time
sys.path.insert(0, {str(HERE)!r})
import nbmap, work
from nbmap.view import watch

class Blind:
    def open(self, run):
        return self
    def update(self, snapshot): pass
    def printed(self, index, stream, text): pass
    def close(self, snapshot): pass

def short(x):
    time.sleep(0.001)
    return x

nbmap.start(workers=2)
page, blind = None, Blind()
HANDLES = {{
    "trivial_100k": nbmap.remote(work.trivial),
    "trivial_1m": nbmap.remote(work.trivial),
    "sleep_10ms": nbmap.remote(work.nap),
    "sleep_1ms": nbmap.remote(short),
}}
page = watch.notebook
for handle in HANDLES.values():
    list(handle.map(range(8)))

def measure(row, n, start, shown):
    watch.notebook = page if shown else blind
    inputs = list(range(start, start + n))
    began, cpu = time.perf_counter(), time.process_time()
    list(HANDLES[row].map(inputs))
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]))
"""


class Page:
    """Stands for the browser: runs cells, greets widgets, counts what they are told."""

    def __init__(self, client):
        self.client = client
        self.messages = self.bytes = 0

    def run(self, code: str) -> str:
        """Run a cell and return what it printed."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        # With a cell's id, as JupyterLab sends it: without one nbmap makes no widget.
        message = self.client.session.msg("execute_request", content, metadata={"cellId": "bench"})
        self.client.shell_channel.send(message)
        request = message["header"]["msg_id"]
        printed = ""
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            content = message["content"]
            if message["msg_type"] == "error":
                raise SystemExit("\n".join(content["traceback"]))
            if message["msg_type"] == "stream":
                printed += content["text"]
            elif message["msg_type"] == "comm_open":
                self.greet(content["data"]["state"])
            elif message["msg_type"] in {"comm_msg", "display_data", "update_display_data"}:
                self.messages += 1
                self.bytes += len(json.dumps(content)) + sum(map(len, message["buffers"]))
            elif (
                content.get("execution_state") == "idle"
                and message["parent_header"].get("msg_id") == request
            ):
                return printed

    def greet(self, state: dict) -> None:
        """Say hello to a widget on the control channel, as its JavaScript does."""
        if "run" in state:
            body = {"type": "hello", "rid": uuid.uuid4().hex}
            content = {"run": state["run"], "body": body}
            message = self.client.session.msg("nbmap_request", content)
            self.client.control_channel.send(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    figures = {}
    with TemporaryDirectory() as sockets:
        manager = OwnKernel(transport="ipc", ip=f"{sockets}/kernel")
        manager.start_kernel()
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            page = Page(client)
            page.run(SETUP)
            start = 0
            for row, n in ROWS.items():
                times = {True: [], False: []}
                cpus = {True: [], False: []}
                page.messages = page.bytes = 0
                for _ in range(options.repeats):
                    for shown in (True, False):
                        start += n
                        code = f"measure({row!r}, {n}, {start}, {shown})"
                        took, cpu = json.loads(page.run(code))
                        times[shown].append(took)
                        cpus[shown].append(cpu)
                        time.sleep(0.2)
                shown, blind = (statistics.median(times[s]) for s in (True, False))
                figures[row] = {
                    "seconds with the view": shown,
                    "seconds without": blind,
                    "ratio": shown / blind,
                    "CPU ratio": statistics.median(cpus[True]) / statistics.median(cpus[False]),
                    "messages per second": page.messages / sum(times[True]),
                    "KiB per second": page.bytes / 1024 / sum(times[True]),
                }
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    for row, figure in figures.items():
        print(f"{row:14}" + " · ".join(f"{name} {value:.3g}" for name, value in figure.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
