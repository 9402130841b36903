"""Every registered layout reads its official tree: one test for all, and one for each trap."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import layout_trees as trees
import nibabel
import numpy as np
import pytest

from tskd.data.intensity import IntensityWindow, apply_window
from tskd.data.layouts import LAYOUTS, Dataset, LayoutOptions, detect, open_dataset, survey
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

KIDNEYUS = Path(__file__).parents[2].parent / "shared/data/_layouts/kidneyUS/labels"


def record(dataset: Dataset, id: str) -> Record:
    return next(record for record in dataset.records if record.id == id)


def mask_of(dataset: Dataset, id: str) -> np.ndarray:
    return dataset.read_mask(record(dataset, id))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_reads_its_official_tree(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    expected = trees.TREES[name](root)  # a KeyError here: the new layout needs a sample tree

    assert detect(root) == name
    dataset = open_dataset(root)

    ids = [record.id for record in dataset.records]
    assert ids == sorted(set(ids))
    assert dataset.classes == expected.classes == tuple(dataset.options.classes or ())
    assert Counter(record.case for record in dataset.records) == expected.cases
    assert {record.split for record in dataset.records} == expected.splits
    volumes: dict[str | None, list[Record]] = defaultdict(list)
    for each in dataset.records:
        volumes[each.volume].append(each)
    single = volumes.pop(None, [])
    assert {volume: len(slices) for volume, slices in volumes.items()} == expected.volumes
    assert all(each.place is None for each in single)
    for slices in volumes.values():
        places = sorted(each.place for each in slices if each.place is not None)
        assert places == list(range(len(slices)))
        assert all(each.spacing == pytest.approx(expected.spacing) for each in slices)
        assert len({each.case for each in slices}) == 1
    labelled = [record for record in dataset.records if record.mask is not None]
    assert len(labelled) == expected.labelled
    assert {int(value) for record in labelled for value in np.unique(dataset.read_mask(record))} == expected.values
    for each in dataset.records:
        image = dataset.read_image(each)
        assert image.dtype == np.uint8
        assert image.shape == (*trees.SIZE, 3)
        if each.mask is not None:
            mask = dataset.read_mask(each)
            assert (mask.dtype, mask.shape) == (np.uint8, trees.SIZE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_stated_window_is_used_and_said(name: str, tmp_path: Path) -> None:
    """What is trained on has to be windowed as the bundle windows what it predicts."""
    trees.TREES[name](tmp_path)
    plain, windowed = (open_dataset(tmp_path, name, LayoutOptions(window=window)) for window in (None, (0.0, 120.0)))
    first = plain.records[0]
    if first.image.suffix in (".png", ".jpg", ".bmp", ".tif"):  # 8 bit; the others have a window without one stated
        expected = apply_window(plain.read_image(first), IntensityWindow(0.0, 120.0))
        np.testing.assert_array_equal(windowed.read_image(first), expected)
    assert any(note.startswith("intensities: ") and "120" in note for note in windowed.notes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_empty_root_names_the_expected_tree(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found") as caught:
        open_dataset(tmp_path, name)
    assert LAYOUTS[name].description in str(caught.value)


def litter(root: Path) -> int:
    """Leave in every folder what systems and editors leave; return how many files and folders that is."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        for path in [path for path in folder.iterdir() if path.is_file()]:
            (folder / f"._{path.name}").write_bytes(b"\0\5\26\7")
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / ".ipynb_checkpoints").mkdir()
        for path in [path for path in folder.iterdir() if path.is_file()]:
            shutil.copy(path, folder / ".ipynb_checkpoints" / path.name)
    return len(folders)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_systems_leave_behind_changes_no_record_and_is_counted(name: str, tmp_path: Path) -> None:
    """Red in each layout that finds files by a rule of its own."""
    trees.TREES[name](tmp_path)
    clean = open_dataset(tmp_path, name)
    litter(tmp_path)
    dataset = open_dataset(tmp_path, name)
    assert dataset.records == clean.records
    assert dataset.classes == clean.classes
    assert [note for note in dataset.notes if "left out: " in note and "hidden files of systems" in note]
    assert detect(tmp_path) == name


