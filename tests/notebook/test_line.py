"""The line of %%remote: what is read from it, and how it is refused."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError

import nbmap
from nbmap.notebook.magics import LINE_OPTIONS, options_of

NAMES = {"t": "10m", "gpus": ["H100", "A100"], "again": nbmap.Retries(3), "model": 3}


class Touchy:
    """Raises on whatever could be evaluated of it."""

    def __getattr__(self, name):
        raise AssertionError(name)

    def __call__(self):
        raise AssertionError("called")

    def __repr__(self):
        return "touchy"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("   # gpu=A100", {}),
        ("gpu=A100 concurrency=5", {"gpu": "A100", "concurrency": 5}),
        ("gpu=A100  # every function's GPU, isn't it", {"gpu": "A100"}),
        ("gpu='RTX 4090'\tname=\"my run\"", {"gpu": "RTX 4090", "name": "my run"}),
        ("name=a#b", {"name": "a#b"}),
        ("name='a # b' # c", {"name": "a # b"}),
        ("name='$t'", {"name": "$t"}),
        ("name={t}", {"name": "{t}"}),
        ("name=US$t", {"name": "US$t"}),
        ("name=a=b", {"name": "a=b"}),
        ("timeout=90", {"timeout": 90.0}),
        ("timeout=1h30m grace=500ms", {"timeout": 5400.0, "grace": 0.5}),
        ("timeout=$t", {"timeout": 600.0}),
        ("gpu=$gpus", {"gpu": ["H100", "A100"]}),
        ("retries=$again", {"retries": nbmap.Retries(3)}),
        ("retries=2 worker_losses=3", {"retries": nbmap.Retries(2, 1, 1), "worker_losses": 3}),
        ("max_containers=4", {"concurrency": 4}),
        ("concurrency=none", {"concurrency": None}),
        ("concurrency='5' timeout=\"90\"", {"concurrency": 5, "timeout": 90.0}),
    ],
)
def test_options_are_read_from_the_line(line, expected):
    """Words are name=value; values may be quoted, or a variable; a comment ends the line."""
    assert options_of(line, NAMES) == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("concurency=5", "did you mean 'concurrency'?"),
        ("concurrency", "write concurrency=…"),
        ("A100", "options are written name=value"),
        ("gpu = A100", "blanks around its"),
        ("gpu =A100", "blanks around its"),
        ("gpu= A100", "blanks around its"),
        ("=A100", "blanks around its"),
        ("gpu=", "'gpu=' has no value"),
        ("gpu= concurrency=5", "'gpu=' has no value"),
        ("gpu=A100 gpu=H100", "gpu= is given twice"),
        ("concurrency=2 max_containers=3", "two names of one option"),
        ('name="my run', "don't enclose the whole value"),
        ("name='my'run", "don't enclose the whole value"),
        ("concurrency=0", "at least 1"),
        ("timeout=soon", "is not a length of time"),
        ("retries=Retries(3)", "into a variable r and write retries=$r"),
        ("gpu=A100:x", "is no count"),
        ("timeout=$tt", "there is no variable 'tt'; did you mean $t?"),
        ("timeout=$zzz", "Define it in a cell above"),
        ("timeout=$t.real", "expressions are not evaluated"),
        ("timeout=$f()", "expressions are not evaluated"),
        ("timeout=$", "expressions are not evaluated"),
        ("concurrency=$model.x", "expressions are not evaluated"),
        ("cluster=local", "%nbmap connect ADDRESS"),
        ("return_exceptions=True", "f.map(inputs, return_exceptions=...)"),
        ("image=debian", "about Modal's cloud"),
        ("--fast", "options are written name=value"),
    ],
)
def test_a_wrong_line_is_refused_by_a_sentence(line, told):
    """The message says what is wrong and what to write."""
    with pytest.raises(UsageError) as caught:
        options_of(line, NAMES)
    assert told in " ".join(str(caught.value).split())


@pytest.mark.parametrize("line", ["--help", "-h", "gpu=A100 -h", "nonsense --help"])
def test_help_is_asked_for_anywhere_on_the_line(line):
    """It wins over what is wrong with the rest."""
    assert options_of(line, {}) is None


def test_a_long_message_is_cut_to_three_lines():
    """However long the value, the message is short."""
    with pytest.raises(UsageError) as caught:
        options_of("worker_losses=" + "many" * 5000, {})
    assert len(str(caught.value)) < 300


NASTY = "%$#={}'\"\\ \t\n\r\x00\x07\x1b[]0;()`!?,.:x5Aé\u202e\ud800"
texts = st.one_of(
    st.text(),
    st.text(alphabet=NASTY, max_size=30),
    st.lists(
        st.one_of(
            st.sampled_from(
                [*LINE_OPTIONS, "max_containers", "cluster", "keep", "=", "$a", "$f()"]
            ),
            st.builds(
                "{}={}".format,
                st.sampled_from([*LINE_OPTIONS, "image", "keep"]),
                st.one_of(
                    st.text(alphabet=NASTY, max_size=8),
                    st.sampled_from(["5", "A100", "'a b'", "$a", "$touchy", "$b.c", "{a}", "10m"]),
                ),
            ),
            st.text(alphabet=NASTY, max_size=8),
        ),
        max_size=5,
    ).map(" ".join),
)


def is_short_and_printable(message):
    lines = message.split("\n")
    odd = [c for c in message if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs"}]
    return 0 < len(lines) <= 3 and all(len(line) <= 100 for line in lines) and not odd


@settings(max_examples=1000, deadline=None)
@given(texts)
def test_any_text_gives_options_or_a_short_message(line):
    """Nothing else comes out, and no character that a terminal would obey."""
    namespace = {"a": 3, "touchy": Touchy()}
    try:
        options = options_of(line, namespace)
    except UsageError as error:
        assert is_short_and_printable(str(error))
    else:
        assert options is None or set(options) <= set(LINE_OPTIONS)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts.filter(lambda text: "-h" not in text and "--help" not in text))
def test_any_line_in_ipython_makes_a_handle_or_runs_nothing(notebook, line):
    """Through the whole of IPython: nothing is expanded or evaluated, and a refused cell is empty."""
    ran = []
    notebook.ns.update(touched=lambda: ran.append(1), a=3, f=None)
    notebook.shell.displayhook.exec_result = None
    try:
        notebook.shell.run_cell_magic("remote", line, "ran_it = touched()\ndef f(x): return x\n")
    except UsageError as error:
        assert is_short_and_printable(str(error))
        assert ran == []
        assert notebook.ns["f"] is None
    else:
        assert ran == [1]
        assert isinstance(notebook.ns["f"], nbmap.RemoteFunction)
