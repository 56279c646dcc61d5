"""The line of %%remote: what is read from it, and how it is refused."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.utils.capture import capture_output

import nbmap
from nbmap.notebook.line import LINE_OPTIONS, options_of

NAMES = {"t": "10m", "gpus": ["H100", "A100"], "again": nbmap.Retries(3), "model": 3}


class Touchy:
    """Tells of whatever is done with it but being shown."""

    def __init__(self, told):
        vars(self)["told"] = told

    def __getattr__(self, name):
        self.told.append(name)
        raise AttributeError(name)

    def __call__(self, *args):
        self.told.append("called")

    def __getitem__(self, key):
        self.told.append("indexed")

    def __format__(self, how):
        self.told.append("formatted")
        return ""

    def __str__(self):
        self.told.append("str")
        return ""

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
        ("name=\x1b[0m", "without control characters"),
        ("speed=2", "the options are gpu, concurrency"),
        ("$t", "options are written name=value"),
        ('"my run"', "'\"my run\"' is no option"),
        ("gpu=A100, concurrency=5", "separated by blanks, without commas"),
        ("gpu=\u201cRTX 4090\u201d", "write straight ones"),
        ("timeout=$None", "is no variable"),
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


def test_the_options_of_the_line_are_named_without_cluster():
    """It is an option of decorators only, so nobody is sent there."""
    with pytest.raises(UsageError, match="the options are") as caught:
        options_of("speed=2", NAMES)
    assert "cluster" not in str(caught.value)


def test_a_variable_is_found_under_every_spelling_of_its_name():
    """Python reads the micro sign and the Greek letter as one name, and so do we."""
    assert options_of("concurrency=$\u00b5", {"\u03bc": 3}) == {"concurrency": 3}


def test_odd_keys_of_the_namespace_are_never_offered():
    """`globals()` takes any object as a key, also text that is no name."""
    with pytest.raises(UsageError) as caught:
        options_of("timeout=$limit", {3: 3, "limit\u202e": 1})
    assert is_short_and_printable(str(caught.value))


def test_a_long_message_is_cut_to_three_lines():
    """However long the value, the message is short."""
    with pytest.raises(UsageError) as caught:
        options_of("worker_losses=" + "many" * 5000, {})
    assert len(str(caught.value)) < 300


NASTY = "%$#={}'\"\\ \t\n\r\x00\x07\x1b[]0;()`!?,.:x5A\u00e9\u202e\ud800"
# What some language or another would evaluate.
EVALUATED = [
    f"{before}touchy{use}{after}"
    for before, after in [
        ("$", ""),
        ("{", "}"),
        ("{{", "}}"),
        ("${", "}"),
        ("$(", ")"),
        ("f'{", "}'"),
        ('f"{', '}"'),
        ("`", "`"),
        ("@", ""),
        ("!", ""),
        ("%", ""),
        ("", ""),
        ("%(", ")s"),
        ("=", ""),
    ]
    for use in ("()", ".x", "[0]", "")
]
VALUES = st.one_of(
    st.sampled_from(EVALUATED),
    st.sampled_from(["5", "A100", "'a b'", "$a", "$b.c", "{a}", "10m", "$None", "$limit", "$lim"]),
    st.text(alphabet=NASTY, max_size=8),
)
WORDS = st.one_of(
    st.sampled_from([*LINE_OPTIONS, "max_containers", "cluster", "keep", "=", "--help", "#"]),
    st.builds("{}={}".format, st.sampled_from([*LINE_OPTIONS, "image", "keep"]), VALUES),
    VALUES,
    st.builds("{}{}".format, VALUES, VALUES),
)
texts = st.one_of(
    st.text(), st.text(alphabet=NASTY, max_size=30), st.lists(WORDS, max_size=5).map(" ".join)
)


def is_short_and_printable(message):
    lines = message.split("\n")
    odd = [c for c in message if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs"}]
    return 0 < len(lines) <= 3 and all(len(line) <= 100 for line in lines) and not odd


@settings(max_examples=1000, deadline=None)
@given(texts)
def test_f22_any_text_gives_options_or_a_short_message(line):
    """Nothing else comes out, no character that a terminal would obey, and nothing is evaluated."""
    told = []
    namespace = {"a": 3, "limit\u202e": 3, 7: 7, "touchy": Touchy(told)}
    try:
        options = options_of(line, namespace)
    except UsageError as error:
        assert is_short_and_printable(str(error))
    else:
        assert options is None or set(options) <= set(LINE_OPTIONS)
    assert told == []


BODY = "ran_it = ran.append(1)\ndef f(x): return x\n"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts)
def test_f22_any_line_in_ipython_makes_a_handle_or_runs_nothing(notebook, line):
    """Through the whole of IPython: nothing is expanded or evaluated, and a refused cell is empty."""
    told, ran = [], []
    notebook.ns.update(touchy=Touchy(told), ran=ran, a=3, f=None)
    notebook.shell.displayhook.exec_result = None
    try:
        with capture_output() as captured:
            notebook.shell.run_cell_magic("remote", line, BODY)
    except UsageError as error:
        assert is_short_and_printable(str(error))
        assert ran == []
        assert notebook.ns["f"] is None
    else:
        helped = "default" in captured.stdout
        assert ran == ([] if helped else [1])
        assert isinstance(notebook.ns["f"], type(None) if helped else nbmap.RemoteFunction)
    assert told == []


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(WORDS, max_size=4).map(" ".join).filter(lambda text: text.isprintable()))
def test_f22_any_typed_line_makes_a_handle_or_runs_nothing(notebook, line):
    """As above, for what a front end sends, which IPython rewrites first."""
    told, ran = [], []
    notebook.ns.update(touchy=Touchy(told), ran=ran, a=3, f=None)
    did = notebook.run(f"%%remote {line}\n{BODY}")
    if did.error is not None:
        assert isinstance(did.error, UsageError)
        assert is_short_and_printable(str(did.error))
    assert ran == ([1] if notebook.ns["f"] else [])
    assert told == []
