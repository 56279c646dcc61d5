"""TAB on the lines of %%remote and %nbmap."""

from __future__ import annotations

import pytest
from IPython.core.completer import provisionalcompleter

from nbmap.notebook.command import COMMANDS
from nbmap.notebook.line import LINE_OPTIONS


def offered(notebook, text, at=None):
    """Return what the line would read with each completion at the cursor (the end, or `at`)."""
    at = len(text) if at is None else at
    with provisionalcompleter():
        found = list(notebook.shell.Completer.completions(text, at))
    return [text[: one.start] + one.text + text[one.end :] for one in found]


def test_the_magic_itself_is_completed(notebook):
    """`%%rem` becomes `%%remote`, `%nbm` becomes `%nbmap`."""
    assert "%%remote" in offered(notebook, "%%rem")
    assert "%nbmap" in offered(notebook, "%nbm")


def test_the_names_of_options_are_offered(notebook):
    """All of the line's, with the `=` behind them, and nothing else."""
    assert offered(notebook, "%%remote ") == [f"%%remote {name}=" for name in LINE_OPTIONS]
    assert offered(notebook, "%%remote gpu=A100 conc") == ["%%remote gpu=A100 concurrency="]


def test_options_that_are_given_are_not_offered_again(notebook):
    """Under whatever name they were given."""
    line = "%%remote max_containers=2 gpu=A100 "
    names = {text.removeprefix(line) for text in offered(notebook, line)}
    assert {"timeout=", "retries="} <= names
    assert not {"concurrency=", "gpu="} & names


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("gpu=", "A100"),
        ("gpu=a1", "A100"),
        ("gpu=", "any"),
        ("gpu=A100-", "A100-80GB"),
        ("timeout=", "10m"),
        ("retries=", "3"),
        ("concurrency=2 gpu=H", "H100"),
    ],
)
def test_values_are_offered_behind_the_equals_sign(notebook, line, value):
    """The word that is replaced is what follows the `=`, as JupyterLab wants it."""
    start = line.rpartition("=")[0]
    assert f"%%remote {start}={value}" in offered(notebook, f"%%remote {line}")


def test_variables_are_offered_behind_a_dollar(notebook):
    """The notebook's own, on both lines that take them."""
    notebook.ns["my_client"] = 3
    assert offered(notebook, "%%remote gpu=$my_c") == ["%%remote gpu=$my_client"]
    assert offered(notebook, "%nbmap connect $my_c") == ["%nbmap connect $my_client"]


def test_commands_are_offered_for_the_line_magic(notebook):
    """`%nbmap ` gives its commands, `start` its options."""
    assert offered(notebook, "%nbmap ") == [f"%nbmap {command}" for command in COMMANDS]
    assert offered(notebook, "%nbmap re") == ["%nbmap restart"]
    assert offered(notebook, "x = 3\n%nbmap start wor") == ["x = 3\n%nbmap start workers="]


def test_the_body_is_completed_as_any_python(notebook):
    """Below the line nothing of ours is offered, nor in other cells."""
    text = "%%remote \ndef f(x):\n    retr"
    assert not any("retries=" in line for line in offered(notebook, text))
    assert not any("retries=" in line for line in offered(notebook, "x = 1\n%%remote retr"))
    assert not any("retries=" in line for line in offered(notebook, "retr"))


def test_the_line_is_completed_while_there_is_a_body(notebook):
    """The cursor may stand on the first line of a cell that is written already."""
    text = "%%remote conc\ndef f(x):\n    return x"
    found = offered(notebook, text, len("%%remote conc"))
    assert found == [text.replace("conc", "concurrency=", 1)]


def test_nothing_is_offered_in_a_comment(notebook):
    """What follows a # is the reader's."""
    assert not any("timeout=" in line for line in offered(notebook, "%%remote # time"))
