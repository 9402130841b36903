"""Labels lie where their scan lies, as nibabel and ITK read both, whatever the scan's header states of its place."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel.nifti1 import Nifti1Header
from scipy.spatial.transform import Rotation

from tskd.data import nifti
from tskd.errors import UserError

SHAPE = (5, 4, 3)
SIZES = np.array([0.9, 0.8, 3.0])
Change = Callable[[Nifti1Header], None]


def affine(origin: tuple[float, float, float], *, degrees: float = 0, sizes: np.ndarray = SIZES) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ np.diag(sizes)
    matrix[:3, 3] = origin
    return matrix


HERE, THERE = affine((-20, -30, 10)), affine((5, 7, -40), degrees=20)
FLIPPED = HERE @ np.diag([1, 1, -1, 1])
"""A left-handed grid, which a qform says by pixdim[0] = -1."""


def both(sform_code: int, qform_code: int, sform: np.ndarray = HERE, qform: np.ndarray = THERE) -> Change:
    def change(header: Nifti1Header) -> None:
        header.set_qform(qform, 1)
        header.set_sform(sform, 1)
        header["sform_code"], header["qform_code"] = sform_code, qform_code

    return change


def of_units(units: str | int, scale: float) -> Change:
    def change(header: Nifti1Header) -> None:
        both(2, 1, affine((-20, -30, 10), sizes=SIZES * scale), affine((-20, -30, 10), sizes=SIZES * scale))(header)
        header.set_xyzt_units(units) if isinstance(units, str) else header.__setitem__("xyzt_units", units)

    return change


def oriented(codes: str) -> Change:
    def change(header: Nifti1Header) -> None:
        turn = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(codes), SHAPE)
        both(1, 1, HERE @ turn, HERE @ turn)(header)

    return change


def with_sizes(*pixdim: float) -> Change:
    def change(header: Nifti1Header) -> None:
        both(1, 0)(header)
        header["pixdim"][1:4] = pixdim

    return change


SHEARED = HERE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NOTHING = np.diag([0.0, 0, 0, 1])
PLACES: dict[str, Change] = {
    **{f"codes {s} and {q}": both(s, q) for s, q in [(0, 0), (1, 0), (0, 1), (2, 1), (1, 2), (4, 3)]},
    "left-handed": both(1, 1, FLIPPED, FLIPPED),
    "left-handed qform alone": both(0, 1, FLIPPED, FLIPPED),
    "sheared sform": both(1, 1, SHEARED, HERE),
    "sheared sform alone": both(1, 0, SHEARED),
    "zero sform": both(1, 1, NOTHING, HERE),
    "flat sform": both(1, 1, np.diag([1.0, 1, 0, 1]), HERE),
    "NaN in the sform": both(1, 1, np.full((4, 4), np.nan), HERE),
    "micrometres": of_units("micron", 1000.0),
    "small numbers in micrometres": of_units("micron", 1.0),
    "metres": of_units("meter", 0.001),
    "unknown units": of_units(0, 1.0),
    "negative sizes": with_sizes(-0.9, 0.8, -3),
    "sizes of zero": with_sizes(0, 0, 0),
    **{codes: oriented(codes) for codes in ("LAS", "LPS", "PIR", "SAL", "RAS", "IRP")},
}


def write(path: Path, change: Change, *, kind: type = nibabel.Nifti1Image, frames: int = 1, endian: str = "<") -> Path:
    """Write a scan whose voxels are all different, with the header changed behind nibabel's back."""
    shape = SHAPE if frames == 1 else (*SHAPE, frames)
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    header = kind.header_class(endianness=endian)
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["pixdim"][1:4] = SIZES
    header.set_xyzt_units("mm", "sec")
    change(header)
    header["descrip"], header["aux_file"] = b"Jane Doe 1950", b"jane.txt"
    header["vox_offset"] = header.single_vox_offset
    content = header.binaryblock.ljust(header.single_vox_offset, b"\0") + values.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def labels_of(scan: Path, path: Path, *, axis: int = 2) -> Path:
    """Write as labels what the scan shows: each voxel must come back to its place."""
    count = nifti.slice_count(scan, axis=axis) * nifti.frame_count(scan)
    planes = (nifti.read_slice(scan, index, axis=axis) for index in range(count))
    path.write_bytes(nifti.labels_like(scan, planes, axis=axis))
    return path


def itk(path: Path) -> tuple[tuple[float, ...], ...] | None:
    """Return size, spacing, origin and direction; None where ITK refuses the file."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        reader.Execute()
    except RuntimeError:
        return None
    return reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()


def same_place(scan: Path, mask: Path) -> None:
    theirs, ours = nibabel.load(scan), nibabel.load(mask)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for name in ("pixdim", "sform_code", "qform_code", "xyzt_units", "srow_x", "srow_z", "quatern_c", "qoffset_y"):
        np.testing.assert_array_equal(ours.header[name], theirs.header[name], err_msg=name)
    assert str(itk(mask)) == str(itk(scan))  # as text: NaN is NaN


@pytest.mark.parametrize("name", PLACES)
def test_labels_lie_where_the_scan_lies_in_both_readers(name: str, tmp_path: Path) -> None:
    """Red where a form, a code, a size, a unit or a voxel is not the scan's, as the header of one matrix made them."""
    scan = write(tmp_path / "scan.nii.gz", PLACES[name])
    same_place(scan, labels_of(scan, tmp_path / "mask.nii.gz"))


