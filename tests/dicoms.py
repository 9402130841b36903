"""DICOM files as tests need them: small, complete, and with a patient whose name must never be shown."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

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


STUDY = {
    "StudyInstanceUID": "1.2.840.1", "FrameOfReferenceUID": "1.2.840.2", "SliceThickness": 3, "StudyID": "",
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyDate": "", "StudyTime": "",
    "ReferringPhysicianName": "",
}  # fmt: skip
"""What objects copy from the scans that they are drawn on."""


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


def save_seg(
    path: Path, series: Sequence[Path], pixels: np.ndarray | hd.Volume, kind: str, names: Sequence[str], **tags: object
) -> Path:
    """Write a SEG by highdicom; ``pixels`` are (file, row, column) or (file, row, column, segment), or a volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    liver = codes.SCT.Liver
    segments = [
        hd.seg.SegmentDescription(number, name, codes.SCT.Organ, liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for number, name in enumerate(names, 1)
    ]
    sources = [dcmread(one) for one in series]
    seg = hd.seg.Segmentation(
        sources, pixels, kind, segments, generate_uid(), 9, generate_uid(), 1, "made", "up", "1", "1"
    )
    for name, value in tags.items():
        setattr(seg, name, value)
    seg.save_as(path)
    return path


def save_contours(
    path: Path, series: Sequence[Path], regions: Mapping[str, Sequence[np.ndarray]], *, kind: str = "CLOSED_PLANAR"
) -> Path:
    """Write a structure set; each contour is (N, 3) millimetres in LPS."""

    def item(**tags: object) -> Dataset:
        dataset = Dataset()
        for name, value in tags.items():
            setattr(dataset, name, value)
        return dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    scans = [dcmread(one) for one in series]
    images = [item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in scans]
    referred = item(SeriesInstanceUID=scans[0].SeriesInstanceUID, ContourImageSequence=images)
    study = item(RTReferencedSeriesSequence=[referred])
    frame = item(FrameOfReferenceUID=scans[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])
    dataset = item(
        SOPClassUID=RTStructureSetStorage, SOPInstanceUID=generate_uid(), Modality="RTSTRUCT",
        PatientName="Doe^Jane", PatientID="SECRET-7", ReferencedFrameOfReferenceSequence=[frame],
        StructureSetROISequence=[
            item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=scans[0].FrameOfReferenceUID)
            for number, name in enumerate(regions, 1)
        ],
        ROIContourSequence=[
            item(ReferencedROINumber=number, ContourSequence=[
                item(ContourGeometricType=kind, NumberOfContourPoints=len(points),
                     ContourData=[f"{value:.4f}" for value in points.ravel()])
                for points in contours
            ])
            for number, contours in enumerate(regions.values(), 1)
        ],
    )  # fmt: skip
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def enhanced(path: Path, heights: Sequence[float]) -> Path:
    """Write an enhanced CT of one frame a height, 6 rows and 4 columns, each frame of another grey."""

    def item(**tags: object) -> Dataset:
        dataset = Dataset()
        for name, value in tags.items():
            setattr(dataset, name, value)
        return dataset

    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.8], SliceThickness=2)],
    )
    own = [item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, z])]) for z in heights]
    return save(
        np.arange(len(heights), dtype=np.int16)[:, None, None] + np.zeros((6, 4), np.int16), path,
        **STUDY, SOPClassUID=EnhancedCTImageStorage, Modality="CT",
        SeriesInstanceUID="1.2.3", SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own,
    )  # fmt: skip


def deflated(path: Path, extra: int = 0) -> Path:
    """Deflate a file, with ``extra`` bytes of zeros after its pixels."""
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 132 + 12 + read_file_meta_info(path).FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [content[:start], packer.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))]
    parts += [packer.compress(bytes(2**20)) for _ in range(extra // 2**20)]
    path.write_bytes(b"".join([*parts, packer.flush()]))
    return path
