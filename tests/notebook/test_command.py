"""%nbmap: the cluster's line magic, and its help."""

from __future__ import annotations

import pytest

import nbmap
from nbmap.cluster import connect
from nbmap.engine.transport import InProcess
from nbmap.notebook.command import COMMANDS
from nbmap.notebook.extension import NbmapMagics
from nbmap.notebook.line import LINE_OPTIONS


@pytest.mark.parametrize("line", ["", " ", "status", "status  # now", "# now"])
def test_the_status_is_what_is_shown_by_default(notebook, line):
    """What handles run on now, as nbmap.status() returns it."""
    ran = notebook.run(f"%nbmap {line}")
    assert ran.value == nbmap.status()
    assert "cluster: " in ran.out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stat", "did you mean 'status'?"),
        ("dahsboard", "did you mean 'dashboard'?"),
        ("xyz", "there are status, connect, start, restart, stop, runs, dashboard, doctor."),
        ("\x1b]0;x\x07", "%nbmap can't '\\x1b]0;x\\x07'"),
        ("status now", "%nbmap status takes nothing behind it, and found 'now'"),
        ("stop all", "takes nothing behind it"),
        ("connect", "takes one address"),
        ("connect a b", "takes one address"),
        ("connect 'no such.json'", "the scheduler file 'no such.json' can't be read"),
        ("connect tls://127.0.0.1:1", "Check the address, and that the scheduler is running"),
        ("connect nowhere", "is not a scheduler's address"),
        ("connect $nowhere", "there is no variable 'nowhere'"),
        ("connect $f()", "expressions are not evaluated"),
        ("connect $three", "cluster=3 is none of"),
        ("connect tcp://127.0.0.1:1", "no Dask scheduler could be reached at tcp://127.0.0.1:1"),
        ("start worker=2", "did you mean 'workers'?"),
        ("start speed=2", "there are workers, threads, memory."),
        ("start workers=0", "workers=0 has to be a whole number"),
        ("start workers=two", "workers='two' has to be a whole number"),
        ("start workers = 2", "blanks around its"),
        ("start workers=2 workers=3", "given twice"),
        ("start memory=much", "memory='much' is no amount of memory"),
        ("start memory=-1GiB", "is no amount of memory"),
        ("start memory=4", "memory='4' is too little for a worker process"),
        ("restart", "no cluster of its own to restart"),
    ],
)
def test_a_wrong_line_is_refused_by_a_sentence(bare, alone, line, told):
    """In at most three lines, and nothing was started."""
    bare.shell.extension_manager.load_extension("nbmap")
    bare.ns["three"] = 3
    before = connect._own
    assert told in " ".join(bare.refused(f"%nbmap {line}").split())
    assert connect._own is before


@pytest.mark.parametrize("text", ["--help", "-h", "start --help"])
def test_help_is_printed(notebook, text):
    """It names every command."""
    ran = notebook.run(f"%nbmap {text}")
    assert all(command in ran.out for command in COMMANDS)


def test_question_marks_show_help_for_every_option_and_command(notebook):
    """`%%remote?` and `%nbmap?` name all that may stand on their lines."""
    for magic, names in ((NbmapMagics.remote, LINE_OPTIONS), (NbmapMagics.nbmap, COMMANDS)):
        assert [name for name in names if name not in magic.__doc__] == []
    assert NbmapMagics.remote.__doc__.count("default") >= len(LINE_OPTIONS)
    info = notebook.shell.object_inspect_mime("%%remote", detail_level=0)["text/plain"]
    assert "worker_losses" in info


def test_a_variable_can_be_connected_to_and_none_undoes_it(bare, alone):
    """`connect $x` takes the notebook's variable; `connect none` goes back."""
    bare.shell.extension_manager.load_extension("nbmap")
    bare.ns["somewhere"] = InProcess(3)
    assert bare.run("%nbmap connect $somewhere").value.slots == 3
    assert nbmap.status().slots == 3
    assert "none yet" in repr(bare.run("%nbmap connect none").value)


def test_one_of_a_kind_is_told_in_the_singular(bare, alone):
    """1 worker, 1 slot, 1 run."""
    assert repr(connect.Status("here", 1, 1, 0, 1)).endswith("1 worker · 1 slot · 0 in use · 1 run")
    assert repr(connect.Status("here", 2, 4, 1, 0)).endswith(
        "2 workers · 4 slots · 1 in use · 0 runs"
    )


def test_runs_are_those_of_this_kernel(notebook):
    """What nbmap.runs() returns."""
    notebook.run("%%remote\ndef f(x): return x\nrun = f.map([1, 2, 3])\nrun.wait()")
    assert notebook.ns["run"] in notebook.run("%nbmap runs").value


def test_the_dashboard_of_our_own_cluster_is_explained(bare, alone):
    """It has none on purpose, and the sentence says so."""
    bare.shell.extension_manager.load_extension("nbmap")
    assert "has no dashboard" in bare.run("%nbmap dashboard").out


@pytest.mark.slow
def test_our_own_cluster_is_started_restarted_and_stopped(bare, alone):
    """With what was asked for; a restart keeps that, and its processes are new."""
    bare.shell.extension_manager.load_extension("nbmap")
    bare.ns["two"] = 2
    try:
        started = bare.run("%nbmap start workers=1 threads=$two memory=1GiB").value
        assert (started.workers, started.slots) == (1, 2)
        told = " ".join(bare.refused("%nbmap start workers=2").split())
        assert "running already, with workers=1, threads=2, memory=1GiB; stop it first" in told
        cell = "%%remote\ndef pid(_):\n    import os\n    return os.getpid()\npid(0)"
        before = bare.run(cell).value
        again = bare.run("%nbmap restart").value
        assert (again.workers, again.slots) == (1, 2)
        assert bare.run("pid(0)").value != before
        assert connect.recent_log()
    finally:
        stopped = bare.run("%nbmap stop")
    assert "none yet" in repr(stopped.value)


@pytest.mark.slow
def test_a_cluster_that_speaks_tls_is_told_of_in_words(bare, alone):
    """An address alone has no certificates; the message says what has them."""
    from distributed import LocalCluster, Security

    bare.shell.extension_manager.load_extension("nbmap")
    with LocalCluster(
        n_workers=0,
        processes=False,
        security=Security.temporary(),
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    ) as cluster:
        told = bare.refused(f"%nbmap connect {cluster.scheduler_address}")
        assert "it speaks TLS" in told
        assert "%nbmap connect $client" in " ".join(told.split())
        plain = cluster.scheduler_address.replace("tls", "tcp")
        told = " ".join(bare.refused(f"%nbmap connect {plain}").split())
        assert "no Dask scheduler could be reached at tcp://" in told


@pytest.mark.slow
def test_an_existing_cluster_shows_its_dashboard(bare, alone):
    """By Dask's own link, which knows of proxies."""
    from distributed import LocalCluster

    bare.shell.extension_manager.load_extension("nbmap")
    with LocalCluster(
        n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        bare.ns["cluster"] = cluster
        assert bare.run("%nbmap connect $cluster").error is None
        assert bare.run("%nbmap dashboard").value.endswith("/status")
        assert "restart the other where it runs" in bare.refused("%nbmap restart")
        bare.run("%nbmap connect none")
