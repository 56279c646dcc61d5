"""How the far side comes to a process: as source text, imported there under a name of its own.

`Shipped` is a callable that pickles into builtins only: where it is unpickled this file is
executed, and when it is called the modules that it carries are imported through a finder. Workers
need not have nbmap, and several versions of it can share a worker, since the package's name there
holds a digest of its text.

Source text and not pickled modules: it is independent of the Python version, every process has one
copy of each class, and tracebacks show its lines.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import Any

_UNPICKLE = "(exec(source, scope := {'__name__': 'nbmap_boot'}) or scope)['Shipped']"


class Finder(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Finds and loads modules from texts."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> Any:
        """Return the spec of a module that was shipped."""
        if fullname not in self.texts:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=self.get_filename(fullname))

    def is_package(self, fullname: str) -> bool:
        """Tell whether other modules lie below this one."""
        return any(name.startswith(fullname + ".") for name in self.texts)

    def get_filename(self, fullname: str) -> str:
        """Return the name that tracebacks show."""
        return f"<{fullname}>"

    def get_source(self, fullname: str) -> str:
        """Return a module's text."""
        return self.texts[fullname]


class Shipped:
    """A function of the far side that any process can unpickle and call.

    Args:
        source: the text of this file.
        texts: full module name -> text.
        module: where the function is.
        name: the function's name.
    """

    def __init__(self, source: str, texts: dict[str, str], module: str, name: str) -> None:
        self.parts = (source, texts, module, name)
        self.__name__ = name  # Dask asks for it

    def __reduce__(self) -> Any:
        return _rebuild_args(*self.parts)

    def __call__(self, *args: Any, dask_worker: Any = None) -> Any:
        """Import the modules if that was not done yet, and call the function.

        Dask's `Client.run` gives a parameter of this name the worker, or nanny, that it runs on;
        the function takes it first.
        """
        _source, texts, module, name = self.parts
        if module not in sys.modules and not any(
            module in getattr(finder, "texts", ()) for finder in sys.meta_path
        ):
            sys.meta_path.append(Finder(texts))
        if dask_worker is not None:
            args = (dask_worker, *args)
        return getattr(importlib.import_module(module), name)(*args)


def _rebuild_args(source: str, texts: dict[str, str], module: str, name: str) -> Any:
    """Return what pickle calls to rebuild a `Shipped`: eval, which every process has."""
    expression = f"{_UNPICKLE}(source, texts, module, name)"
    scope = {"source": source, "texts": texts, "module": module, "name": name}
    return eval, (expression, scope)