@pytest.mark.parametrize("name", ["codes 2 and 1", "codes 1 and 2", "codes 0 and 1", "left-handed", "PIR", "SAL"])
def test_the_canonical_grid_is_the_one_of_nibabel(name: str, tmp_path: Path) -> None:
    """Red where the qform comes before the sform, which may say another place and another turn."""
    scan = write(tmp_path / "scan.nii", PLACES[name])
    theirs = nibabel.as_closest_canonical(nibabel.load(scan))
    shape, place = nifti.canonical_grid(scan)
    assert shape == theirs.shape
    np.testing.assert_allclose(place, theirs.affine, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "frames", "endian"),
    [(nibabel.Nifti2Image, 1, "<"), (nibabel.Nifti1Image, 2, "<"), (nibabel.Nifti1Image, 1, ">")],
    ids=["NIfTI-2", "frames", "big-endian"],
)
def test_versions_frames_and_byte_orders(kind: type, frames: int, endian: str, axis: int, tmp_path: Path) -> None:
    """Red where only the common kind of file is copied, or the order of frames or axes is lost."""
    scan = write(tmp_path / "scan.nii", PLACES["PIR"], kind=kind, frames=frames, endian=endian)
    mask = labels_of(scan, tmp_path / "mask.nii.gz", axis=axis)
    same_place(scan, mask)
    assert isinstance(nibabel.load(mask), kind)


def test_itk_reads_the_places_that_are_meant(tmp_path: Path) -> None:
    """Red where both files are refused alike, so that the comparison above compares nothing."""
    refused = {name for name in PLACES if itk(write(tmp_path / "scan.nii", PLACES[name])) is None}
    assert refused <= {"sheared sform alone", "sizes of zero", "NaN in the sform"}, refused
    place = itk(labels_of(write(tmp_path / "scan.nii", PLACES["zero sform"]), tmp_path / "mask.nii.gz"))
    assert place is not None
    np.testing.assert_allclose(place[2], (20, 30, 10), atol=1e-3)  # of the qform, in LPS
    np.testing.assert_allclose(place[1], SIZES, atol=1e-6)


def test_only_what_labels_need_is_changed(tmp_path: Path) -> None:
    """Red where the scan's scaling or window is applied to labels, or its free text goes along."""

    def change(header: Nifti1Header) -> None:
        both(1, 1)(header)
        header["scl_slope"], header["scl_inter"], header["cal_max"] = 2.0, 5.0, 80.0
        header["intent_code"], header["slice_duration"] = 1005, 0.5

    scan = write(tmp_path / "scan.nii", change)
    voxels = np.zeros((3, 4, 5), np.uint8)
    voxels[1, 2, 3] = 1
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(nifti.labels_like(scan, voxels))
    header = nibabel.load(mask).header
    assert np.asarray(nibabel.load(mask).dataobj).sum() == 1
    assert (header.get_data_dtype(), header.get_intent()[0]) == (np.uint8, "label")
    assert (header["cal_max"], header["slice_duration"]) == (0, 0.5)
    assert b"jane" not in gzip.decompress(mask.read_bytes()).lower()
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask))).sum() == 1


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("codes 1 and 0", (0.8, 0.9, 3)),
        ("codes 0 and 0", (0.8, 0.9, 3)),
        ("micrometres", (0.8, 0.9, 3)),
        ("small numbers in micrometres", (0.0008, 0.0009, 0.003)),
        ("metres", (0.8, 0.9, 3)),
        ("unknown units", (0.8, 0.9, 3)),
    ],
)
def test_spacing_is_in_millimetres(name: str, spacing: tuple[float, ...], tmp_path: Path) -> None:
    """Red where areas and distances take the file's numbers for millimetres."""
    scan = write(tmp_path / "scan.nii", PLACES[name])
    assert nifti.slice_spacing(scan) == pytest.approx(spacing)


def test_no_spacing_is_made_up(tmp_path: Path) -> None:
    """Red where sizes of 0, which state nothing, become 1 mm."""
    for number, size in enumerate([0, np.nan, np.inf]):
        scan = write(
            tmp_path / f"{number}.nii", lambda header, size=size: header.__setitem__("pixdim", np.full(8, size))
        )
        assert nifti.slice_spacing(scan) is None
        assert nifti.read_label_slice(scan, 0).shape == (4, 5)


def test_a_place_that_no_form_states_is_refused(tmp_path: Path) -> None:
    """Red where a scan of unknown orientation is shown to the network some way round."""
    scan = write(tmp_path / "scan.nii", both(1, 0, NOTHING))
    with pytest.raises(UserError, match=r"scan\.nii: its sform put"):
        nifti.read_slice(scan, 0)


def test_a_form_whose_axes_lie_in_one_plane_is_passed_over(tmp_path: Path) -> None:
    """Red where only an axis of no length is noticed: here the third has one, and lies between the other two."""
    coplanar = HERE.copy()
    coplanar[:3, 2] = HERE[:3, 0] + HERE[:3, 1]
    _, place = nifti.canonical_grid(write(tmp_path / "scan.nii", both(1, 1, coplanar, HERE)))
    np.testing.assert_allclose(place, HERE, atol=1e-4)


def test_planes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Red where a mask of part of a volume is written as if it were whole."""
    scan = write(tmp_path / "scan.nii", PLACES["LPS"])
    for shape in [(2, 4, 5), (4, 4, 5), (3, 5, 4)]:
        with pytest.raises(UserError, match="shape of the volume"):
            nifti.labels_like(scan, np.zeros(shape, np.uint8))
