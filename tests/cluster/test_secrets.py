"""Passwords, tokens and keys are in nothing that nbmap shows, logs or has saved."""

import json
import logging
import os
import subprocess
import sys
import traceback

import nbformat
import pytest
from helpers.kernels import OwnAsyncKernel

import nbmap
from nbmap import doctor
from nbmap.cluster import connect
from nbmap.view import render

SECRET = "hunter2" + "xyzzy"  # so that no line of a traceback has it
ADDRESSES = [
    f"tls://user:{SECRET}@127.0.0.1:1",
    f"tcp://user:{SECRET}@127.0.0.1:1",
    f"tls://user:a/{SECRET}@b@127.0.0.1:1",
    f"tls://user:a'{SECRET}@127.0.0.1:1",
    f"tls://{SECRET}@127.0.0.1:1",
    f"tls://127.0.0.1:1?token={SECRET}",
    f"tcp://127.0.0.1:1/?a=b&token={SECRET}",
    f"gateway://user:{SECRET}@127.0.0.1:1/cluster",
    f"https://user:{SECRET}@127.0.0.1:1/services/dask-gateway?token={SECRET}",
    f"user:{SECRET}@127.0.0.1:1",
    f"user:{SECRET}@127.0.0.1",
    f"{SECRET}@nowhere",
    f"nowhere?token={SECRET}",
    f"tls://user:{SECRET}@127.0.0.1:99999",
    f"tls://user:{SECRET}@no-such-host.invalid:1",
    f"tls://user:{SECRET}@127.0.0.1:port",
    f"tls://user:{SECRET}@[::1:1",
    f"x://user:{SECRET}@h\x1b[2J:1",
]


@pytest.fixture
def log(caplog):
    """What nbmap logs at the lowest level."""
    caplog.set_level(logging.DEBUG, logger="nbmap")
    return caplog


def is_silent(*texts):
    for text in texts:
        assert SECRET not in str(text)


@pytest.mark.parametrize("address", ADDRESSES)
def test_f20_no_error_tells_what_is_secret_in_an_address(address, log, monkeypatch):
    """Nor its causes, notes, `doctor`, `status`, a handle's repr and nbmap's log."""
    handle = nbmap.remote(abs, cluster=address)
    is_silent(repr(handle), str(handle))
    for use in (lambda: nbmap.connect(address), lambda: handle.map([1])):
        with pytest.raises(nbmap.ClusterError) as caught:
            use()
        is_silent(*traceback.format_exception(caught.value))
        shown = getattr(caught.value, "_render_traceback_", list)()
        is_silent(*shown)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    with pytest.raises(nbmap.ClusterError) as caught:
        nbmap.status()
    is_silent(*traceback.format_exception(caught.value))
    is_silent(repr(doctor.examine()), log.text)


def test_f20_no_error_tells_what_was_given_for_a_cluster():
    """Of what is no cluster the type is told, not what is in it."""
    from distributed import Security

    for odd in (
        {"address": "tls://127.0.0.1:1", "password": SECRET},
        f"tls://user:{SECRET}@127.0.0.1:1".encode(),
        Security(tls_client_key=SECRET, require_encryption=True),
        (f"tls://user:{SECRET}@127.0.0.1:1", None),
    ):
        with pytest.raises(nbmap.OptionError) as caught:
            nbmap.connect(odd)
        is_silent(*traceback.format_exception(caught.value))


def test_f20_no_error_tells_what_a_factory_or_a_file_has_said(tmp_path, monkeypatch):
    """The error of `labextension.factory` and that of a scheduler file are cleaned, too."""
    import dask

    factory = {  # it tells the address that it was given, as those of Dask do
        "module": "distributed.comm",
        "class": "get_address_host_port",
        "args": [f"tls://user:{SECRET}@127.0.0.1:port"],
        "kwargs": {"strict": True},
    }
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with dask.config.set({"labextension.factory": factory}), pytest.raises(nbmap.ClusterError) as e:
        nbmap.status()
        nbmap.remote(abs).map([1])
    is_silent(str(e.value))
    path = tmp_path / "scheduler.json"
    for text in (
        json.dumps({"address": f"tls://user:{SECRET}@127.0.0.1:1"}),
        json.dumps({"address": ["tls", SECRET]}),
        json.dumps({"address": f"user:{SECRET}@x"}),
    ):
        path.write_text(text)
        with pytest.raises(nbmap.ClusterError) as caught:
            nbmap.connect(str(path))
        is_silent(*traceback.format_exception(caught.value))


