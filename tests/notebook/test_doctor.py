"""The doctor: what it looks at, and what it says."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner
from helpers.here import in_process

import nbmap
from nbmap import cli, doctor
from nbmap.cluster import connect, local


def test_the_report_names_versions_and_limits(alone):
    """Python, the packages, the machine and the cluster; as text one line each."""
    report = doctor.examine()
    assert report.facts["nbmap"] == nbmap.__version__
    assert report.facts["dask"] == metadata.version("dask")
    assert report.facts["cores"] == str(connect.cores())
    assert report.facts["memory"].endswith("GiB")
    assert "none yet" in report.facts["cluster"]
    lines = repr(report).splitlines()
    assert all(any(name in line for line in lines) for name in report.facts)


def test_a_missing_package_is_a_problem_with_what_to_do(monkeypatch, alone):
    """One that nbmap needs; others are only said to be missing."""

    def version(name):
        if name in {"anywidget", "jupyterlab"}:
            raise metadata.PackageNotFoundError(name)
        return "2026.8.0"

    monkeypatch.setattr(metadata, "version", version)
    report = doctor.examine(magics=True)
    assert report.problems == ["anywidget is not installed: pip install anywidget"]
    assert report.facts["jupyterlab"] == "not installed"
    assert "✗ anywidget is not installed" in repr(report)


def test_a_cluster_that_does_not_answer_is_a_problem(monkeypatch, alone):
    """Whatever names it."""
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    report = doctor.examine(magics=True)
    assert report.facts["cluster"] == "not reachable"
    assert "no Dask scheduler could be reached at tcp://127.0.0.1:1" in report.problems[-1]


def test_other_versions_on_workers_are_problems(monkeypatch, alone):
    """Another minor Python, another major cloudpickle, another distributed."""
    mine = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}.99.final.0",
        "cloudpickle": metadata.version("cloudpickle"),
        "distributed": metadata.version("distributed"),
    }
    theirs = {"python": "3.9.1.final.0", "cloudpickle": "0.1", "distributed": "2020.1"}
    monkeypatch.setattr(connect, "versions", lambda: {"tls://a": mine})
    assert doctor.examine(magics=True).problems == []
    monkeypatch.setattr(connect, "versions", lambda: {"tls://a": theirs, "tls://b": theirs})
    problems = doctor.examine(magics=True).problems
    assert [problem.partition(" ")[0] for problem in problems] == [
        "python",
        "cloudpickle",
        "distributed",
    ]
    assert "3.9.1.final.0 at tls://a and 1 more" in problems[0]


def test_what_a_connected_cluster_is_is_told(alone):
    """Its slots and workers, as nbmap.status() says."""
    with in_process(3):
        assert "3 slots" in doctor.examine().facts["cluster"]


def test_unregistered_magics_are_a_problem_in_a_notebook(alone):
    """The doctor says how to get them."""
    assert "%load_ext nbmap" in doctor.examine(magics=False).problems[0]


def test_the_magic_prints_the_same(notebook):
    """`%nbmap doctor` shows the report, with the notebook's part."""
    ran = notebook.run("%nbmap doctor")
    assert ran.value.facts["%%remote"] == "registered"
    assert "distributed" in ran.out


def test_the_log_is_bounded_and_holds_no_passwords():
    """The last 500 lines, each on one line, without the user's part of addresses."""
    handler = local._Recent()
    for number in range(600):
        text = f"line {number}\nof tls://user:secret@host:1 " + "x" * 1000
        handler.handle(logging.LogRecord("distributed", 20, "f", 1, text, (), None))
    assert len(handler.lines) == 500
    assert "line 599 of tls://host:1" in handler.lines[-1]
    assert all(len(line) <= 500 and "secret" not in line for line in handler.lines)


def test_the_command_fails_where_something_is_wrong(monkeypatch):
    """Exit code 1 with a problem, 0 without."""
    for problems, code in (([], 0), (["it is wrong"], 1)):
        report = doctor.Report({"Python": "3"}, problems)
        monkeypatch.setattr(doctor, "examine", lambda report=report: report)
        ended = CliRunner().invoke(cli.main, ["doctor"])
        assert ended.exit_code == code
        assert ("it is wrong" in ended.output) == bool(problems)


@pytest.mark.slow
def test_the_command_line_works_in_a_process_of_its_own():
    """`nbmap --version` and `nbmap doctor`."""
    for arguments, told in ((["--version"], f"nbmap {nbmap.__version__}"), (["doctor"], "cores")):
        ended = subprocess.run(
            [sys.executable, "-c", "from nbmap.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert told in ended.stdout, ended.stderr
