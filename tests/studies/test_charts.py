"""Pictures: points land where their axes say, and every panel says what it shows."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from jaxalign.studies.report import charts, marks
from jaxalign.studies.report.charts import Curve, Dot, Level, Panel


def svgs(html):
    return [ET.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in html.split("<svg")[1:]]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.31, 0.78), (-3, 12), (0, 4000), (5, 5), (-1e-3, 1e-3), (1e-6, 0.2)]
)
def test_ticks_cover_the_range_with_round_numbers(low, high):
    found = marks.ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)


def test_equal_ratios_are_equal_distances():
    axis = marks.axis([0.001, 1.0], 0, 300, log=True)
    places = [axis.at(value) for value in (0.001, 0.01, 0.1, 1.0)]
    assert [b - a for a, b in itertools.pairwise(places)] == pytest.approx([places[1] - places[0]] * 3, abs=0.11)
    assert axis.marks == (0.001, 0.01, 0.1, 1.0)


def test_numbers_outside_land_on_the_edge():
    axis = marks.axis([0.0, 10.0], 0, 100)
    assert (axis.at(-5), axis.at(20)) == (0, 100)


def test_shares_read_in_per_cent():
    assert marks.axis([0.0, 1.0], 0, 1, share=True).text(0.25) == "25"


def test_labels_keep_apart_and_inside():
    found = marks.spread([50, 51, 52, 99], 12, 0, 100)
    assert min(b - a for a, b in itertools.pairwise(sorted(found))) >= 12
    assert min(found) >= 0
    assert max(found) <= 100


def test_points_land_where_the_axes_say():
    curve = Curve("a & b", [(0.0, 0.0), (10.0, 1.0)], "k0", band=[(0.0, 0.0, 0.5), (10.0, 0.5, 1.0)])
    html = charts.panels("t", [Panel("p < q", [curve])], x="step", y="share", names=False)
    (svg,) = svgs(html)
    line = svg.find("polyline").get("points").split()
    (left, floor), (right, top) = ([float(n) for n in point.split(",")] for point in line)
    ticks = {e.text: (float(e.get("x")), float(e.get("y"))) for e in svg.iter("text") if e.get("class") == "tick"}
    assert left == pytest.approx(ticks["0"][0], abs=40)  # 0 names both axes
    assert right == pytest.approx(ticks["10"][0], abs=0.1)
    assert top == charts.TOP
    assert floor == charts.TALL - charts.BOTTOM
    assert svg.get("aria-label") == "t: p < q"
    assert "p &lt; q" in html


def test_panels_share_their_axes_and_hold_levels():
    pictures = [
        Panel(name, [Curve("x", [(1.0, high), (100.0, high)], "k1")]) for name, high in (("a", 0.1), ("b", 0.9))
    ]
    pictures[0] = Panel("a", pictures[0].curves, [Level("none", 0.4, 0.3, 0.5, "kn")])
    first, second = svgs(charts.panels("t", pictures, x="beta", y="share", log_x=True, share_y=True))
    assert [e.text for e in first.iter("text") if e.get("class") == "tick"] == [
        e.text for e in second.iter("text") if e.get("class") == "tick"
    ]
    assert any("level" in (e.get("class") or "") for e in first.iter("line"))


def test_what_cannot_be_drawn_is_left_out():
    curves = [Curve("x", [(0.0, 1.0), (float("nan"), 2.0)], "k0")]
    assert "nothing to draw" in charts.panels("t", [Panel("", curves)], x="beta", y="y", log_x=True)
    assert "nothing to draw" in charts.dot_rows("t", {"a": []}, x="y")


def test_dots_land_in_their_row_in_order():
    rows = {"writing": [Dot(2.0, "k0", "a"), Dot(8.0, "k1", "b", 7.0, 9.0)], "maths": [Dot(5.0, "k0", "c")]}
    (svg,) = svgs(charts.dot_rows("t", rows, x="score"))
    places = [path.get("transform") for path in svg.iter("path")]
    x = [float(place.split("(")[1].split()[0]) for place in places]
    y = [float(place.rstrip(")").split()[1]) for place in places]
    assert x[0] < x[2] < x[1]
    assert x[2] == pytest.approx((x[0] + x[1]) / 2, abs=0.2)
    assert y[0] == y[1] < y[2]
    assert [e.text for e in svg.iter("text") if e.get("class") == "label"] == ["writing", "maths"]
