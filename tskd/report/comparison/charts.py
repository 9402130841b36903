"""The sections of a comparison that are charts: learning curves, bias and variance, size and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from tskd.report.blocks import Chart, Charts, Key, Section, Table, section
from tskd.report.charts import (
    Axis,
    Estimate,
    Series,
    line_chart,
    line_key,
    log_places,
    patch_key,
    scatter_chart,
    stacked_chart,
)
from tskd.report.comparison.files import BIAS_VARIANCE, DATASET, METHOD
from tskd.report.comparison.folder import (
    Cell,
    ComparisonFolder,
    Line,
    Setting,
    as_number,
    axis_title,
    value_title,
    value_word,
)
from tskd.report.run.training import SIZES
from tskd.report.styles import look_of, ordered
from tskd.report.text import INTERVAL, capital, number, teraflops, thousands

SHOWN = ("data.image_size", "data.tile")
"""Settings on which the time of an image depends."""
_COSTS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "seconds": ("training, s", partial(number, digits=0)),
    "peak_memory_mb": ("memory, MB", partial(number, digits=0)),
    "peak_gpu_memory_mb": ("GPU memory, MB", partial(number, digits=0)),
    "student_gflops": ("TFLOP", teraflops),
    "teacher_gflops": ("teacher's TFLOP", teraflops),
    "parameters": ("parameters", thousands),
    "model_mb": ("model, MB", partial(number, digits=1)),
    "latency_ms": ("an image, ms", partial(number, digits=1)),
}
"""Column -> title, and how its values are shown."""
_PARTS = {"bias2": "bias²", "variance": "variance"}


def curves_section(comparison: ComparisonFolder) -> Section | None:
    """Dice over every axis that has numbers, one chart for each value of what else varies."""
    charts = [chart for axis in comparison.axes for chart in _axis_charts(comparison, axis)]
    note = f"Mean over replicates and cases with its {INTERVAL}."
    lead = "How Dice changes with the number of labels, of transfer images, and with the rank of the adapter."
    return section("curves", "Learning curves", lead, [Charts(tuple(charts), _keys(comparison), note=note)])


def bias_section(comparison: ComparisonFolder) -> Section | None:
    """The squared error of probabilities, split."""
    lines = comparison.table(BIAS_VARIANCE)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        names = list(line)[: list(line).index(METHOD)]
        title = ", ".join(line[name] if name == DATASET else value_title(name, line[name]) for name in names)
        groups.setdefault(title, []).append(line)
    charts = tuple(_bias_chart(comparison, title, group) for title, group in groups.items())
    keys = tuple(patch_key(title, index) for index, title in enumerate(_PARTS.values()))
    lead = (
        "Mean squared error of pixel probabilities over runs that differ in seed or labels: what all runs get wrong "
        "alike, and what differs from run to run. The shorter, the better."
    )
    return section("bias", "Bias and variance", lead, [Charts(charts, keys)])


def resources_section(comparison: ComparisonFolder) -> Section | None:
    """What all that is compared costs, and Dice against size and speed, for each data set and size of what is seen."""
    groups: dict[str, dict[str, list[Cell]]] = {}
    shown = [axis for axis in comparison.axes_that_set(SHOWN) if comparison.compared != axis]
    for cell in (cell for cells in comparison.groups.values() for cell in cells):
        line = cell.first
        sizes = [value_title(axis, line[axis]) for axis in shown]
        place = groups.setdefault(", ".join([line[DATASET], *sizes]), {})
        place.setdefault(cell.look.title, []).append(cell)
    charts = tuple(chart for title, group in groups.items() for chart in _size_charts(title, group))
    tables = [_cost_table(title, group) for title, group in groups.items()]
    lead = (
        "Means over all settings of a data set but what is compared. The time of one image is that of one CPU thread."
    )
    return section("resources", "Cost, size and speed", lead, [Charts(charts, _keys(comparison)), *tables])


def _axis_charts(comparison: ComparisonFolder, axis: str) -> list[Chart]:
    place = comparison.axes.index(axis) + 1
    facets: dict[Setting, dict[str, list[Cell]]] = {}
    for setting, cells in comparison.cells.items():
        rest = (*setting[:place], "", *setting[place + 1 :])
        facets.setdefault(rest, {})[setting[place]] = cells
    drawn = []
    for rest, by_value in facets.items():
        if sum(as_number(value) is not None for value in by_value) > 1:
            others = [value_title(name, value) for name, value in zip(comparison.axes, rest[1:]) if name != axis]
            title = ", ".join([rest[0], *others])
            drawn.append(_curve(by_value, axis, f"{title}: {axis_title(axis)}"))
    return drawn


def _curve(by_value: dict[str, list[Cell]], axis: str, title: str) -> Chart:
    """Draw a line a method; a value that is not a number stands at the end."""
    numbers = [as_number(value) for value in by_value]
    known = [number for number in numbers if number is not None]
    even = len(known) < len(numbers)
    places = [float(index) if number is None or even else number for index, number in enumerate(numbers)]
    methods = ordered(dict.fromkeys(cell.method for cells in by_value.values() for cell in cells))
    series = [_line(method, list(by_value.values()), places) for method in methods]
    x = Axis(axis_title(axis), places, [value_word(axis, value) for value in by_value], not even and log_places(known))
    return line_chart(series, x, Axis("Dice"), title=title)


def _line(method: str, columns: list[list[Cell]], places: list[float]) -> Series:
    found = [(place, cell) for place, cells in zip(places, columns) for cell in cells if cell.method == method]
    cells = [cell for _, cell in found]
    means, intervals = [cell.dice for cell in cells], [cell.interval for cell in cells]
    return Series(cells[0].look, [place for place, _ in found], means, intervals)


def _bias_chart(comparison: ComparisonFolder, title: str, lines: list[Line]) -> Chart:
    by_method = {line[METHOD]: line for line in lines}
    methods = ordered(by_method)
    parts = {name: [by_method[method][key] for method in methods] for key, name in _PARTS.items()}
    names = [comparison.method_titles.get(method, method) for method in methods]
    return stacked_chart(names, parts, Axis("squared error"), title=title)


def _size_charts(place: str, by_title: Mapping[str, list[Cell]]) -> Iterator[Chart]:
    for column, (title, scale) in SIZES.items():
        known = {one: mean for one, cells in by_title.items() if (mean := _mean(cells, column)) is not None}
        if len(known) < 2:
            continue
        cells = [by_title[one] for one in known]
        points = [Estimate(found[0].look, float(np.mean([cell.dice for cell in found])), None) for found in cells]
        places = [scale * mean for mean in known.values()]
        x = Axis(title, logarithmic=log_places(places))
        yield scatter_chart(points, places, x, Axis("Dice"), title=f"{place}: {title}")


def _cost_table(place: str, by_title: Mapping[str, list[Cell]]) -> Table:
    known = {name: cost for name, cost in _COSTS.items() if any(_mean(cells, name) for cells in by_title.values())}
    rows = tuple(
        (
            capital(cells[0].look.title),
            number(float(np.mean([cell.dice for cell in cells]))),
            *(shown(_mean(cells, column)) for column, (_, shown) in known.items()),
        )
        for cells in by_title.values()
    )
    columns = ("method", "Dice", *(title for title, _ in known.values()))
    note = (
        "Training: wall time of all that the model needs, shared parts in full; runs side by side slow each other. "
        "Memory: the largest process of its training, libraries included. GPU memory: what its tensors held at most."
    )
    return Table(columns, rows, title=place, note=note)


def _mean(cells: Iterable[Cell], column: str) -> float | None:
    known = [mean for cell in cells if (mean := cell.mean(column)) is not None]
    return float(np.mean(known)) if known else None


def _keys(comparison: ComparisonFolder) -> tuple[Key, ...]:
    titles = comparison.method_titles
    looks = {name: look_of(name, titles[name], place=place) for place, name in enumerate(titles)}
    return tuple(line_key(looks[name]) for name in ordered(titles))
