"""Writes a small data set in the official tree of every layout, with that data set's known traps in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SIZE = (12, 16)  # rows, columns: unequal, so that an exchanged axis cannot pass


@dataclass(frozen=True)
class Expected:
    """What the contract test compares with."""

    classes: tuple[str, ...]
    cases: dict[str, int]
    """Records per case."""
    labelled: int
    values: set[int]
    """Mask values over all records."""
    splits: set[str | None] = field(default_factory=lambda: {None})
    volumes: dict[str, int] = field(default_factory=dict)
    """Slices of each volume; those that are in none are single images."""
    spacing: tuple[float, ...] | None = None
    """Of every slice of a volume."""


def square(value: int = 1, *, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[2:6, 3:9] = value
    return mask


def photograph(seed: int = 0, *, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def save(values: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def save_dicom(values: np.ndarray, path: Path, **tags: object) -> Path:
    """Write a CT file; ``tags`` override or, with None, remove."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    bits = values.dtype.itemsize * 8
    plain: dict[str, object] = {
        "PatientID": "SECRET-7", "PatientName": "Doe^Jane", "SeriesInstanceUID": "1.2.3", "Modality": "CT",
        "Rows": values.shape[-2], "Columns": values.shape[-1], "SamplesPerPixel": 1, "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": int(values.dtype.kind == "i"), "PixelSpacing": [0.5, 0.8],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0],
    }  # fmt: skip
    for name, value in {**plain, **tags}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_nifti(values: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.5, 3, 1]) if affine is None else affine), path)
    return path


def folder(root: Path) -> Expected:
    """Grey and colour, another extension in capitals, a sub-folder, an empty and a missing mask, 0/255 beside 0/1."""
    save(photograph(0), root / "images/a.png")
    save(photograph(1)[..., 0], root / "images/b.JPG", format="JPEG")
    save(photograph(2), root / "images/patient3/slice1.tif")
    save(photograph(3), root / "images/d.bmp")
    save(square(255), root / "masks/a.png")
    save(square(0), root / "masks/b.png")
    save(square(1), root / "masks/patient3/slice1.png")
    (root / "split.csv").write_text("\ufeffid,split,subject,note\na,train,p1,x\nb,test,p2,\npatient3/slice1,,p1,\n")
    (root / "images/.DS_Store").write_text("left behind by a file manager")
    return Expected(("foreground",), {"p1": 2, "p2": 1, "d": 1}, 3, {0, 1}, {"train", "test", None})


def drive(root: Path) -> Expected:
    """GIF masks 0/255, a field of view, a test part without labels."""
    for part, number in (("training", 21), ("training", 22), ("test", 1)):
        name = f"{number:02d}_{part}"
        save(photograph(number), root / part / "images" / f"{name}.tif")
        field_of_view = np.full(SIZE, 255, np.uint8)
        field_of_view[:, :2] = 0
        save(field_of_view, root / part / "mask" / f"{name}_mask.gif")
        if part == "training":
            save(square(255), root / part / "1st_manual" / f"{number:02d}_manual1.gif")
    return Expected(("vessel",), {"21": 1, "22": 1, "01": 1}, 2, {0, 1, 255})


def ph2(root: Path) -> Expected:
    """1-bit and 24-bit BMP masks side by side."""
    for name, mask in (("IMD002", square(1).astype(bool)), ("IMD003", np.repeat(square(255)[..., None], 3, axis=2))):
        inside = root / "PH2 Dataset images" / name
        save(photograph(int(name[-1])), inside / f"{name}_Dermoscopic_Image" / f"{name}.bmp")
        save(mask, inside / f"{name}_lesion" / f"{name}_lesion.bmp")
        save(mask, inside / f"{name}_roi" / f"{name}_R1_Label3.bmp")
    return Expected(("lesion",), {"IMD002": 1, "IMD003": 1}, 2, {0, 1})


def chaos_ct(root: Path) -> Expected:
    """1-bit masks under other names than the slices; a rescale intercept; a test part without labels."""
    for part, case in (("Train_Sets", "1"), ("Train_Sets", "2"), ("Test_Sets", "1")):
        volume = root / f"CHAOS_{part}" / part / "CT" / case
        for number in range(2):
            stored = np.full(SIZE, 1024 + 40, np.uint16)
            position = [0, 0, 3 * number]
            save_dicom(
                stored, volume / "DICOM_anon" / f"i{number:04d},0000b.dcm",
                RescaleSlope=1, RescaleIntercept=-1024, ImagePositionPatient=position,
            )  # fmt: skip
            if part == "Train_Sets":
                save(square(number).astype(bool), volume / "Ground" / f"liver_GT_{number:03d}.png")
    cases = {"1": 2, "2": 2, "test/1": 2}
    return Expected(("liver",), cases, 4, {0, 1}, volumes=cases, spacing=(0.5, 0.8, 3.0))


