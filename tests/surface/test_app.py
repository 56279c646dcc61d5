"""Scripts in the style of Modal's page: the app, and `nbmap run` with its options and errors."""

import inspect
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.files import GUARD, wait_until
from helpers.here import in_process
from helpers.processes import processes_with

import nbmap
from nbmap import cli

COMMAND = [os.fspath(Path(sys.executable).with_name("nbmap")), "run"]


def start(*arguments, cwd, **options):
    """Start `nbmap run` as a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, **options)


def end(process):
    """Return the exit code, the lines of the output, and the errors of a process at its end."""
    try:
        out, err = process.communicate(timeout=3 * GUARD)
    finally:
        process.kill()
    return process.returncode, out.splitlines(), err


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a script and `nbmap run` it in this process; its handles run on threads of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)

    def call(text, *arguments, name="", file="job.py"):
        sys.modules.pop("job", None)
        if text is not None:
            source = f"import nbmap\napp = nbmap.App()\n{textwrap.dedent(text)}"
            Path(file).write_text(source)
        return CliRunner().invoke(cli.main, ["run", file + name, *arguments])

    with in_process(2):
        yield call
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(os.fspath(tmp_path)):
            del sys.modules[name]


# --- the page -----------------------------------------------------------------------------------

PAGE = """
import nbmap as modal
import dataclasses
import sys
import beside

app = modal.App("scaling-out")

@dataclasses.dataclass
class Point:
    x: int

@app.function()
def score(candidate):
    return candidate * candidate

@app.function()
def reject_two(a):
    if a == 2:
        raise Exception("ohno")
    return a ** 2

@app.function()
def add(a, b):
    return a + b

@app.function(concurrency_limit=5)
def show(n):
    print("shown", n)

@app.function
def moved(point):
    return Point(point.x + beside.STEP)

@app.local_entrypoint()
def main(start: int, twice: bool = False):
    print(__name__, sys.argv, start, twice)
    inputs = list(range(100))
    scores = []
    for result in score.map(inputs):
        scores.append(result)
    assert scores == [n * n for n in inputs]
    print(list(reject_two.map(range(3), return_exceptions=True)))
    print(list(add.starmap([(1, 2), (3, 4)])), list(add.map([1, 3], [2, 4])))
    print(list(map(score, range(3))))
    assert list(show.map(range(7))) == [None] * 7
    points = list(moved.map([Point(1), Point(2)]))
    assert points == [Point(3), Point(4)] and type(points[0]) is Point
    print("end")

if __name__ == "__main__":
    raise AssertionError
"""

STUB = """
import modal

stub = modal.Stub()

@stub.function()
def score(n: int):
    print("scored", n)
    return n * n

@stub.function()
def other():
    return 1

@stub.local_entrypoint()
async def first():
    print(sum(score.map(range(4))))

@stub.local_entrypoint()
def second():
    score.remote("three")

if __name__ == "__main__":
    print(sum(score.map(range(3))))
"""

FLAT = """
import asyncio
import nbmap as modal

app = modal.App()

@app.function()
def count_to(end: int):
    for k in range(end):
        yield end, k

@app.function()
async def square(n):
    await asyncio.sleep(0.001)
    return n * n

@app.local_entrypoint()
async def main():
    print(sorted(count_to.map([0, 1, 3])))
    print([y async for y in square.map.aio(range(4))])
    print(await asyncio.gather(*(square.remote.aio(n) for n in range(3))))
    print(len([pair async for pair in count_to.map.aio([2, 2])]))
