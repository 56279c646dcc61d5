"""Curves of what generators yield: true points, in bounded memory."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine.series import (
    ALL,
    CURVES,
    KEYS,
    NEWEST,
    POINTS,
    POINTS_OF_ALL,
    VALUE,
    Series,
)


def test_numbers_are_points_and_dictionaries_have_a_curve_for_each_key():
    """Also NumPy's numbers; what is no finite number is left out."""
    series = Series()
    for x, loss in enumerate([0.5, np.float32(0.25), math.nan, 10**400]):
        series.add(3, x, {"epoch": x, "loss": loss, "note": "a", "ok": True})
    series.add(4, 0, 7)
    series.add(4, 1, "text")
    assert series.keys == ["epoch", "loss", VALUE]
    assert series.whole(1000) == [
        (0, 3, [0, 1, 2, 3], [0.0, 1.0, 2.0, 3.0]),
        (1, 3, [0, 1], [0.5, 0.25]),
        (2, 4, [0], [7.0]),
    ]
    assert series.keys[series.shown()] == "loss"


def test_what_functions_return_is_one_curve_of_all_inputs():
    """In the order in which they have ended, and of very many some."""
    series = Series(by_input=True)
    for index in (2, 0, 1):
        series.add(index, 0, {"loss": index / 2})
    assert series.whole(1000) == [(0, ALL, [2, 0, 1], [1.0, 0.0, 0.5])]
    for index in range(3, 10_000):
        series.add(index, 0, {"loss": index / 2})
    [(_, _, x, y)] = series.whole(10**9)
    assert POINTS_OF_ALL / 2 < len(x) <= POINTS_OF_ALL
    assert [index / 2 for index in x] == y


@given(st.integers(0, 20 * POINTS), st.integers(1, 5))
def test_a_long_curve_is_thinned_out_evenly(n, inputs):
    """Its points are true, in order, and reach from the first to near the last."""
    series = Series()
    for x in range(n):
        for index in range(inputs):
            series.add(index, x, x * x + index)
    for _, index, xs, ys in series.whole(10**9):
        assert len(xs) <= POINTS
        assert [x * x + index for x in xs] == ys
        steps = {b - a for a, b in pairwise(xs)}
        assert len(steps) <= 1
        assert xs[0] == 0
        assert n - 1 - xs[-1] < max(steps, default=1)


def test_keys_curves_and_points_are_bounded():
    """Whatever a generator yields."""
    series = Series()
    for index in range(2 * CURVES):
        series.add(index, 0, {f"key {k}": k for k in range(2 * KEYS)})
    assert len(series.keys) == KEYS
    assert len(series.curves) == KEYS * CURVES
    assert sum(len(x) for _, _, x, _ in series.whole(500)) <= KEYS * CURVES


def test_a_view_gets_what_is_new_or_all_where_it_was_too_slow():
    """By the number of the last point that it has."""
    series = Series()
    for x in range(10):
        series.add(0, x, float(x))
    assert [y for *_, y in series.since(7)] == [7.0, 8.0, 9.0]
    assert series.since(10) == []
    for x in range(2 * NEWEST):
        series.add(0, x, 0.0)
    assert series.since(10) is None
