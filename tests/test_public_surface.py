"""The public names of nbmap, and its errors."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import re

import pytest

import nbmap
from nbmap import errors

ERRORS = sorted(errors.__all__)
LINE = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<text> .*)?$")
OTHER_PARENTS = {"OptionError": ValueError}


def drawn():
    """Return class name -> name of its parent, from the tree in the docstring of errors.py."""
    parents, above = {}, []
    for line in errors.__doc__.splitlines():
        match = LINE.match(line)
        if not match or (not match["indent"] and match["text"]):
            continue
        depth = len(match["indent"]) // 4
        del above[depth:]
        parents[match["name"]] = above[-1] if above else "Exception"
        above.append(match["name"])
    return parents


def typed():
    """Return the names that type checkers are told of in nbmap/__init__.py."""
    tree = ast.parse(inspect.getsource(nbmap))
    return {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname
    }


@pytest.mark.parametrize("name", nbmap.__all__)
def test_public_names_import_and_are_documented(name):
    """Each public name can be imported, and its docstring says what it is."""
    value = getattr(nbmap, name)
    assert inspect.getdoc(value), f"nbmap.{name} has no docstring"
    assert getattr(importlib.import_module("nbmap"), name) is value


@pytest.mark.parametrize("name", nbmap.__all__)
def test_public_methods_are_documented(name):
    """Each public method of a public class has a docstring of its own."""
    value = getattr(nbmap, name)
    if not inspect.isclass(value):
        return
    bare = [
        attribute
        for attribute, member in vars(value).items()
        if not attribute.startswith("_")
        and (callable(member) or isinstance(member, (property, classmethod, staticmethod)))
        and not inspect.getdoc(member)
    ]
    assert bare == []


def test_type_checkers_know_the_same_names():
    """What is imported lazily is declared for type checkers, name by name."""
    assert typed() == set(nbmap.__all__)


def test_the_public_names_are_sorted_and_listed():
    """`dir` shows the public names, and star-import gives them."""
    assert list(nbmap.__all__) == sorted(set(nbmap.__all__))
    assert set(nbmap.__all__) <= set(dir(nbmap))
    namespace = {}
    exec("from nbmap import *", namespace)
    assert set(nbmap.__all__) <= set(namespace)


def test_a_name_that_is_not_there_is_refused_as_python_does():
    """An unknown name is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="module 'nbmap' has no attribute 'remoet'"):
        _ = nbmap.remoet


def test_nbmap_knows_its_version():
    """The version is that of the installed package."""
    from importlib.metadata import version

    assert nbmap.__version__ == version("nbmap")


def test_every_error_is_in_the_tree():
    """The tree at the top of errors.py shows all classes, and only those that there are."""
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert set(drawn()) == classes == set(ERRORS)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_the_parent_that_the_tree_shows(name):
    """The first base of each class is the one above it in the tree."""
    kind = getattr(errors, name)
    assert kind.__base__.__name__ == drawn()[name]
    others = kind.__bases__[1:]
    assert others == ((OTHER_PARENTS[name],) if name in OTHER_PARENTS else ())


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_public(name):
    """Each error can be caught by its name in nbmap."""
    assert getattr(nbmap, name) is getattr(errors, name)
    assert name in nbmap.__all__


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, None], ids=["copy", "deep", "pickle"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_survives_pickling(name, copier):
    """It comes back with its type, arguments, notes and attributes, under every protocol."""
    kind = getattr(errors, name)
    argument = ValueError("ohno") if kind is errors.UserCodeException else "what was wrong"
    error = kind(argument)
    error.add_note("while it was tried")
    error.index = 3
    protocols = range(pickle.HIGHEST_PROTOCOL + 1) if copier is None else [0]
    for protocol in protocols:
        stored = pickle.dumps(error, protocol)
        again = pickle.loads(stored) if copier is None else copier(error)
        assert type(again) is kind
        assert repr(again) == repr(error)
        assert (again.__notes__, again.index) == (error.__notes__, 3)
        if kind is errors.UserCodeException:
            assert type(again.exc) is ValueError
            assert again.exc.args == ("ohno",)


def test_a_users_exception_is_shown_as_on_the_page():
    """The repr is the page's, to the letter."""
    assert (
        repr(nbmap.UserCodeException(Exception("ohno"))) == "UserCodeException(Exception('ohno'))"
    )


def test_a_users_exception_says_what_the_user_said():
    """Its text is that of the exception in it."""
    assert str(nbmap.UserCodeException(Exception("ohno"))) == "ohno"