"""


@pytest.mark.slow
def test_s16_the_page_runs_as_a_script(tmp_path):
    """Maps of every form, failures as values, limits and the script's own classes; then it ends."""
    marker = f"NBMAP_TEST_MARKER={tmp_path.name}-{time.time_ns()}"
    name, _, value = marker.partition("=")
    (tmp_path / "page.py").write_text(PAGE)
    (tmp_path / "beside.py").write_text("STEP = 2\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = start("../page.py", "--start", 3, cwd=elsewhere, env={**os.environ, name: value})
    code, out, err = end(process)
    assert (code, err.count("Traceback")) == (0, 0), err
    shown = [line for line in out if " shown " in line]
    assert sorted(shown) == [f"[{n}] shown {n}" for n in range(7)]
    assert [line for line in out if line not in shown] == [
        "page ['../page.py', '--start', '3'] 3 False",
        "[0, 1, UserCodeException(Exception('ohno'))]",
        "[3, 7] [3, 7]",
        "[0, 1, 4]",
        "end",
    ]
    wait_until(lambda: not processes_with(marker), "its workers to end")


@pytest.mark.slow
def test_s16_a_stub_of_the_page_runs_with_one_line_changed(tmp_path):
    """By entrypoint, by handle, and by Python; a failure is told from the script's file on."""
    path = tmp_path / "stub.py"
    path.write_text(STUB.replace("import modal", "import nbmap as modal"))
    first = start("stub.py::first", cwd=tmp_path)
    code, out, err = end(first)
    assert (code, out[-1]) == (0, "14"), err

    code, out, err = end(start("stub.py::score", "--n", 5, cwd=tmp_path))
    assert (code, sorted(out)) == (0, ["25", "[0] scored 5"]), err

    code, out, err = end(start("stub.py::second", cwd=tmp_path))
    assert code == 1
    files = [line for line in err.splitlines() if line.startswith('  File "')]
    assert [line.partition(", in ")[2] for line in files] == ["second", "score"]
    assert all(f'"{path}"' in line for line in files)
    assert "\nTypeError: can't multiply sequence by non-int of type 'str'" in err
    assert err.count("Traceback (most recent call last):\n") == 1

    done = subprocess.run(
        [sys.executable, "stub.py"], cwd=tmp_path, capture_output=True, text=True, timeout=3 * GUARD
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "5"), done.stderr


@pytest.mark.slow
def test_s16_generators_and_the_asynchronous_forms_run_in_scripts(tmp_path):
    """Flat maps, and what an async entrypoint awaits; a generator's outputs are printed."""
    (tmp_path / "flat.py").write_text(FLAT)
    code, out, err = end(start("flat.py", cwd=tmp_path))
    pairs = "[(1, 0), (3, 0), (3, 1), (3, 2)]"
    assert (code, out) == (0, [pairs, "[0, 1, 4, 9]", "[0, 1, 4]", "4"]), err
    code, out, err = end(start("flat.py::count_to", "--end", 2, cwd=tmp_path))
    assert (code, out) == (0, ["(2, 0)", "(2, 1)"]), err


def test_s16_ctrl_c_ends_the_script(tmp_path):
    """The exit code is that of an interrupt, and there is no traceback."""
    (tmp_path / "job.py").write_text(
        "import time, pathlib, nbmap\n"
        "app = nbmap.App()\n"
        "@app.local_entrypoint()\n"
        "def main():\n"
        "    pathlib.Path('here').touch()\n"
        "    time.sleep(100)\n"
    )
    process = start("job.py", cwd=tmp_path)
    try:
        wait_until((tmp_path / "here").exists, "it to run")
    finally:
        process.send_signal(signal.SIGINT)
    assert end(process) == (130, [], "Interrupted.\n")


# --- options ------------------------------------------------------------------------------------

TYPES = """
    import asyncio, datetime, enum, pathlib
    from typing import Any, Literal, Optional

    class Mode(enum.Enum):
        FAST = 1
        SLOW = 2

    @app.local_entrypoint()
    async def main(
        foo_bar: int,
        text: str = "t",
        share: float = 0.5,
        quick: bool = True,
        at: Optional[datetime.datetime] = None,
        day: "datetime.date | None" = None,
        path: pathlib.Path = pathlib.Path("here"),
        kind: Literal["a", 3] = "a",
        mode: Mode = Mode.FAST,
        whatever: Any = None,
        bare=7,
        sure: Optional[bool] = None,
        BIG: "int" = 1,
    ):
        '''Read options.

        Of every kind.
        '''
        await asyncio.sleep(0)
        print([*locals().values()])
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"], ids=["", "texts"])
@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (
            "--foo-bar -1",
            (
                "[-1, 't', 0.5, True, None, None, PosixPath('here'), 'a', <Mode.FAST: 1>, None, 7, "
                "None, 1]"
            ),
        ),
        (
            (
                "--foo-bar=2 --text x --share 1e-3 --no-quick --at 2024-05-31T18:30 --day 2024-05-31 "
                "--path /a --kind 3 --mode SLOW --whatever 1 --bare 8 --no-sure --BIG 9"
            ),
            (
                "[2, 'x', 0.001, False, datetime.datetime(2024, 5, 31, 18, 30), "
                "datetime.date(2024, 5, 31), PosixPath('/a'), 3, <Mode.SLOW: 2>, '1', '8', False, 9]"
            ),
        ),
    ],
    ids=["defaults", "given"],
)
def test_s16_options_are_what_the_annotations_say(run, future, arguments, values):
    """Each parameter is an option, read as annotated; one that is not given keeps its default."""
    text = f"import nbmap\napp = nbmap.App()\n{textwrap.dedent(TYPES)}"
    Path("job.py").write_text(future + text)
    done = run(None, *arguments.split())
    assert (done.exit_code, done.output) == (0, f"{values}\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "Missing option '--foo-bar'"),
        ("--foo-bar x", "'--foo-bar': 'x' is not a whole number"),
        ("--foo-bar 1 --share much", "'--share': 'much' is not a number"),
        ("--foo-bar 1 --at now", "'--at': 'now' is not a time such as 2024-05-31T18:30"),
        ("--foo-bar 1 --kind c", "'--kind': 'c' is not one of a, 3"),
        ("--foo-bar 1 --mode fast", "'--mode': 'fast' is not one of FAST, SLOW"),
        ("--foo-ba 1", "No such option"),
        ("--foo-bar 1 more", "unexpected extra argument"),
    ],
)
def test_s16_wrong_options_are_refused_before_anything_runs(run, arguments, told):
    """The message names the option, the value and what it should be."""
    done = run(TYPES, *arguments.split())
    assert done.exit_code == 2
    assert told in done.output
    assert "nbmap run job.py::main [OPTIONS]" in done.output


def test_s16_help_shows_the_docstring_and_the_options(run):
    """What a script takes is read off its function."""
    help_ = run(TYPES, "--help")
    assert help_.exit_code == 0
    assert run(TYPES, "-h").output == help_.output
    lines = [" ".join(line.split()) for line in help_.output.splitlines()]
    for line in [
        "Usage: nbmap run job.py::main [OPTIONS]",
        "Read options.",
        "Of every kind.",
        "--foo-bar INTEGER [required]",
        "--text TEXT [default: t]",
        "--quick / --no-quick [default: True]",
        "--at DATETIME",
        "--path PATH [default: here]",
        "--kind [a|3] [default: a]",
        "--mode [FAST|SLOW] [default: FAST]",
        "--bare TEXT [default: 7]",
    ]:
        assert line in lines, help_.output
    assert "nbmap run train.py::main --learning-rate 0.1" in run("", file="--help").output


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("good: int, xs: list[int]", "parameter xs of main is annotated list[int]"),
        ("xs: 'dict[str, int]' = None", "parameter xs of main is annotated dict[str, int]"),
        ("x: int | str", "parameter x of main is annotated int | str"),
        ("x: 'Unheard'", "parameter x of main is annotated Unheard"),
        ("x: type(None)", "parameter x of main is annotated None"),
        ("x: [1]", "parameter x of main is annotated [1]"),
        ("x, *rest", "main takes *rest beside other parameters"),
        ("**more", "main takes **more"),
        ("x: bool, no_x: int", "two parameters of main make the option --no-x"),
    ],
)
def test_s16_parameters_that_cannot_be_options_are_named(run, parameters, told):
    """The parameter and its annotation, before anything runs, also when help is asked for."""
    for arguments in (["--help"], []):
        done = run(f"@app.local_entrypoint()\ndef main({parameters}):\n    print(1)", *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert told in done.stderr


def test_s16_a_star_alone_takes_the_arguments_as_they_are(run):
    """Nothing is read out of them but a first --help."""
    text = "@app.local_entrypoint()\ndef main(*args):\n    'Raw.'\n    print(args)"
    assert run(text, "a", "--b", "-h", "--").output == "('a', '--b', '-h', '--')\n"
    assert run(text).output == "()\n"
    assert run(text, "--", "--help").output == "('--help',)\n"
    assert "nbmap run job.py::main [OPTIONS] [ARGS]..." in run(text, "--help").output


def test_s16_positional_only_parameters_are_options_too(run):
    """They are handed over by position, their defaults too."""
    text = "@app.local_entrypoint()\ndef main(a: int = 1, b: int = 2, /):\n    print(a, b)"
    assert run(text, "--b", "5").output == "1 5\n"


# --- what runs ----------------------------------------------------------------------------------

SEVERAL = """
    @app.function()
    def square(x: float):
        return x * x

    @nbmap.remote
    def nothing():
        return None

    @app.local_entrypoint()
    def train():
        print("trained")
        return 5

    @app.local_entrypoint(name="check")
    def _check():
        print("checked")

    def plain():
        pass
"""


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("::train", [], "trained\n"),
        ("::check", [], "checked\n"),
        ("::app.train", [], "trained\n"),
        ("::square", ["--x", "1.5"], "2.25\n"),
        ("::app.square", ["--x", "2"], "4.0\n"),
        ("::nothing", [], ""),
    ],
)
def test_s16_a_name_picks_an_entrypoint_or_a_handle(run, name, arguments, output):
    """An entrypoint's return value is not printed, a handle's is unless it is None."""
    done = run(SEVERAL, *arguments, name=name)
    assert (done.exit_code, done.stdout) == (0, output), done.output


ALL = "the entrypoints train and check and the handles square and nothing"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", ["the entrypoints train and check: say which", "`nbmap run job.py::train`"]),
        ("::trian", ["'trian' to run; did you mean 'train'?", ALL]),
        ("::xyz", ["nothing named 'xyz'", ALL]),
        ("::plain", ["plain in job.py is neither", "put @app.local_entrypoint()", ALL]),
    ],
)
def test_s16_a_wrong_or_missing_name_lists_what_is_there(run, name, told):
    """And the nearest match."""
    done = run(SEVERAL, name=name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert [words for words in told if words not in done.stderr] == [], done.stderr


def test_s16_help_of_a_script_with_several_lists_them(run):
    """Without a name there are no options to show."""
    done = run(SEVERAL, "--help")
    assert done.exit_code == 0
    assert done.output == f"Usage: nbmap run job.py::NAME [OPTIONS]\n\njob.py has {ALL}.\n"


def test_s16_one_handle_alone_needs_no_name(run):
    """One that the script has imported does not count beside its own."""
    Path("others.py").write_text("import nbmap\n@nbmap.remote\ndef far():\n    return 1\n")
    text = "from others import far\n@nbmap.remote\ndef near(n: int = 2):\n    return n\n"
    assert run(text, "--n", "3").output == "3\n"
    assert run("from others import far").output == "1\n"
    assert run("app.function()(lambda: 5)").output == "5\n"
    two = run("nbmap_a = nbmap.remote(len)\nnbmap_b = nbmap.remote(abs)")
    assert (two.exit_code, "the handles nbmap_a and nbmap_b: say which" in two.stderr) == (2, True)


def test_s16_entrypoints_of_one_name_in_two_apps_are_told_apart(run):
    """By the variables of the apps."""
    text = """
        other = nbmap.App()

        @app.local_entrypoint()
        def main():
            print("app")

        @other.local_entrypoint()
        def main():
            print("other")
    """
    assert "the entrypoints app.main and other.main: say which" in run(text).stderr
    assert run(text, name="::app.main").output == "app\n"
    assert run(text, name="::other.main").output == "other\n"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("scrpt.py", None, "there is no file scrpt.py; did you mean 'script.py'?"),
        ("nowhere/x.py", None, "there is no file nowhere/x.py"),
        (".", None, ". is a folder"),
        ("book.ipynb", b"{}", "book.ipynb is a notebook"),
        ("script", b"", "script is not a Python file: its name has to end in .py"),
        ("binary.py", b"x = 1\0", "binary.py is not Python: it holds null bytes"),
        ("random.py", b"", "random.py has the name of the module random"),
        ("dask.py", b"", "dask.py has the name of the module dask"),
        ("nbmap.py", b"", "nbmap.py has the name of the module nbmap"),
        ("click.py", b"", "click.py has the name of the module click"),
        ("empty.py", b"", "empty.py has nothing to run"),
    ],
)
def test_s16_what_is_no_script_is_refused_with_a_sentence(run, file, content, told):
    """It names the file, and what to do."""
    Path("script.py").touch()
    if content is not None:
        Path(file).write_bytes(content)
    done = run(None, file=file)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {told}")


# --- how it fails -------------------------------------------------------------------------------


def test_s16_errors_are_shown_from_the_users_file_on(run):
    """Whatever raises: the top level, an entrypoint, an async one, the cause of an error."""
    raises = 'raise ValueError("here")'
    texts = {
        "<module>": raises,
        "main": f"@app.local_entrypoint()\ndef main():\n    {raises}",
        "later": f"@app.local_entrypoint()\nasync def later():\n    {raises}",
        "again": "@app.local_entrypoint()\n"
        f"def again():\n    try:\n        {raises}\n"
        "    except ValueError as e:\n        raise ValueError('here') from e",
    }
    for name, text in texts.items():
        done = run(text)
        assert done.exit_code == 1
        files = [line for line in done.stderr.splitlines() if line.startswith('  File "')]
        assert files
        assert all(line.endswith(f", in {name}") and "job.py" in line for line in files), files
        assert done.stderr.endswith("ValueError: here\n")


def test_s16_errors_of_nbmap_show_the_line_that_is_wrong(run):
    """And nothing of the inside of nbmap."""
    done = run("@app.function(concurency=5)\ndef f():\n    pass")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if "File" in line] == [
        f'  File "{Path("job.py").resolve()}", line 3, in <module>'
    ]
    assert lines[-1].endswith("There is no option 'concurency'; did you mean 'concurrency'?")


def test_s16_a_syntax_error_is_shown_as_python_does(run):
    """With the line and a caret."""
    done = run("x = (")
    assert done.exit_code == 1
    assert "job.py" in done.stderr
    assert done.stderr.endswith("SyntaxError: '(' was never closed\n")


@pytest.mark.parametrize(
    ("statement", "code", "told"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise KeyboardInterrupt", 130, "Interrupted.\n"),
        ("import click; raise click.UsageError('mine')", 1, "mine\n"),
        ("raise nbmap.OptionError('mine')", 1, "mine\n"),
        ("import asyncio; raise asyncio.CancelledError", 1, "CancelledError\n"),
    ],
)
def test_s16_the_exit_code_says_how_a_script_ended(run, statement, code, told):
    """What the script raises is not taken for an error of the command's own."""
    done = run(f"@app.local_entrypoint()\ndef main():\n    {statement}")
    assert (done.exit_code, done.stderr.endswith(told)) == (code, True), done.stderr
    assert not done.output.startswith(("Usage", "Error"))


# --- the app ------------------------------------------------------------------------------------


def test_an_app_makes_handles_and_entrypoints():
    """Bare and with options; an entrypoint stays the function that it is."""
    assert nbmap.Stub is nbmap.App
    app = nbmap.App("sums")

    @app.function
    def one(x):
        return x

    @app.function(max_containers=2)
    def two(x):
        return x

    @app.local_entrypoint
    def main(n=1):
        return n

    @app.local_entrypoint()
    async def later():
        return 2

    assert isinstance(one, nbmap.RemoteFunction)
    assert repr(two) == "<nbmap handle two, concurrency=2>"
    assert two.local(3) == 3
    assert (main(n=5), inspect.isfunction(main), inspect.iscoroutinefunction(later)) == (
        5,
        True,
        True,
    )
    assert (app.name, app.functions, app.entrypoints) == (
        "sums",
        {"one": one, "two": two},
        {"main": main, "later": later},
    )
    assert repr(app) == (
        "<nbmap app sums, function one, function two, entrypoint main, entrypoint later>"
    )
    assert repr(nbmap.App(name="n")) == "<nbmap app n>"


def _yielding():
    yield 1


@pytest.mark.parametrize(
    ("use", "error", "told"),
    [
        (lambda app: app.function(image=1), nbmap.OptionError, "'image': it is about Modal's"),
        (lambda app: nbmap.App(secrets=[]), nbmap.OptionError, "'secrets': it is about Modal's"),
        (lambda app: nbmap.App(nam="x"), nbmap.OptionError, "did you mean 'name'"),
        (lambda app: nbmap.App(3), nbmap.OptionError, "name=3 is not a name"),
        (lambda app: nbmap.App(gpu="A100"), TypeError, "@app.function(gpu='A100')"),
        (lambda app: app.function(int), TypeError, "int is a class"),
        (lambda app: app.function()(app.function(abs)), TypeError, "abs is a handle already"),
        (lambda app: app.local_entrypoint()(app.function(abs)), TypeError, "abs is a handle"),
        (lambda app: app.local_entrypoint(_yielding), TypeError, "_yielding yields"),
        (lambda app: app.local_entrypoint(5), TypeError, "takes a function, not 5"),
        (lambda app: app.local_entrypoint(int), TypeError, "takes a function, not <class 'int'>"),
        (lambda app: app.local_entrypoint(name=5), nbmap.OptionError, "name=5 is not a name"),
        (lambda app: app.local_entrypoint(len), TypeError, "two entrypoints named 'len'"),
        (lambda app: app.run(), AttributeError, "needs no run()"),
        (lambda app: app.cls, AttributeError, "has no 'cls': it has function and"),
    ],
)
def test_misuse_of_an_app_is_refused_with_a_sentence(use, error, told):
    """It says what is wrong, with the value, and what to do."""
    app = nbmap.App()
    app.local_entrypoint(len)
    with pytest.raises(error) as raised:
        use(app)
    assert told in str(raised.value)


def test_python_m_nbmap_is_the_command():
    """A notebook's kernel often has no `nbmap` on its path."""
    told = subprocess.run(
        [sys.executable, "-m", "nbmap", "--help"], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("Usage: nbmap [OPTIONS] COMMAND")
