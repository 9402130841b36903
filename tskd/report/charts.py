"""Charts as SVG text whose colours and font are the page's own: they change with light and dark and print crisply.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables. A chart is as wide as a phone's
column, so its letters are as large as the page's wherever it is shown.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tskd.report.blocks import Chart, Key
from tskd.report.styles import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 360, 232
"""Of a chart, in CSS pixels on a phone."""
DOTS = 72
"""Units of an SVG that an inch of matplotlib's has."""
ROLES = ("ink", "muted", "rule", "paper", *(f"series-{index}" for index in range(8)))
"""CSS variables of the page that a chart may use."""
_STAND_IN = "#0a0b"
_FONT = "DejaVu Sans"
_MOST_TICKS = 6
_APART = 4.5
"""CSS pixels by which models at one place are set apart, so that intervals do not cover each other."""


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one row of points with intervals."""

    look: Look
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float] | None] = ()
    """One a point, or none at all."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    title: str
    ticks: Sequence[float] | None = None
    """None: as matplotlib chooses."""
    labels: Sequence[str] = ()
    logarithmic: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval and the values behind it: one row of a forest."""

    look: Look
    mean: float
    interval: tuple[float, float] | None
    values: Sequence[float] = ()


def line_chart(
    series: Sequence[Series], x: Axis, y: Axis, *, title: str, points: bool = True, named: bool = False
) -> Chart:
    """Draw lines over numbers; ``named`` puts a legend inside, intervals set the lines a little apart."""
    with _drawing(title) as figure:
        axes = figure.subplots()
        for index, one in enumerate(series):
            apart = _APART * (index - (len(series) - 1) / 2) if one.intervals else 0.0
            _draw_line(axes, one, apart=apart, points=points)
        if any(one.intervals for one in series):
            axes.margins(x=0.05 + _APART * len(series) / 2 / WIDTH)
        _label(axes, x, y)
        if named:
            axes.legend(frameon=False, fontsize=10, labelcolor=_role("muted"), handlelength=1.6)
        return _chart(figure, title, _describe_lines(series, x, y))


def forest_chart(
    rows: Sequence[Estimate], *, title: str, measure: str, span: tuple[float, float] | None = None
) -> Chart:
    """Draw each row's mean with its interval, and its single values as faint marks below, over ``span`` if given."""
    with _drawing(title, height=36 + 38 * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour = _series(row.look.colour)
            heights = place + np.resize(np.linspace(0.12, 0.38, 7), len(row.values))
            axes.scatter(row.values, heights, s=12, color=colour, alpha=0.35, linewidths=0)
            if row.interval:
                above = (place - 0.12, place - 0.12)
                axes.plot(row.interval, above, color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(row.mean, place - 0.12, row.look.marker, color=colour, markersize=7, **_edge())
        axes.set_yticks(range(len(rows)), [row.look.title for row in rows], color=_role("ink"))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(xlabel=measure, xlim=span)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        parts = (f"{row.look.title} {row.mean:.3f}" for row in rows)
        return _chart(figure, title, f"{measure}: {', '.join(parts)}")


def scatter_chart(points: Sequence[Estimate], places: list[float], x: Axis, y: Axis, *, title: str) -> Chart:
    """Draw one mark with its interval a row, at the places on the x axis."""
    with _drawing(title) as figure:
        axes = figure.subplots()
        for index, (point, place) in enumerate(zip(points, places, strict=True)):
            colour, moved = _series(point.look.colour), _moved(axes, _APART * places[:index].count(place))
            axes.update_datalim([(place, height) for height in (point.mean, *(point.interval or ()))])
            if point.interval:
                axes.plot((place, place), point.interval, color=colour, linewidth=1.6, alpha=0.6, transform=moved)
            axes.plot(place, point.mean, point.look.marker, color=colour, markersize=7, transform=moved, **_edge())
        axes.margins(x=0.12)
        _label(axes, x, y)
        parts = (f"{p.look.title}: {p.mean:.3f} at {place:g}" for p, place in zip(points, places, strict=True))
        return _chart(figure, title, f"{y.title} by {x.title}: {', '.join(parts)}")


def stacked_chart(names: Sequence[str], parts: Mapping[str, Sequence[float]], x: Axis, *, title: str) -> Chart:
    """Draw one bar a name, made of parts that add up; a part below zero is drawn to the left."""
    with _drawing(title, height=40 + 26 * len(names)) as figure:
        axes = figure.subplots()
        left = np.zeros(len(names))
        for index, values in enumerate(parts.values()):
            axes.barh(range(len(names)), values, left=left, height=0.62, color=_series(index), linewidth=0)
            left = left + np.asarray(values)
        axes.set_yticks(range(len(names)), names, color=_role("ink"))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(x.title)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        sums = (f"{name} {total:.4f}" for name, total in zip(names, left, strict=True))
        return _chart(figure, title, f"{x.title}: {', '.join(sums)}")


def line_key(look: Look) -> Key:
    """Return the legend's entry of a series: its line and mark."""
    with _drawing(look.title, width=30, height=12, constrained=False) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.plot((0, 1), (0, 0), color=_series(look.colour), linewidth=2, linestyle=_dash(look))
        axes.plot(0.5, 0, look.marker, color=_series(look.colour), markersize=6.5, **_edge())
        return Key(look.title, svg=_svg(figure))


def patch_key(title: str, series: int) -> Key:
    """Return the legend's entry of a plain area."""
    return Key(title, colour=f"var(--series-{series})")


def _draw_line(axes: Axes, one: Series, *, apart: float, points: bool) -> None:
    colour, moved = _series(one.look.colour), _moved(axes, apart)
    heights = [(place, height) for place, bounds in zip(one.x, one.intervals) for height in bounds or ()]
    axes.update_datalim([*zip(one.x, one.y), *heights])
    for place, bounds in zip(one.x, one.intervals):
        if bounds:
            axes.plot((place, place), bounds, color=colour, linewidth=1.4, alpha=0.55, transform=moved)
    mark = {"marker": one.look.marker, "markersize": 5.5, **_edge()} if points else {}
    style = {"linewidth": 1.8, "linestyle": _dash(one.look), "label": one.look.title}
    axes.plot(one.x, one.y, color=colour, transform=moved, **style, **mark)


def _moved(axes: Axes, pixels: float) -> Any:
    """Return the transform of data that is drawn so many CSS pixels to the right of its place.

    The limits of the axes do not follow data drawn so: they are told.
    """
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(pixels / DOTS, 0, axes.figure.dpi_scale_trans)


def _label(axes: Axes, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    axes.set(xscale="log" if x.logarithmic else "linear", yscale="log" if y.logarithmic else "linear")
    for axis, what in ((axes.xaxis, x), (axes.yaxis, y)):
        round_numbers = MaxNLocator(_MOST_TICKS, steps=(1, 2, 2.5, 5, 10))
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if what.logarithmic else round_numbers)
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.autoscale_view()
    if x.ticks is not None:
        axes.set_xticks(x.ticks, x.labels or None)
    if x.from_zero:
        axes.set_xlim(left=0)
    axes.set_xlabel(x.title)
    axes.set_title(y.title, loc="left", fontsize=11, color=_role("muted"), pad=7)


def _describe_lines(series: Sequence[Series], x: Axis, y: Axis) -> str:
    parts = (f"{one.look.title} from {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in series if len(one.y))
    return f"{y.title} over {x.title}: {', '.join(parts)}"


@contextmanager
def _drawing(salt: str, *, width: int = WIDTH, height: int = HEIGHT, constrained: bool = True) -> Iterator[Figure]:
    """Yield a figure with the page's style; ``salt`` keeps the ids inside it apart from another chart's."""
    import matplotlib as mpl  # half a second that only a report needs
    from matplotlib.figure import Figure

    with mpl.rc_context({**_style(), "svg.hashsalt": salt}):
        yield Figure(figsize=(width / DOTS, height / DOTS), layout="constrained" if constrained else None)


def _style() -> dict[str, Any]:
    ink, muted, rule = _role("ink"), _role("muted"), _role("rule")
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": _FONT,
        "font.size": 11,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": rule,
        "grid.linewidth": 0.7,
        "xtick.color": rule,
        "ytick.color": rule,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
    }


def _role(name: str) -> str:
    return f"{_STAND_IN}{ROLES.index(name):02x}"


def _series(index: int) -> str:
    return _role(f"series-{index}")


def _edge() -> dict[str, Any]:
    """A rim of the page's colour that keeps marks apart where they overlap."""
    return {"markeredgecolor": _role("paper"), "markeredgewidth": 1.0}


def _dash(look: Look) -> Any:
    return (0, (4, 2)) if look.dashed else "solid"


def _chart(figure: Figure, title: str, alt: str) -> Chart:
    return Chart(_svg(figure), title, alt)


def _svg(figure: Figure) -> str:
    """Return the drawing without what only a file of its own needs, its colours and font left to the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=DOTS)
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes a viewBox"
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r'(?<=<g) id="[^"]*"', r"<!--.*?-->"):
        body = re.sub(unwanted, "", body, flags=re.DOTALL)
    body = re.sub(rf"{_STAND_IN}([0-9a-f]{{2}})", lambda match: f"var(--{ROLES[int(match[1], 16)]})", body)
    body = body.replace(f"'{_FONT}'", "var(--sans)")
    body = re.sub(r"\n\s*", "\n", body)
    return f"<svg {box[0]}>{body}"


def log_places(values: Sequence[float]) -> bool:
    """Return whether positive numbers spread so far that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) / min(values) >= 8 and math.isfinite(max(values))
