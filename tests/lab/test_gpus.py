"""gpu= in JupyterLab, on a machine with an A100 and a T4: what is under the cell."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN = """
%%remote gpu=True concurrency=5
def train(lr):
    import time
    for epoch in range(600):
        time.sleep(0.1)
        yield epoch

run = train.map(range(20))
"""


def test_g9_g20_the_view_shows_the_gpus_and_why_not_more_run(lab):
    """Name, memory and load of each, and that five inputs have two places; all gone at the end."""
    state = lab.server.folder / "gpus"
    (state / "used.0").write_text(str(40 << 30))
    (state / "util.0").write_text("77")
    notebook = lab.open([TRAIN, "run.cancel()", "%nbmap"], kernel="gpus")
    notebook.run(0)
    view = notebook.output(0).locator(".nbmap")
    shown = view.locator(".nbmap-gpus")
    expect(shown).to_have_text(
        re.compile(
            r"GPU 0: NVIDIA A100-SXM4-80GB · 40\.0 of 80\.0 GiB · 77 % busy\s+"
            r"GPU 1: Tesla T4 · 0\.0 of 15\.0 GiB · 0 % busy"
        ),
        timeout=60_000,
    )
    note = view.locator(".nbmap-remark").first
    expect(note).to_have_text("2 of 5: the cluster has 2 places on these GPUs")
    notebook.screenshot("gpus")
    notebook.run(2)
    expect(notebook.output(2)).to_contain_text("GPU 1: Tesla T4 · 0.0 of 15.0 GiB · 0 % busy")
    notebook.run(1)
    expect(view.locator(".nbmap-line")).to_contain_text("cancelled", timeout=60_000)
    expect(shown).to_be_hidden()
