"""The rules by which settings of a run are chosen: what each says of the data, the networks and the time, and why.

A rule sees what is settled so far, the user's settings included, and yields its choices one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tskd.console import counted
from tskd.engine.batches import CELL
from tskd.experiment.facts import Facts
from tskd.experiment.pace import Pace, students
from tskd.recipe.schema import OFFLINE, DataConfig, build_recipe

SIZES_ON_CPU, SIZES_ON_GPU = (128, 160, 192), (256, 320, 384, 512)
THINNEST = 3.0
"""Pixels that a structure should be thick where the networks see it."""
TILED = 8.0
"""Pixels that a structure is to be thick in tiles: vessels of 8 px in an image of 512 px gave 0.46 where they were
squeezed to 2 px, 0.66 at 4 px and 0.77 at 8."""
FINE = 3.5
"""Pixels below which a structure wants a skip at full size: vessels 2 px thick gained by it, nuclei of 4 px did not."""
WORTH_TILES = 0.75
"""Largest tile that is taken, as a share of the image's side."""
SHOWING = 0.33
"""Share of tiles drawn because they show a structure, as in nnU-Net: ulcers in a third of the tiles gained by it."""
FEW_LABELS, FEW_CASES = 100, 25
"""Below, a fifth of the labels, or of the cases, chooses weights by chance: all of them train."""
SHARES = {"teacher": 0.35, "distill": 0.25, "finetune": 0.06}
"""Of the time, where one U-Net is held against the student and trains as long; the rest is for reading, the teacher's
answers, scores and the export."""
LEAST_TRAINED = 0.5
"""Share of the time that is left to training, however many tiles are answered."""
FEWEST, MOST = {"teacher": 100, "distill": 150, "finetune": 50}, {"teacher": 1500, "distill": 8000, "finetune": 1000}


class Choice(NamedTuple):
    """One setting, and why."""

    key: str
    value: Any
    reason: str


def of_the_data(facts: Facts, values: Mapping[str, Any]) -> Iterator[Choice]:
    """Yield the choices that follow from the data set; ``values``: all that is settled so far."""
    sizes = SIZES_ON_GPU if facts.gpu else SIZES_ON_CPU
    seen = _as_cut(facts, build_recipe(values, "the choices").data)
    wanted = 0.0 if seen.thickness is None else THINNEST / seen.thickness
    free, tile = "tile" not in values.get("data", {}), _tile(seen, sizes[0])
    # several classes may be told apart by their place, which a tile hides: larger images first
    mends = free and tile is not None and wanted > (sizes[-1] if seen.thinnest else sizes[0])
    size = sizes[0] if mends else next((one for one in sizes if one >= wanted), sizes[-1])
    small = "; less than wished for: larger images would show them better" if wanted > size and not mends else ""
    have = f"images have {facts.side}{'' if seen.side == facts.side else f', tiles {seen.side}'}"
    where = f"{sizes[0]} to {sizes[-1]} px on {'a GPU' if facts.gpu else 'a processor'}"
    yield Choice("data.image_size", size, f"{_how_thick(seen, size, whole=mends)}{small} ({where}; {have})")
    side = build_recipe(values, "the choices").data.image_size
    if wanted > side and (tile := _tile(seen, side)) is not None:
        assert seen.pixels is not None
        thick = f"{seen.pixels * side / tile:.1f} px"
        yield Choice("data.tile", tile, f"in tiles of so many px they are {thick} thick where the networks see them")
    if not facts.validated and (facts.labelled < FEW_LABELS or facts.cases < FEW_CASES):
        few = counted(facts.labelled, "label")
        of = f" of {counted(facts.cases, 'case')}" if facts.cases < facts.labelled else ""
        yield Choice("data.val_share", 0.0, f"{few}{of} are too few to choose weights by a part: all train")


def _how_thick(seen: Facts, size: int, *, whole: bool) -> str:
    """Say how thick structures are where the networks see them; ``whole``: before tiles are chosen."""
    if seen.thickness is None:
        return "no structure was seen in the labelled images that were looked at"
    of = f" of {seen.thinnest}" if seen.thinnest else ""
    then = ", seen whole" if whole else " then"
    return f"the thinner structures{of} are {seen.thickness:.1%} of a side, {seen.thickness * size:.1f} px{then}"


