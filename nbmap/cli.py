"""The command `nbmap`.

    nbmap run script.py::main --n 5
              ────┬──── ─┬──  ──┬──
        _import ──┘      │      └── _options: what the annotations of `main` say
                         └── _choose: an entrypoint, or a handle

A script is imported under its file's name, so what stands under `if __name__ == "__main__":` does
not run, and its functions and classes reach workers as those of any module beside a script. Not as
`__main__`: spawned processes would import it again for that.

Imports of nbmap stand in the functions that need them: every worker process of ours imports the
file that started this process, and with it this module.
"""

from __future__ import annotations

import asyncio
import difflib
import enum
import importlib.util
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from .errors import NbmapError, OptionError
from .options import shown

if TYPE_CHECKING:
    from .handle import RemoteFunction

__all__ = ["main"]

_HELP = ["-h", "--help"]


@click.group(context_settings={"help_option_names": _HELP})
@click.version_option(package_name="nbmap", message="%(package)s %(version)s")
def main() -> None:
    """Run Python functions over many inputs on a Dask cluster."""


@main.command("doctor")
def _doctor() -> None:
    """Tell what is installed, reachable and wrong."""
    from . import doctor

    report = doctor.examine()
    click.echo(repr(report))
    sys.exit(1 if report.problems else 0)


@main.command("run", context_settings={"allow_interspersed_args": False})
@click.argument("script", metavar="SCRIPT[::NAME]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THE SCRIPT]")
def _run(script: str, arguments: tuple[str, ...]) -> None:
    """Run an entrypoint or a handle of a script.

    NAME is that of a function under @app.local_entrypoint(), which runs here, or of a handle, which
    runs on a worker and whose output is printed. A script with one of them needs no NAME. The
    options are the function's parameters; `nbmap run SCRIPT[::NAME] --help` lists them.

    \b
    nbmap run train.py
    nbmap run train.py::main --learning-rate 0.1 --no-quick

    The exit code is 0; 1 if the script raises; 2 if there is nothing to run, or its options are
    wrong; 130 after Ctrl-C.
    """  # noqa: D301 - the backspace tells click to keep the lines
    with _refusing():
        path, name = _split(script)
        code = _compile(path)
    sys.argv = [str(path), *arguments]
    path = path.resolve()  # as Python puts it on its path
    with _users_code(path):
        module = _import(path, code)
    with _refusing():
        found = _targets(module)
        if name is None and len(found.default) > 1 and arguments in {("-h",), ("--help",)}:
            click.echo(f"Usage: nbmap run {path.name}::NAME [OPTIONS]\n\n{path.name} has {found}.")
            return
        name, target = _choose(found, name, module, path.name)
        call = _parse(target, arguments, f"nbmap run {path.name}::{name}")
    with _users_code(path):
        call()


class _RefusedError(click.ClickException):
    """There is nothing to run; the text says why."""

    exit_code = 2


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except OptionError as error:
        raise _RefusedError(str(error)) from None


# --- the script ---------------------------------------------------------------------------------

# We or workers would import the script in the place of these.
_OTHERS = sys.stdlib_module_names | {"cloudpickle", "dask", "distributed"}


def _split(text: str) -> tuple[Path, str | None]:
    """Take the name off a script's path; see that there is a file."""
    file, _, name = (text, "", "") if Path(text).exists() else _rpartition(text)
    path = Path(file)
    if path.is_dir():
        msg = f"{file} is a folder: name the Python file in it"
        raise OptionError(msg)
    if not path.exists():
        try:
            there = [p.name for p in path.parent.glob("*.py")]
        except OSError:
            there = []
        msg = f"there is no file {file}{_near(path.name, there)}"
        raise OptionError(msg)
    if path.suffix == ".ipynb":
        msg = f"{file} is a notebook: open it in Jupyter; nbmap run takes Python files"
        raise OptionError(msg)
    if path.suffix != ".py":
        msg = f"{file} is not a Python file: its name has to end in .py"
        raise OptionError(msg)
    return path, name or None


def _rpartition(text: str) -> tuple[str, str, str]:
    file, colons, name = text.rpartition("::")
    return (file, colons, name) if colons else (text, "", "")


