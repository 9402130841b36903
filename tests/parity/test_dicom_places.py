"""Label volumes of DICOM series lie where SimpleITK has the series, voxel for voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.dicoms import save_series
from tskd.data import dicom
from tskd.deploy.inputs import Item, find_items
from tskd.deploy.label_files import series_volume

LEFT, BACK, UP = np.eye(3)
OBLIQUE_ROW = np.array([0.8, 0.6, 0.0])
OBLIQUE_COLUMN = np.array([-0.36, 0.48, -0.8])
TILT = np.radians(15)
PLANES = {
    "axial": (LEFT, BACK, None),
    "sagittal": (BACK, -UP, None),
    "coronal": (LEFT, -UP, None),
    "oblique": (OBLIQUE_ROW, OBLIQUE_COLUMN, None),
    "turned in its plane": (-BACK, LEFT, None),
    "tilted gantry": (LEFT, np.cos(TILT) * BACK - np.sin(TILT) * UP, UP),
}


def itk(names: Sequence[str]) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(names)
    return reader.Execute()


@pytest.mark.parametrize("falling", [False, True], ids=["rising", "falling"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_series_lies_where_itk_has_it(plane: str, falling: bool, tmp_path: Path) -> None:
    """6 rows, 4 columns, pixels of 0.5 x 0.8 mm, 3 slices: no two axes can be exchanged unseen."""
    row, column, along = PLANES[plane]
    step = 2.5 * (np.cross(row, column) if along is None else along) * (-1 if falling else 1)
    origins = [tuple((np.array([-20.0, 7, 11]) + k * step).tolist()) for k in range(3)]
    save_series(tmp_path / "s", origins, ImageOrientationPatient=[*row.tolist(), *column.tolist()])
    found = find_items([tmp_path / "s"], results=tmp_path / "out")
    (item,), failures = found.items, found.failures
    assert isinstance(item, Item)
    assert not failures
    planes = [dicom.read_stored(frame.path).astype(np.uint8) for frame in item.frames]
    (tmp_path / "labels.nii").write_bytes(series_volume(item, planes).to_bytes())
    ours = SimpleITK.ReadImage(str(tmp_path / "labels.nii"))
    theirs = itk(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, name)(), getattr(theirs, name)(), atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs).astype(np.uint8)
    )


def test_voxels_of_a_tilted_series_are_where_their_slices_say(tmp_path: Path) -> None:
    """The sform, which knows of shear: each slice's first and last pixel by PS3.3 C.7.6.2.1.1."""
    row, column, _ = PLANES["tilted gantry"]
    origins = [(-20.0, 7.0, 11.0 + 2.5 * k) for k in range(3)]
    paths = save_series(tmp_path / "s", origins, ImageOrientationPatient=[*row.tolist(), *column.tolist()])
    sform, qform = dicom.grid_affines(dicom.list_series(paths).slices)
    for k, origin in enumerate(origins):
        for c, r in ((0, 0), (3, 5)):
            lps = np.array(origin) + row * 0.8 * c + column * 0.5 * r
            np.testing.assert_allclose(sform @ [c, r, k, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-9)
    axes = qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
