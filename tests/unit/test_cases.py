"""Several volumes of one patient: stated as one case they are never parted; where nothing is stated, that is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.layout_trees import SIZE, photograph, save, save_dicom, save_nifti, square
from tskd.data.check import inspect
from tskd.data.layouts import Dataset, open_dataset, survey
from tskd.data.splits import make_split
from tskd.errors import UserError

LABELS = np.stack([square().T, square(0).T], axis=2)
FRAMES = [f"patient{patient:03d}_frame{frame:02d}" for patient in range(8) for frame in (1, 12)]


def volumes(root: Path, names: Sequence[str]) -> Path:
    """Write labelled volumes as nnU-Net names them."""
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).integers(0, 900, (*SIZE[::-1], 2)).astype(np.int16)
        save_nifti(values, root / "imagesTr" / f"{name}_0000.nii.gz")
        save_nifti(LABELS, root / "labelsTr" / f"{name}.nii.gz")
    return root


def series(root: Path, names: Sequence[str]) -> Path:
    """Write DICOM series of two slices, a folder each, with a label volume each."""
    for name in names:
        for number in range(2):
            values = np.full(SIZE, 100 * number, np.int16)
            save_dicom(values, root / f"images/{name}/{number}.dcm", ImagePositionPatient=[0, 0, 3 * number])
        save_nifti(LABELS, root / f"masks/{name}.nii.gz", np.diag([-0.8, -0.5, 3, 1]))
    return root


def parted(dataset: Dataset) -> set[str]:
    """Return the patients, by the first ten letters, that lie on both sides of a drawn split."""
    sides = make_split(dataset.records, presence={record.id: frozenset({1}) for record in dataset.records}).sides()
    tested = {id_[:10] for id_, side in sides.items() if side == "test"}
    return {id_[:10] for id_, side in sides.items() if side != "test"} & tested


@pytest.mark.parametrize("write", [volumes, series])
@pytest.mark.parametrize("stated", ["dataset.yaml", "split.csv"])
def test_volumes_of_a_stated_case_are_never_parted_and_stay_volumes(write, stated: str, tmp_path: Path) -> None:
    unstated = open_dataset(write(tmp_path, FRAMES))
    assert parted(unstated), "or this data set shows nothing"
    text = "case_pattern: '^(.+?)_frame'"
    if stated == "split.csv":
        text = "id,split,case\n" + "".join(f"{name},,{name.partition('_')[0]}\n" for name in FRAMES)
    (tmp_path / stated).write_text(text)
    dataset = open_dataset(tmp_path)
    assert {record.case for record in dataset.records} == {f"patient{patient:03d}" for patient in range(8)}
    assert not parted(dataset)
    assert not dataset.warnings
    kept = [(r.id, r.volume, r.place, r.spacing, r.mask) for r in unstated.records]
    assert kept == [(r.id, r.volume, r.place, r.spacing, r.mask) for r in dataset.records]


@pytest.mark.parametrize("write", [volumes, series])
def test_split_csv_says_which_volumes_are_the_test(write, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    (write(tmp_path, names) / "split.csv").write_text("id,split\na,test\nb,val\nc,\n")
    splits = {record.case: record.split for record in open_dataset(tmp_path).records}
    assert (splits["a"], splits["b"]) == ("test", "val")
    assert splits["c"] == ("train" if write is volumes else None), "nnU-Net's folder says it where the table does not"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("d,train,", "'d' is unknown: of a "),
        ("a,exam,", "split 'exam' is not one of train, val, test or empty"),
        ("a,test,\na,test,", "'a' was given before, in line 2"),
        ("a,test,,3", "volume and slice are of single images"),
    ],
)
@pytest.mark.parametrize("write", [volumes, series])
def test_lines_that_say_nothing_of_a_volume_are_named(write, row: str, told: str, tmp_path: Path) -> None:
    (write(tmp_path, "abc") / "split.csv").write_text(f"id,split,case,slice\n{row}\n")
    with pytest.raises(UserError, match=rf"split\.csv: line \d: .*{told}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("pattern", "told"), [("^(p)", "does not match"), ("^(x?)", "has an empty case by")])
@pytest.mark.parametrize("write", [volumes, series])
def test_a_volume_without_a_case_by_the_pattern_is_named(write, pattern: str, told: str, tmp_path: Path) -> None:
    (write(tmp_path, "abc") / "dataset.yaml").write_text(f"case_pattern: '{pattern}'\n")
    with pytest.raises(UserError, match=rf"the id 'a' {told} case_pattern"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (FRAMES[:4], "^(.+?)_frame"),
        (["p1_t1", "p1_t2", "p1_FLAIR", "p2_t1"], "^(.+?)(?:_FLAIR|_t1|_t2)"),
        (["sub-01_ses-01", "sub-01_ses-02", "sub-02_ses-01"], "^(.+?)_ses"),
        (["a", "a_visit2", "b"], "^(.+?)(?:_visit.*)?$"),
        (["p01-01", "p01-02", "p02-01"], r"^(.+)[_. -]\d+$"),
        (["p01-01", "p01-02", "p02"], r"^(.*?\d.*?)(?:[_. -]\d+)?$"),
        (["pat1/x", "pat1/y", "pat2/x"], "^([^/]+)/"),
        (["pat1/x", "pat1/y", "pat2/x", "z"], "^([^/]+)"),
    ],
)
def test_names_that_look_like_one_patient_are_warned_of_with_the_line_to_write(
    names: list[str], line: str, tmp_path: Path
) -> None:
    (warning,) = open_dataset(volumes(tmp_path, names)).warnings
    assert f"write `case_pattern: '{line}'` into dataset.yaml" in warning
    assert [problem.message for problem in inspect(tmp_path).problems if "each a case of its own" in problem.message]
    for stated, cases in ((line, set()), ("(.+)", set(names))):
        (tmp_path / "dataset.yaml").write_text(f"case_pattern: '{stated}'\n")
        dataset = open_dataset(tmp_path)
        assert not dataset.warnings
        found = {record.case for record in dataset.records}
        assert found == cases if cases else len(found) < len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["liver_1", "liver_2", "liver_10"],
        ["BRATS_001", "BRATS_002"],
        ["BraTS20_Training_001", "BraTS20_Training_002"],
        ["s0011", "s0012"],
        ["left", "right"],
        ["hospital/p1", "hospital/p2"],
        [f"site{site}_{patient:04d}" for site in (1, 2) for patient in range(13)],
    ],
)
def test_names_of_patients_are_not_warned_of(names: list[str], tmp_path: Path) -> None:
    assert survey(volumes(tmp_path, names), "nifti")[1] == ()


def test_folders_of_series_that_look_like_visits_are_warned_of(tmp_path: Path) -> None:
    (warning,) = open_dataset(series(tmp_path, ["p1_visit1", "p1_visit2", "p2_visit1"])).warnings
    assert "3 case folders have 2 names up to _visit" in warning


def test_sub_folders_of_images_without_a_case_are_warned_of_and_stay_cases_of_their_own(tmp_path: Path) -> None:
    ids = [f"pat{patient}/{image}" for patient in range(4) for image in range(2)]
    for seed, id_ in enumerate(ids):
        save(photograph(seed), tmp_path / f"images/{id_}.png")
        save(square(), tmp_path / f"masks/{id_}.png")
    dataset = open_dataset(tmp_path)
    assert [record.case for record in dataset.records] == ids
    (warning,) = dataset.warnings
    assert "8 images lie in 4 sub-folders" in warning
    assert "write `case_pattern: '^([^/]+)/'` into dataset.yaml" in warning
    assert any("8 images lie in 4 sub-folders" in problem.message for problem in inspect(tmp_path).problems)
    (tmp_path / "split.csv").write_text("id,split,case\n" + "".join(f"{id_},,{id_[:4]}\n" for id_ in ids))
    assert not open_dataset(tmp_path).warnings, "stated"


def test_an_empty_case_is_no_case(tmp_path: Path) -> None:
    """It fell back to a case for each image."""
    save(photograph(), tmp_path / "images/a.png")
    (tmp_path / "dataset.yaml").write_text("case_pattern: '^(x?)'\n")
    with pytest.raises(UserError, match="the id 'a' has an empty case by case_pattern"):
        open_dataset(tmp_path)
