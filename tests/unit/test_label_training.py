"""Weights are selected by what they will be scored by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.data.prepared import DATASET, IMAGES, MASKS, RECORDS, Prepared
from tskd.stages.label_training import selection, validation
from tskd.types import UNLABELLED, SegmentationOutput

SIDE = 8


class Bright(nn.Module):
    """Calls foreground what is brighter than a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((), images[:, :1] - self.level)


def validated(folder: Path, *, volumes: bool, tiles: bool = False) -> Prepared:
    """Write two cases of validation slices: one of an organ in one of three, one of an organ in both of two, half of it
    too dark to be seen. As ``tiles`` those of a case are of one image, or the last two of three of one slice."""
    folder.mkdir()
    images, masks = np.zeros((5, SIDE, SIDE, 3), np.uint8), np.zeros((5, SIDE, SIDE), np.uint8)
    masks[1, 2:4, 2:4] = masks[3, :4] = masks[4, :4] = 1
    images[masks == 1] = 200
    images[4, :4] = 50
    np.save(folder / IMAGES, images)
    np.save(folder / MASKS, masks)
    square = {"part": "val", "height": SIDE, "width": SIDE, "spacing": None}
    places = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 0)]
    of = [{"volume": case, "place": place} if volumes else {} for case, place in places]
    whole = [case if not volumes else f"{case}{place and 1}" for case, place in places]
    cut = [{"tile_of": name, "corner": (0, 0)} if tiles else {} for name in whole]
    if tiles and volumes:
        of = [{"volume": case, "place": place and 1} for case, place in places]
    records = [{"id": str(row), "case": places[row][0], **square, **of[row], **cut[row]} for row in range(5)]
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / DATASET).write_text(json.dumps({"name": "by hand", "classes": ["organ"]}))
    return Prepared(folder)


def test_volumes_are_validated_whole(tmp_path: Path) -> None:
    """A network that marks nothing had 0.4 by slices, for the empty ones, and could be selected for it."""
    prepared = validated(tmp_path / "volumes", volumes=True)
    score = validation(prepared)
    assert score(Bright(1.0)) == {"score": 0}
    assert score(Bright(0.5))["score"] == pytest.approx((1 + 2 * 32 / (32 + 64)) / 2)
    assert selection(Artifact(prepared.folder)) == {"selected_by": "volume"}


def test_single_images_are_validated_one_by_one_and_keep_their_names(tmp_path: Path) -> None:
    prepared = validated(tmp_path / "images", volumes=False)
    score = validation(prepared)
    assert score(Bright(1.0))["score"] == pytest.approx(2 / 5)
    assert score(Bright(0.5))["score"] == pytest.approx(4 / 5)
    assert selection(Artifact(prepared.folder)) == {}


def test_tiles_are_validated_as_the_image_that_they_are_of(tmp_path: Path) -> None:
    """A network that marks nothing had 0.4 by tiles: most of them show nothing, whatever is learned."""
    prepared = validated(tmp_path / "tiles", volumes=False, tiles=True)
    score = validation(prepared)
    assert score(Bright(1.0)) == {"score": 0}
    assert score(Bright(0.5))["score"] == pytest.approx((1 + 2 * 32 / (32 + 64)) / 2)
    assert selection(Artifact(prepared.folder)) == {"selected_by": "tiles together"}


def test_a_tile_without_a_label_has_no_score_of_its_own(tmp_path: Path) -> None:
    prepared = validated(tmp_path / "tiles", volumes=False, tiles=True)
    masks = np.array(prepared.masks)
    masks[0] = UNLABELLED
    np.save(prepared.folder / MASKS, masks)
    assert validation(Prepared(prepared.folder))(Bright(0.1)) == {"score": 1}


def test_tiles_of_slices_are_validated_by_volume(tmp_path: Path) -> None:
    score = validation(validated(tmp_path / "both", volumes=True, tiles=True))
    assert score(Bright(1.0)) == {"score": 0}
    assert score(Bright(0.5))["score"] == pytest.approx((1 + 2 * 32 / (32 + 64)) / 2)