def chaos_mr(root: Path) -> Expected:
    """Both T1 phases share a mask; values scatter around 63, 126, 189, 252."""
    organs = square(63)
    organs[0, :4] = 60, 126, 200, 252
    for sequence in ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/DICOM_anon/OutPhase", "T2SPIR/DICOM_anon"):
        path = root / "MR" / "5" / sequence / f"IMG-{len(sequence)}-00001.dcm"
        save_dicom(np.full(SIZE, 300, np.uint16), path, Modality="MR", WindowCenter=300, WindowWidth=600)
    save(organs, root / "MR/5/T1DUAL/Ground/IMG-0004-00002.png")
    save(organs, root / "MR/5/T2SPIR/Ground/IMG-0002-00001.png")
    volumes = {"5/t1_in": 1, "5/t1_out": 1, "5/t2": 1}
    organs_named = ("liver", "right kidney", "left kidney", "spleen")
    return Expected(organs_named, {"5": 3}, 3, {0, 1, 2, 3, 4}, volumes=volumes, spacing=(0.5, 0.8))


def kidneyus(root: Path) -> Expected:
    """JSON in CSV cells, a row without polygon, a stray rect, a repeated file, a reviewed mask, an unlabelled image."""
    names = ["1_IM-0001-0059_anon", "2_IM-0002-0001_anon", "3_IM-0003-0001_anon", "2_IM-0002-0002_anon"]
    repeat, unlabelled, masked = "400_IM-0001-0059_anon", "9_IM-0009-0001_anon", "4_IM-0004-0001_anon"
    for seed, name in enumerate([*names, repeat, unlabelled, masked]):
        save(photograph(seed), root / "images" / f"{name}.png")
    polygon = {"name": "polygon", "all_points_x": [3, 8, 8, 3], "all_points_y": [2, 2, 5, 5]}
    rect = {"name": "rect", "x": 1, "y": 7, "width": 9, "height": 2}
    rows = [
        (names[0], polygon),
        (repeat, polygon),
        (names[1], {}),
        (names[2], rect),
        (names[3], polygon),
        (masked, polygon),
    ]
    columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    (root / "labels").mkdir()
    with (root / "labels/reviewed_labels_1.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split(","))
        for name, shape in rows:
            anatomy = {"Anatomy": "Capsule"} if shape else {}
            quality = json.dumps({"Quality": "Fair", "Comments": "far, deep"})
            writer.writerow([f"{name}.png", 1, quality, 1, 0, json.dumps(shape), json.dumps(anatomy)])
    save(square(1), root / "labels/reviewed_masks_1/capsule" / f"{masked}.png")
    return Expected(("capsule",), {"1": 1, "2": 2, "3": 1, "4": 1, "9": 1}, 5, {0, 1})


def autooral(root: Path) -> Expected:
    """Numbers that repeat over the parts, a JPEG photograph beside a PNG mask."""
    for part in ("Train", "Val", "Test"):
        save(photograph(len(part)), root / part / "images" / "1.jpg")
        save(square(255), root / part / "masks" / "1.png")
    save(photograph(9), root / "Train/images/2.jpg")
    cases = {"train/1": 1, "train/2": 1, "val/1": 1, "test/1": 1}
    return Expected(("ulcer",), cases, 3, {0, 1}, {"train", "val", "test"})


def nifti(root: Path) -> Expected:
    """nnU-Net's names and dataset.json, a volume stored left-right flipped, a test part without labels."""
    labels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    labels[3:9, 2:6, 1] = 2
    labels[0, 0, 0] = 1
    flipped = np.diag([-0.8, 0.5, 3, 1])
    for case, affine in (("p1", None), ("p2", flipped)):
        save_nifti(labels.astype(np.float32) * 100, root / "imagesTr" / f"{case}_0000.nii.gz", affine)
        save_nifti(labels, root / "labelsTr" / f"{case}.nii.gz", affine)
    save_nifti(labels.astype(np.int16), root / "imagesTs/p3_0000.nii")
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2, "organ": 1}}))
    cases = {"p1": 3, "p2": 3, "p3": 3}
    return Expected(("organ", "tumour"), cases, 6, {0, 1, 2}, volumes=cases, spacing=(0.5, 0.8, 3.0))


def dicom(root: Path) -> Expected:
    """File names against the slice order; PNG masks by name, a label volume, and a case without labels."""
    for case, series in (("a", "1.1"), ("b", "1.2"), ("c", "1.3")):
        for number in range(2):
            save_dicom(
                np.full(SIZE, 100 * number, np.int16), root / "images" / case / f"{9 - number}.dcm",
                SeriesInstanceUID=series, ImagePositionPatient=[0, 0, 3 * number], PatientID=case,
            )  # fmt: skip
    save(square(255), root / "masks/a/9.png")
    volume = np.zeros((SIZE[1], SIZE[0], 2), np.uint8)
    volume[3:9, 2:6, 1] = 1
    save_nifti(volume, root / "masks/b.nii.gz", np.diag([-0.8, -0.5, 3, 1]))  # DICOM counts towards left and back
    volumes = {"a/0": 2, "b/0": 2, "c/0": 2}
    cases = {"a": 2, "b": 2, "c": 2}
    return Expected(("foreground",), cases, 3, {0, 1}, volumes=volumes, spacing=(0.5, 0.8, 3.0))


TREES: dict[str, Callable[[Path], Expected]] = {
    "folder": folder,
    "drive": drive,
    "ph2": ph2,
    "chaos_ct": chaos_ct,
    "chaos_mr": chaos_mr,
    "kidneyus": kidneyus,
    "autooral": autooral,
    "nifti": nifti,
    "dicom": dicom,
}
