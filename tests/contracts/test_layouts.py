"""Every registered layout reads its official tree: one test for all, and one for each trap."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest

from tskd.data.intensity import IntensityWindow, apply_window
from tskd.data.layouts import LAYOUTS, Dataset, LayoutOptions, detect, open_dataset
from tskd.data.layouts.folder import problems
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


def test_unlabelled_record_has_no_mask_to_read(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    with pytest.raises(UserError, match="unlabelled"):
        mask_of(open_dataset(tmp_path), "d")


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

    polygons, other_shapes = kidneyus._polygons(KIDNEYUS / f"reviewed_labels_{annotator}.csv")
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
            drawn = kidneyus._draw(polygons[f"{each.id}.png"], size, chosen)
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
        ("id,split,volume,slice", ("p1_f1_sl2,,a,1.5",), "line 2: slice '1.5' is no whole number"),
        ("id,split,volume,slice", ("p1_f1_sl2,,a,20210101",), "line 2: slice '20210101' is no whole number"),
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
    (tmp_path / "dataset.yaml").write_text("case_pattern: '^(p)'\n")
    with pytest.raises(UserError, match=r"dataset\.yaml: spacing and case_pattern are for single images"):
        open_dataset(tmp_path, layout)


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
    assert "passed over, since they are no scans: 1 RT dose (RTDOSE)" in notes
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
        (lambda root: (root / "images/x.heic").write_bytes(b"1"), "not an image file"),
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
    assert problems(tmp_path, LayoutOptions()) == []
    broken(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path, "folder")
    assert any(message in text for _, text in problems(tmp_path, LayoutOptions()))


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
