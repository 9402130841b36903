"""Slices are stacked as the data set says, and volumes scored beside them: by a model whose mistakes are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tskd.data.prepared import Prepared, PreparedRecord
from tskd.data.volumes import find_stacks
from tskd.recipe.schema import DataConfig, EvaluateConfig
from tskd.stages.evaluate import evaluate, mean_agreement, predict_image
from tskd.stages.evaluation_files import CASES, read_cases
from tskd.stages.prepare import prepare
from tskd.stages.readings import Reading
from tskd.stages.scoring import Scorable, Scoring, Tally, summarise_levels
from tskd.stages.source_data import open_data
from tskd.types import SegmentationOutput

SIDE, DEPTH = 32, 6
AFFINE = np.diag([1.0, 1.0, 8.0, 1.0])
ORGAN = (slice(8, 24), slice(6, 20), slice(1, 5))
"""Four of six slices hold it: 16 x 14 pixels of 1 mm, 8 mm apart."""
TRUTH_ML = 16 * 14 * 4 * 8 / 1000


class Bright(nn.Module):
    """Calls foreground what is brighter than a grey level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level / 255))

    def forward(self, image: Tensor) -> SegmentationOutput:
        return SegmentationOutput((image,), 1000 * (image.mean(dim=1, keepdim=True) - self.level))


def record(name: str, volume: str | None, place: int | None, **rest: Any) -> PreparedRecord:
    given = {"case": "p", "part": "test", "height": 4, "width": 5, "spacing": (1.0, 1.0, 8.0), **rest}
    return PreparedRecord(id=name, volume=volume, place=place, **given)


def stacks_of(records: Sequence[PreparedRecord]) -> tuple[Any, ...]:
    return find_stacks(records, range(len(records)))


def test_slices_are_stacked_by_place_and_a_gap_is_a_slice_without_a_mask() -> None:
    records = [record("c", "v", 7), record("x", "w", 0), record("a", "v", 3), record("b", "v", 4)]
    (first, second), remarks = stacks_of(records)
    assert (first.name, first.rows, first.places, first.spacing) == ("v", (2, 3, 0), (0, 1, 4), (1.0, 1.0, 8.0))
    assert (second.rows, second.places) == ((1,), (0,))
    assert remarks == ("2 slices inside of volumes have no mask and are not scored",)
    stacked = first.assemble([np.full((4, 5), value, np.uint8) for value in (1, 2, 3)], missing=255)
    assert stacked.shape == (4, 5, 5)
    assert stacked[0, 0].tolist() == [1, 2, 255, 255, 3]


@pytest.mark.parametrize(
    ("changed", "spacing"),
    [({"spacing": (1.0, 1.0)}, None), ({"spacing": (1.0, 1.0, 9.0)}, None), ({}, (1.0, 1.0, 8.0))],
)
def test_a_spacing_is_known_where_all_slices_state_the_same_three_numbers(
    changed: dict[str, Any], spacing: tuple[float, ...] | None
) -> None:
    ((stack,), _) = stacks_of([record("a", "v", 0), record("b", "v", 1, **changed)])
    assert stack.spacing == spacing


def test_what_cannot_be_stacked_is_scored_as_single_images_and_said() -> None:
    assert stacks_of([record("a", None, None), record("b", None, None)]) == ((), ())
    assert stacks_of([record("a", "v", 0), record("b", "w", 0)]) == ((), ())  # volumes of one slice: single images
    stacks, (remark,) = stacks_of([record("a", "v", 0), record("b", "v", 1), record("c", None, None)])
    assert (stacks, remark[:40]) == ((), "1 of 3 images belong to no volume: all a")
    stacks, (remark,) = stacks_of([record("a", "v", 0), record("b", "v", 1, width=6), record("c", "w", 0)])
    assert stacks == ()
    assert remark.startswith("the slices of 1 of 2 volumes differ in size")


