"""The training curves of a comparison: every method's trainings in its first replicate, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tskd.artifacts import Artifact, read_log
from tskd.report.blocks import Chart, Charts, Section, section
from tskd.report.charts import Axis, Series, line_chart, line_key, log_places
from tskd.report.comparison.folder import Cell, ComparisonFolder
from tskd.report.run.training import STAGES
from tskd.report.styles import Look
from tskd.report.text import capital

_MEASURES = {"loss": "loss", "val_score": "validation Dice"}
"""Column of a training's log -> what it is."""


def training_section(comparison: ComparisonFolder) -> Section | None:
    """Loss and validation Dice of each stage, a line for all that is compared, in the first group of each data set."""
    groups = comparison.first_groups
    blocks = [_curves(comparison, cells, f" ({title})" if len(groups) > 1 else "") for title, cells in groups.items()]
    place = "" if len(groups) > 1 else f"{capital(next(iter(groups), ''))}. "
    lead = f"{place}First replicate. Losses of different methods are of different kinds and do not compare."
    return section("training", "Training curves", lead, blocks)


def _curves(comparison: ComparisonFolder, cells: Sequence[Cell], where: str) -> Charts:
    lines: dict[tuple[str, str], list[Series]] = {}
    trained: dict[Path, Look] = {}
    for cell, look in zip(cells, comparison.looks(cells)):
        made = [*comparison.diffusion(cell), *comparison.trainings(cell)]
        new = [artifact for artifact in made if artifact.path not in trained]  # others share it
        trained |= dict.fromkeys((artifact.path for artifact in new), look)
        for place, series in _series_of(new, look):
            lines.setdefault(place, []).append(series)
    charts = tuple(_chart(stage, measure, series, where) for (stage, measure), series in lines.items())
    return Charts(charts, tuple(line_key(look) for look in dict.fromkeys(trained.values())))


def _series_of(trainings: Iterable[Artifact], look: Look) -> Iterator[tuple[tuple[str, str], Series]]:
    """Yield (stage, measure) and the line of each training."""
    for artifact in trainings:
        log = read_log(artifact.path)
        for measure in _MEASURES:
            known = [line for line in log if measure in line]
            if len(known) > 1:
                steps, values = [line["step"] for line in known], [line[measure] for line in known]
                yield (artifact.manifest["stage"], measure), Series(look, steps, values)


def _chart(stage: str, measure: str, series: list[Series], where: str) -> Chart:
    title = f"{capital(STAGES.get(stage, stage))}: {_MEASURES[measure]}{where}"
    steep = measure == "loss" and log_places([value for one in series for value in one.y])
    y = Axis(_MEASURES[measure], logarithmic=steep)
    return line_chart(series, Axis("step", from_zero=True), y, title=title, points=False)
