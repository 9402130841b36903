"""DICOM files as tests need them: small, complete, and with a patient whose name must never be shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SECRETS = ("Doe", "Jane", "SECRET-7")
"""What every file says of its patient."""
AXIAL = (1, 0, 0, 0, 1, 0)


def save(values: np.ndarray, path: Path, *, compress: str | None = None, **tags: object) -> Path:
    """Write one file; the first axis of a 3-axis array is frames, unless the last is colour."""
    colour = values.ndim > 2 and values.shape[-1] == 3
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-7"
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if colour:
        dataset.PlanarConfiguration = 0
    elif values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    if compress is not None:
        dataset.compress(compress)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_series(folder: Path, origins: Sequence[Sequence[float]], *, name: str = "IM", **tags: object) -> list[Path]:
    """Write a CT series, a slice at each origin (LPS), 6 rows and 4 columns with values that tell slices apart."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"SeriesInstanceUID": f"1.2.{len(name)}", "Modality": "CT", "ImageOrientationPatient": list(AXIAL)}
    pixels = np.arange(24, dtype=np.int16).reshape(6, 4)
    return [
        save(
            pixels + 100 * number, folder / f"{name}{number:04d}.dcm", InstanceNumber=number + 1,
            ImagePositionPatient=list(origin), **{**usual, "PixelSpacing": [0.5, 0.8], **tags},
        )
        for number, origin in enumerate(origins)
    ]  # fmt: skip