def volumes(root: Path, *, missing: Sequence[int] = ()) -> Prepared:
    """Return eight NIfTI patients with one organ, two for the test; in ``missing`` slices it is as dark as the rest."""
    for patient in range(8):
        rng = np.random.default_rng(patient)
        labels = np.zeros((SIDE, SIDE, DEPTH), np.uint8)
        labels[ORGAN] = 1
        seen = labels.copy()
        seen[:, :, list(missing)] = 0
        values = (100 * seen + rng.integers(60, 100, labels.shape)).astype(np.uint8)
        part = "Ts" if patient < 2 else "Tr"
        for kind, array in (("images", values), ("labels", labels)):
            suffix = "_0000" if kind == "images" else ""
            path = root / "data" / f"{kind}{part}" / f"p{patient}{suffix}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    config = DataConfig(root=str(root / "data"), image_size=32, test_share=0.01)
    folder = root / "prepared"
    folder.mkdir()
    prepare(config, Reading(open_data(config, Path(config.root)), config.image_size, folder), folder)
    return Prepared(folder)


def evaluated(prepared: Prepared, folder: Path, level: float) -> dict[str, Any]:
    folder.mkdir()
    return evaluate(EvaluateConfig(), Bright(level), prepared, folder, title="bright", device=torch.device("cpu"))


def test_volumes_come_first_and_slices_second(tmp_path: Path) -> None:
    """The upper end slice of the organ is dark: three of four slices are found."""
    prepared = volumes(tmp_path, missing=[4])
    found = evaluated(prepared, tmp_path / "scores", 130)
    assert found == json.loads((tmp_path / "scores/summary.json").read_text())
    assert (found["level"], found["n_cases"], found["n_volumes"], found["n_images"]) == ("volume", 2, 2, 2 * DEPTH)
    assert found["dice"] == pytest.approx(2 * 3 / 7)
    assert found["volume_error_ml"] == pytest.approx(TRUTH_ML / 4)
    assert found["hd95_mm"] == pytest.approx(8.0)
    assert (found["scored"], found["missed"], found["both_empty"]) == (2, 0, 0)
    slices = found["slices"]
    assert (slices["level"], slices["n_images"], slices["n_cases"]) == ("image", 2 * DEPTH, 2)
    assert slices["dice"] == pytest.approx(5 / 6)  # two empty slices and three that were found
    assert slices["hd95_mm"] == pytest.approx(np.hypot(SIDE, SIDE) / 6)  # 45 mm for a slice 8 mm away
    assert (slices["scored"], slices["missed"], slices["both_empty"]) == (6, 2, 4)
    with (tmp_path / "scores" / CASES).open() as file:
        lines = list(csv.DictReader(file))
    assert [line["level"] for line in lines].count("volume") == 2
    assert len(lines) == 2 * DEPTH + 2
    volume = next(line for line in lines if line["level"] == "volume")
    assert (volume["image"], float(volume["truth_ml"])) == ("p0", pytest.approx(TRUTH_ML))
    assert [row.image for row in read_cases(tmp_path / "scores")] == ["p0", "p1"]


def test_finding_nothing_scores_nothing(tmp_path: Path) -> None:
    prepared = volumes(tmp_path)
    found = evaluated(prepared, tmp_path / "scores", 255)
    assert (found["dice"], found["missed"], found["slices"]["dice"]) == (0.0, 2, pytest.approx(2 / 6))
    assert found["hd95_mm"] == pytest.approx(np.sqrt(2 * SIDE**2 + (8 * DEPTH) ** 2))


def test_agreement_is_of_volumes(tmp_path: Path) -> None:
    prepared = volumes(tmp_path, missing=[4])
    evaluated(prepared, tmp_path / "found", 130)
    evaluated(prepared, tmp_path / "nothing", 255)
    assert mean_agreement(tmp_path / "found", tmp_path / "found", prepared) == 1.0
    assert mean_agreement(tmp_path / "found", tmp_path / "nothing", prepared) == 0.0


