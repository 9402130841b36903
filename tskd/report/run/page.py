"""The page of one run: each function writes a section, or leaves it out where the run has nothing for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from tskd.console import counted
from tskd.data.prepared import Part, Prepared
from tskd.deploy.card import INTENDED_USE, LIMITS
from tskd.metrics.segmentation import ScoreRow, case_means
from tskd.report.blocks import Block, Charts, Facts, Page, Pictures, Points, Section, Table, section
from tskd.report.charts import Estimate, forest_chart
from tskd.report.pictures import ROOM, Album, Gallery, failures, picks, side_by_side
from tskd.report.run.ablation import run_uses_section
from tskd.report.run.doubt import doubt_section
from tskd.report.run.folder import STUDENT, RunFolder
from tskd.report.run.provenance import cost_section, reproduce_section
from tskd.report.run.training import resources_section, training_section
from tskd.report.run.transfer import transfer_section
from tskd.report.run.verdict import CAVEAT, verdict
from tskd.report.text import (
    FALSE_POSITIVE,
    INTERVAL,
    MISSED,
    P_NOTE,
    P_VALUE,
    capital,
    dice_of,
    false_positives,
    interval,
    interval_of,
    missed,
    number,
    p_value,
    scored,
    signed,
    without_idle,
)
from tskd.stages.evaluation_files import LOOKS

_VOLUME_ERROR = "volume_error_ml"
OTHERS_SHOWN = 3
"""Overlays picked by a model that is not the student: its worst, median and best."""


def run_page(run: RunFolder, *, room: int = ROOM) -> Page:
    """Return the page of a run; ``room`` is how many bytes its pictures may take."""
    album = Album(room)
    gallery = Gallery(run.tested, album)
    sections = (
        scores_section(run),
        run_uses_section(run),
        doubt_section(run),
        overlays_section(run, gallery),
        failures_section(run, gallery),
        transfer_section(run, album),
        training_section(run),
        resources_section(run),
        data_section(run),
        limits_section(),
        cost_section(run),
        reproduce_section(run),
    )
    return Page(
        title=run.summary.dataset,
        kicker=_kicker(run),
        verdict=verdict(run, run.tests),
        caveat=CAVEAT,
        sections=tuple(one for one in sections if one is not None),
        footnote=album.note,
    )


def scores_section(run: RunFolder) -> Section | None:
    """How good every model is, and how it compares with the student case by case."""
    other = f" of {run.tested.dataset['name']}" if run.tested != run.prepared else ""
    own = run.metrics[STUDENT]
    stacked = " Slices are stacked and scored as volumes, each patient and frame by itself." * (run.level == "volume")
    lead = (
        f"Means over {counted(own['n_cases'], 'test case')}{other} with {scored(own)} at their own size. A case: a "
        f"patient, a volume, or images that look alike.{stacked}"
    )
    blocks: list[Block | None] = [
        _score_table(run),
        _forest(run),
        _paired_table(run),
        _class_table(run),
        _slice_table(run),
    ]
    return section("scores", "Scores", lead, blocks)


def overlays_section(run: RunFolder, gallery: Gallery) -> Section | None:
    """The same test images for all models."""
    count = run.summary.recipe["evaluate"]["overlays"]
    counts = dict.fromkeys(run.models, OTHERS_SHOWN if count else 0) | {STUDENT: count}
    models = [run.predictions[STUDENT], *(one for name, one in run.predictions.items() if name != STUDENT)]
    blocks = side_by_side(gallery, models, picks(models, counts))
    lead = "Line: truth. Area: prediction. Ranked by Dice; images that several models picked come once."
    return section("overlays", "Worst, median and best", lead, _with_keys(blocks, gallery))


def failures_section(run: RunFolder, gallery: Gallery) -> Section | None:
    """What the student missed altogether, and what it found where nothing was."""
    student = run.predictions[STUDENT]
    images = "Slices" if run.level == "volume" else "Images"
    above = "the Dice by slice" if run.level == "volume" else "the Dice above"
    wrong = f"the {run.title(STUDENT)} misses a class or finds one that is not there"
    lead = f"{images} on which {wrong}; each counts as 0 in {above}."
    return section("failures", "Failure cases", lead, failures(gallery, student))


def data_section(run: RunFolder) -> Section | None:
    """Which images were used for what."""
    uses: tuple[tuple[str, Prepared, Part], ...] = (
        ("trained on, with labels", run.prepared, "train"),
        ("selection of weights, with labels", run.prepared, "val"),
        ("without a label in use, open to training", run.prepared, "unlabelled"),
        ("scored, never trained on", run.tested, "test"),
    )
    rows = tuple((use, str(data.count(part)), str(len(data.cases(part)))) for use, data, part in uses)
    size, names = run.prepared.image_size, {data.dataset["name"]: None for _, data, _ in uses}
    facts = (
        ("Data set", ", tested on ".join(names)),
        ("Classes", ", ".join(run.prepared.classes)),
        ("The student sees", f"{size} × {size} pixels"),
        *_cut(run),
    )
    lead = "No test or validation case is in another row; of a training case a part may have labels and the rest not."
    return section("data", "Data", lead, [Table(("use", "images", "cases"), rows), Facts(facts)])


def _cut(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield what is said of tiles, where images are cut into some."""
    tile, looks = run.prepared.tile, run.metrics[STUDENT].get(LOOKS)
    if tile is None or (looks or 1) == 1:
        return
    yield "Larger images", f"are cut into tiles of {tile} × {tile} pixels for training, and answered in such tiles"
    yield "Tiles of a test image", f"{looks:.4g} on average, since they overlap by half"


