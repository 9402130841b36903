"""Charts: nothing lies outside of them, their colours are the page's, and text stays text."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tskd.experiment.methods import METHODS
from tskd.report.blocks import Chart
from tskd.report.charts import (
    HEIGHT,
    WIDTH,
    Axis,
    Estimate,
    Series,
    forest_chart,
    line_chart,
    line_key,
    log_places,
    scatter_chart,
    stacked_chart,
)
from tskd.report.styles import MARKS, look_of, ordered

OURS, SCRATCH = look_of("task_kd", "ours"), look_of("scratch", "<scratch> & $x$")
PLACES = [0.5, 6.0, 60.0]


def curve(*, logarithmic: bool) -> Chart:
    series = [
        Series(OURS, PLACES, [0.5, 0.7, 0.9], [(0.1, 0.8), None, (0.8, 0.97)]),
        Series(SCRATCH, PLACES, [0.4, 0.6, 0.8], [(0.2, 0.5), (0.5, 0.7), (0.7, 0.9)]),
    ]
    x = Axis("labels", PLACES, ["a", "b", "c"], logarithmic=logarithmic)
    return line_chart(series, x, Axis("Dice"), title=f"curve {logarithmic}")


def charts() -> list[Chart]:
    rows = [Estimate(OURS, 0.6, (0.5, 0.7), [0.1, 0.9]), Estimate(SCRATCH, 0.4, None)]
    return [
        curve(logarithmic=True),
        curve(logarithmic=False),
        forest_chart(rows, title="forest", measure="Dice"),
        scatter_chart(rows, [5.0, 5.0], Axis("size", logarithmic=True), Axis("Dice"), title="scatter"),
        stacked_chart(["ours", SCRATCH.title], {"bias": [0.1, 0.2], "variance": [-0.01, 0.1]}, Axis("e"), title="bars"),
    ]


def marks(svg: str) -> list[tuple[float, float]]:
    """Return where the marks of the data are: those with a rim of the page's colour."""
    rimmed = re.findall(r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)" style="[^"]*stroke: var\(--paper\)', svg)
    return [(float(x), float(y)) for x, y in rimmed]


@pytest.mark.parametrize("logarithmic", [True, False])
def test_every_mark_and_interval_lies_inside_the_chart(logarithmic: bool) -> None:
    svg = curve(logarithmic=logarithmic).svg
    assert len(marks(svg)) == 6
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in marks(svg))
    lines = re.findall(r'd="M ([-\d.]+) ([-\d.]+) \nL ([-\d.]+) ([-\d.]+) \n"[^>]*stroke-opacity', svg)
    assert len(lines) == 5, "one interval was not given"
    assert all(0 < float(y) < HEIGHT for line in lines for y in line[1::2])


def test_lines_set_apart_stay_inside_the_axes() -> None:
    series = [Series(look_of(name, name), [20, 40, 80], [0.3, 0.4, 0.5], [(0.2, 0.6)] * 3) for name in METHODS]
    svg = line_chart(series, Axis("labels"), Axis("Dice"), title="many").svg
    area = re.search(r'<clipPath[^>]*>\s*<rect x="([-\d.]+)" y="[-\d.]+" width="([-\d.]+)"', svg)
    assert area
    left, width = map(float, area.groups())
    assert len(marks(svg)) == 3 * len(METHODS)
    assert all(left < x < left + width for x, _ in marks(svg))


def test_models_at_one_place_do_not_cover_each_other() -> None:
    found = sorted(marks(charts()[3].svg))
    assert len(found) == 2
    assert found[1][0] - found[0][0] == pytest.approx(4.5, abs=0.01)
    points = sorted(x for x, _ in marks(curve(logarithmic=False).svg))
    assert all(later - earlier > 4 for earlier, later in pairwise(points))


def test_colours_and_font_are_the_pages_own() -> None:
    for chart in charts():
        assert "#0a0b" not in chart.svg
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", chart.svg)) <= {"#000000"}, "a colour of matplotlib's is left"
        assert "DejaVu" not in chart.svg
        assert "var(--sans)" in chart.svg


def test_names_in_charts_are_text() -> None:
    for svg in (charts()[2].svg, charts()[4].svg):
        assert "&lt;scratch&gt; &amp; $x$</text>" in svg
        assert "<scratch>" not in svg


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    chart = scatter_chart(
        [Estimate(OURS, 0.6, None), Estimate(SCRATCH, 0.4, None)], [0.5, 90.0],
        Axis("n", logarithmic=True), Axis("Dice"),
        title="log",
    )  # fmt: skip
    labels = re.findall(r">([^<]*)</text>", chart.svg)
    assert {"0.5", "1", "2", "5", "10", "20", "50", "100"} <= set(labels)
    assert "mathdefault" not in chart.svg


def test_ids_of_two_charts_differ() -> None:
    found = [set(re.findall(r' id="([^"]+)"', chart.svg)) for chart in charts()]
    assert sum(map(len, found)) == len(set.union(*found))


def test_equal_charts_are_equal_text() -> None:
    assert curve(logarithmic=True).svg == curve(logarithmic=True).svg


def test_no_two_models_look_alike() -> None:
    looks = {(colour, dashed, marker) for colour, marker, dashed in MARKS.values()}
    assert len(looks) == len(MARKS) - 1, "student and task_kd are the same model in a run and in a comparison"
    keys = {name: line_key(look_of(name, "same")).svg for name in MARKS if name != "student"}
    assert len(set(keys.values())) == len(keys)


def test_every_method_has_marks_of_its_own() -> None:
    assert METHODS.keys() <= MARKS.keys()


def test_tables_have_one_order() -> None:
    assert ordered(["new", "control", "student", "teacher"]) == ["teacher", "student", "control", "new"]


@pytest.mark.parametrize(("values", "wide"), [([1, 7], False), ([1, 8], True), ([0, 100], False), ([-1, 5], False)])
def test_wide_spreads_get_a_logarithmic_axis(values: list[float], wide: bool) -> None:
    assert log_places(values) is wide