def folder_volumes(root: Path, *, spacing: str = "") -> Prepared:
    """Return patients with two frames of five slices; one test frame has no mask of its third slice."""
    rows = []
    for patient, part in enumerate(["test", "test", *["train"] * 6]):
        for name in (f"p{patient}_f{frame}_s{place}" for frame in range(2) for place in range(5)):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8:20, 8:20] = 1
            image = np.random.default_rng(len(rows)).integers(60, 100, mask.shape, np.uint8) + 100 * mask
            for kind, pixels in (("images", image), ("masks", 255 * mask)):
                (root / "data" / kind).mkdir(parents=True, exist_ok=True)
                if (kind, name) != ("masks", "p0_f1_s2"):
                    Image.fromarray(pixels).save(root / "data" / kind / f"{name}.png")
            rows.append(f"{name},{part},p{patient},{name[3:5]},{name[-1]}")
    (root / "data/split.csv").write_text("\n".join(["id,split,subject,frame,slice", *rows]) + "\n")
    (root / "data/dataset.yaml").write_text(f"name: frames\n{spacing}")
    config = DataConfig(root=str(root / "data"), image_size=32, test_share=0.01)
    (root / "prepared").mkdir()
    prepare(config, Reading(open_data(config, root / "data"), config.image_size, root / "prepared"), root / "prepared")
    return Prepared(root / "prepared")


def nothing_found(scoring: Scoring) -> Tally:
    tally = Tally(scoring)
    for row in scoring.prepared.rows("test"):
        tally.add(row, np.zeros((SIDE, SIDE), np.uint8))
    return tally


def test_a_slice_without_a_mask_is_in_no_volume_and_frames_are_volumes_of_one_case(tmp_path: Path) -> None:
    scoring = Scoring.of(folder_volumes(tmp_path))
    assert scoring.remarks == ("1 slices inside of volumes have no mask and are not scored",)
    assert scoring.units == {"image": "px", "volume": "px"}
    tally = Tally(scoring)
    for row in reversed(scoring.prepared.rows("test")):  # in whatever order slices come
        tally.add(row, (scoring.prepared.native_image(row)[..., 0] > 130).astype(np.uint8))
    found = summarise_levels(tally.scores)
    assert sorted(row.image for row in tally.headline) == ["p0/f0", "p0/f1", "p1/f0", "p1/f1"]
    assert (found["n_cases"], found["n_volumes"], found["n_images"], found["dice"]) == (2, 4, 19, 1.0)
    assert "volume_error_ml" not in found
    assert {row.score.hd95 for row in nothing_found(scoring).headline} == {
        np.sqrt(2 * SIDE**2 + 25)
    }  # with the gap: five slices


def test_slices_are_in_millimetres_where_the_distance_between_them_is_not_known(tmp_path: Path) -> None:
    scoring = Scoring.of(folder_volumes(tmp_path, spacing="spacing: [2, 2]"))
    assert scoring.units == {"image": "mm", "volume": "px"}
    found = summarise_levels(nothing_found(scoring).scores)
    assert found["hd95_px"] == pytest.approx(np.sqrt(2 * SIDE**2 + 25))
    assert found["slices"]["hd95_mm"] == pytest.approx(2 * np.hypot(SIDE, SIDE))


@pytest.mark.parametrize(("other", "unit", "distance"), [((1.0, 1.0), "mm", 6.0), (None, "px", 3.0)])
def test_an_image_is_measured_in_its_own_spacing_where_all_have_one(
    other: tuple[float, float] | None, unit: str, distance: float
) -> None:
    """Three rows of 2 mm; in pixels where an image has no spacing, since all have one unit."""
    mask = np.zeros((12, 10), np.uint8)
    mask[2:5, 2:8] = 1
    records = (record("a", None, None, spacing=(2.0, 0.5)), record("b", None, None, spacing=other))
    shown = SimpleNamespace(
        classes=("organ",), records=records, rows=lambda *_: np.arange(2), native_mask=lambda row: mask
    )
    (found,) = Scoring.of(cast(Scorable, shown)).score_image(0, np.roll(mask, 3, axis=0))
    assert (found.unit, found.score.hd95) == (unit, distance)


def test_a_network_is_shown_red_green_and_blue_in_this_order() -> None:
    class Red(Bright):
        def forward(self, image: Tensor) -> SegmentationOutput:
            return SegmentationOutput((image,), image[:, :1] - self.level)

    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2, 0] = image[3, 4, 2] = 255
    found = predict_image(Red(100), image, torch.device("cpu"))
    assert np.argwhere(found).tolist() == [[1, 2]]
