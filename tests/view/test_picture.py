"""The pictures that a notebook keeps: of the inputs, and of the numbers that generators yield."""

import base64
import re
import xml.etree.ElementTree as ET
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmap.engine.series import Series
from nbmap.view import picture

numbers = st.floats(allow_nan=False, allow_infinity=False)


def drawn(series):
    """Return the SVG that the image of a series holds."""
    text = picture.curves(series)
    [found] = re.findall('base64,([^"]*)"', text)
    return text, ET.fromstring(base64.b64decode(found))


def points(svg):
    lines = svg.findall(".//{*}polyline")
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


@given(st.lists(st.lists(numbers, min_size=2, max_size=40), min_size=1, max_size=5))
def test_every_curve_lies_inside_the_picture(curves):
    """Whatever the numbers are."""
    series = Series()
    for index, ys in enumerate(curves):
        for x, y in enumerate(ys):
            series.add(index, x, y)
    _, svg = drawn(series)
    assert len(points(svg)) == len(curves)
    for x, y in chain.from_iterable(points(svg)):
        assert picture.LEFT <= x <= picture.WIDTH
        assert 0 <= y <= picture.HEIGHT


def test_the_key_is_text_and_the_picture_has_a_name():
    """What does not just count is shown; a name from user code can't be markup."""
    series = Series()
    for x in range(3):
        series.add(0, x, {"epoch": x, '<script>"': 1 / (x + 1)})
    text, svg = drawn(series)
    assert 'alt="&lt;script&gt;&quot; of 1 input, output by output"' in text
    assert [t.text for t in svg.findall(".//{*}text")] == [
        "1",
        "0.3333",
        '<script>", by output',
        "2",
    ]


def test_what_functions_return_is_dots_behind_a_click():
    """One for each input that is known of, and the axis says what they are by."""
    series = Series(by_input=True)
    for index in (3, 1, 2):
        series.add(index, 0, {"loss": index})
    text = picture.curves(series)
    assert text.startswith("<details><summary>numbers</summary>")
    assert 'alt="loss, by input"' in text
    data = text.partition("base64,")[2].partition('"')[0]
    drawn = base64.b64decode(data).decode()
    assert len(re.findall(r"M[\d.]+,[\d.]+h0", drawn)) == 3
    assert "loss, by input" in drawn


def test_numbers_far_apart_have_a_logarithmic_axis():
    """A straight one would show the largest only."""
    series = Series()
    for x in range(7):
        series.add(0, x, 10.0**-x)
    _, svg = drawn(series)
    assert "value, by output, log" in [t.text for t in svg.findall(".//{*}text")]
    [line] = points(svg)
    steps = {round(b[1] - a[1]) for a, b in pairwise(line)}
    assert len(steps) <= 2


def test_very_many_points_make_no_large_picture():
    """At most 100 KiB, whatever there is."""
    series = Series()
    for index in range(500):
        for x in range(300):
            series.add(index, x, index * 1e9 + x / 7)
    text, _ = drawn(series)
    assert len(text) < 80 << 10


@pytest.mark.parametrize("outputs", [[], [1], ["a", "b"]])
def test_without_a_curve_there_is_no_picture(outputs):
    """One point is none."""
    series = Series()
    for x, output in enumerate(outputs):
        series.add(0, x, output)
    assert picture.curves(series) == ""


@given(st.lists(st.sampled_from(range(5)), min_size=1, max_size=3000))
def test_a_map_has_a_square_for_each_input_or_for_several(statuses):
    """A failure is never hidden by its neighbours; the image's text has the counts."""
    column = bytes(statuses)
    text = picture.squares(column)
    [found] = re.findall('base64,([^"]*)"', text)
    svg = ET.fromstring(base64.b64decode(found))
    shown = [int(use.get("href")[2:]) for use in svg.findall("{*}use")]
    per = -(-len(column) // picture.SQUARES)
    parts = [column[at : at + per] for at in range(0, len(column), per)]
    assert len(shown) == len(parts)
    for status, part in zip(shown, parts, strict=True):
        assert (status == picture.FAILED) == (picture.FAILED in part)
        assert status in part or {status, *part} <= {picture.WAITING, picture.DONE}
    failed = column.count(picture.FAILED)
    assert (f"{failed:,} failed" in text) == (failed > 0)
    assert len(text) < 40 << 10


def test_a_map_of_a_million_inputs_is_as_small():
    """And of none there is no picture."""
    column = bytes([picture.DONE]) * 999_999 + bytes([picture.FAILED])
    text = picture.squares(column)
    assert 'alt="map of 1,000,000 inputs: 999,999 done, 1 failed"' in text
    assert len(text) < 40 << 10
    assert picture.squares(b"") == ""