def _tile(facts: Facts, side: int) -> int | None:
    """Return the tile in which structures are ``TILED`` px thick, squeezed to ``side``, or as near as the images allow:
    a tile is not enlarged. None where whole images show nearly as much."""
    if facts.pixels is None:
        return None
    tile = max(int(facts.pixels * side / TILED) // CELL * CELL, side)
    return tile if tile <= facts.side * WORTH_TILES else None


def _as_cut(facts: Facts, data: DataConfig) -> Facts:
    """Return the facts of what the networks are shown: of tiles, where images are cut."""
    if data.tile is None or facts.pixels is None or facts.side <= data.tile:
        return facts
    return replace(facts, side=data.tile, thickness=min(facts.pixels / data.tile, 1.0))


def _decoder(facts: Facts, data: DataConfig) -> tuple[str, str]:
    """Return the decoder of networks that see images or tiles of them under those settings, and why."""
    facts = _as_cut(facts, data)
    if facts.thickness is not None and (thick := facts.thickness * data.image_size) < FINE:
        return "unet_fine", f"a skip at full size for structures {thick:.1f} px thick"
    return "unet", "its features of all sizes are joined, as in a U-Net"


def of_the_networks(facts: Facts, values: Mapping[str, Any]) -> Iterator[Choice]:
    """Yield the choices of teacher, student, baseline and precision; ``values``: all that is settled so far."""
    decoder, why = _decoder(facts, build_recipe(values, "the choices").data)
    if facts.sam is not None and facts.gpu:
        yield Choice("teacher.name", "sam", f"SAM's weights are on this machine ({facts.sam.name}), and it has a GPU")
    elif facts.offline:
        yield Choice(
            "teacher.name",
            OFFLINE,
            "EfficientNet-Lite0 with ImageNet weights is installed; SAM wants its file and a GPU",
        )
        yield Choice("teacher.decoder", decoder, why)
        yield Choice("teacher.adaptation", "auto", "all weights of a convolutional teacher train")
        yield Choice("teacher.encoder_lr", 0.3, "its encoder starts trained")
        yield Choice("teacher.lr", 1e-3, "as for a U-Net")
        yield Choice("teacher.mirror", True, "one teacher: three taught no better and share the time")
    if facts.offline:
        yield Choice(
            "student.backbone",
            "tf_efficientnet_lite0",
            "5.2 million weights with the decoder, and ImageNet's are installed",
        )
        yield Choice("student.decoder", decoder, why)
        yield Choice("student.weights", OFFLINE, "a trained start is worth more than labels that are not there")
        yield Choice("student.initialisation", "weights", "for every method but scratch")
        yield Choice("baselines", ["unet_imagenet"], "the U-Net that anyone would train from these weights and labels")
        yield Choice("unet_imagenet.compute", "equal", "as much as the student has")
        if (of_student := build_recipe(values, "the choices").student.decoder) in ("unet", "unet_fine"):
            decoder, why = of_student, "as the student's, so that nothing else is compared"
        yield Choice("unet_imagenet.decoder", decoder, why)
        yield Choice("control.enabled", False, "a U-Net from random weights would be the weaker of the two")
    tile = build_recipe(values, "the choices").data.tile
    if tile is not None and tile < facts.side:
        why = "that share of the tiles is drawn because they show a structure: many show none"
        for part in ("teacher", "finetune", "unet_imagenet" if facts.offline else "control"):
            yield Choice(f"{part}.augment.foreground", SHOWING, why)
    if facts.bf16:
        why = "half of the memory on this GPU" if facts.gpu else "a convolution is quicker in it on this machine"
        yield Choice("engine.precision", "bf16-mixed", why)


def of_the_time(pace: Pace, values: Mapping[str, Any], minutes: float) -> Iterator[Choice]:
    """Yield the numbers of steps that fit the time, by what a step of the student takes here."""
    recipe = build_recipe(values, "the choices")
    left = max(minutes - pace.answers, LEAST_TRAINED * minutes)
    beside = f" ({minutes:g} less {minutes - left:.0f} for answers)" if left < 0.95 * minutes else ""
    networks = sum(kind.members for kind in recipe.teacher.kinds)
    for section, share in SHARES.items():
        step = pace.seconds(getattr(recipe, section)) * (pace.teacher if section == "teacher" else 1)
        steps = share * left * 60 / step / (1 if section == "teacher" else students(recipe) / 2)
        kept = int(np.clip(round(steps, -1), FEWEST[section], MOST[section]))
        each = f" of its {networks} networks" if section == "teacher" and networks > 1 else ""
        bound = {FEWEST[section]: "; fewer are not worth it", MOST[section]: "; more are not needed"}.get(kept, "")
        reason = f"{share:.0%} of {left:.3g} min{beside} at {step:.2f} s a step{each}{bound}"
        yield Choice(f"{section}.steps", kept, reason)