def _near(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean this one?", or an empty text where nothing is alike."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _compile(path: Path) -> CodeType:
    """Compile a script; nothing is written beside it."""
    name = path.stem
    loaded = sys.modules.get(name)
    if name in _OTHERS or (loaded is not None and not _is_at(loaded, path)):
        msg = (
            f"{path} has the name of the module {name}, and would be imported in its place: give the "
            "file another name"
        )
        raise OptionError(msg)
    try:
        source = path.read_bytes()
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}"
        raise OptionError(msg) from None
    try:
        if b"\0" not in source:
            return compile(source, path.resolve(), "exec", dont_inherit=True)
    except SyntaxError as error:
        _show(error.with_traceback(None))
        sys.exit(1)
    msg = f"{path} is not Python: it holds null bytes"
    raise OptionError(msg)


def _is_at(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve() == path.resolve()


def _import(path: Path, code: CodeType) -> ModuleType:
    """Run a script's top level, as a module of its own name; its folder comes first on the path."""
    sys.path.insert(0, str(path.parent))
    loader = SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    exec(code, vars(module))  # noqa: S102 - it is what this command is for
    return module


# --- what it has to run -------------------------------------------------------------------------

_Target = typing.Union["Callable[..., Any]", "RemoteFunction"]


@dataclass(slots=True)
class _Found:
    """What a script has to run.

    Attributes:
        default: what runs when no name is given, if it is one: entrypoints, else handles.
        kind: what those are.
        others: handles beside the entrypoints.
        apps: the same by the names `app.main`.
    """

    default: dict[str, _Target]
    kind: str
    others: dict[str, _Target] = field(default_factory=dict)
    apps: dict[str, _Target] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ((self.kind, self.default), ("handle", self.others))
        return " and ".join(_listed(kind, names) for kind, names in parts if names)


def _listed(kind: str, names: Sequence[str] | Mapping[str, object]) -> str:
    *most, last = names
    return f"the {kind}s {', '.join(most)} and {last}" if most else f"the {kind} {last}"


def _targets(module: ModuleType) -> _Found:
    from .app import App
    from .handle import RemoteFunction

    content = vars(module)
    apps = {name: value for name, value in content.items() if isinstance(value, App)}
    by_app: dict[str, _Target] = {}
    entrypoints: dict[str, _Target] = {}
    taken: set[str] = set()
    for at, app in apps.items():
        by_app |= {f"{at}.{name}": handle for name, handle in app.functions.items()}
        for name, function in app.entrypoints.items():
            by_app[f"{at}.{name}"] = function
            if entrypoints.setdefault(name, function) is not function:
                taken.add(name)
    for name in taken:  # entrypoints of several apps
        del entrypoints[name]
        for at, app in apps.items():
            if name in app.entrypoints:
                entrypoints[f"{at}.{name}"] = app.entrypoints[name]
    handles: dict[str, _Target] = {}
    for name, handle in content.items():
        if isinstance(handle, RemoteFunction) and handle not in handles.values():
            handles[name] = handle
    for app in apps.values():  # those that have no variable
        for name, handle in app.functions.items():
            if handle not in handles.values():
                handles.setdefault(name, handle)
    if entrypoints:
        return _Found(entrypoints, "entrypoint", handles, by_app)
    # Those that it has imported come second.
    own = {n: h for n, h in handles.items() if h.__module__ == module.__name__}
    others = {n: h for n, h in handles.items() if n not in own}
    return _Found(own, "handle", others, by_app) if own else _Found(handles, "handle", {}, by_app)


def _choose(
    found: _Found, name: str | None, module: ModuleType, script: str
) -> tuple[str, _Target]:
    """Return what is to run, and its name."""
    named = {**found.apps, **found.others, **found.default}
    if name in named:
        return name, named[name]
    if not named:
        msg = (
            f"{script} has nothing to run: no entrypoint of an nbmap app and no handle. Put "
            "@app.local_entrypoint() above the function that is to run, where app = nbmap.App(); or "
            f"run it by `python {script}`"
        )
        raise OptionError(msg)
    if name is None:
        if len(found.default) == 1:
            return next(iter(found.default.items()))
        msg = (
            f"{script} has {_listed(found.kind, found.default)}: say which, as in "
            f"`nbmap run {script}::{next(iter(found.default))}`"
        )
        raise OptionError(msg)
    if callable(getattr(module, name, None)):
        msg = (
            f"{name} in {script} is neither an entrypoint nor a handle: put "
            f"@app.local_entrypoint() or @app.function() above it. {script} has {found}"
        )
        raise OptionError(msg)
    near = _near(name, named) or "."
    msg = f"{script} has nothing named {name!r} to run{near} It has {found}"
    raise OptionError(msg)


# --- its options --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the values of one annotation are written.

    Attributes:
        metavar: how the help shows them.
        read: makes the value of a text; a ValueError or KeyError means that it is none.
        wants: says what the text should have been.
    """

    metavar: str
    read: Callable[[str], object]
    wants: str


_KINDS: dict[object, _Kind] = {
    str: _Kind("TEXT", str, "a text"),
    int: _Kind("INTEGER", int, "a whole number"),
    float: _Kind("NUMBER", float, "a number"),
    Path: _Kind("PATH", Path, "a path"),
    datetime: _Kind("DATETIME", datetime.fromisoformat, "a time such as 2024-05-31T18:30"),
    date: _Kind("DATE", date.fromisoformat, "a date such as 2024-05-31"),
}
_KINDS |= dict.fromkeys((Any, object, inspect.Parameter.empty), _KINDS[str])


def _parse(target: _Target, arguments: Sequence[str], command: str) -> Callable[[], None]:
    """Read a function's arguments; return what calls it with them."""
    function = target.__wrapped__ if _is_handle(target) else target
    name = command.rpartition("::")[2]
    try:
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        msg = f"the parameters of {name} can't be read: {error}"
        raise OptionError(msg) from None
    parameters = signature.parameters
    rest = [p for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
    if rest and len(parameters) == 1:
        return _raw(target, arguments, command, rest[0].name)
    options = [_option(name, p, function) for p in parameters.values()]
    said: set[str] = set()
    for option in options:
        for text in (*option.opts, *option.secondary_opts):
            if text in said:
                msg = f"two parameters of {name} make the option {text}: rename one"
                raise OptionError(msg)
            said.add(text)
    context = _command(target, options).make_context(command, list(arguments))
    default = click.core.ParameterSource.DEFAULT
    positional, named = [], {}
    for parameter in parameters.values():
        given = context.get_parameter_source(parameter.name) is not default
        value = context.params[parameter.name]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value if given else parameter.default)
        elif given:  # else the function's own default holds
            named[parameter.name] = value
    return lambda: _call(target, *positional, **named)


def _raw(target: _Target, arguments: Sequence[str], command: str, name: str) -> Callable[[], None]:
    """Hand the arguments over as they are."""
    if arguments and arguments[0] in _HELP:
        shown_as = click.Argument([name], nargs=-1, metavar=f"[{name.upper()}]...")
        _command(target, [shown_as]).make_context(command, ["--help"])
    values = arguments[1:] if arguments[:1] == ("--",) else arguments
    return lambda: _call(target, *values)


def _command(target: _Target, params: Sequence[click.Parameter]) -> click.Command:
    text = inspect.cleandoc(target.__doc__ or "")
    # Each paragraph stays as it is written.
    help_ = "\n\n".join(f"\b\n{part}" for part in text.split("\n\n")) if text else None
    return click.Command(
        None, params=list(params), help=help_, context_settings={"help_option_names": _HELP}
    )


def _option(name: str, parameter: inspect.Parameter, function: Any) -> click.Option:
    """Make the option of one parameter."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        msg = f"{name} takes *{parameter.name} beside other parameters: nbmap run takes it alone"
        raise OptionError(msg)
    if parameter.kind is parameter.VAR_KEYWORD:
        msg = f"{name} takes **{parameter.name}: nbmap run can't tell which options there are"
        raise OptionError(msg)
    dashed = parameter.name.replace("_", "-")
    required = parameter.default is parameter.empty
    annotation = _resolve(parameter, function)
    help_ = "" if required or parameter.default is None else f"[default: {_said(parameter)}]"
    if annotation is bool:
        both = f"--{dashed}/--no-{dashed}"
        return click.Option([both, parameter.name], default=None, required=required, help=help_)
    kind = _kind(annotation)
    if kind is None:
        written = parameter.annotation
        if not isinstance(written, str):
            written = inspect.formatannotation(written)
        msg = (
            f"the parameter {parameter.name} of {name} is annotated {written}, which nbmap run "
            "can't read from the command line: it reads str, int, float, bool, datetime, date, "
            "Path, Literal, Enum, and each of these or None. Without an annotation the text comes "
            "as it is"
        )
        raise OptionError(msg)
    return click.Option(
        [f"--{dashed}", parameter.name],
        metavar=kind.metavar,
        required=required,
        help=help_,
        callback=_reader(kind),
    )


def _said(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, (str, Path, date)) and str(value) else shown(value)


def _reader(kind: _Kind) -> Callable[[click.Context, click.Parameter, str | None], object]:
    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> object:
        if text is None:
            return None
        try:
            return kind.read(text)
        except (KeyError, ValueError):
            msg = f"{shown(text)} is not {kind.wants}."
            raise click.BadParameter(msg, context, parameter) from None

    return read


def _resolve(parameter: inspect.Parameter, function: Any) -> Any:
    """Return what an annotation stands for, `T | None` as T; itself where it can't be found."""
    while not hasattr(function, "__globals__") and hasattr(function, "func"):  # a partial
        function = function.func
    names = getattr(inspect.unwrap(function), "__globals__", {})
    holder = types.SimpleNamespace(__annotations__={"x": parameter.annotation})
    if parameter.annotation is parameter.empty:
        return parameter.empty
    try:
        annotation = typing.get_type_hints(holder, names)["x"]
    except Exception:  # the annotation is an expression of the user's
        return parameter.annotation
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _kind(annotation: Any) -> _Kind | None:
    """Return how values of an annotation are written; None if they can't be."""
    if typing.get_origin(annotation) is typing.Literal:
        choices = {str(value): value for value in typing.get_args(annotation) if value is not None}
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        choices = dict(annotation.__members__)
    else:
        try:
            return _KINDS.get(annotation)
        except TypeError:  # not hashable, so none of these
            return None
    return _Kind(f"[{'|'.join(choices)}]", choices.__getitem__, f"one of {', '.join(choices)}")


# --- the call -----------------------------------------------------------------------------------


def _is_handle(target: _Target) -> typing.TypeGuard[RemoteFunction]:
    from .handle import RemoteFunction

    return isinstance(target, RemoteFunction)


def _call(target: _Target, *args: Any, **kwargs: Any) -> None:
    output = target(*args, **kwargs)
    if not _is_handle(target):  # what an entrypoint returns is for Python
        if inspect.iscoroutine(output):
            asyncio.run(output)
        return
    for each in output if isinstance(output, Iterator) else [output]:
        if each is not None or output is not each:
            click.echo(str(each))


@contextmanager
def _users_code(path: Path) -> Iterator[None]:
    """Run what may raise anything, and show it as Python would, without our own frames."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:
        _trim(error, str(path))
        _show(error)
        sys.exit(1)


def _show(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def _trim(error: BaseException | None, script: str, seen: frozenset[int] = frozenset()) -> None:
    """Take the frames of nbmap, and what called the script, out of an error's traceback."""
    if error is None or id(error) in seen:
        return
    kept = [tb for tb in _frames(error) if not tb.tb_frame.f_code.co_filename.startswith(_OURS)]
    files = [tb.tb_frame.f_code.co_filename for tb in kept]
    if not seen and script in files:
        del kept[: files.index(script)]
    if kept or isinstance(error, (NbmapError, SyntaxError)):
        error.__traceback__ = None
        for tb in reversed(kept):
            error.__traceback__ = TracebackType(
                error.__traceback__, tb.tb_frame, tb.tb_lasti, tb.tb_lineno
            )
    seen |= {id(error)}
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _trim(other, script, seen)


_OURS = tuple(
    os.path.join(os.path.dirname(os.path.abspath(file)), "")  # noqa: PTH100, PTH118, PTH120
    for file in (__file__, click.__file__)
)


def _frames(error: BaseException) -> Iterator[TracebackType]:
    tb = error.__traceback__
    while tb is not None:
        yield tb
        tb = tb.tb_next
