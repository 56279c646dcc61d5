"""Run a notebook in this environment's own kernel, and show its progress as it happens.

python tests/demo.py notebooks/01-grid-search.ipynb build/01-grid-search.ipynb
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal

CELL_TIMEOUT = 300


class OwnKernel(KernelSpecManager):
    """Knows one kernel: this interpreter, whatever kernels the user has installed elsewhere."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class LiveClient(NotebookClient):
    """Prints each cell's heading as it starts, and what it prints as it comes.

    What the last cell prints is the notebook's result: it is kept for the end.
    """

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        last = cell_index == self.last_code_cell
        if msg["msg_type"] == "stream" and not (last and content["name"] == "stdout"):
            print(content["text"], end="", flush=True)
        elif msg["msg_type"] == "update_display_data":
            text = content["data"].get("text/plain", "")
            if text != self.shown:
                self.shown = text
                print(text, flush=True)
        return super().process_message(msg, cell, cell_index)

    def announce(self, cell: Any, cell_index: int) -> None:
        """Print a line for the cell that starts."""
        before = self.nb.cells[cell_index - 1] if cell_index else None
        text = before.source if before and before.cell_type == "markdown" else cell.source
        print(f"--- {text.lstrip('# ').partition(chr(10))[0]}", flush=True)


def execute(source: Path, target: Path) -> str:
    """Execute `source` into `target`, and return what its last cell printed."""
    notebook = nbformat.read(source, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with TemporaryDirectory() as sockets:
        client = LiveClient(
            notebook,
            km=AsyncKernelManager(
                kernel_name="python3",
                kernel_spec_manager=OwnKernel(),
                # Socket files in a folder of this user; other users can reach TCP ports.
                transport="ipc",
                ip=f"{sockets}/kernel",
            ),
            timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": str(source.parent)}},
        )
        client.owns_km = True  # it ends the kernel with the notebook
        client.last_code_cell = code[-1]
        client.shown = ""
        client.on_cell_execute = client.announce
        try:
            client.execute()
        finally:
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, target)
    outputs = notebook.cells[code[-1]].outputs
    return "".join(out.text for out in outputs if out.get("name") == "stdout")


def main(source: str, target: str) -> int:
    """Run the demo; 0 if every cell ran."""
    started = time.perf_counter()
    try:
        result = execute(Path(source), Path(target))
    except (CellControlSignal, RuntimeError) as error:  # the latter: the kernel died
        print(f"\n{error}\nThe notebook as far as it came: {target}", file=sys.stderr)
        return 1
    print(f"\n{result.rstrip()}")
    print(f"executed notebook: {target} (in {time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