def limits_section() -> Section | None:
    """The model card's words."""
    return section("limits", "Intended use and limits", INTENDED_USE, [Points(LIMITS)])


def _kicker(run: RunFolder) -> str:
    made = f"seed {run.summary.seed}"
    return f"{capital(run.metrics[STUDENT]['model'])} · {counted(run.summary.labels, 'label')} · {made}"


def _score_table(run: RunFolder) -> Table:
    unit = run.unit
    distance = f"hd95_{unit}"
    errors_ml = ("volume error (mL)",) if _VOLUME_ERROR in run.metrics[STUDENT] else ()
    rows = []
    for name in run.models:
        one = run.metrics[name]
        rows.append(
            (
                capital(run.title(name)),
                number(one["dice"]),
                interval_of(one, "dice"),
                number(one["iou"]),
                number(one[distance], 1),
                interval_of(one, distance, 1),
                number(_distance_where_found(run.predictions[name].scores), 1),
                *(number(one[_VOLUME_ERROR], 1) for _ in errors_ml),
                missed(one),
                false_positives(one),
            )
        )
    dice = (dice_of(run.level), INTERVAL, "IoU")
    distances = (f"HD95 ({unit})", INTERVAL, f"HD95 where found ({unit})")
    columns = ("model", *dice, *distances, *errors_ml, MISSED, FALSE_POSITIVE)
    teacher = f" Teacher: {run.summary.teacher}." if run.summary.teacher else ""
    note = (
        f"Bold: the {run.title(STUDENT)}, which is shipped.{teacher} "
        "Bootstrap intervals over cases. Mask and prediction both empty: Dice 1, distance 0. Only one of them empty "
        f"(missed, false positive; counted over {run.level}s and classes, of those with and without the class): Dice "
        f"0, distance the {run.level} diagonal. Where found: the same distance over the {run.level}s that have a mask "
        "and a prediction alone, which are others for every model."
    )
    if remark := run.metrics[STUDENT].get("remark"):
        note += f" Of these test images: {remark}."
    strong = frozenset({run.models.index(STUDENT)})
    return Table(*without_idle(columns, rows), note=note, strong=strong)


def _slice_table(run: RunFolder) -> Table | None:
    """Return the scores of the slices of volumes, as they were reported before these were stacked."""
    if run.level != "volume":
        return None
    by_slice = {name: run.metrics[name]["slices"] for name in run.models}
    unit = "mm" if "hd95_mm" in by_slice[STUDENT] else "px"
    columns = ("model", "2-D Dice", INTERVAL, f"2-D HD95 ({unit})", MISSED, FALSE_POSITIVE)
    rows = (
        (
            capital(run.title(name)),
            number(one["dice"]),
            interval_of(one, "dice"),
            number(one[f"hd95_{unit}"], 1),
            missed(one),
            false_positives(one),
        )
        for name, one in by_slice.items()
    )
    empty, count = by_slice[STUDENT]["both_empty"] + by_slice[STUDENT]["false_positive"], _rows(by_slice[STUDENT])
    return Table(
        *without_idle(columns, rows),
        title="The same predictions slice by slice",
        note=f"{empty} of {count} slices and classes have an empty mask: each of them counts as Dice 1 where the "
        "prediction is empty too, so that a model that finds nothing gains by them.",
    )


def _rows(scores: Mapping[str, Any]) -> int:
    return sum(int(scores[status]) for status in ("scored", "missed", "false_positive", "both_empty"))


def _distance_where_found(rows: Sequence[ScoreRow]) -> float | None:
    """Return the mean HD95 over cases of what was there and found; None where that is nothing."""
    means = case_means([row for row in rows if row.score.status == "scored"], "hd95")
    return fmean(means.values()) if means else None


def _forest(run: RunFolder) -> Charts | None:
    if run.metrics[STUDENT]["dice"] is None:
        return None
    rows = [
        Estimate(
            run.look(name),
            run.metrics[name]["dice"],
            run.metrics[name]["dice_ci95"],
            list(case_means(run.predictions[name].scores, "dice").values()),
        )
        for name in run.models
    ]
    dice = dice_of(run.level)
    chart = forest_chart(rows, title=f"{dice} of every model", measure=dice)
    return Charts((chart,), note="Faint marks: single cases. Bar: 95\u00a0% interval of the mean.")


def _paired_table(run: RunFolder) -> Table | None:
    if not run.tests:
        return None
    rows = tuple(
        (
            capital(run.title(test.method)),
            signed(test.difference),
            interval((test.ci95_low, test.ci95_high)),
            f"{test.wins} / {test.ties} / {test.losses}",
            p_value(test.p_holm),
        )
        for test in run.tests
    )
    return Table(
        ("model", f"{dice_of(run.level)} difference", INTERVAL, "cases better / tied / worse", P_VALUE),
        rows,
        title=f"Against the {run.title(STUDENT)}, on the same cases",
        note=f"Differences are model minus {run.title(STUDENT)}. Within {run.tests[0].tie_margin:g} is a tie. "
        f"{P_NOTE} It goes by means, p by ranks; neither speaks of another training.",
    )


def _class_table(run: RunFolder) -> Table | None:
    classes = run.prepared.classes
    if len(classes) < 2:
        return None
    rows = tuple(
        (name, *(number(run.metrics[model]["classes"][str(label)]["dice"]) for model in run.models))
        for label, name in enumerate(classes, start=1)
    )
    return Table(
        ("class", *(run.title(name) for name in run.models)), rows, title=f"{dice_of(run.level)} of each class"
    )


def _with_keys(blocks: Sequence[Pictures], gallery: Gallery) -> list[Block]:
    """Return the blocks with the legend above the first."""
    return [Pictures((), keys=gallery.keys()), *blocks] if blocks else []
