"""Labels as files: PNG of an image, NIfTI of a volume or series; each appears whole or not at all."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nibabel
import numpy as np

from tskd.data import nifti
from tskd.data.png import packed
from tskd.deploy.inputs import Item
from tskd.errors import UserError
from tskd.machine.disk import Draft, draft


def label_file(item: Item, planes: Sequence[np.ndarray], axis: int) -> bytes:
    """Return the file of an item's labels: PNG of an image, else ``.nii.gz``; ``planes`` are (H, W) uint8, one a frame.

    Raises UserError where slices differ in size.
    """
    if item.kind == "image":
        return packed(planes[0])
    if len({plane.shape for plane in planes}) > 1:
        raise UserError(f"{item.source}: the slices differ in size. Give them as single files.")
    if item.kind == "nifti":
        return nifti.labels_like(item.source, planes, axis=axis)
    volume = series_volume(item, planes)
    return gzip.compress(volume.to_bytes(), compresslevel=6, mtime=0)


def series_volume(item: Item, planes: Sequence[np.ndarray]) -> nibabel.Nifti1Image:
    """Return the labels of a series as (column, row, slice), placed as ITK and dcm2niix place it."""
    assert item.affines is not None
    sform, qform = item.affines
    voxels = np.empty((*planes[0].shape[::-1], len(planes)), np.uint8)
    for number, plane in enumerate(planes):
        voxels[..., number] = plane.T
    volume = _labels(voxels, sform)
    volume.set_qform(qform, code="scanner")
    volume.set_sform(sform, code="scanner")
    return volume


def _labels(voxels: np.ndarray, affine: np.ndarray | None) -> nibabel.Nifti1Image:
    volume = nibabel.Nifti1Image(voxels, affine, dtype=np.uint8)
    volume.header.set_xyzt_units("mm")
    return volume


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step, its folder made where it is missing.

    UserError where the disk takes no such name, OSError where it takes no more.
    """
    with placeable(path):
        _draft(path, content).publish()


def draft_all(files: Iterable[tuple[Path, bytes]]) -> list[Draft]:
    """Write files that are to be published together; where one is refused, none is left."""
    with ExitStack() as undo:
        drafts = []
        for path, content in files:
            with placeable(path):
                drafts.append(_draft(path, content))
            undo.callback(drafts[-1].discard)
        undo.pop_all()
    return drafts


def _draft(path: Path, content: bytes) -> Draft:
    path.parent.mkdir(parents=True, exist_ok=True)
    return draft(path, content)


@contextmanager
def placeable(path: Path) -> Iterator[None]:
    """Let a place that no file can have be a UserError that says so, which costs that result and no other."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{path}: the name of this result is too long for the disk. Shorten the input's."
            ) from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{path}: this result cannot be written, since a folder or file is in its way. Move that away."
            ) from error
        raise