STRAY = {
    "folder": "masks/nobody.png",
    "drive": "training/1st_manual/99_manual1.gif",
    "ph2": "PH2 Dataset images/IMD002/IMD002_lesion/IMD099_lesion.bmp",
    "chaos_ct": "CHAOS_Train_Sets/Train_Sets/CT/1/Ground/liver_GT_999.png",
    "chaos_mr": "MR/5/T2SPIR/Ground/IMG-0002-00009.png",
    "kidneyus": "labels/reviewed_masks_1/capsule/77_IM-0077-0001_anon.png",
    "autooral": "Train/masks/77.png",
    "nifti": "labelsTr/nobody.nii.gz",
    "dicom": "masks/a/77.png",
}
"""A label that no image claims, in each layout."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_label_that_no_image_claims_is_named_and_a_run_stops(name: str, tmp_path: Path) -> None:
    """Red in each layout that asks only for the labels of its images and never what else is there."""
    trees.TREES[name](tmp_path)
    assert survey(tmp_path, name)[1] == ()
    stray = tmp_path / STRAY[name]
    if name == "nifti":
        trees.save_nifti(np.zeros((2, 2, 2), np.uint8), stray)
    else:
        trees.save(trees.square(), stray)
    (fault,) = survey(tmp_path, name)[1]
    paired_by_order = name.startswith("chaos")  # there the folder is at fault: which mask is too many, nobody knows
    assert fault.path == (stray.parent if paired_by_order else stray)
    assert fault.severity == "error"
    with pytest.raises(UserError, match="2 masks for 1|3 masks for 2" if paired_by_order else "without an image"):
        open_dataset(tmp_path, name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_broken_link_beside_the_labels_is_named(name: str, tmp_path: Path) -> None:
    """Silent omission: the files of a drive that is not there would be missing labels, without a word."""
    trees.TREES[name](tmp_path)
    broken = (tmp_path / STRAY[name]).with_name(f"x{Path(STRAY[name]).name}")
    broken.symlink_to(tmp_path / "a drive that is not there")
    assert [(fault.path, fault.severity) for fault in survey(tmp_path, name)[1]] == [(broken, "error")]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_may_not_be_read_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.TREES[name](tmp_path)
    shut, real = (tmp_path / STRAY[name]).parent, os.scandir

    def refusing(folder: str | Path = ".") -> object:
        if Path(folder) == shut:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, whom nothing is refused
    faults = survey(tmp_path, name)[1]
    assert shut in {fault.path for fault in faults}
    assert all("permission denied" in fault.message for fault in faults if fault.path == shut)


@pytest.mark.parametrize(
    ("labels", "ending", "right"),
    [("masks/a", ".png", "a.png"), ("labelsTr/p1", ".nii.gz", "p1.nii.gz")],
)
def test_a_label_named_like_a_channel_is_named_with_its_right_name(
    labels: str, ending: str, right: str, tmp_path: Path
) -> None:
    name = "nifti" if ending == ".nii.gz" else "folder"
    trees.TREES[name](tmp_path)
    wrong = tmp_path / f"{labels}_0001{ending}"
    (tmp_path / f"{labels}{ending}").rename(wrong)
    (fault,) = survey(tmp_path, name)[1]
    assert fault.path == wrong
    assert "_0001" in fault.message
    assert fault.message.endswith(f"Rename it to {right}.")


def test_a_label_named_exactly_as_its_image_is_taken_and_said(tmp_path: Path) -> None:
    """nnU-Net's images end in _0000, and so do the labels of who saved them under the same name."""
    trees.nifti(tmp_path)
    expected = mask_of(open_dataset(tmp_path), "p1/001")
    (tmp_path / "labelsTr/p1.nii.gz").rename(tmp_path / "labelsTr/p1_0000.nii.gz")
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(mask_of(dataset, "p1/001"), expected)
    assert any("1 labels in labelsTr/ end in the channel number _0000" in note for note in dataset.notes)
    shutil.copy(tmp_path / "labelsTr/p1_0000.nii.gz", tmp_path / "labelsTr/p1.nii.gz")
    with pytest.raises(UserError, match=r"p1_0000\.nii\.gz: a label without an image"):
        open_dataset(tmp_path)


def test_names_that_end_as_channels_do_are_cases_unless_they_are_channels(tmp_path: Path) -> None:
    """AMOS numbers its scans amos_0001, amos_0002 and so on."""
    values = np.zeros((*trees.SIZE[::-1], 2), np.uint8)
    for number in (1, 2, 3):
        trees.save_nifti(values, tmp_path / f"images/amos_{number:04d}.nii.gz")
    for number in (1, 2):
        trees.save_nifti(values, tmp_path / f"labels/amos_{number:04d}.nii.gz")
    found = {(each.case, each.mask is not None) for each in open_dataset(tmp_path).records}
    assert found == {("amos_0001", True), ("amos_0002", True), ("amos_0003", False)}
    trees.save_nifti(values, tmp_path / "images/amos_0000.nii.gz")
    (fault,) = survey(tmp_path)[1]
    assert (fault.path.name, fault.message[:17]) == ("amos_0003.nii.gz", "a further channel"), "beside a first"
    (tmp_path / "images/amos_0000.nii.gz").unlink()
    (tmp_path / "dataset.json").write_text('{"labels": {"organ": 1}, "channel_names": {"0": "CT", "1": "PET"}}')
    assert [fault.path.name for fault in survey(tmp_path)[1]] == ["amos_0003.nii.gz"], "several channels are stated"


def test_volumes_of_one_case_are_refused_not_chosen_from(tmp_path: Path) -> None:
    trees.nifti(tmp_path)
    shutil.copy(tmp_path / "imagesTr/p1_0000.nii.gz", tmp_path / "imagesTr/p1.nii.gz")
    with pytest.raises(UserError, match=r"p1_0000\.nii\.gz: is the same case as p1\.nii\.gz"):
        open_dataset(tmp_path)


def test_volumes_in_sub_folders_are_read(tmp_path: Path) -> None:
    trees.nifti(tmp_path)
    for kind, name in (("images", "p1_0000"), ("labels", "p1")):
        (tmp_path / f"{kind}Tr/hospital a").mkdir()
        (tmp_path / f"{kind}Tr/{name}.nii.gz").rename(tmp_path / f"{kind}Tr/hospital a/{name}.nii.gz")
    cases = Counter((each.case, each.mask is not None) for each in open_dataset(tmp_path).records)
    assert cases == {("hospital a/p1", True): 3, ("p2", True): 3, ("p3", False): 3}


@pytest.mark.parametrize("name", ["folder", "nifti", "dicom", "autooral"])
def test_image_and_mask_match_whichever_way_their_names_are_spelled(name: str, tmp_path: Path) -> None:
    """macOS writes ü as two characters. Red where names are compared as bytes: the mask would be missing."""
    trees.TREES[name](tmp_path)
    labelled = sum(each.mask is not None for each in open_dataset(tmp_path, name).records)
    old = {"folder": "a", "nifti": "p1", "dicom": "b", "autooral": "1"}[name]
    for path in [path for path in tmp_path.rglob("*") if path.name.split(".")[0] in (old, f"{old}_0000")]:
        form = "NFD" if "mask" in path.parent.name or "label" in path.parent.name else "NFC"
        path.rename(path.with_name(unicodedata.normalize(form, path.name.replace(old, "Müller", 1))))
    (tmp_path / "split.csv").unlink(missing_ok=True)
    dataset = open_dataset(tmp_path, name)
    assert sum(each.mask is not None for each in dataset.records) == labelled
    assert any("Müller" in each.id for each in dataset.records)


