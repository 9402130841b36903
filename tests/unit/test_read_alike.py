"""What is read twice is read alike: two images of one name, a test set beside the training set, files beside a mask."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tskd.data.known_digests import KnownDigests
from tskd.data.layouts import LayoutOptions, open_dataset
from tskd.errors import UserError
from tskd.recipe.files import as_change
from tskd.recipe.schema import DataConfig, SourceConfig
from tskd.stages import prepare
from tskd.stages.source_data import dataset_digest


def volume(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((6, 5, 2), value, np.uint8), np.eye(4)), path)


def test_test_scans_that_are_numbered_anew_are_other_patients(tmp_path: Path) -> None:
    """They took the place of the training scans of that name, with masks of nothing."""
    for number in (1, 2):
        volume(tmp_path / f"imagesTr/case_{number}_0000.nii.gz", 10 * number)
        volume(tmp_path / f"labelsTr/case_{number}.nii.gz", 1)
    volume(tmp_path / "imagesTs/case_1_0000.nii.gz", 90)
    data = open_dataset(tmp_path)
    assert sorted({record.case for record in data.records}) == ["case_1", "case_2", "test/case_1"]
    assert len({record.id for record in data.records}) == len(data.records) == 6
    by_case = {record.case: record for record in data.records}
    assert data.read_image(by_case["test/case_1"]).max() == 90
    assert by_case["test/case_1"].mask is None
    assert data.read_mask(by_case["case_1"]).all()


def test_two_images_of_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the layout: one would take the mask of the other."""
    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / f"images/{name}.png")
    from dataclasses import replace

    from tskd.data import layouts

    folder = layouts.LAYOUTS["folder"]
    alike = replace(folder, find=lambda *how: [replace(one, id="same") for one in folder.find(*how)])
    monkeypatch.setitem(layouts.LAYOUTS, "folder", alike)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"b\.png.*is called same here, and so is .*a\.png"):
        open_dataset(tmp_path, "folder")


def test_a_test_set_is_seen_by_the_window_and_along_the_axis_of_training() -> None:
    data = DataConfig(root="ct", window=(-100, 200), axis=1, layout="nifti", labels=5)
    tested = prepare.tested_data(data, SourceConfig(root="elsewhere"))
    assert (tested.window, tested.axis, tested.labels) == ((-100, 200), 1, None)
    assert tested.layout == "auto", "another folder may be kept in another way"
    assert prepare.tested_data(data, SourceConfig(root="elsewhere", window=(0, 80))).window == (0, 80), "as is stated"
    assert prepare.tested_data(data, SourceConfig(root="ct", where={"site": ["north"]})).layout == "nifti"


def test_a_field_of_view_is_a_part_of_the_data_set(tmp_path: Path) -> None:
    """Red where a run goes on with masks that were made before the fields were corrected."""
    for part, name in (("training", "21_training"), ("test", "01_test")):
        number = name.split("_")[0]
        for folder, file in (("images", f"{name}.tif"), ("1st_manual", f"{number}_manual1.gif")):
            (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 255).save(tmp_path / part / folder / file)

    def digest() -> str:
        return dataset_digest(open_dataset(tmp_path, "drive", LayoutOptions()), KnownDigests(tmp_path / "hashes.json"))

    bare = digest()
    field = tmp_path / "training/mask/21_training_mask.gif"
    field.parent.mkdir()
    digests = [bare]
    for size in (4, 6):
        shown = Image.new("L", (8, 8))
        shown.paste(255, (0, 0, size, size))
        shown.save(field)
        digests.append(digest())
    assert len(set(digests)) == 3


@pytest.mark.parametrize("text", ["/data/run #2/x.pth", "/data/my run/x.pth", "'/data/run #2/x.pth'"])
def test_a_path_is_taken_whole(text: str) -> None:
    assert as_change(f"teacher.weights={text}").value == text.strip("'")
    assert as_change("teacher.rank=4 # a remark").value == 4
