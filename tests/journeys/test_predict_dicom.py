"""`tskd predict` on DICOM: a segmentation beside each NIfTI or PNG, whole or not at all, nobody named outside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from typer.testing import CliRunner, Result

from tests.contracts.layout_trees import chaos_ct
from tests.dicoms import SECRETS, STUDY, save_series
from tests.unit.test_network_file import network
from tskd.cli import app
from tskd.data.dicom_drawn import View
from tskd.data.dicom_seg import read_segments
from tskd.data.known_digests import KnownDigests
from tskd.data.layouts import LayoutOptions, open_dataset
from tskd.deploy.bundle import open_bundle, write_sums
from tskd.deploy.inputs import find_items
from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.stages.source_data import dataset_digest

LIVER = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["10200004", "SCT", "Liver"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network finds what is bright."""
    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(network(), folder / "model.onnx")
    described = {"classes": ["liver"], "input": {"window": None}, "dataset": "made up", "codes": {"liver": LIVER}}
    write_json(folder / "model.json", described)
    write_sums(folder)
    return folder


def predict(model: Path, source: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["predict", str(model), str(source), "--out", str(out), *more])


def test_each_series_has_its_segmentation(model: Path, tmp_path: Path) -> None:
    for name, step in (("IM", 3), ("LONG", -2)):
        save_series(tmp_path / "in" / "p", [(1, 2, step * k) for k in range(4)], name=name, **STUDY)
    result = predict(model, tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.output
    items = find_items([tmp_path / "in"], results=tmp_path / "out").items
    assert len(items) == 2
    for item in items:
        path = tmp_path / "out" / f"{item.name}.seg.dcm"
        volume = np.asarray(nibabel.load(tmp_path / "out" / item.output).dataobj)
        drawn = read_segments(path)
        for place, one in enumerate(item.slices):
            view = View.of(one)
            assert view is not None
            found = drawn.masks(view).get(1, np.zeros((6, 4), bool))
            np.testing.assert_array_equal(found, volume[..., place].T > 0)
        seg = dcmread(path)
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == dcmread(item.slices[0].path).SeriesInstanceUID
        assert str(seg.PatientID) == "SECRET-7"
        assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
        algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmVersion == open_bundle(model).digest
    told = result.output + (tmp_path / "out" / "predictions.csv").read_text()
    assert not any(secret in told for secret in SECRETS)


def test_it_is_a_label_map_or_left_out_where_asked(model: Path, tmp_path: Path) -> None:
    save_series(tmp_path / "p", [(1, 2, 3 * k) for k in range(3)], **STUDY)
    for kind, stored in (("labelmap", "LABELMAP"), ("none", None)):
        out = tmp_path / kind
        assert predict(model, tmp_path / "p", out, "--dicom-seg", kind).exit_code == 0
        found = list(out.glob("*.dcm"))
        assert [dcmread(path).SegmentationType for path in found] == ([stored] if stored else [])
    assert predict(model, tmp_path / "p", tmp_path / "x", "--dicom-seg", "other").exit_code == 2


def test_it_replaces_nothing_unasked(model: Path, tmp_path: Path) -> None:
    save_series(tmp_path / "p", [(1, 2, 3 * k) for k in range(3)], **STUDY)
    out = tmp_path / "out"
    out.mkdir()
    (out / "p.seg.dcm").write_text("of somebody else")
    result = predict(model, tmp_path / "p", out)
    assert isinstance(result.exception, UserError) or result.exit_code == 2
    assert [path.name for path in out.iterdir()] == ["p.seg.dcm"]
    assert (out / "p.seg.dcm").read_text() == "of somebody else"
    assert predict(model, tmp_path / "p", out, "--overwrite").exit_code == 0
    first = dcmread(out / "p.seg.dcm").SOPInstanceUID
    assert predict(model, tmp_path / "p", out, "--overwrite").exit_code == 0
    assert dcmread(out / "p.seg.dcm").SOPInstanceUID == first


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_where_there_can_be_none_one_line_says_so_and_the_nifti_stands(
    keyword: str, model: Path, tmp_path: Path
) -> None:
    study = {name: value for name, value in STUDY.items() if name != keyword}
    for case in ("a", "b"):
        save_series(tmp_path / "in" / case, [(1, 2, 3 * k) for k in range(3)], **study)
    result = predict(model, tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0
    assert result.output.count(f"states no {keyword}") == 1
    assert "1 more" in result.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.nii.gz", "b.nii.gz", "predictions.csv"}


def test_slices_without_a_grid_have_one_each(model: Path, tmp_path: Path) -> None:
    save_series(tmp_path / "p", [(0, 0, z) for z in (0, 2, 7)], **STUDY)
    assert predict(model, tmp_path / "p", tmp_path / "out").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.seg.dcm"))
    assert names == ["IM0000.seg.dcm", "IM0001.seg.dcm", "IM0002.seg.dcm"]
    series = {dcmread(tmp_path / "out" / name).SeriesInstanceUID for name in names}
    assert len(series) == 1


def test_the_scans_that_pydicom_is_tested_with(model: Path, tmp_path: Path) -> None:
    """A CT, an MR and 30 frames of ultrasound in colour, which have no frame of reference."""
    names = ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm")
    for name in names:
        source = Path(str(get_testdata_file(name)))
        result = predict(model, source, tmp_path / name)
        assert result.exit_code == 0, result.output
        written = sorted((tmp_path / name).glob("*.seg.dcm"))
        assert len(written) == (30 if "ybr" in name else 1)
        for path in written[:2]:
            seg, scan = dcmread(path), dcmread(source, stop_before_pixels=True)
            assert (seg.PatientID, seg.StudyInstanceUID) == (scan.PatientID, scan.StudyInstanceUID)
            assert seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
                scan.SOPInstanceUID
            )


def test_the_layout_of_chaos(model: Path, tmp_path: Path) -> None:
    """Its series as the contract tests make them, with the names of study, series and space that real ones have."""
    chaos_ct(tmp_path / "in")
    for path in tmp_path.glob("in/**/*.dcm"):
        scan = dcmread(path)
        case = path.parent.parent.name
        for number, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"), start=1):
            setattr(scan, keyword, f"1.2.{number}.{len(case)}.{sum(case.encode())}")
        scan.save_as(path)
    result = predict(model, tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.output
    items = find_items([tmp_path / "in"], results=tmp_path / "out").items
    scans = [item for item in items if item.slices]
    assert any(item.kind == "series" for item in scans)
    for item in scans:
        seg = dcmread(tmp_path / "out" / f"{item.name}.seg.dcm")
        assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(item.slices)


def write_data(root: Path, codes: Any = None) -> Path:
    save_series(root / "images" / "p", [(1, 2, 3 * k) for k in range(3)], **STUDY)
    stated: dict[str, Any] = {"classes": ["liver"], **({} if codes is None else {"codes": codes})}
    (root / "dataset.yaml").write_text(json.dumps(stated))  # JSON is YAML
    return root


def digest(root: Path, classes: Sequence[str] | None = None) -> str:
    dataset = open_dataset(root, "dicom", LayoutOptions(classes=tuple(classes) if classes else None))
    return dataset_digest(dataset, KnownDigests(root / "hashes.json"))


def test_codes_come_from_dataset_yaml_and_rename_no_data_set_without_them(tmp_path: Path) -> None:
    root = write_data(tmp_path / "a")
    plain = digest(root)
    assert not open_dataset(root, "dicom").codes
    (root / "dataset.yaml").write_text(json.dumps({"classes": ["liver"], "codes": {"liver": LIVER}}))
    assert open_dataset(root, "dicom").codes["liver"].type.meaning == "Liver"
    assert digest(root) != plain
    (root / "dataset.yaml").write_text(json.dumps({"classes": ["liver"], "codes": {}}))
    assert digest(root) == plain


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        ({"spleen": [78961009, "SCT", "Spleen"]}, "codes names 'spleen', which is no class here"),
        ({"liver": [10200014, "SCT", "Liver"]}, "check digit is wrong"),
        (["liver"], "must map classes to codes"),
    ],
)
def test_codes_that_are_none_are_named(codes: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.yaml") as caught:
        open_dataset(write_data(tmp_path / "a", codes), "dicom")
    assert problem in str(caught.value)


def test_a_bundle_whose_codes_are_none_is_refused(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((tmp_path / "model.json").read_text()) | {"codes": {"liver": [1, "SCT", "Liver"]}}
    write_json(tmp_path / "model.json", described)
    write_sums(tmp_path)
    with pytest.raises(UserError, match="not the description of a bundle"):
        open_bundle(tmp_path)
