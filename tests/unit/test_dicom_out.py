"""A DICOM Segmentation refers to its source and to nobody else, whatever the source lacks, and says who made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import UltrasoundMultiFrameImageStorage

from tests.dicoms import SECRETS, STUDY, save, save_series
from tskd.data.codes import TISSUE, ClassCode, Code, parse_class_code
from tskd.deploy.dicom_out import Kind, Model, NoSegmentation, Source, as_bytes, segmentation

LIVER = ClassCode(Code("123037004", "SCT", "Anatomical Structure"), Code("10200004", "SCT", "Liver"))
MODEL = Model(("liver", "Läsion 病变"), {"liver": LIVER}, "abdomen", "ab" * 32)
LABELS = np.zeros((3, 6, 4), np.uint8)
LABELS[1, 2:4, 1] = 1
LABELS[1, 5, 3] = 2


def sources(folder: Path, **tags: object) -> list[Source]:
    paths = save_series(folder, [(0, 0, z) for z in (0, 3, 6)], **{**STUDY, "SeriesNumber": 4, **tags})
    return [Source(dcmread(path, stop_before_pixels=True)) for path in paths]


def read(segmented: Dataset, path: Path) -> Dataset:
    path.write_bytes(as_bytes(segmented))
    return dcmread(path)


def test_it_names_patient_study_segments_and_model(tmp_path: Path) -> None:
    given = sources(tmp_path / "s", PatientSex="F", StudyDate="20200102", PatientAge="050Y")
    before = [str(source.data) for source in given]
    seg = read(segmentation(given, LABELS, MODEL), tmp_path / "seg.dcm")
    assert [str(source.data) for source in given] == before, "the source's own elements were changed"
    assert (seg.PatientName, seg.PatientID, seg.PatientSex, seg.StudyDate) == ("Doe^Jane", "SECRET-7", "F", "20200102")
    assert (seg.PatientAge, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("050Y", "1.2.840.1", "1.2.840.2")
    assert (seg.SeriesNumber, seg.Manufacturer, seg.SpecificCharacterSet) == (1004, "tskd", "ISO_IR 192")
    one, other = seg.SegmentSequence
    assert (one.SegmentLabel, other.SegmentLabel) == MODEL.classes
    stated = [
        (str(part[0].CodeValue), part[0].CodingSchemeDesignator, part[0].CodeMeaning)
        for segment in (one, other)
        for part in (segment.SegmentedPropertyCategoryCodeSequence, segment.SegmentedPropertyTypeCodeSequence)
    ]
    assert stated == [*LIVER, TISSUE, TISSUE]
    algorithm = one.SegmentationAlgorithmIdentificationSequence[0]
    assert (one.SegmentAlgorithmType, algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
        "AUTOMATIC", "abdomen", "ab" * 32
    )  # fmt: skip
    referred = seg.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == given[0].data.SeriesInstanceUID
    assert [one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence] == [
        source.data.SOPInstanceUID for source in given
    ]


def test_the_same_result_has_the_same_uids_and_another_has_others(tmp_path: Path) -> None:
    given, other = sources(tmp_path / "s"), LABELS.copy()
    other[0, 0, 0] = 1
    first, again = (segmentation(given, LABELS, MODEL) for _ in range(2))
    assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
    changed = [
        segmentation(given, other, MODEL),
        segmentation(given, LABELS, MODEL, "labelmap"),
        segmentation(given, LABELS, Model(MODEL.classes, {}, MODEL.name, "cd" * 32)),
        segmentation(sources(tmp_path / "t"), LABELS, MODEL),
    ]
    assert len({seg.SOPInstanceUID for seg in (first, *changed)}) == 5


@pytest.mark.parametrize(
    "keyword", [*STUDY, "PatientID", "PatientName", "SliceThickness", "Modality", "InstanceNumber"]
)
def test_what_a_source_lacks_stops_it_only_where_it_must(keyword: str, tmp_path: Path) -> None:
    given = sources(tmp_path / "s")
    for source in given:
        delattr(source.data, keyword)
    if keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        with pytest.raises(NoSegmentation, match=f"states no {keyword}"):
            segmentation(given, LABELS, MODEL)
        return
    seg = read(segmentation(given, LABELS, MODEL), tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == 2
    assert keyword in seg or keyword == "SliceThickness"


def test_slices_that_cannot_be_told_apart_are_not_referred_to(tmp_path: Path) -> None:
    """Poor anonymisers give all slices one SOPInstanceUID."""
    given = sources(tmp_path / "s")
    for source in given:
        source.data.SOPInstanceUID = "1.2.3"
    with pytest.raises(NoSegmentation, match="one SOPInstanceUID for several slices"):
        segmentation(given, LABELS, MODEL)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientSex", "female"), ("PatientBirthDate", "1/2/1970"), ("StudyDate", "soon"), ("PatientWeight", "heavy")],
)
def test_odd_values_of_a_scanner_are_passed_on_or_left_out(keyword: str, value: str, tmp_path: Path) -> None:
    given = sources(tmp_path / "s")
    for source in given:
        source.data[keyword] = DataElement(keyword, "LO", value)
    seg = segmentation(given, LABELS, MODEL)
    assert as_bytes(seg)
    assert seg.get(keyword) in (value, None)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_where_nothing_was_found_it_says_so(kind: Kind, tmp_path: Path) -> None:
    seg = read(segmentation(sources(tmp_path / "s"), LABELS * 0, MODEL, kind), tmp_path / "seg.dcm")
    assert not seg.pixel_array.any()
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 3


@pytest.mark.parametrize("frames", [1, 5])
def test_an_image_without_a_frame_of_reference_is_referred_to_by_frame(frames: int, tmp_path: Path) -> None:
    pixels = np.zeros((frames, 6, 4), np.uint8) if frames > 1 else np.zeros((6, 4), np.uint8)
    path = save(
        pixels, tmp_path / "us.dcm", SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US",
        StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.3", LossyImageCompression="01",
    )  # fmt: skip
    index = 3 if frames > 1 else None
    source = Source(dcmread(path, stop_before_pixels=True), index)
    seg = read(segmentation([source], LABELS[1:2], MODEL), tmp_path / "seg.dcm")
    assert "FrameOfReferenceUID" not in seg
    assert (seg.LossyImageCompression, seg.InstanceNumber) == ("01", 4 if index else 1)
    item = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert item.ReferencedSOPClassUID == UltrasoundMultiFrameImageStorage
    assert item.get("ReferencedFrameNumber") == (4 if index else None)
    np.testing.assert_array_equal(seg.pixel_array, [LABELS[1] == 1, LABELS[1] == 2])
    if frames > 1:
        both = [Source(source.data, 0), Source(source.data, 1)]
        with pytest.raises(NoSegmentation, match="holds one frame only"):
            segmentation(both, LABELS[:2], MODEL)


def test_what_breaks_it_is_said_without_the_text_that_may_quote(tmp_path: Path) -> None:
    given = sources(tmp_path / "s")
    del given[0].data.Rows
    with pytest.raises(NoSegmentation, match="AttributeError") as caught:
        segmentation(given, LABELS, MODEL)
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("10200004", "must be"),
        ([10200004, "SCT"], "must be"),
        ([10200004, "SCT", True], "must be"),
        ([10200014, "SCT", "Liver"], "check digit"),
        (["T-62000", "SCT", "Liver"], "check digit"),
        ([10200004, "SCT", ""], "a meaning that is empty"),
        ([10200004, "S" * 17, "Liver"], "a scheme"),
        ({"category": [10200004, "SCT", "Liver"]}, "lacks a type"),
        ({"type": [10200004, "SCT", "Liver"], "kind": 1}, "holds kind"),
    ],
)
def test_a_code_that_is_none_is_named(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_class_code(value)


def test_a_triplet_is_a_type_of_the_plain_category() -> None:
    assert parse_class_code([10200004, "SCT", "Liver"]) == ClassCode(TISSUE, LIVER.type)
    assert parse_class_code({"category": list(LIVER.category), "type": list(LIVER.type)}) == LIVER
    assert parse_class_code(["T-62000", "SRT", "Liver"]).type.value == "T-62000"