def test_f20_a_cluster_that_was_reached_tells_no_key(log):
    """Nor do its status, dashboard, runs, handles and calls; its security holds a private key."""
    from distributed import LocalCluster, Security

    security = Security.temporary()
    key = security.tls_client_key.splitlines()[1]
    app = nbmap.App("mine")

    @app.function()
    def work(x):
        return 1 / x

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
            security=security,
            host="tls://127.0.0.1",
        ) as cluster,
        nbmap.connect(cluster) as connection,
    ):
        run = work.map([1, 0], return_exceptions=True)
        run.wait()
        call = work.spawn(1)
        call.get()
        told = (
            repr(app),
            repr(work),
            repr(run),
            repr(call),
            run._repr_html_(),
            repr(run.failures),
            repr(run.records()),
            repr(connection),
            repr(nbmap.status()),
            repr(nbmap.runs()),
            connect.dashboard(),
            repr(doctor.examine()),
        )
    for text in (*told, log.text):
        assert key not in text


def test_f20_the_log_of_our_own_cluster_holds_no_secret():
    """What distributed logs is kept for `doctor` without what is secret in addresses."""
    from nbmap.cluster.local import _Recent

    recent = _Recent()
    for address in ADDRESSES[:9]:
        record = logging.LogRecord("distributed", 30, "", 0, "lost %s, again", (address,), None)
        recent.emit(record)
    is_silent(*recent.lines)
    assert all("again" in line for line in recent.lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tls://me:secret@host:1", "tls://host:1"),
        ("refused: 'tls://me:a/b@c@host:1'.", "refused: 'tls://host:1'."),
        ("local=tls://a:b@c:1 remote=tcp://d:2", "local=tls://c:1 remote=tcp://d:2"),
        ("https://host/hub?token=x", "https://host/hub?…"),
        ("me:secret@host:1", "host:1"),
        ("tcp://host:1", "tcp://host:1"),
        ("mail me@host.org about it: really?", "mail me@host.org about it: really?"),
    ],
)
def test_f20_the_one_place_that_takes_secrets_out(text, shown):
    """`render.without_secrets` takes names, passwords and queries out of addresses, no more."""
    assert render.without_secrets(text) == shown


NOTEBOOK = """
import logging, os, nbmap
logging.basicConfig(level=logging.WARNING)
logging.getLogger("nbmap").setLevel(logging.DEBUG)
address = "tls://user:" + os.environ["NAME_TOKEN"] + "@127.0.0.1:1"

@nbmap.remote
def work(x):
    print("working on", x)
    return 1 / x

print(work, nbmap.status())
run = work.map([1, 2, 0], return_exceptions=True)
run.wait()
print(run, run.failures, nbmap.status(), nbmap.runs())
---
run
---
%nbmap status
---
%nbmap doctor
---
%nbmap connect $address
---
nbmap.connect(address)
---
nbmap.remote(abs, cluster=address).map([1])
---
nbmap.remote(abs, cluster=address)
---
%nbmap start workers=1
---
nbmap.connect({"password": os.environ["NAME_TOKEN"]})
"""


@pytest.mark.slow
def test_f20_a_saved_notebook_has_no_secret_and_no_variable_of_the_environment(tmp_path):
    """Nothing of them is in the file, whatever was shown, logged or refused in its cells."""
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text.strip()) for text in NOTEBOOK.split("---")]
    )
    manager = OwnAsyncKernel(transport="ipc", ip=str(tmp_path / "k"))
    client = NotebookClient(notebook, km=manager, timeout=60, allow_errors=True)
    client.owns_km = True  # it ends the kernel with the notebook
    os.environ["NAME_TOKEN"] = SECRET
    try:
        client.execute()
    finally:
        del os.environ["NAME_TOKEN"]
    path = tmp_path / "saved.ipynb"
    nbformat.write(notebook, path)
    text = path.read_text()
    assert "ZeroDivisionError" in text
    assert text.count("ClusterError") >= 2
    assert "NAME_TOKEN" in text  # the sources of the cells, and no more
    is_silent(text)


def test_f20_nbmap_doctor_tells_no_secret():
    """The command says what is wrong with an address without what is secret in it."""
    for address in ADDRESSES[:2]:
        done = subprocess.run(
            [sys.executable, "-m", "nbmap", "doctor"],
            env={**os.environ, "DASK_SCHEDULER_ADDRESS": address, "NAME_TOKEN": SECRET},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "127.0.0.1:1" in done.stdout + done.stderr
        is_silent(done.stdout, done.stderr)