def test_two_spellings_of_one_name_are_refused(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for form in ("NFC", "NFD"):
        trees.save(trees.photograph(), tmp_path / "images" / f"{unicodedata.normalize(form, 'Müller')}.png")
    with pytest.raises(UserError, match="same id as"):
        open_dataset(tmp_path)


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


@pytest.mark.parametrize(
    ("labels", "classes", "meanings"),
    [
        ({"background": 0, "organ": 1, "tumour": 2}, ("organ", "tumour"), {0, 1, 2}),
        ({"0": "background", "1": "organ", "2": "tumour"}, ("organ", "tumour"), {0, 1, 2}),
        ({"background": 0, "organ": 1, "ignore": 2}, ("organ",), {0, 1, UNLABELLED}),
        ({"background": 0, "both": [1, 2]}, ("both",), {0, 1}),
    ],
)
def test_labels_as_nnunet_states_them(
    labels: dict[str, object], classes: tuple[str, ...], meanings: set[int], tmp_path: Path
) -> None:
    """``ignore`` is what nobody labelled: red where it becomes a class, or background."""
    trees.nifti(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    dataset = open_dataset(tmp_path)
    masks = [dataset.read_mask(each) for each in dataset.records if each.mask is not None]
    assert dataset.classes == classes
    assert set(np.unique(np.stack(masks)).tolist()) == meanings


def test_slices_to_be_ignored_throughout_count_as_unlabelled(tmp_path: Path) -> None:
    """A mask without a labelled pixel stops a run, and whole slices are what nnU-Net's sparse labels leave out."""
    trees.nifti(tmp_path)
    labels = np.full((trees.SIZE[1], trees.SIZE[0], 3), 2, np.uint8)
    labels[..., 1] = 0
    labels[3:9, 2:6, 1] = 1
    trees.save_nifti(labels, tmp_path / "labelsTr/p1.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 2}}))
    dataset = open_dataset(tmp_path)
    assert [record(dataset, f"p1/00{place}").mask is None for place in range(3)] == [True, False, True]
    assert set(np.unique(mask_of(dataset, "p1/001")).tolist()) == {0, 1}
    assert any(note.startswith("2 slices are to be ignored") for note in dataset.notes)


def test_regions_that_overlap_are_explained_and_dataset_yaml_settles_them(tmp_path: Path) -> None:
    trees.nifti(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": REGIONS, "channel_names": {"0": "T1", "1": "T2"}}))
    with pytest.raises(UserError, match=r"dataset\.json: its labels are regions that overlap \(whole: 1, 2, 3; core"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text("classes: [oedema, core]\nlabels: {1: 1, 2: 2, 3: 2}\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("oedema", "core")
    assert any("2 channels (T1, T2); one is read" in note for note in dataset.notes)


def test_another_file_ending_of_nnunet_is_said(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr/c0_0000.nrrd").write_bytes(b"NRRD0004")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"a": 1}, "file_ending": ".nrrd"}))
    with pytest.raises(UserError, match=r"file_ending \.nrrd: convert"):
        open_dataset(tmp_path, "nifti")


def test_every_faulty_volume_is_named_once_by_its_own_path_and_cause(tmp_path: Path) -> None:
    """Red where the first fault ends the search, or where the image is named for its label."""
    trees.nifti(tmp_path)
    labels = np.zeros((trees.SIZE[1], trees.SIZE[0], 3), np.uint8)
    for number in range(7):
        trees.save_nifti(labels, tmp_path / f"imagesTr/f{number}_0000.nii.gz")
        trees.save_nifti(labels, tmp_path / f"labelsTr/f{number}.nii.gz")
    shifted = np.diag([0.8, 0.5, 3, 1.0])
    shifted[2, 3] = 12
    place = tmp_path / "labelsTr"
    trees.save_nifti(labels, place / "f0.nii.gz", shifted)
    trees.save_nifti(labels[..., :2], place / "f1.nii.gz")
    trees.save_nifti(np.stack([labels, labels], axis=3), place / "f2.nii.gz")
    (place / "f3.nii.gz").write_bytes(b"")
    placeless = nibabel.Nifti1Image(labels, None)
    placeless.header.set_zooms((0.8, 0.5, 3))
    nibabel.save(placeless, place / "f4.nii.gz")
    (tmp_path / "imagesTr/f5_0000.nii.gz").write_bytes(b"cut")
    dataset, faults = survey(tmp_path, "nifti")
    said = {fault.path.relative_to(tmp_path).as_posix(): fault.message for fault in faults}
    assert len(faults) == len(said) == 6
    assert "12 mm" in said["labelsTr/f0.nii.gz"]
    assert "(16, 12, 2) voxels, the image (16, 12, 3)" in said["labelsTr/f1.nii.gz"]
    assert "4 axes" in said["labelsTr/f2.nii.gz"]
    assert "damaged" in said["labelsTr/f3.nii.gz"] or "empty" in said["labelsTr/f3.nii.gz"]
    assert re.search("sform_code and qform_code are 0.*copy the header of the image", said["labelsTr/f4.nii.gz"])
    assert "damaged" in said["imagesTr/f5_0000.nii.gz"]
    assert {each.case for each in dataset.records} == {"p1", "p2", "p3", "f6"}


def test_rounding_of_affines_is_no_fault(tmp_path: Path) -> None:
    """Writers round to single precision; a label volume stored flipped lies at the same place all the same."""
    trees.nifti(tmp_path)
    labels = np.zeros((trees.SIZE[1], trees.SIZE[0], 3), np.uint8)
    affine = np.diag([0.8, 0.5, 3, 1.0])
    affine[0, 3] = 0.004
    trees.save_nifti(labels, tmp_path / "labelsTr/p1.nii.gz", affine)
    assert survey(tmp_path, "nifti")[1] == ()


@pytest.mark.parametrize(
    "labels",
    [
        "1",
        "[1]",
        '{"a": 1.5}',
        '{"a": 1e400}',
        f'{{"a": 1{"0" * 400}}}',
        '{"a": true}',
        '{"a": [1, null]}',
        '{"a": {"b": 1}}',
        "[" * 9999,
    ],
)
def test_labels_that_nnunet_does_not_write_are_refused_by_name(labels: str, tmp_path: Path) -> None:
    """Red where a number is cut to a whole one, or where anything but a message comes of it."""
    trees.nifti(tmp_path)
    (tmp_path / "dataset.json").write_text(f'{{"labels": {labels}}}')
    (fault,) = survey(tmp_path, "nifti")[1]
    assert fault.path == tmp_path / "dataset.json"


@pytest.mark.parametrize(
    ("layout", "name"),
    [("folder", "split.csv"), ("folder", "dataset.yaml"), ("nifti", "dataset.json"), ("nifti", "dataset.yaml"),
     ("dicom", "dataset.yaml"), ("kidneyus", "labels/reviewed_labels_1.csv")],
)  # fmt: skip
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.mkdir()])
def test_settings_that_are_no_file_are_named(layout: str, name: str, put: object, tmp_path: Path) -> None:
    """A pipe held the check for ever; a broken link was as if it were not there."""
    trees.TREES[layout](tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    put(tmp_path / name)  # type: ignore[operator]
    (fault,) = survey(tmp_path, layout)[1]
    assert fault.path == tmp_path / name
    assert "not a file" in fault.message


def test_unlabelled_record_has_no_mask_to_read(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    with pytest.raises(UserError, match="unlabelled"):
        mask_of(open_dataset(tmp_path), "d")


def test_a_folder_that_may_not_be_read_is_why_no_layout_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.folder(tmp_path)
    real = os.scandir

    def refusing(folder: str | Path = ".") -> object:
        if Path(folder).name == "images":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="images: the folder may not be read"):
        detect(tmp_path)


def test_detection_refuses_no_and_several_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no known layout"):
        detect(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        detect(tmp_path / "absent")
    trees.chaos_ct(tmp_path)
    trees.chaos_mr(tmp_path)
    with pytest.raises(UserError, match=r"chaos_ct, chaos_mr.*--layout"):
        detect(tmp_path)


def test_drive_outside_the_field_of_view_is_unlabelled_and_a_blind_test_gives_no_split(tmp_path: Path) -> None:
    trees.drive(tmp_path)
    dataset = open_dataset(tmp_path)
    mask = mask_of(dataset, "21_training")
    assert (mask[:, :2] == UNLABELLED).all()
    np.testing.assert_array_equal(mask[:, 2:], trees.square(1)[:, 2:])
    assert any("no labels" in note for note in dataset.notes)
    trees.save(trees.square(255), tmp_path / "test/1st_manual/01_manual1.gif")
    assert Counter(each.split for each in open_dataset(tmp_path).records) == {"train": 2, "test": 1}


def test_ph2_masks_of_1_and_24_bit_agree(tmp_path: Path) -> None:
    trees.ph2(tmp_path)
    dataset = open_dataset(tmp_path)
    for id in ("IMD002", "IMD003"):
        np.testing.assert_array_equal(mask_of(dataset, id), trees.square(1))


def test_chaos_ct_reads_hounsfield_units_and_pairs_in_order(tmp_path: Path) -> None:
    trees.chaos_ct(tmp_path)
    dataset = open_dataset(tmp_path, options=LayoutOptions(window=(-60, 140)))
    first, second = (record(dataset, f"1/{number:03d}") for number in range(2))
    assert (dataset.read_image(first) == 128).all()  # 40 HU is the middle of the window: the intercept was read
    assert first.spacing == (0.5, 0.8, 3.0)
    assert (dataset.read_mask(first).sum(), dataset.read_mask(second).sum()) == (0, 24)


def test_fixed_classes_may_be_renamed_but_not_added_to(tmp_path: Path) -> None:
    trees.ph2(tmp_path)
    assert open_dataset(tmp_path, options=LayoutOptions(classes=("naevus",))).classes == ("naevus",)
    with pytest.raises(UserError, match="2 given"):
        open_dataset(tmp_path, options=LayoutOptions(classes=("naevus", "hair")))


def test_chaos_refuses_unequal_numbers_of_slices_and_masks(tmp_path: Path) -> None:
    trees.chaos_ct(tmp_path)
    (tmp_path / "CHAOS_Train_Sets/Train_Sets/CT/1/Ground/liver_GT_001.png").unlink()
    with pytest.raises(UserError, match="1 masks for 2 slices"):
        open_dataset(tmp_path)


def test_chaos_mr_maps_value_ranges_and_refuses_what_lies_between(tmp_path: Path) -> None:
    trees.chaos_mr(tmp_path)
    dataset = open_dataset(tmp_path, options=LayoutOptions(sequence="t2"))
    (only,) = dataset.records
    assert dataset.read_mask(only)[0, :5].tolist() == [1, 2, 3, 4, 0]
    trees.save(trees.square(90), only.mask)
    with pytest.raises(UserError, match="90"):
        dataset.read_mask(only)


def test_kidneyus_polygon_rect_and_empty_row(tmp_path: Path) -> None:
    trees.kidneyus(tmp_path)
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(mask_of(dataset, "1_IM-0001-0059_anon"), trees.square(1))
    assert mask_of(dataset, "2_IM-0002-0001_anon").sum() == 0
    assert mask_of(dataset, "3_IM-0003-0001_anon").sum() == 0
    assert "400_IM-0001-0059_anon" not in {each.id for each in dataset.records}
    assert any("1 repeated files" in note for note in dataset.notes)
    assert any("2 images without a polygon" in note and "1 other shapes" in note for note in dataset.notes)


@pytest.mark.skipif(not KIDNEYUS.is_dir(), reason="official labels are not here")
@pytest.mark.parametrize(("annotator", "complete"), [(1, 335), (2, 323)])
def test_kidneyus_real_rows(annotator: int, complete: int, tmp_path: Path) -> None:
    """The official CSV on blank images: counts of method.md, and polygons that agree with the published masks."""
    from tskd.data.layouts import kidneyus

    polygons, other_shapes = kidneyus.read_polygons(KIDNEYUS / f"reviewed_labels_{annotator}.csv")
    (tmp_path / "images").mkdir()
    for name in polygons:
        published = KIDNEYUS / f"reviewed_masks_{annotator}/capsule/{name}"
        size = trees.Image.open(published).size if published.exists() else (1024, 768)
        trees.Image.new("L", size).save(tmp_path / "images" / name, compress_level=1)
    (tmp_path / "labels").symlink_to(KIDNEYUS)
    options = {name: LayoutOptions(annotator=annotator, structure=name) for name in ("capsule", "regions")}
    dataset = open_dataset(tmp_path, options=options["capsule"])

    kept = {f"{each.id}.png" for each in dataset.records}
    anatomies = [{anatomy for anatomy, _ in shapes} for shapes in polygons.values()]
    assert (len(polygons), len(kept), other_shapes) == (534, 514, 2 - annotator)
    assert sum(not shapes for shapes in polygons.values()) == 47 + other_shapes
    assert sum(len(each) == 4 for each in anatomies) == complete

    reviewed = [each for each in dataset.records if each.mask is not None and each.mask.suffix == ".png"]
    assert len(reviewed) == 11
    for structure, chosen in options.items():
        for each in open_dataset(tmp_path, options=chosen).records:
            if each.mask is None or each.mask.suffix != ".png":
                continue
            published = LAYOUTS["kidneyus"].read_mask(each, chosen)
            size = published.shape
            drawn = kidneyus.draw_polygons(polygons[f"{each.id}.png"], size, chosen)
            assert (drawn == published)[(drawn > 0) | (published > 0)].mean() > 0.97, (structure, each.id)


def test_nifti_flipped_storage_reads_equal_and_a_shifted_label_is_refused(tmp_path: Path) -> None:
    trees.nifti(tmp_path)
    dataset = open_dataset(tmp_path)
    plain, flipped = mask_of(dataset, "p1/001"), mask_of(dataset, "p2/001")
    np.testing.assert_array_equal(plain, flipped[:, ::-1])
    assert record(dataset, "p1/001").spacing == pytest.approx((0.5, 0.8, 3))
    labels = np.zeros((trees.SIZE[1], trees.SIZE[0], 3), np.uint8)
    shifted = np.diag([0.8, 0.5, 3, 1.0])
    shifted[0, 3] = 5
    trees.save_nifti(labels, tmp_path / "labelsTr/p1.nii.gz", shifted)
    with pytest.raises(UserError, match="affines differ"):
        open_dataset(tmp_path)


def test_chaos_slices_are_placed_by_position_and_a_broken_file_leaves_the_order_of_names(tmp_path: Path) -> None:
    trees.chaos_ct(tmp_path)
    volume = tmp_path / "CHAOS_Train_Sets/Train_Sets/CT/1"
    first = volume / "DICOM_anon/i0000,0000b.dcm"  # by name; by position it is now the upper one
    trees.save_dicom(np.full(trees.SIZE, 1064, np.uint16), first, ImagePositionPatient=[0, 0, 8])
    places = {each.id: each.place for each in open_dataset(tmp_path).records if each.case == "1"}
    assert places == {"1/000": 1, "1/001": 0}
    (volume / "DICOM_anon/i0001,0000b.dcm").write_bytes(b"cut short")
    broken = [each for each in open_dataset(tmp_path).records if each.case == "1"]
    assert [(each.place, each.spacing) for each in broken] == [(0, (0.5, 0.8)), (1, (0.5, 0.8))]


def test_nifti_frames_are_volumes_of_one_case(tmp_path: Path) -> None:
    values = np.zeros((trees.SIZE[1], trees.SIZE[0], 3, 2), np.uint8)
    labels = values.copy()
    labels[3:9, 2:6, 1, 1] = 1
    trees.save_nifti(values, tmp_path / "images/p1.nii.gz")
    trees.save_nifti(labels, tmp_path / "labels/p1.nii.gz")
    dataset = open_dataset(tmp_path)
    assert [(each.volume, each.place, each.case) for each in dataset.records] == [
        (f"p1/{frame:03d}", place, "p1") for frame in range(2) for place in range(3)
    ]
    assert [each.id for each in dataset.records if dataset.read_mask(each).any()] == ["p1/001/001"]
    trees.save_nifti(labels[..., 0], tmp_path / "labels/p1.nii.gz")
    with pytest.raises(UserError, match=r"the labels have \(16, 12, 3\) voxels, the image \(16, 12, 3, 2\)"):
        open_dataset(tmp_path)


def split_rows(root: Path, header: str, *rows: str) -> Dataset:
    """Return a folder of four images that look like slices, with these rows of split.csv."""
    for name in ("p1_f1_sl2", "p1_f1_sl10", "p1_f2_sl2", "p2_f1_sl2"):
        trees.save(trees.photograph(), root / f"images/{name}.png")
        trees.save(trees.square(), root / f"masks/{name}.png")
    (root / "split.csv").write_text("\n".join([header, *rows]) + "\n")
    return open_dataset(root)


def test_folder_volumes_are_what_split_csv_states_never_what_ids_look_like(tmp_path: Path) -> None:
    by_id = lambda dataset: {each.id: (each.case, each.volume, each.place) for each in dataset.records}  # noqa: E731
    plain = split_rows(tmp_path, "id,split,subject", "p1_f1_sl2,,p1")
    assert {each.volume for each in plain.records} == {None}
    assert any("look like slices" in note for note in plain.notes)

    named = split_rows(tmp_path, "id,split,volume", "p1_f1_sl2,,a", "p1_f1_sl10,,a", "p2_f1_sl2,,b")
    assert by_id(named) == {
        "p1_f1_sl2": ("a", "a", 0),
        "p1_f1_sl10": ("a", "a", 1),  # by number, not by letter
        "p1_f2_sl2": ("p1_f2_sl2", None, None),
        "p2_f1_sl2": ("b", "b", 0),
    }
    assert not any("look like slices" in note for note in named.notes)

    rows = ("p1_f1_sl2,,p1,1,7", "p1_f1_sl10,,p1,1,5", "p1_f2_sl2,,p1,2,5", "p2_f1_sl2,,p2,1,0")
    numbered = split_rows(tmp_path, "id,split,subject,frame,slice", *rows)
    assert by_id(numbered) == {
        "p1_f1_sl2": ("p1", "p1/1", 7),
        "p1_f1_sl10": ("p1", "p1/1", 5),
        "p1_f2_sl2": ("p1", "p1/2", 5),
        "p2_f1_sl2": ("p2", "p2/1", 0),
    }


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("id,split,volume,slice", ("p1_f1_sl2,,a,1", "p1_f1_sl10,,a,1"), "'a' has two slices of one number"),
        ("id,split,volume,slice", ("p1_f1_sl2,,a,1", "p1_f1_sl10,,a,"), "a slice number for 1 of its 2 slices"),
        ("id,split,subject,volume", ("p1_f1_sl2,,x,a", "p2_f1_sl2,,y,a"), "'a' has slices of several cases"),
        ("id,split,slice", ("p1_f1_sl2,,1",), "'p1_f1_sl2' has a slice, and neither a volume nor a case"),
        ("id,split,volume,slice", ("p1_f1_sl2,,a,1.5",), "line 2: slice '1.5' is not a whole number"),
        ("id,split,volume,slice", ("p1_f1_sl2,,a,20210101",), "line 2: slice '20210101' is not a whole number"),
    ],
)
def test_folder_refuses_volumes_that_cannot_be_stacked(
    header: str, rows: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        split_rows(tmp_path, header, *rows)


def test_folder_takes_a_slice_distance_from_dataset_yaml(tmp_path: Path) -> None:
    trees.save(trees.photograph(), tmp_path / "images/a.png")
    (tmp_path / "dataset.yaml").write_text("spacing: [0.5, 0.7, 10]")
    assert [each.spacing for each in open_dataset(tmp_path).records] == [(0.5, 0.7, 10.0)]


def test_dicom_slices_follow_position_and_label_volumes_lie_by_coordinates(tmp_path: Path) -> None:
    trees.dicom(tmp_path)
    dataset = open_dataset(tmp_path, options=LayoutOptions(window=(0, 100)))
    assert [record(dataset, f"a/000{n}").image.name for n in range(2)] == ["9.dcm", "8.dcm"]
    assert mask_of(dataset, "b/0000").sum() == 0
    np.testing.assert_array_equal(mask_of(dataset, "b/0001"), trees.square(1))
    volume = np.zeros((trees.SIZE[1], trees.SIZE[0], 2), np.uint8)
    trees.save_nifti(volume, tmp_path / "masks/b.nii.gz", np.diag([0.8, 0.5, 3, 1]))
    with pytest.raises(UserError, match="does not lie on the grid"):
        mask_of(dataset, "b/0001")


@pytest.mark.parametrize("stored", ["RAS", "LPI", "ARS", "SPL", "IAR"])
def test_a_label_volume_lies_right_however_it_is_stored_and_is_read_by_slices(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole volume was read for each slice: minutes for one series."""
    labels = np.random.default_rng(0).integers(0, 2, (*trees.SIZE, 3), np.uint8)
    for number in range(3):
        trees.save_dicom(
            np.full(trees.SIZE, number, np.int16), tmp_path / f"images/p/{number}.dcm",
            ImagePositionPatient=[0, 0, 3 * number],
        )  # fmt: skip
    volume = nibabel.Nifti1Image(labels.transpose(1, 0, 2), np.diag([-0.8, -0.5, 3, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(tuple(stored))
    )
    (tmp_path / "masks").mkdir()
    nibabel.save(volume.as_reoriented(turn), tmp_path / "masks/p.nii.gz")
    monkeypatch.delattr("tskd.data.nifti.read_label_volume")
    dataset = open_dataset(tmp_path)
    for number, each in enumerate(dataset.records):
        np.testing.assert_array_equal(dataset.read_mask(each), labels[..., number])


def test_a_localizer_in_a_labelled_series_is_unlabelled_and_spoils_nothing(tmp_path: Path) -> None:
    """Red where the case is refused, or the label volume to be resampled, for a slice that it is not of."""
    trees.dicom(tmp_path)
    trees.save_dicom(np.full(trees.SIZE, 5, np.int16), tmp_path / "images/b/localizer.dcm", SeriesInstanceUID="1.2",
                     ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0, 9, 9])  # fmt: skip
    dataset = open_dataset(tmp_path)
    masks = {each.image.name: each.mask for each in dataset.records if each.case == "b"}
    assert masks.pop("localizer.dcm") is None
    assert set(masks.values()) == {tmp_path / "masks/b.nii.gz"}


@pytest.mark.parametrize("layout", ["nifti", "dicom"])
def test_volumes_take_name_classes_labels_and_window_from_dataset_yaml(layout: str, tmp_path: Path) -> None:
    getattr(trees, layout)(tmp_path)
    usual = open_dataset(tmp_path, layout)
    (tmp_path / "dataset.yaml").write_text(
        "name: mine\nclasses: [liver, tumour]\nlabels: {0: 0, 1: 2, 2: 1, 255: 2}\nwindow: [0, 50]\n"
    )
    dataset = open_dataset(tmp_path, layout)
    assert (dataset.name, dataset.classes, dataset.options.window) == ("mine", ("liver", "tumour"), (0, 50))
    assert any("0 becomes black, 50 white" in note or "0 to 50" in note for note in dataset.notes)
    for record in dataset.records:
        if record.mask is not None:
            swapped = np.array([0, 2, 1], np.uint8)[usual.read_mask(record)]
            np.testing.assert_array_equal(dataset.read_mask(record), swapped)
    (tmp_path / "dataset.yaml").write_text("spacing: [1, 1]\n")
    with pytest.raises(UserError, match=r"dataset\.yaml: spacing is for single images"):
        open_dataset(tmp_path, layout)


def test_a_mask_labels_the_scan_of_its_own_sub_folder(tmp_path: Path) -> None:
    for number, inside in enumerate(("t1", "t2")):
        trees.save_dicom(
            np.full(trees.SIZE, number, np.int16), tmp_path / f"images/p1/{inside}/IM0.dcm",
            SeriesInstanceUID=f"1.{number}",
        )  # fmt: skip
    flat = trees.save(trees.square(), tmp_path / "masks/p1/IM0.png")
    (fault,) = survey(tmp_path, "dicom")[1]
    assert (fault.path, fault.message[:44]) == (flat, "is named as t1/IM0.dcm and as t2/IM0.dcm are")
    (tmp_path / "masks/p1/t2").mkdir()
    flat = flat.rename(tmp_path / "masks/p1/t2/IM0.png")
    found = {each.image.parent.name: each.mask for each in open_dataset(tmp_path, "dicom").records}
    assert found == {"t1": None, "t2": flat}
    (tmp_path / "images/p1/t1/IM0.dcm").rename(tmp_path / "images/p1/t1/IM1.dcm")
    flat.rename(tmp_path / "masks/p1/IM0.png")
    assert sum(each.mask is not None for each in open_dataset(tmp_path, "dicom").records) == 1, "the only one"


def test_files_beside_dicom_masks_are_no_masks(tmp_path: Path) -> None:
    trees.dicom(tmp_path)
    (tmp_path / "masks/README.txt").write_text("how these were drawn")
    (tmp_path / "masks/a.json").write_text("{}")
    (tmp_path / "masks/b.json").write_text("{}")
    dataset, faults = survey(tmp_path, "dicom")
    assert faults == ()
    assert Counter(each.case for each in dataset.records if each.mask is not None) == {"a": 1, "b": 2}


def test_dicom_files_alone_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("name: mine\n")  # sorts before them and is no evidence
    for number in range(2):
        trees.save_dicom(np.zeros(trees.SIZE, np.uint16), tmp_path / f"slice{number}.dcm", InstanceNumber=number)
    dataset = open_dataset(tmp_path)
    text = repr(dataset.records) + repr(dataset.notes)
    assert dataset.layout == "dicom"
    assert len({each.case for each in dataset.records}) == 1
    assert "SECRET" not in text
    assert "1.2.3" not in text


def test_dicom_notes_tell_rule_range_odd_series_and_what_is_no_scan(tmp_path: Path) -> None:
    trees.dicom(tmp_path)
    for number, height in enumerate((0, 3, 9)):
        trees.save_dicom(np.full(trees.SIZE, 100 * number, np.int16), tmp_path / f"images/d/{number}.dcm",
                         SeriesInstanceUID="1.4", ImagePositionPatient=[0, 0, height])  # fmt: skip
    trees.save_dicom(np.zeros(trees.SIZE, np.int16), tmp_path / "images/d/dose.dcm",
                     SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")  # fmt: skip
    (tmp_path / "images/d/broken.dcm").write_bytes(b"cut short")
    dataset = open_dataset(tmp_path)
    notes = "\n".join(dataset.notes)
    assert "intensities: HU, the default for CT without a window of its own, -160 becomes black, 240 white" in notes
    assert "series: d: slices of a series are missing: the distance is 3 mm, but 6 mm between 1.dcm and 2.dcm" in notes
    assert "passed over, since they are not scans: 1 RT dose (RTDOSE)" in notes
    assert str(tmp_path) not in notes, "folder names above the root may tell who the patient is"
    assert [each.place for each in dataset.records if each.case == "d" and each.volume] == [0, 1, 3]
    broken = record(dataset, "d/unreadable/broken.dcm")
    with pytest.raises(UserError, match=r"broken\.dcm: is not a DICOM file"):
        dataset.read_image(broken)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda root: trees.save(trees.photograph(), root / "images/a.jpg"), "same id as a.jpg"),
        (lambda root: trees.save(trees.square(), root / "masks/z.png"), "mask without an image"),
        (lambda root: (root / "images/x.nii.gz").write_bytes(b"1"), "nifti"),
        (
            lambda root: (root / "split.csv").write_text("id,split\na,train\nq,test\n"),
            "line 3: no image has the id 'q'",
        ),
        (lambda root: (root / "split.csv").write_text("id,split\na,holdout\n"), "line 2: split 'holdout'"),
        (lambda root: (root / "split.csv").write_text("id,split\na,train\na,test\n"), "given before, in line 2"),
        (lambda root: (root / "split.csv").write_text("name;split\na;train\n"), "columns id and split"),
        (lambda root: (root / "dataset.yaml").write_text("clases: [a]"), "unknown key clases"),
        (lambda root: (root / "dataset.yaml").write_text("spacing: [0, 1]"), "above 0"),
        (lambda root: (root / "dataset.yaml").write_text("case_pattern: '^(p\\d+)'"), "does not match case_pattern"),
    ],
)
def test_folder_problems_are_raised_and_listed(broken: object, message: str, tmp_path: Path) -> None:
    trees.folder(tmp_path)
    assert survey(tmp_path, "folder")[1] == ()
    broken(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path, "folder")
    assert any(message in fault.message for fault in survey(tmp_path, "folder")[1])


@pytest.mark.parametrize(("image", "mask"), [("pat 1", "pat 1_mask"), ("pat_1_2", "pat_1_2-Segmentation.v2")])
def test_a_mask_with_a_word_after_its_name_is_told_the_right_name(image: str, mask: str, tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for one in (image, image[:3]):  # the longer of two names that fit
        trees.save(trees.photograph(), tmp_path / f"images/{one}.png")
    trees.save(trees.square(), tmp_path / f"masks/{mask}.png")
    (fault,) = survey(tmp_path, "folder")[1]
    assert fault.path == tmp_path / f"masks/{mask}.png"
    assert f"belongs to image {image}, rename it to {image}.png; else remove it." in fault.message


def test_a_second_mask_is_not_told_to_take_the_place_of_the_first(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    trees.save(trees.photograph(), tmp_path / "images/p.png")
    for name in ("p", "p_mask_1"):
        trees.save(trees.square(), tmp_path / f"masks/{name}.png")
    (fault,) = survey(tmp_path, "folder")[1]
    assert "rename it to" not in fault.message


def test_folder_refuses_a_mask_of_another_size(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    trees.save(trees.square(size=(12, 15)), tmp_path / "masks/a.png")
    with pytest.raises(UserError, match=r"15x12 pixels, its image a\.png is 16x12"):
        mask_of(open_dataset(tmp_path), "a")


def test_folder_takes_colours_classes_spacing_and_cases_from_dataset_yaml(tmp_path: Path) -> None:
    colours = np.zeros((*trees.SIZE, 3), np.uint8)
    colours[0, 0] = 255, 0, 0
    colours[0, 1] = 255, 255, 255
    trees.save(trees.photograph(), tmp_path / "images/p7_1.png")
    trees.save(colours, tmp_path / "masks/p7_1.png")
    trees.save(trees.photograph(), tmp_path / "images/p7_2.png")
    trees.save(np.zeros(trees.SIZE, np.uint8), tmp_path / "masks/p7_2.png")  # an all black mask saved as grey
    (tmp_path / "dataset.yaml").write_text(
        'name: organs\nclasses: [liver, spleen]\nspacing: [0.5, 0.7]\ncase_pattern: "^(p[0-9]+)_"\n'
        'labels: {"#ff0000": 1, "#ffffff": 2}\n'
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.classes) == ("organs", ("liver", "spleen"))
    assert {(each.case, each.spacing) for each in dataset.records} == {("p7", (0.5, 0.7))}
    assert mask_of(dataset, "p7_1")[0, :3].tolist() == [1, 2, 0]
    assert mask_of(dataset, "p7_2").sum() == 0


def test_folder_counts_classes_by_the_masks_and_says_so(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 3), ("c", 2)):
        trees.save(trees.photograph(), tmp_path / f"images/{name}.png")
        trees.save(trees.square(value), tmp_path / f"masks/{name}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("class1", "class2", "class3")
    assert any("by the values of 3 masks" in note for note in dataset.notes)
    trees.save(trees.square(63), tmp_path / "masks/c.png")
    with pytest.raises(UserError, match=r"0, 1, 3, 63.*dataset\.yaml"):
        open_dataset(tmp_path)


def test_a_set_in_three_parts_is_what_its_dataset_yaml_says(tmp_path: Path) -> None:
    """Whoever keeps polyps in train/ and test/ got a model of "ulcer", trained on "Autooral"."""
    trees.autooral(tmp_path)
    assert any("taken for Autooral" in note for note in open_dataset(tmp_path).notes)
    (tmp_path / "dataset.yaml").write_text(
        "name: Polyps\nclasses: [flat, raised]\nlabels: {255: 2}\nspacing: [0.2, 0.3]\ncase_pattern: '(\\d)$'\n"
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.classes, dataset.notes) == ("Polyps", ("flat", "raised"), ())
    first = next(record for record in dataset.records if record.id == "test/1")
    assert (first.case, first.spacing, set(dataset.read_mask(first).flat)) == ("1", (0.2, 0.3), {0, 2})
